//! Pointers: where a block or node is, when it was born, and what it must hash to.
use crate::units::{Address, Record};

const ADDRESS_BITS: u32 = 44;
const BIRTH_LOW_BITS: u32 = 12;
const ADDRESS_MASK: u64 = (1 << ADDRESS_BITS) - 1;
const BIRTH_MAX: u64 = (1 << 44) - 1;

/// A pointer as stored: 16 bytes. All zero is a hole.
///
/// Word 0: address (bits 0-43), flags (44-51), low 12 bits of the birth (52-63).
/// Word 1: high 32 bits of the birth (0-31), CRC-32 of the content (32-63).
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Packed(pub(crate) u64, pub(crate) u64);

impl Packed {
    pub(crate) const HOLE: Self = Self(0, 0);

    pub(crate) fn new(address: Address, flags: u8, birth: Record, crc: u32) -> Self {
        assert!(address.0 <= ADDRESS_MASK, "{address} has more than 44 bits");
        assert!(birth.0 <= BIRTH_MAX, "{birth} has more than 44 bits");
        let low = birth.0 & ((1 << BIRTH_LOW_BITS) - 1);
        Self(
            address.0 | u64::from(flags) << ADDRESS_BITS | low << 52,
            birth.0 >> BIRTH_LOW_BITS | u64::from(crc) << 32,
        )
    }

    pub(crate) fn is_hole(self) -> bool {
        self == Self::HOLE
    }

    pub(crate) fn address(self) -> Address {
        Address(self.0 & ADDRESS_MASK)
    }

    pub(crate) fn flags(self) -> u8 {
        u8::try_from(self.0 >> ADDRESS_BITS & 0xff).unwrap_or_default()
    }

    pub(crate) fn birth(self) -> Record {
        Record(self.0 >> 52 | (self.1 & 0xffff_ffff) << BIRTH_LOW_BITS)
    }

    pub(crate) fn crc(self) -> u32 {
        u32::try_from(self.1 >> 32).unwrap_or_default()
    }
}

impl std::fmt::Debug for Packed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.is_hole() {
            return f.write_str("hole");
        }
        write!(
            f,
            "{} of {} crc {:08x}",
            self.address(),
            self.birth(),
            self.crc()
        )
    }
}

/// A pointer to a mapping node. Nodes above the leaves are kept twice; a leaf's twin is zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct NodeRef {
    pub(crate) address: Address,
    pub(crate) twin: Address,
    pub(crate) birth: Record,
    pub(crate) crc: u32,
    pub(crate) level: u8,
    /// Data blocks mapped below.
    pub(crate) count: u64,
}

impl NodeRef {
    /// A leaf's pointer takes one slot and keeps its count in the flags.
    pub(crate) fn leaf_slot(self) -> Packed {
        let count = u8::try_from(self.count);
        assert!(
            count.is_ok() && self.level == 0,
            "a leaf counts {} blocks",
            self.count
        );
        Packed::new(
            self.address,
            count.unwrap_or_default(),
            self.birth,
            self.crc,
        )
    }

    /// A higher node's pointer takes two slots; the second keeps the twin, and the count in the
    /// place of the birth.
    pub(crate) fn pair_slots(self) -> [Packed; 2] {
        [
            Packed::new(self.address, 0, self.birth, self.crc),
            Packed::new(self.twin, 0, Record(self.count), self.crc),
        ]
    }

    pub(crate) fn from_leaf_slot(slot: Packed) -> Option<Self> {
        (!slot.is_hole()).then(|| Self {
            address: slot.address(),
            twin: Address(0),
            birth: slot.birth(),
            crc: slot.crc(),
            level: 0,
            count: u64::from(slot.flags()),
        })
    }

    pub(crate) fn from_pair_slots(level: u8, first: Packed, second: Packed) -> Option<Self> {
        (!first.is_hole()).then(|| Self {
            address: first.address(),
            twin: second.address(),
            birth: first.birth(),
            crc: first.crc(),
            level,
            count: second.birth().0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_survives_packing_at_its_extremes() {
        for address in [1, 0x5a5_a5a5_a5a5, ADDRESS_MASK] {
            for birth in [0, 1, 0xfff, 0x1000, 0xa5a_5a5a_5a5a, BIRTH_MAX] {
                for (flags, crc) in [(0, 0), (255, u32::MAX), (0x81, 0x8000_0001)] {
                    let packed = Packed::new(Address(address), flags, Record(birth), crc);
                    assert_eq!(packed.address(), Address(address));
                    assert_eq!(packed.birth(), Record(birth));
                    assert_eq!((packed.flags(), packed.crc()), (flags, crc));
                }
            }
        }
    }
}

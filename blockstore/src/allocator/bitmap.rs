//! A region's bitmap: a bit for each block, set if it is not to be allocated.
#![deny(clippy::arithmetic_side_effects)]

use std::ops::Range;

/// Bits in a word.
const WORD: u32 = 64;

/// So many bits, a multiple of 64.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bitmap(Vec<u64>);

impl Bitmap {
    pub(crate) fn new(bits: u32) -> Self {
        Self(vec![0; bits.div_ceil(WORD) as usize])
    }

    /// Of little-endian bytes, as stored.
    pub(crate) fn from_bytes(bytes: &[u8], bits: u32) -> Self {
        let words = bytes
            .as_chunks::<8>()
            .0
            .iter()
            .map(|word| u64::from_le_bytes(*word));
        Self(words.take(bits.div_ceil(WORD) as usize).collect())
    }

    /// Little-endian bytes, padded with zeroes to `length`.
    pub(crate) fn to_bytes(&self, length: usize) -> Vec<u8> {
        let mut out: Vec<u8> = self.0.iter().flat_map(|word| word.to_le_bytes()).collect();
        assert!(
            out.len() <= length,
            "a bitmap of {} bytes in {length}",
            out.len()
        );
        out.resize(length, 0);
        out
    }

    pub(crate) fn bits(&self) -> u32 {
        u32::try_from(self.0.len())
            .unwrap_or(u32::MAX)
            .saturating_mul(WORD)
    }

    pub(crate) fn get(&self, bit: u32) -> bool {
        self.0[(bit / WORD) as usize] >> (bit % WORD) & 1 == 1
    }

    /// Sets a range; every bit must be clear.
    pub(crate) fn set(&mut self, range: Range<u32>) {
        self.each_word(range, |word, mask| {
            assert!(
                *word & mask == 0,
                "bits {mask:x} of {word:x} are set already"
            );
            *word |= mask;
        });
    }

    /// Sets a range, whatever it was.
    pub(crate) fn cover(&mut self, range: Range<u32>) {
        self.each_word(range, |word, mask| *word |= mask);
    }

    /// Clears a range; every bit must be set.
    pub(crate) fn clear(&mut self, range: Range<u32>) {
        self.each_word(range, |word, mask| {
            assert!(
                *word & mask == mask,
                "bits {mask:x} of {word:x} are clear already"
            );
            *word &= !mask;
        });
    }

    fn each_word(&mut self, range: Range<u32>, mut change: impl FnMut(&mut u64, u64)) {
        let mut bit = range.start;
        while bit < range.end {
            let within = bit % WORD;
            let count = WORD
                .saturating_sub(within)
                .min(range.end.saturating_sub(bit));
            let ones = u64::MAX >> WORD.saturating_sub(count);
            change(&mut self.0[(bit / WORD) as usize], ones << within);
            bit = bit.saturating_add(count);
        }
    }

    /// Bits set.
    pub(crate) fn count(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }

    /// The first run of clear bits at or after `from`, cut at `most`.
    pub(crate) fn clear_run(&self, from: u32, most: u32) -> Option<Range<u32>> {
        let start = self.next(from, false)?;
        let limit = start.saturating_add(most).min(self.bits());
        let end = self.next(start, true).unwrap_or(limit).min(limit);
        Some(start..end)
    }

    /// The first bit at or after `from` that is `value`.
    fn next(&self, from: u32, value: bool) -> Option<u32> {
        let flip = if value { 0 } else { u64::MAX };
        let mut index = (from / WORD) as usize;
        let mut word = (self.0.get(index)? ^ flip) & (u64::MAX << (from % WORD));
        while word == 0 {
            index = index.saturating_add(1);
            word = self.0.get(index)? ^ flip;
        }
        let base = u32::try_from(index)
            .unwrap_or(u32::MAX)
            .saturating_mul(WORD);
        Some(base.saturating_add(word.trailing_zeros()))
    }

    /// Runs of set bits.
    pub(crate) fn set_runs(&self) -> impl Iterator<Item = Range<u32>> + '_ {
        let mut from = 0;
        std::iter::from_fn(move || {
            let start = self.next(from, true)?;
            let end = self.next(start, false).unwrap_or_else(|| self.bits());
            from = end;
            Some(start..end)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_found_across_words_and_cut_at_the_limit() {
        let mut bitmap = Bitmap::new(256);
        bitmap.set(3..70);
        bitmap.set(128..256);
        assert_eq!(bitmap.clear_run(0, 100), Some(0..3));
        assert_eq!(bitmap.clear_run(3, 100), Some(70..128));
        assert_eq!(bitmap.clear_run(3, 5), Some(70..75));
        assert_eq!(bitmap.clear_run(128, 5), None);
        assert_eq!(bitmap.count(), 67 + 128);
        bitmap.clear(60..70);
        assert_eq!(bitmap.clear_run(10, 1000), Some(60..128));
        assert_eq!(bitmap.set_runs().collect::<Vec<_>>(), [3..60, 128..256]);
        let copy = Bitmap::from_bytes(&bitmap.to_bytes(4096), 256);
        assert_eq!(copy, bitmap);
    }

    #[test]
    #[should_panic(expected = "set already")]
    fn setting_twice_is_a_broken_invariant() {
        let mut bitmap = Bitmap::new(64);
        bitmap.set(5..6);
        bitmap.set(0..64);
    }
}

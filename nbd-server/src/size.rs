//! Sizes as people write them: `10G`, `1.5TiB`, `4096`.
use blockstore::BLOCK_BYTES;
use std::fmt;
use std::str::FromStr;

/// The unit letters, each 1024 times the one before, starting at 1024 bytes.
const UNITS: &str = "KMGTPE";

/// A number of bytes, at least one. Parsed from bytes or from a number with one of `K M G T P E`
/// (powers of 1024, either case) with or without `iB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

/// Why a text is not a size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// Nothing was written.
    #[error("a size is missing; write for example 10G")]
    Empty,
    /// It begins with a minus.
    #[error("size {0:?} is negative")]
    Negative(String),
    /// Nothing can have zero bytes.
    #[error("size {0:?} is zero")]
    Zero(String),
    /// More than 2^64 - 1 bytes.
    #[error("size {0:?} is too large: the largest is 16E less one byte")]
    Overflow(String),
    /// Not a decimal number, or a fraction of a byte.
    #[error("size {0:?} is not a number of bytes; write for example 4096, 10G or 1.5T")]
    Number(String),
    /// The letters after the number are no unit.
    #[error(
        "size {size:?} has the unknown unit {unit:?}; write K, M, G, T, P or E, or KiB, MiB, …"
    )]
    Unit {
        /// All of it.
        size: String,
        /// The part that is no unit.
        unit: String,
    },
}

impl FromStr for Size {
    type Err = SizeError;

    /// Parses a size. A fraction that is no whole number of bytes is rounded down, to a multiple
    /// of 4 KiB if there is one, so that `1.3T` can be the size of a volume.
    fn from_str(text: &str) -> Result<Self, SizeError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(SizeError::Empty);
        }
        if text.starts_with(['-', '\u{2212}']) {
            return Err(SizeError::Negative(text.into()));
        }
        let end = text
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(text.len());
        let (number, unit) = text.split_at(end);
        if number.is_empty() {
            return Err(SizeError::Number(text.into()));
        }
        let scale = scale(unit.trim_start()).ok_or_else(|| SizeError::Unit {
            size: text.into(),
            unit: unit.trim_start().into(),
        })?;
        let bytes = match number.split_once('.') {
            None => whole(number, text)?.checked_mul(scale),
            Some((whole_part, fraction)) => {
                let (bytes, exact) = fraction_of(fraction, scale, text)?;
                let sum = whole(whole_part, text)?.checked_mul(scale);
                let sum = sum.and_then(|whole| whole.checked_add(bytes));
                sum.map(|sum| {
                    if exact || sum < BLOCK_BYTES {
                        sum
                    } else {
                        sum - sum % BLOCK_BYTES
                    }
                })
            }
        };
        match bytes {
            None => Err(SizeError::Overflow(text.into())),
            Some(0) => Err(SizeError::Zero(text.into())),
            Some(bytes) => Ok(Self(bytes)),
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&human(self.0))
    }
}

/// A number of bytes for people: `512 B`, `10 GiB`, `1.5 TiB`; one decimal, rounded down.
pub fn human(bytes: u64) -> String {
    let Some(power) = bytes
        .checked_ilog2()
        .map(|log| log / 10)
        .filter(|power| *power > 0)
    else {
        return format!("{bytes} B");
    };
    let unit = UNITS.chars().nth(power as usize - 1).unwrap_or('E');
    let scale = 1u64 << (10 * power);
    let tenths = u128::from(bytes % scale) * 10 / u128::from(scale);
    match tenths {
        0 => format!("{} {unit}iB", bytes / scale),
        _ => format!("{}.{tenths} {unit}iB", bytes / scale),
    }
}

/// Bytes in one `unit`, or `None` if it is not a unit.
fn scale(unit: &str) -> Option<u64> {
    let mut letters = unit.chars();
    let Some(letter) = letters.next().map(|c| c.to_ascii_uppercase()) else {
        return Some(1);
    };
    let rest = letters.as_str();
    if letter == 'B' && rest.is_empty() {
        return Some(1);
    }
    let power = UNITS.find(letter)? + 1;
    let known = rest.is_empty() || rest.eq_ignore_ascii_case("ib");
    known.then(|| 1u64 << (10 * power))
}

/// The digits of `number` as a number; `text` is what to name in an error.
fn whole(number: &str, text: &str) -> Result<u64, SizeError> {
    if number.is_empty() || !number.bytes().all(|b| b.is_ascii_digit()) {
        return Err(SizeError::Number(text.into()));
    }
    number.parse().map_err(|_| SizeError::Overflow(text.into()))
}

/// Bytes in `0.{digits}` of `scale` bytes, rounded down, and whether that lost nothing.
fn fraction_of(digits: &str, scale: u64, text: &str) -> Result<(u64, bool), SizeError> {
    if scale == 1 || digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(SizeError::Number(text.into()));
    }
    // 18 digits keep 10^18 * 2^60 inside u128; digits beyond them are less than two bytes.
    let kept = &digits[..digits.len().min(18)];
    let denominator = kept.bytes().fold(1u128, |product, _| product * 10);
    let numerator = kept
        .bytes()
        .fold(0u128, |sum, b| sum * 10 + u128::from(b - b'0'));
    let product = numerator * u128::from(scale);
    // Less than `scale`, so it fits.
    let bytes =
        u64::try_from(product / denominator).map_err(|_| SizeError::Overflow(text.into()))?;
    Ok((
        bytes,
        product % denominator == 0 && kept.len() == digits.len(),
    ))
}

/// Fuzz body: any text is a size or an error; a size survives being written and read again.
pub fn fuzz_size(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let Ok(Size(bytes)) = text.parse() else {
        return;
    };
    assert!(bytes > 0, "{text:?} was read as zero");
    assert_eq!(
        bytes.to_string().parse(),
        Ok(Size(bytes)),
        "{text:?} as bytes"
    );
    let shown = human(bytes);
    let Size(back) = shown.parse().unwrap_or(Size(0));
    // Rounded down by less than a tenth of a unit, then perhaps by a block.
    assert!(
        back <= bytes && bytes - back <= bytes / 10 + 4096,
        "{bytes} was shown as {shown}"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<u64, SizeError> {
        text.parse().map(|Size(bytes)| bytes)
    }

    #[test]
    fn bytes_and_every_unit_are_read() {
        assert_eq!(parse("1"), Ok(1));
        assert_eq!(parse("4096"), Ok(4096));
        assert_eq!(parse("512B"), Ok(512));
        for (power, unit) in (1..).zip(UNITS.chars()) {
            let bytes = 1u64 << (10 * power);
            for text in [
                format!("1{unit}"),
                format!("1{unit}iB"),
                format!("1 {unit}iB"),
            ] {
                assert_eq!(parse(&text), Ok(bytes), "{text}");
                assert_eq!(
                    parse(&text.to_lowercase()),
                    Ok(bytes),
                    "{text} in lower case"
                );
            }
        }
        assert_eq!(parse(&u64::MAX.to_string()), Ok(u64::MAX));
    }

    #[test]
    fn fractions_are_exact_or_rounded_down_to_a_block() {
        assert_eq!(parse("1.5G"), Ok(3 << 29));
        assert_eq!(parse("0.5K"), Ok(512));
        assert_eq!(parse("4.5k"), Ok(4608));
        assert_eq!(parse("0.3K"), Ok(307));
        let size = parse("1.3T").unwrap();
        assert_eq!(size % 4096, 0);
        assert!(size <= 1_429_365_116_108 && size > 1_429_365_116_108 - 4096);
        assert_eq!(parse("15.999999999999999999999999E").unwrap() >> 60, 15);
    }

    #[test]
    fn what_is_no_size_says_why() {
        assert_eq!(parse(""), Err(SizeError::Empty));
        assert_eq!(parse("-1G"), Err(SizeError::Negative("-1G".into())));
        for zero in ["0", "0G", "0.0T", "0.0000000000001M"] {
            assert_eq!(parse(zero), Err(SizeError::Zero(zero.into())), "{zero}");
        }
        for large in [
            "16E",
            "18446744073709551616",
            "99999999999999999999T",
            "16.5E",
        ] {
            assert_eq!(
                parse(large),
                Err(SizeError::Overflow(large.into())),
                "{large}"
            );
        }
        for junk in ["G", "1.2.3G", "1.G", ".5G", ".", "1.5", "0x10", "+1", "ten"] {
            assert!(parse(junk).is_err(), "{junk}");
        }
        for unit in ["1GB", "1X", "1Gi", "1G1", "1 G x", "1BiB"] {
            assert!(matches!(parse(unit), Err(SizeError::Unit { .. })), "{unit}");
        }
    }

    #[test]
    fn sizes_are_shown_short_and_never_too_large() {
        for (bytes, shown) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            ((1 << 20) - 1, "1023.9 KiB"),
            (10 << 30, "10 GiB"),
            (3 << 39, "1.5 TiB"),
            (u64::MAX, "15.9 EiB"),
        ] {
            assert_eq!(human(bytes), shown);
        }
    }

    #[test]
    fn random_texts_keep_the_fuzz_promise() {
        let alphabet = b"0123456789..KMGTPEkmgtpeiB -x";
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        for _ in 0..20_000 {
            let mut text = Vec::new();
            for _ in 0..12 {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                text.push(alphabet[usize::try_from(state % 29).unwrap()]);
                fuzz_size(&text);
            }
        }
    }
}

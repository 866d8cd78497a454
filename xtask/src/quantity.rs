//! Amounts as people write them: `256 MiB`, `90 s`.

use anyhow::bail;

use crate::system::tables::SizeValue;

/// A size in bytes as in system.toml, or shorter as the emulator has it: `1G`.
pub(crate) fn bytes(text: &str) -> anyhow::Result<u64> {
    let spelled_out = format!("{text}iB");
    match SizeValue::parse(text).or_else(|| SizeValue::parse(&spelled_out)) {
        Some(SizeValue(bytes)) if bytes > 0 => Ok(bytes),
        _ => bail!("`{text}` is not a size: write a whole number and KiB, MiB or GiB, as in \"512 MiB\""),
    }
}

/// A time: a whole number of milliseconds (`ms`), seconds (`s`) or minutes (`min`).
pub(crate) fn duration(text: &str) -> anyhow::Result<std::time::Duration> {
    let milliseconds = match split(text) {
        Some((number, "ms")) => Some(number),
        Some((number, "s")) => number.checked_mul(1000),
        Some((number, "min")) => number.checked_mul(60_000),
        _ => None,
    };
    match milliseconds {
        Some(milliseconds @ 1..=86_400_000) => Ok(std::time::Duration::from_millis(milliseconds)),
        _ => bail!("`{text}` is no time: write it like \"90 s\", \"5 min\" or \"1500 ms\", at most a day"),
    }
}

fn split(text: &str) -> Option<(u64, &str)> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit())?;
    Some((text[..end].parse().ok()?, text[end..].trim_start()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_a_unit_and_fit() {
        assert_eq!(bytes("1 GiB").unwrap(), 1 << 30);
        assert_eq!(bytes("64MiB").unwrap(), 64 << 20);
        assert_eq!(bytes("512M").unwrap(), 512 << 20);
        for wrong in ["", "1", "GiB", "-1 GiB", "1 GB", "0 MiB", "99999999999 GiB", "1.5 GiB"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn times_have_a_unit_and_an_end() {
        assert_eq!(duration("120 s").unwrap().as_secs(), 120);
        assert_eq!(duration("2 min").unwrap().as_secs(), 120);
        assert_eq!(duration("1500 ms").unwrap().as_millis(), 1500);
        for wrong in ["", "5", "0 s", "1 h", "99999999999999999999 s", "10000000000000 min"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}

//! Amounts of memory and disk as users write them.

use dewar_protocol::Mib;

/// Why a text is no amount.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no amount of memory or disk: write a whole number and M or G, such as 64M or 1G")]
pub struct InvalidSize {
    text: String,
}

/// Reads `64M`, `64MB`, `1G` or `1GB` (case does not matter; `M` is mebibytes as everywhere in the protocol).
///
/// # Errors
/// When the text is anything else, zero, or more than 1 TiB.
pub fn parse_size(text: &str) -> Result<Mib, InvalidSize> {
    let invalid = || InvalidSize { text: text.to_owned() };
    let upper = text.trim().to_ascii_uppercase();
    let amount = upper.strip_suffix('B').unwrap_or(&upper);
    let (digits, factor) = match (amount.strip_suffix('M'), amount.strip_suffix('G')) {
        (Some(digits), _) => (digits, 1),
        (_, Some(digits)) => (digits, 1024),
        (None, None) => return Err(invalid()),
    };
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(invalid());
    }
    let mib = digits.parse::<i64>().ok().and_then(|n| n.checked_mul(factor)).ok_or_else(invalid)?;
    if (1..=1 << 20).contains(&mib) { Ok(Mib(mib)) } else { Err(invalid()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts() {
        for (text, mib) in [("64M", 64), ("64mb", 64), ("1G", 1024), ("2gb", 2048), (" 16M ", 16), ("1024G", 1 << 20)] {
            assert_eq!(parse_size(text), Ok(Mib(mib)), "{text}");
        }
    }

    #[test]
    fn refused() {
        for text in
            ["", "64", "M", "B", "0M", "-1M", "+1M", "1.5G", "64K", "64 M", "1025G", "99999999999999999999M", "9223372036854775807G", "１M"]
        {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }
}

//! Fresh identifiers, drawn from the operating system's randomness.

use rand::TryRng;
use rand::rngs::SysRng;

/// 32 lower-case hex digits.
pub(crate) fn random_hex() -> std::io::Result<String> {
    let mut bytes = [0; 16];
    SysRng.try_fill_bytes(&mut bytes).map_err(std::io::Error::other)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// A version 4 UUID with hyphens, as Cloud Controllers name apps and their versions.
pub(crate) fn random_uuid() -> std::io::Result<String> {
    let hex = random_hex()?;
    // Version 4; the variant's two bits leave 8, 9, a or b.
    let variant = match hex.as_bytes()[16] {
        b'0'..=b'3' => '8',
        b'4'..=b'7' => '9',
        b'8' | b'9' | b'a' | b'b' => 'a',
        _ => 'b',
    };
    Ok(format!("{}-{}-4{}-{variant}{}-{}", &hex[..8], &hex[8..12], &hex[13..16], &hex[17..20], &hex[20..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuids_have_the_form_of_version_4_and_differ() {
        let (one, two) = (random_uuid().unwrap(), random_uuid().unwrap());
        assert_ne!(one, two);
        let groups: Vec<usize> = one.split('-').map(str::len).collect();
        assert_eq!(groups, [8, 4, 4, 4, 12]);
        assert_eq!(one.as_bytes()[14], b'4');
        assert!(b"89ab".contains(&one.as_bytes()[19]), "{one}");
        assert!(one.bytes().all(|b| b == b'-' || b.is_ascii_hexdigit()));
    }
}

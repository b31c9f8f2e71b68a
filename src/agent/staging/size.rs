//! Sizes as `du -h` shows them, for the log.

use std::fmt;

/// Rounded up to one decimal below ten, to whole numbers above, in powers of 1024.
#[derive(Debug, Clone, Copy)]
pub(super) struct Size(pub(super) u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 < 1024 {
            return write!(f, "{}", self.0);
        }
        let mut unit = 1024;
        let mut letters = "KMGTPE".chars();
        let mut letter = letters.next().unwrap_or('K');
        while self.0.div_ceil(unit) >= 1024 {
            let Some(larger) = letters.next() else { break };
            (unit, letter) = (unit * 1024, larger);
        }
        let tenths = u128::from(self.0) * 10;
        let tenths = tenths.div_ceil(u128::from(unit));
        if tenths < 100 { write!(f, "{}.{}{letter}", tenths / 10, tenths % 10) } else { write!(f, "{}{letter}", self.0.div_ceil(unit)) }
    }
}

#[cfg(test)]
mod tests {
    use super::Size;

    #[test]
    fn sizes_look_as_du_shows_them() {
        let shown = |bytes| Size(bytes).to_string();
        assert_eq!(["0", "1023", "1.0K"], [shown(0), shown(1023), shown(1024)].each_ref().map(String::as_str));
        assert_eq!(["1.1K", "10K", "11K"], [shown(1025), shown(10 * 1024), shown(10 * 1024 + 1)].each_ref().map(String::as_str));
        assert_eq!(["1.0M", "1.2M", "4.0G"], [shown(1024 * 1024 - 1), shown(1_200_000), shown(4 << 30)].each_ref().map(String::as_str));
        assert_eq!("16E", shown(u64::MAX));
    }
}

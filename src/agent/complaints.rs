//! How often the log tells of what others got wrong: whoever can send a message must not be able to fill a disk with lines about it.

use std::fmt::{self, Write as _};

use tokio::time::Instant;

/// How many complaints may follow each other at once.
const AT_ONCE: u32 = 20;

/// Bytes of one complaint; it may repeat a name that somebody else has chosen.
const LONGEST: usize = 400;

/// Lets [`AT_ONCE`] complaints pass at once and one a second after that; those in between are counted and their number told with the
/// next.
#[derive(Debug)]
pub(crate) struct Complaints {
    left: u32,
    refilled: Instant,
    suppressed: u64,
}

/// Leave to complain.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Complaint {
    /// About what, in no more than [`LONGEST`] bytes.
    pub(crate) cause: String,
    /// How many others there have been since the last one that was told.
    pub(crate) suppressed: u64,
}

impl Complaints {
    pub(crate) fn new() -> Self {
        Self { left: AT_ONCE, refilled: Instant::now(), suppressed: 0 }
    }

    /// What is to be told of this cause, if anything is to be told now.
    pub(crate) fn about(&mut self, cause: &impl fmt::Display) -> Option<Complaint> {
        let seconds = self.refilled.elapsed().as_secs();
        if seconds > 0 {
            self.left = self.left.saturating_add(u32::try_from(seconds).unwrap_or(AT_ONCE)).min(AT_ONCE);
            self.refilled = Instant::now();
        }
        if self.left == 0 {
            self.suppressed += 1;
            return None;
        }
        self.left -= 1;
        Some(Complaint { cause: shortened(cause), suppressed: std::mem::take(&mut self.suppressed) })
    }
}

fn shortened(cause: &impl fmt::Display) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = write!(text, "{cause}");
    if text.len() > LONGEST {
        text.truncate(text.floor_char_boundary(LONGEST - '…'.len_utf8()));
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_at_once_and_the_rest_is_counted() {
        let mut complaints = Complaints::new();
        let told = (0..10_000).filter_map(|_| complaints.about(&"no")).count();
        // A few more than the burst where the loop takes seconds.
        assert!((20..30).contains(&told), "{told}");
        complaints.refilled -= std::time::Duration::from_secs(1);
        let later: u64 = complaints.about(&"no").into_iter().map(|complaint| complaint.suppressed).sum();
        assert!(later > 9_000, "{later}");
    }

    #[test]
    fn a_long_cause_is_cut() {
        let told = Complaints::new().about(&"ü".repeat(1 << 20)).unwrap();
        assert!(told.cause.len() <= LONGEST && told.cause.ends_with("ü…"), "{}", told.cause);
    }
}

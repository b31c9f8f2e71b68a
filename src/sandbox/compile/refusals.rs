//! Components that took too much, so that they are not tried again at once.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::ProgramError;

/// How long a refusal stands. After that the host may have more time for it.
const STANDS: Duration = Duration::from_secs(600);
/// Refusals remembered; the oldest is forgotten for one more.
const REMEMBERED: usize = 256;

/// The latest refusals, oldest first.
#[derive(Default)]
pub(super) struct Refusals(Mutex<VecDeque<Refusal>>);

struct Refusal {
    name: String,
    since: Instant,
    error: ProgramError,
}

impl Refusals {
    /// # Errors
    /// When a component of this name took too much a while ago: what was said then.
    pub(super) fn check(&self, name: &str) -> Result<(), ProgramError> {
        let refusals = self.lock();
        let standing = refusals.iter().find(|refusal| refusal.name == name && refusal.since.elapsed() < STANDS);
        standing.map_or(Ok(()), |refusal| Err(refusal.error.clone()))
    }

    /// Remembers an error that would come again at the same price. What costs little to find out is not remembered.
    pub(super) fn note(&self, name: &str, error: &ProgramError) {
        if !matches!(error, ProgramError::TooCostly(_) | ProgramError::TooSlow(_)) {
            return;
        }
        let mut refusals = self.lock();
        refusals.retain(|refusal| refusal.name != name);
        if refusals.len() >= REMEMBERED {
            refusals.pop_front();
        }
        refusals.push_back(Refusal { name: name.to_owned(), since: Instant::now(), error: error.clone() });
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Refusal>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_took_too_much_is_remembered_within_bounds() {
        let refusals = Refusals::default();
        refusals.note("broken", &ProgramError::Invalid("bad magic".into()));
        assert!(refusals.check("broken").is_ok());
        for number in 0..=REMEMBERED {
            refusals.note(&number.to_string(), &ProgramError::TooSlow(Duration::from_secs(1)));
        }
        assert!(refusals.check("0").is_ok(), "the oldest is forgotten");
        assert!(matches!(refusals.check("1"), Err(ProgramError::TooSlow(_))));
        assert_eq!(refusals.lock().len(), REMEMBERED);
        for refusal in refusals.lock().iter_mut() {
            refusal.since = refusal.since.checked_sub(STANDS).unwrap();
        }
        assert!(refusals.check("1").is_ok(), "it does not stand for ever");
    }
}

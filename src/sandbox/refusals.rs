//! What a quota has refused, told to the app's developer.
//!
//! A guest that meets a full disk gets an error and goes on, often without a word. So the first refusal is a line in the app's
//! log, and so is one in every [`PAUSE`] as long as there are more.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use dewar_protocol::LogStream;

use crate::output::Log;

/// Least time between two lines.
const PAUSE: Duration = Duration::from_secs(60);

/// The refusals of one quota of one instance.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    count: AtomicU64,
    log: OnceLock<Arc<Log>>,
    told: Mutex<Option<Instant>>,
}

impl Refusals {
    /// Where to tell of them. The first call counts; before it nothing is told.
    pub(crate) fn tell(&self, log: Arc<Log>) {
        self.log.get_or_init(|| log);
    }

    /// How many there have been.
    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// One more, in words.
    pub(crate) fn add(&self, text: impl FnOnce() -> String) {
        let count = self.count.fetch_add(1, Ordering::Relaxed) + 1;
        let Some(log) = self.log.get() else { return };
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.is_none_or(|told| told.elapsed() >= PAUSE) {
            *told = Some(Instant::now());
            drop(told);
            let so_far = if count == 1 { String::new() } else { format!("; refused {count} times so far") };
            log.line(LogStream::Err, &format!("[{}{so_far}]", text()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::OutputSink;
    use crate::output::tests::Kept;

    #[test]
    fn the_first_is_told_and_all_are_counted() {
        let kept = Arc::new(Kept::default());
        let refusals = Refusals::default();
        refusals.add(|| unreachable!("nobody listens yet"));
        refusals.tell(Log::new(kept.clone() as OutputSink));
        for _ in 0..100 {
            refusals.add(|| "disk quota reached".into());
        }
        assert_eq!(*kept.0.lock().unwrap(), ["[disk quota reached; refused 2 times so far]"]);
        assert_eq!(refusals.count(), 101);
    }

    #[test]
    fn it_is_told_again_after_a_while() {
        let kept = Arc::new(Kept::default());
        let refusals = Refusals::default();
        refusals.tell(Log::new(kept.clone() as OutputSink));
        refusals.add(|| "handles used up".into());
        *refusals.told.lock().unwrap() = Instant::now().checked_sub(PAUSE);
        refusals.add(|| "handles used up".into());
        assert_eq!(*kept.0.lock().unwrap(), ["[handles used up]", "[handles used up; refused 2 times so far]"]);
    }
}

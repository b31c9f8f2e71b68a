//! How much of the servers one instance, or one staging task, may have: its readers must leave something to those of others.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use dewar_protocol::FilesOf;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The same number of permits for everybody who has files.
#[derive(Debug)]
pub(super) struct Shares {
    each: usize,
    /// Of those only who have permits out, so that there are no more of them than connections.
    taken: Mutex<Vec<(FilesOf, Weak<Semaphore>)>>,
}

impl Shares {
    pub(super) fn new(each: usize) -> Self {
        Self { each, taken: Mutex::new(Vec::new()) }
    }

    /// A permit; `None` when all of them are out.
    pub(super) fn take(&self, of: &FilesOf) -> Option<OwnedSemaphorePermit> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        // Permits keep their semaphore alive.
        taken.retain(|(_, share)| share.strong_count() > 0);
        let share = taken.iter().find(|(whose, _)| whose == of).and_then(|(_, share)| share.upgrade());
        let share = share.unwrap_or_else(|| {
            let share = Arc::new(Semaphore::new(self.each));
            taken.push((of.clone(), Arc::downgrade(&share)));
            share
        });
        share.try_acquire_owned().ok()
    }
}

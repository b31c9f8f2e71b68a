//! The handle quota of an instance: open files and directories of all its stores together.
//!
//! WASI has no error for "too many open files"; a guest that opens one more gets `quota` (`EDQUOT`). A stream on a file keeps the
//! file open, and so its handle, until the stream is dropped too.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::output::Log;
use crate::refusals::Refusals;

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Handles {
    limit: u32,
    free: Arc<Semaphore>,
    refusals: Refusals,
}

/// One open file or directory. Cheap to clone; given back with the last clone.
#[derive(Debug, Clone)]
pub(crate) struct Handle {
    _permit: Arc<OwnedSemaphorePermit>,
}

impl Handles {
    pub(crate) fn new(limit: u32, log: Arc<Log>) -> Arc<Self> {
        let refusals = Refusals::default();
        refusals.tell(log);
        Arc::new(Self { limit, free: Arc::new(Semaphore::new(limit as usize)), refusals })
    }

    /// `None` when all are in use.
    pub(crate) fn take(&self) -> Option<Handle> {
        let permit = self.free.clone().try_acquire_owned().ok();
        if permit.is_none() {
            self.refusals.add(|| format!("open files quota reached: {} at a time", self.limit));
        }
        permit.map(|permit| Handle { _permit: Arc::new(permit) })
    }

    /// How many there are.
    pub(crate) fn limit(&self) -> u32 {
        self.limit
    }

    /// How many are in use.
    pub(crate) fn used(&self) -> u32 {
        self.limit - u32::try_from(self.free.available_permits()).unwrap_or(self.limit)
    }
}

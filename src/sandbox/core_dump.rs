//! Core dumps: what a store held when its guest trapped, for the app's developer.
//!
//! Only engines that were told to ([`crate::SandboxConfig::core_dumps`]) have errors carry what a dump is made of. It is bounded in
//! size, in how many are made at a time and how often, so that a request that traps is no means to keep the host busy.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use dewar_protocol::{Bytes, LogStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use wasmtime::{Error, Store, WasmCoreDump};

use crate::guest::Guest;
use crate::limits::Mebibytes;
use crate::output::Log;
use crate::trap;

/// Bytes of the memories of a store, all together; of one that has more there is no dump. While a dump is made the host holds up to
/// four times as much for it, which is charged to nobody.
const MEMORY_BYTES: u64 = 128 << 20;
/// How many are made at a time, of all instances of the process.
pub(crate) const AT_A_TIME: usize = 1;
/// How long an instance waits for its turn, and its end with it. Then it has no dump.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long one instance has no other dump.
const PAUSE: Duration = Duration::from_secs(60);

/// Makes the core dumps of one instance.
pub(crate) struct CoreDumps {
    /// What the dumps say they are of.
    name: String,
    log: Arc<Log>,
    turns: Arc<Semaphore>,
    last: Mutex<Option<Instant>>,
}

impl CoreDumps {
    /// Waits for its turn among all who have the same `turns`.
    pub(crate) fn new(name: String, log: Arc<Log>, turns: Arc<Semaphore>) -> Arc<Self> {
        Arc::new(Self { name, log, turns, last: Mutex::new(None) })
    }

    /// Whether an error is to be followed by [`Self::make`]: it is a trap that carries what is needed, and there was none lately.
    pub(crate) fn is_due(&self, error: &Error) -> bool {
        if error.downcast_ref::<WasmCoreDump>().is_none() || trap::exit_status(error).is_some() {
            return false;
        }
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let due = last.is_none_or(|last| last.elapsed() >= PAUSE);
        if due {
            *last = Some(Instant::now());
        }
        due
    }

    /// Hands on the dump of a store whose call ended in this error, or tells the app's log why there is none. The store is dropped.
    pub(crate) async fn make(self: Arc<Self>, store: Store<Guest>, error: Arc<Error>) {
        let Ok(Ok(turn)) = timeout(PATIENCE, self.turns.clone().acquire_owned()).await else {
            return self.tell_none("others are being made");
        };
        let making = Arc::clone(&self);
        let made = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            making.make_now(store, &error);
        });
        // The engine takes the store to be whole, and a trap may come at a moment when it is not.
        if made.await.is_err() {
            self.tell_none("the sandbox failed");
        }
    }

    fn make_now(&self, mut store: Store<Guest>, error: &Error) {
        let Some(dump) = error.downcast_ref::<WasmCoreDump>() else { return };
        let bytes = dump.memories().iter().map(|memory| memory.data_size(&store) as u64).sum();
        if bytes > MEMORY_BYTES {
            let [bytes, most] = [bytes, MEMORY_BYTES].map(|bytes| Mebibytes(Bytes(bytes)));
            return self.tell_none(&format!("{bytes} of memory, and it may be {most}"));
        }
        let image = dump.serialize(&mut store, &self.name);
        // Others may wait for its memory.
        drop(store);
        self.log.core_dump(&image);
    }

    fn tell_none(&self, why: &str) {
        self.log.line(LogStream::Err, &format!("[no core dump: {why}]"));
    }
}

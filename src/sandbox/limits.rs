//! The memory quota of an instance: one budget over what all its stores hold, in wasm and in the host.
//!
//! What is charged, and when:
//! - a linear memory or a table, when it is made and when it grows, before the guest has it;
//! - [`STORE_BYTES`] and the environment, for as long as a store lives;
//! - [`CALL_BYTES`], while a store answers a request or runs its start-up code;
//! - what the host keeps for a guest's handles ([`crate::held`]), at every tick of the engine's clock while the guest computes, and
//!   when it has answered a request;
//! - data on its way to a file and listings of directories ([`Charge`]), for as long as they are there.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use dewar_protocol::Bytes;
use wasmtime::{Error, ResourceLimiter};

/// Bytes that a table takes for each of its elements.
const TABLE_ELEMENT: u64 = 8;
/// What the host keeps for a store whatever its guest does: the engine's record of it, its table of handles, unfinished lines.
pub(crate) const STORE_BYTES: u64 = 128 << 10;
/// The most that a call into a guest takes of the host, a request and its answer included, in KiB: 512 of native stack, 64 of the
/// request's head, 256 of the answer's, 320 of the answer's body before it is fetched, 256 on their way to the client, and
/// [`HELD_BYTES`].
pub(crate) const CALL_BYTES: u64 = ((512 + 64 + 256 + 320 + 256) << 10) + HELD_BYTES;
/// What a call may have the host hold for handles without being charged again. Stores are made as long as there is memory, so an
/// exchange with a server must not depend on what they have left.
pub(crate) const HELD_BYTES: u64 = 512 << 10;
/// Core instances, tables and memories of one store, far above what real components have.
const INSTANCES: usize = 400;
const TABLES: usize = 200;
const MEMORIES: usize = 64;

/// Gives memory back that nobody needs at the moment.
pub(crate) trait Reclaim: Send + Sync {
    /// Frees something; false when there is nothing to free.
    fn reclaim(&self) -> bool;
}

/// What the stores of one instance may use together.
pub(crate) struct MemoryBudget {
    limit: u64,
    used: AtomicU64,
    peak: AtomicU64,
    idle: OnceLock<Weak<dyn Reclaim>>,
}

impl MemoryBudget {
    pub(crate) fn new(limit: Bytes) -> Arc<Self> {
        Arc::new(Self { limit: limit.0, used: AtomicU64::new(0), peak: AtomicU64::new(0), idle: OnceLock::new() })
    }

    /// What to free before memory is refused. The first call counts.
    pub(crate) fn reclaim_from(&self, idle: Weak<dyn Reclaim>) {
        self.idle.get_or_init(|| idle);
    }

    pub(crate) fn used(&self) -> Bytes {
        Bytes(self.used.load(Ordering::Relaxed))
    }

    /// What is left.
    pub(crate) fn room(&self) -> u64 {
        self.limit.saturating_sub(self.used.load(Ordering::Relaxed))
    }

    /// The most that was in use at a time.
    pub(crate) fn peak(&self) -> Bytes {
        Bytes(self.peak.load(Ordering::Relaxed))
    }

    /// Charges for as long as the result lives.
    pub(crate) fn charge(self: &Arc<Self>, bytes: u64) -> Result<Charge, Refused> {
        self.take(bytes)?;
        Ok(Charge { budget: self.clone(), bytes })
    }

    fn take(&self, bytes: u64) -> Result<(), Refused> {
        let refused = |used| Refused { used, wanted: Bytes(bytes), limit: Bytes(self.limit) };
        if bytes > self.limit {
            // No use in dropping anything for this.
            return Err(refused(self.used()));
        }
        loop {
            let taken = self
                .used
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| used.checked_add(bytes).filter(|sum| *sum <= self.limit));
            match taken {
                Ok(before) => {
                    self.peak.fetch_max(before + bytes, Ordering::Relaxed);
                    return Ok(());
                }
                Err(used) => {
                    let reclaimed = self.idle.get().and_then(Weak::upgrade).is_some_and(|idle| idle.reclaim());
                    if !reclaimed {
                        return Err(refused(Bytes(used)));
                    }
                }
            }
        }
    }

    fn give_back(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// A part of a [`MemoryBudget`], given back when dropped.
pub(crate) struct Charge {
    budget: Arc<MemoryBudget>,
    bytes: u64,
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.budget.give_back(self.bytes);
    }
}

/// Memory that was asked for and not given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("out of memory (used {} of {}, wanted {} more)", Mebibytes(*.used), Mebibytes(*.limit), Mebibytes(*.wanted))]
pub(crate) struct Refused {
    used: Bytes,
    wanted: Bytes,
    limit: Bytes,
}

/// Bytes shown in MiB, with one decimal where it is not whole.
pub(crate) struct Mebibytes(pub(crate) Bytes);

impl fmt::Display for Mebibytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tenths = (u128::from(self.0.0) * 10) >> 20;
        if tenths % 10 == 0 { write!(f, "{} MiB", tenths / 10) } else { write!(f, "{}.{} MiB", tenths / 10, tenths % 10) }
    }
}

/// One store's part of a [`MemoryBudget`], given back when the store is dropped.
pub(crate) struct StoreMemory {
    budget: Arc<MemoryBudget>,
    charged: u64,
    /// How much of it is for what the host keeps for the guest's handles.
    held: u64,
    /// [`CALL_BYTES`] are charged too.
    calling: bool,
    /// What the growth under way was charged, should it fail after all.
    pending: u64,
    refused: Option<Refused>,
}

impl StoreMemory {
    /// Charges what the store costs from the first. No call is under way.
    pub(crate) fn new(budget: Arc<MemoryBudget>, bytes: u64) -> Result<Self, Refused> {
        budget.take(bytes)?;
        Ok(Self { budget, charged: bytes, held: 0, calling: false, pending: 0, refused: None })
    }

    /// What it is charged now.
    pub(crate) fn charged(&self) -> u64 {
        self.charged
    }

    /// Charges for a call into the guest until [`Self::end_call`].
    pub(crate) fn begin_call(&mut self) -> Result<(), Refused> {
        if !self.calling {
            self.budget.take(CALL_BYTES)?;
            self.charged += CALL_BYTES;
            self.calling = true;
        }
        Ok(())
    }

    /// No call is under way any more.
    pub(crate) fn end_call(&mut self) {
        if std::mem::take(&mut self.calling) {
            self.charged -= CALL_BYTES;
            self.budget.give_back(CALL_BYTES);
        }
    }

    /// Charges what the host keeps for the guest now, in place of what it kept before. During a call [`HELD_BYTES`] are paid for.
    pub(crate) fn hold(&mut self, bytes: u64) -> Result<(), Refused> {
        let bytes = if self.calling { bytes.saturating_sub(HELD_BYTES) } else { bytes };
        if bytes > self.held {
            let more = bytes - self.held;
            self.budget.take(more)?;
            self.charged += more;
        } else {
            let less = self.held - bytes;
            self.budget.give_back(less);
            self.charged -= less;
        }
        self.held = bytes;
        Ok(())
    }

    /// The last growth that was refused since the last call.
    pub(crate) fn take_refused(&mut self) -> Option<Refused> {
        self.refused.take()
    }

    fn grow(&mut self, bytes: u64) -> bool {
        match self.budget.take(bytes) {
            Ok(()) => {
                self.charged += bytes;
                self.pending = bytes;
                true
            }
            Err(refused) => {
                self.refused = Some(refused);
                false
            }
        }
    }

    fn undo(&mut self) {
        let pending = std::mem::take(&mut self.pending);
        self.charged -= pending;
        self.budget.give_back(pending);
    }
}

impl Drop for StoreMemory {
    fn drop(&mut self) {
        self.budget.give_back(self.charged);
    }
}

impl ResourceLimiter for StoreMemory {
    fn memory_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> Result<bool, Error> {
        self.pending = 0;
        Ok(maximum.is_none_or(|maximum| desired <= maximum) && self.grow(desired.saturating_sub(current) as u64))
    }

    fn memory_grow_failed(&mut self, _error: Error) -> Result<(), Error> {
        self.undo();
        Ok(())
    }

    fn table_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> Result<bool, Error> {
        self.pending = 0;
        let bytes = (desired.saturating_sub(current) as u64).saturating_mul(TABLE_ELEMENT);
        Ok(maximum.is_none_or(|maximum| desired <= maximum) && self.grow(bytes))
    }

    fn table_grow_failed(&mut self, _error: Error) -> Result<(), Error> {
        self.undo();
        Ok(())
    }

    fn instances(&self) -> usize {
        INSTANCES
    }

    fn tables(&self) -> usize {
        TABLES
    }

    fn memories(&self) -> usize {
        MEMORIES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(mib: u64) -> Arc<MemoryBudget> {
        MemoryBudget::new(Bytes(mib << 20))
    }

    #[test]
    fn stores_share_one_budget_and_give_it_back() {
        let budget = budget(4);
        let mut first = StoreMemory::new(budget.clone(), 0).unwrap();
        let mut second = StoreMemory::new(budget.clone(), 0).unwrap();
        assert!(first.memory_growing(0, 3 << 20, None).unwrap());
        assert!(!second.memory_growing(0, 2 << 20, None).unwrap());
        assert_eq!(second.take_refused().unwrap().to_string(), "out of memory (used 3 MiB of 4 MiB, wanted 2 MiB more)");
        drop(first);
        assert!(second.memory_growing(0, 2 << 20, None).unwrap());
        assert_eq!(budget.used(), Bytes(2 << 20));
    }

    #[test]
    fn a_growth_that_fails_later_costs_nothing() {
        let budget = budget(4);
        let mut store = StoreMemory::new(budget.clone(), 0).unwrap();
        assert!(store.memory_growing(0, 1 << 20, None).unwrap());
        assert!(store.memory_growing(1 << 20, 2 << 20, None).unwrap());
        store.memory_grow_failed(Error::msg("the host is out of memory")).unwrap();
        assert_eq!(budget.used(), Bytes(1 << 20));
    }

    #[test]
    fn beyond_the_guests_own_maximum_nothing_is_charged() {
        let budget = budget(4);
        let mut store = StoreMemory::new(budget.clone(), 0).unwrap();
        assert!(!store.memory_growing(0, 2 << 20, Some(1 << 20)).unwrap());
        store.memory_grow_failed(Error::msg("refused")).unwrap();
        assert_eq!((budget.used(), store.take_refused()), (Bytes(0), None));
    }

    #[test]
    fn what_lies_idle_gives_way() {
        struct Idle(std::sync::Mutex<Option<StoreMemory>>);
        impl Reclaim for Idle {
            fn reclaim(&self) -> bool {
                self.0.lock().unwrap().take().is_some()
            }
        }
        let budget = budget(4);
        let mut idle = StoreMemory::new(budget.clone(), 0).unwrap();
        assert!(idle.memory_growing(0, 3 << 20, None).unwrap());
        let idle: Arc<dyn Reclaim> = Arc::new(Idle(std::sync::Mutex::new(Some(idle))));
        budget.reclaim_from(Arc::downgrade(&idle));
        let mut busy = StoreMemory::new(budget.clone(), 0).unwrap();
        assert!(busy.memory_growing(0, 2 << 20, None).unwrap());
        assert!(!busy.memory_growing(2 << 20, 5 << 20, None).unwrap());
    }

    #[test]
    fn a_store_costs_something_from_the_first() {
        let budget = budget(1);
        let first = StoreMemory::new(budget.clone(), 768 << 10).unwrap();
        let refused = StoreMemory::new(budget.clone(), 768 << 10).map(drop).unwrap_err();
        assert_eq!(refused.to_string(), "out of memory (used 0.7 MiB of 1 MiB, wanted 0.7 MiB more)");
        drop(first);
        assert_eq!((budget.used(), budget.peak()), (Bytes(0), Bytes(768 << 10)));
    }

    #[test]
    fn a_call_costs_once_and_until_it_ends() {
        let budget = budget(4);
        let mut store = StoreMemory::new(budget.clone(), STORE_BYTES).unwrap();
        for _ in 0..2 {
            store.begin_call().unwrap();
            store.begin_call().unwrap();
            assert_eq!(budget.used(), Bytes(STORE_BYTES + CALL_BYTES));
            store.end_call();
            store.end_call();
            assert_eq!(budget.used(), Bytes(STORE_BYTES));
        }
        store.begin_call().unwrap();
        store.hold(HELD_BYTES + 10).unwrap();
        assert_eq!(budget.used(), Bytes(STORE_BYTES + CALL_BYTES + 10), "the rest is in the price of the call");
        store.end_call();
        store.hold(20).unwrap();
        assert_eq!(budget.used(), Bytes(STORE_BYTES + 20), "which is over");
        drop(store);
        assert_eq!(budget.used(), Bytes(0));
    }

    #[test]
    fn what_the_host_holds_is_charged_anew_each_time() {
        let budget = budget(1);
        let mut store = StoreMemory::new(budget.clone(), 1000).unwrap();
        for held in [5000, 300, 300, 0, 7000] {
            store.hold(held).unwrap();
            assert_eq!(budget.used(), Bytes(1000 + held));
        }
        assert!(store.begin_call().is_err(), "more than the whole budget");
        assert!(store.hold(2 << 20).is_err());
        assert_eq!(budget.used(), Bytes(8000), "as before");
        let charge = budget.charge(500).unwrap();
        assert_eq!(budget.used(), Bytes(8500));
        assert!(budget.charge(1 << 20).is_err());
        drop((store, charge));
        assert_eq!(budget.used(), Bytes(0));
    }
}

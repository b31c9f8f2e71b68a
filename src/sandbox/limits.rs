//! The memory quota of an instance: one budget over the linear memories and tables of all its stores.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use dewar_protocol::Bytes;
use wasmtime::{Error, ResourceLimiter};

/// Bytes that a table takes for each of its elements.
const TABLE_ELEMENT: u64 = 8;
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
    idle: OnceLock<Weak<dyn Reclaim>>,
}

impl MemoryBudget {
    pub(crate) fn new(limit: Bytes) -> Arc<Self> {
        Arc::new(Self { limit: limit.0, used: AtomicU64::new(0), idle: OnceLock::new() })
    }

    /// What to free before memory is refused. The first call counts.
    pub(crate) fn reclaim_from(&self, idle: Weak<dyn Reclaim>) {
        self.idle.get_or_init(|| idle);
    }

    pub(crate) fn used(&self) -> Bytes {
        Bytes(self.used.load(Ordering::Relaxed))
    }

    fn take(&self, bytes: u64) -> Result<(), Refused> {
        if bytes > self.limit {
            // No use in dropping anything for this.
            return Err(Refused { used: self.used(), wanted: Bytes(bytes), limit: Bytes(self.limit) });
        }
        loop {
            let taken = self
                .used
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| used.checked_add(bytes).filter(|sum| *sum <= self.limit));
            match taken {
                Ok(_) => return Ok(()),
                Err(used) => {
                    let reclaimed = self.idle.get().and_then(Weak::upgrade).is_some_and(|idle| idle.reclaim());
                    if !reclaimed {
                        return Err(Refused { used: Bytes(used), wanted: Bytes(bytes), limit: Bytes(self.limit) });
                    }
                }
            }
        }
    }

    fn give_back(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// Memory that was asked for and not given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refused {
    used: Bytes,
    wanted: Bytes,
    limit: Bytes,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "out of memory (used {} of {}, wanted {} more)", Mebibytes(self.used), Mebibytes(self.limit), Mebibytes(self.wanted))
    }
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
    /// What the growth under way was charged, should it fail after all.
    pending: u64,
    refused: Option<Refused>,
}

impl StoreMemory {
    pub(crate) fn new(budget: Arc<MemoryBudget>) -> Self {
        Self { budget, charged: 0, pending: 0, refused: None }
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
        let mut first = StoreMemory::new(budget.clone());
        let mut second = StoreMemory::new(budget.clone());
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
        let mut store = StoreMemory::new(budget.clone());
        assert!(store.memory_growing(0, 1 << 20, None).unwrap());
        assert!(store.memory_growing(1 << 20, 2 << 20, None).unwrap());
        store.memory_grow_failed(Error::msg("the host is out of memory")).unwrap();
        assert_eq!(budget.used(), Bytes(1 << 20));
    }

    #[test]
    fn beyond_the_guests_own_maximum_nothing_is_charged() {
        let budget = budget(4);
        let mut store = StoreMemory::new(budget.clone());
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
        let mut idle = StoreMemory::new(budget.clone());
        assert!(idle.memory_growing(0, 3 << 20, None).unwrap());
        let idle: Arc<dyn Reclaim> = Arc::new(Idle(std::sync::Mutex::new(Some(idle))));
        budget.reclaim_from(Arc::downgrade(&idle));
        let mut busy = StoreMemory::new(budget.clone());
        assert!(busy.memory_growing(0, 2 << 20, None).unwrap());
        assert!(!busy.memory_growing(2 << 20, 5 << 20, None).unwrap());
    }
}

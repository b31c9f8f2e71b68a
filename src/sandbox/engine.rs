//! The engines: their configuration.
//!
//! There are two. In the one for [`Calls::Concurrent`] wasmtime keeps a task for every call between guest and host, as WASI 0.3
//! needs; a guest of WASI 0.2 has no use for that, and in the other one its calls cost a fraction.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::LazyLock;

use memchr::memmem;
use sha2::{Digest, Sha256};
use tracing::warn;
use wasmtime::{Config, Enabled, Engine, Error, InstanceAllocationStrategy, OptLevel, PoolingAllocationConfig, WasmBacktraceDetails};

use crate::headroom;

/// Linear memories in a pool. Asked once: with the first pool made there is room for fewer.
static MEMORIES: LazyLock<u32> = LazyLock::new(headroom::memories);

/// Bytes of native stack of one call into a guest, most of it never touched.
const STACK_BYTES: usize = 2 << 20;
/// What a guest has written in its memory is put back as it was, page by page, for the next that uses the same place, up to so
/// many bytes; what lies beyond is unmapped, and faulted in again. So a store that is made anew for each request meets pages that
/// are there, and no other core has to forget any. At most 100 places that nobody uses keep their pages.
const MEMORY_KEPT: usize = 1 << 20;
/// Likewise of a table.
const TABLE_KEPT: usize = 32 << 10;
/// A component of several core modules has a few tables and instances for each memory.
const TABLES_PER_MEMORY: u32 = 3;
const CORE_INSTANCES_PER_MEMORY: u32 = 6;
/// To be changed when what an artifact needs from us changes in a way that the engine's settings do not show.
const ABI: &str = "dewar-artifact-1";

/// How memories, tables and stacks are allocated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allocation {
    /// From pools reserved at the start; at most so many linear memories at a time.
    Pooled {
        /// Linear memories.
        memories: u32,
    },
    /// One by one from the operating system: the host refused to reserve pools. Starts are slower.
    OnDemand,
}

impl fmt::Display for Allocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pooled { memories } => write!(f, "pooled ({memories} memories)"),
            Self::OnDemand => f.write_str("on demand"),
        }
    }
}

/// How guests of an engine call and are called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Calls {
    /// Each returns before there is another: WASI 0.2.
    Blocking,
    /// Any number at a time in one store: WASI 0.3.
    Concurrent,
}

impl Calls {
    /// What a component can be expected to need. Names of interfaces stand in it as they are, with their versions; a component
    /// that has such text elsewhere runs all the same, only slower.
    pub(crate) fn needed_by(wasm: &[u8]) -> Self {
        if memmem::find(wasm, b"@0.3.").is_some() { Self::Concurrent } else { Self::Blocking }
    }
}

/// What decides the native code: the same in the agent and in the compiler's process. Whether an error carries a core dump is for
/// those who run guests, and no matter of the code.
fn config(calls: Calls, core_dumps: bool) -> Config {
    let mut config = Config::new();
    let concurrent = calls == Calls::Concurrent;
    config
        .epoch_interruption(true)
        .cranelift_opt_level(OptLevel::Speed)
        .wasm_component_model(true)
        .wasm_component_model_async(concurrent)
        .concurrency_support(concurrent)
        .wasm_memory64(false)
        // Multi-memory stays: the glue between the parts of a composed component needs it.
        .shared_memory(false)
        // Names come from the name section, which is nearly always there; reading a guest's DWARF would be work of its choosing.
        .wasm_backtrace_details(WasmBacktraceDetails::Disable)
        .coredump_on_trap(core_dumps)
        .async_stack_size(STACK_BYTES);
    config
}

/// An engine that only compiles.
pub(crate) fn compiling(calls: Calls) -> Result<Engine, Error> {
    Engine::new(&config(calls, false))
}

/// An engine that runs guests.
pub(crate) fn running(calls: Calls, core_dumps: bool) -> Result<(Engine, Allocation), Error> {
    let memories = *MEMORIES;
    let mut pooled = config(calls, core_dumps);
    pooled.allocation_strategy(InstanceAllocationStrategy::Pooling(pool(memories)));
    match Engine::new(&pooled) {
        Ok(engine) => Ok((engine, Allocation::Pooled { memories })),
        Err(error) => {
            warn!(error = format!("{error:#}"), memories, "the host does not let us reserve pools, allocating on demand");
            Ok((Engine::new(&config(calls, core_dumps))?, Allocation::OnDemand))
        }
    }
}

/// Whether memories can be made that could be done without: half of the pool is kept for others.
pub(crate) fn has_room(engine: &Engine) -> bool {
    let half = usize::try_from(*MEMORIES / 2).unwrap_or(usize::MAX);
    engine.pooling_allocator_metrics().is_none_or(|metrics| metrics.memories() < half)
}

fn pool(memories: u32) -> PoolingAllocationConfig {
    let mut pool = PoolingAllocationConfig::new();
    pool.total_memories(memories)
        .total_component_instances(memories)
        .total_core_instances(memories.saturating_mul(CORE_INSTANCES_PER_MEMORY))
        .total_tables(memories.saturating_mul(TABLES_PER_MEMORY))
        .max_tables_per_module(4)
        // A stack is needed only during a call. The kernel counts them all against its memory, touched or not, so they may not
        // come to more than it has: half of the memories, each of 2 MiB.
        .total_stacks(memories.div_ceil(2))
        .max_memories_per_component(32)
        .max_tables_per_component(64)
        .max_core_instances_per_component(200)
        .table_keep_resident(TABLE_KEPT);
    // Without a kernel that tells which pages were written, all of them would have to be put back.
    if PoolingAllocationConfig::is_pagemap_scan_available() {
        pool.pagemap_scan(Enabled::Yes).linear_memory_keep_resident(MEMORY_KEPT);
    }
    pool
}

/// Everything that decides whether native code fits this engine, in hex: full version of wasmtime, target, CPU features, settings.
pub(crate) fn artifact_abi(engine: &Engine) -> String {
    let mut hasher = StableHasher(Sha256::new_with_prefix(ABI));
    engine.precompile_compatibility_hash().hash(&mut hasher);
    hex(&hasher.0.finalize())
}

/// Lower-case hex digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]).map(|digit| char::from(DIGITS[usize::from(digit)])).collect()
}

/// Feeds what is hashed to SHA-256: the standard library's hasher may change between releases.
struct StableHasher(Sha256);

impl Hasher for StableHasher {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn finish(&self) -> u64 {
        let digest = self.0.clone().finalize();
        digest.iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn native_code_is_the_same_with_core_dumps_and_without() {
        let abi = |calls, core_dumps| artifact_abi(&Engine::new(&config(calls, core_dumps)).unwrap());
        for calls in [Calls::Blocking, Calls::Concurrent] {
            assert_eq!(abi(calls, true), abi(calls, false));
        }
        assert_ne!(abi(Calls::Blocking, true), abi(Calls::Concurrent, true));
    }
}

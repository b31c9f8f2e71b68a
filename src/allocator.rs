//! What the C library's allocator does with memory that is free.
//!
//! By itself glibc keeps most of it: once a block of some mebibytes has been freed, blocks up to that size come from its heaps, of
//! which it has one for each few threads, and those shrink only from their ends. An agent handles components and native code of
//! mebibytes on many threads; after a handful of stagings it would hold a hundred mebibytes that nobody uses.

/// Blocks from this size on are mapped one by one, and given back when they are freed.
const MAPPED_FROM: i32 = 1 << 20;

/// Free memory at the end of a heap that is given back.
const TRIMMED_FROM: i32 = 1 << 20;

/// Sets it for the whole process. Where another allocator is used there is nothing to set.
pub(crate) fn give_memory_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    for (parameter, value) in [(glibc::M_MMAP_THRESHOLD, MAPPED_FROM), (glibc::M_TRIM_THRESHOLD, TRIMMED_FROM)] {
        // SAFETY: sets a number in the allocator under its own lock; any value is allowed. One that is refused changes nothing.
        #[expect(unsafe_code, reason = "the C library has no other interface")]
        unsafe {
            glibc::mallopt(parameter, value);
        }
    }
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod glibc {
    pub(super) const M_TRIM_THRESHOLD: i32 = -1;
    pub(super) const M_MMAP_THRESHOLD: i32 = -3;

    #[expect(unsafe_code, reason = "as above")]
    unsafe extern "C" {
        /// `malloc.h`: 1 when the parameter was set, 0 when not.
        pub(super) fn mallopt(parameter: i32, value: i32) -> i32;
    }
}

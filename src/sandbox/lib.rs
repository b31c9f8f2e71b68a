//! The wasmtime edge.

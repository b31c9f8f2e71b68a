//! The daemon: one driver task around the core.

pub mod droplet_store;
pub mod staging;
pub mod transfer;

mod archive;
mod blocking;
mod digest;
mod tree;

#[cfg(test)]
mod test_server;

//! The daemon: one driver task around the core.

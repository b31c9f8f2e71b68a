//! The router's table: hosts, their endpoints, which to pick and when to forget.

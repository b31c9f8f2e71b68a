//! The HTTP router: a hyper reverse proxy fed by NATS, as gorouter is.
//!
//! Agents register host names for their instances on the bus ([`registrar`]); the table of them, and every decision about it, is
//! `dewar_core::routes`. A request is read from a client's socket that measures how slow the client is ([`client_io`]), checked, given to
//! an endpoint ([`proxy`], [`upstream`]) and its answer passed back piece by piece ([`body`]), all of it on one thread ([`workers`]). What
//! must be given back and written down at the end hangs on one value that settles itself when it is dropped ([`exchange`]).
//!
//! TLS is not terminated here, and HTTP/2 is not spoken.

mod access_log;
mod body;
mod client_io;
mod config;
mod exchange;
mod headers;
mod identity;
mod listener;
mod metrics;
mod proxy;
mod refusal;
mod registrar;
mod router;
mod status;
mod sticky;
mod table;
mod tunnel;
mod upstream;
mod workers;

pub use config::{AccessLogTarget, ClientConfig, ConfigError, EndpointConfig, ForwardedProto, RouterConfig, StatusConfig, StickyConfig};
pub use router::{Router, RouterError};

//! The NATS edge: a client for typed JSON messages, and an embedded broker for machines without a NATS server.
//!
//! The rest of Dewar talks to the bus through [`Bus`] only, over TCP, to a NATS server or to [`broker::Broker`] alike:
//! there is one code path for development and production. Nothing here knows what a message means.

pub mod broker;

mod client;
mod config;
mod error;
mod link;
mod subscription;

pub use client::{Bus, BusCounters, REPLIES_MAX, SEND_QUEUE};
pub use config::{BusAuth, BusConfig, BusTls};
pub use error::BusError;
pub use link::BusEvent;
pub use subscription::{Message, Reply, SUBSCRIPTION_QUEUE, SUBSCRIPTION_QUEUE_BYTES, Subscribe, Subscription};

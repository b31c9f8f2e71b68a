//! The messages of the dropsonde protocol that an agent sends.
//!
//! Source: cloudfoundry/dropsonde-protocol `events/envelope.proto`, `log.proto`, `metric.proto` (proto2). Fields that others fill in
//! on the way (deployment, job, ip) are left out.

use prost::{Enumeration, Message};

/// One event.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Envelope {
    #[prost(string, required, tag = "1")]
    pub(crate) origin: String,
    #[prost(enumeration = "EventType", required, tag = "2")]
    pub(crate) event_type: i32,
    /// Nanoseconds since the epoch.
    #[prost(int64, optional, tag = "6")]
    pub(crate) timestamp: Option<i64>,
    #[prost(message, optional, tag = "8")]
    pub(crate) log_message: Option<LogMessage>,
    #[prost(message, optional, tag = "9")]
    pub(crate) value_metric: Option<ValueMetric>,
    #[prost(message, optional, tag = "10")]
    pub(crate) counter_event: Option<CounterEvent>,
    #[prost(message, optional, tag = "12")]
    pub(crate) container_metric: Option<ContainerMetric>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Enumeration)]
#[repr(i32)]
pub(crate) enum EventType {
    /// Of HTTP; not sent by agents, but the first there is.
    HttpStart = 2,
    LogMessage = 5,
    ValueMetric = 6,
    CounterEvent = 7,
    ContainerMetric = 9,
}

/// A line of an app, or about one.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct LogMessage {
    #[prost(bytes = "vec", required, tag = "1")]
    pub(crate) message: Vec<u8>,
    #[prost(enumeration = "MessageType", required, tag = "2")]
    pub(crate) message_type: i32,
    /// Nanoseconds since the epoch.
    #[prost(int64, required, tag = "3")]
    pub(crate) timestamp: i64,
    #[prost(string, optional, tag = "4")]
    pub(crate) app_id: Option<String>,
    #[prost(string, optional, tag = "5")]
    pub(crate) source_type: Option<String>,
    #[prost(string, optional, tag = "6")]
    pub(crate) source_instance: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Enumeration)]
#[repr(i32)]
pub(crate) enum MessageType {
    Out = 1,
    Err = 2,
}

/// A number at one moment.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct ValueMetric {
    #[prost(string, required, tag = "1")]
    pub(crate) name: String,
    #[prost(double, required, tag = "2")]
    pub(crate) value: f64,
    #[prost(string, required, tag = "3")]
    pub(crate) unit: String,
}

/// What a count has grown by.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct CounterEvent {
    #[prost(string, required, tag = "1")]
    pub(crate) name: String,
    #[prost(uint64, required, tag = "2")]
    pub(crate) delta: u64,
}

/// What an instance uses.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct ContainerMetric {
    #[prost(string, required, tag = "1")]
    pub(crate) application_id: String,
    #[prost(int32, required, tag = "2")]
    pub(crate) instance_index: i32,
    /// Of one core.
    #[prost(double, required, tag = "3")]
    pub(crate) cpu_percentage: f64,
    #[prost(uint64, required, tag = "4")]
    pub(crate) memory_bytes: u64,
    #[prost(uint64, required, tag = "5")]
    pub(crate) disk_bytes: u64,
}

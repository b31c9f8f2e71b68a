//! The NATS edge: typed client and embedded broker.

//! The HTTP router: a hyper reverse proxy fed by NATS.

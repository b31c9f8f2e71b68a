//! One request and its answer, from the first byte to the last: what must be given back and written down when it is over.

use std::sync::Arc;
use std::task::Context;
use std::time::Instant;

use dewar_core::routes::Lease;
use http::{HeaderMap, StatusCode};

use crate::access_log::{AccessRecord, EndpointFacts, RequestFacts};
use crate::proxy::Client;
use crate::upstream::{Connection, Upstream};

/// The status that the log shows for a client that left before it was answered; nginx's and gorouter's.
const CLIENT_CLOSED_REQUEST: u16 = 499;

/// Settles itself when dropped: the connection to the instance goes back to its pool if it can be used again, the endpoint's count goes
/// down, the client's clock starts to run, the request is counted and logged.
#[derive(Debug)]
pub(crate) struct Exchange {
    client: Arc<Client>,
    facts: Option<Box<RequestFacts>>,
    started: Instant,
    status: Option<StatusCode>,
    router_error: Option<&'static str>,
    bytes_sent: u64,
    lease: Option<Lease<Upstream>>,
    connection: Option<Connection>,
    reusable: bool,
    complete: bool,
}

impl Exchange {
    pub(crate) fn begin(client: Arc<Client>, facts: Option<Box<RequestFacts>>) -> Self {
        client.activity.request_begins();
        client.proxy.metrics.request_begins();
        Self {
            client,
            facts,
            started: Instant::now(),
            status: None,
            router_error: None,
            bytes_sent: 0,
            lease: None,
            connection: None,
            reusable: false,
            complete: false,
        }
    }

    /// These are the headers that the instance gets.
    pub(crate) fn forwarded(&mut self, headers: &HeaderMap) {
        if let Some(facts) = &mut self.facts {
            facts.forwarded(headers);
        }
    }

    /// An instance has answered. `connection` is what the body comes by, unless it is carried on elsewhere.
    pub(crate) fn answered(&mut self, status: StatusCode, lease: Lease<Upstream>, connection: Option<Connection>) {
        self.status = Some(status);
        self.lease = Some(lease);
        self.connection = connection;
    }

    /// The connection may serve another request after this one.
    pub(crate) fn connection_is_reusable(&mut self) {
        self.reusable = true;
    }

    /// Carries on the connection that the answer comes by.
    pub(crate) fn poll_drive(&mut self, cx: &mut Context<'_>) {
        if let Some(connection) = &mut self.connection {
            connection.poll_drive(cx);
        }
    }

    /// The router answers by itself.
    pub(crate) fn refused(&mut self, status: StatusCode, router_error: Option<&'static str>) {
        self.status = Some(status);
        self.router_error = router_error;
    }

    pub(crate) fn sent(&mut self, bytes: usize) {
        self.bytes_sent += bytes as u64;
    }

    pub(crate) fn body_is_complete(&mut self) {
        self.complete = true;
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let Client { proxy, activity, .. } = &*self.client;
        let lease = self.lease.take();
        let reusable = self.complete && self.reusable;
        if let (Some(lease), Some(connection), true) = (&lease, self.connection.take(), reusable) {
            lease.attachment.give_back(connection, proxy.config.endpoints.max_idle);
        }
        activity.request_ends();
        proxy.metrics.request_ends(self.status);
        if let Some(facts) = self.facts.take() {
            proxy.access_log.write(AccessRecord {
                facts,
                status: self.status.map_or(CLIENT_CLOSED_REQUEST, |status| status.as_u16()),
                bytes_received: activity.body_bytes(),
                bytes_sent: self.bytes_sent,
                elapsed: self.started.elapsed(),
                endpoint: lease.map(|lease| EndpointFacts::of(&lease)),
                router_error: self.router_error,
            });
        }
    }
}

//! Heartbeats over HTTPS, to a health manager that does not listen on the bus.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::CONTENT_TYPE;
use reqwest::{Client, StatusCode, Url};
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use dewar_protocol::Secret;

use crate::config::Hm9000Config;
use crate::transfer::{NoTransfers, reason};

#[cfg(test)]
mod tests;

/// For a connection to come about, and then for the next byte to come.
const STEP_TIMEOUT: Duration = Duration::from_secs(5);
/// For a heartbeat as a whole: to connect, to send, to be answered.
const TOTAL_TIMEOUT: Duration = Duration::from_secs(15);
/// Heartbeats that may be under way at a time. One more is left out: the next tells the same, and later news.
const CONCURRENT: usize = 4;

/// Where heartbeats go. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Hm9000 {
    url: Secret<Url>,
    client: Client,
    slots: Arc<Semaphore>,
    tasks: TaskTracker,
}

impl Hm9000 {
    /// Connections are kept from one heartbeat to the next.
    pub(crate) fn new(config: &Hm9000Config, interval: Duration, tasks: TaskTracker) -> Result<Self, NoTransfers> {
        let plain = Client::builder().no_proxy().referer(false).redirect(reqwest::redirect::Policy::none());
        let bounded = plain.connect_timeout(STEP_TIMEOUT).read_timeout(STEP_TIMEOUT).timeout(TOTAL_TIMEOUT);
        let client = config.tls.apply(bounded.pool_idle_timeout(interval * 2).pool_max_idle_per_host(1)).build()?;
        let mut url = config.url.expose().clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(["dea", "heartbeat"]);
        }
        Ok(Self { url: Secret(url), client, slots: Arc::new(Semaphore::new(CONCURRENT)), tasks })
    }

    /// Sends a heartbeat, once.
    pub(crate) fn beat(&self, heartbeat: Bytes) {
        let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() else {
            warn!(under_way = CONCURRENT, "heartbeat to hm9000 left out, those before it are not answered");
            return;
        };
        let request = self.client.post(self.url.expose().clone()).header(CONTENT_TYPE, "application/json").body(heartbeat);
        self.tasks.spawn(async move {
            match request.send().await {
                Ok(response) if response.status() == StatusCode::ACCEPTED => debug!("heartbeat taken by hm9000"),
                Ok(response) => warn!(status = %response.status(), "heartbeat not taken by hm9000"),
                Err(error) => warn!(cause = reason(&error), "heartbeat does not reach hm9000"),
            }
            drop(slot);
        });
    }
}

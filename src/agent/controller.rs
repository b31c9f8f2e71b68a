//! The Cloud Controller's internal API: it is told how stagings have ended that it asked for over HTTP, and asked which buildpacks
//! there are.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use dewar_core::{Input, StagingEvent, TaskKey};
use dewar_protocol::{AdminBuildpack, AppId, CellId, Secret, StagingReply};
use reqwest::{Client, StatusCode, Url};
use serde_json::Value;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::task::TaskTracker;
use tracing::{Instrument as _, info, info_span, warn};

use crate::config::{ControllerConfig, StagingReplyKeys};
use crate::staging_reply;
use crate::tls::ClientTls;
use crate::transfer::{NoTransfers, build, reason};

#[cfg(test)]
mod tests;

/// For a connection to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// For the next byte to come; the original's.
const INACTIVITY_TIMEOUT: Duration = Duration::from_secs(30);
/// For one exchange as a whole.
const TOTAL_TIMEOUT: Duration = Duration::from_secs(60);
/// How often a report is tried in all.
const ATTEMPTS: u32 = 3;
/// Reports that are sent at a time; the others wait.
const CONCURRENT_REPORTS: usize = 16;
/// Reports that wait or are sent. One more is given up at once: so many come only from somebody who asks for what is refused.
const MAX_REPORTS: usize = 1024;
/// Bytes of the longest list of buildpacks.
const MAX_LIST: usize = 1 << 20;

/// The Cloud Controller. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Controller {
    url: Secret<Url>,
    client: Client,
    id: CellId,
    slots: Arc<Semaphore>,
    waiting: Arc<AtomicUsize>,
    /// To the driver, which always takes what comes.
    reports: mpsc::Sender<Input>,
    tasks: TaskTracker,
}

/// Why there is no list of buildpacks.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoList {
    #[error("HTTP status {0}")]
    Status(StatusCode),
    #[error("{0}")]
    Transport(String),
    #[error("more than {MAX_LIST} bytes")]
    TooLong,
    #[error("not a list of buildpacks")]
    Invalid,
}

enum Attempt {
    /// It is taken.
    Done,
    /// It will not be, ever.
    Refused(String),
    /// It may be, another time.
    Failed(String),
}

/// Makes the client; it is the same for all.
pub(crate) fn client(tls: &ClientTls) -> Result<Client, NoTransfers> {
    let builder = || {
        let plain = Client::builder().no_proxy().referer(false).redirect(reqwest::redirect::Policy::none());
        tls.apply(plain.connect_timeout(CONNECT_TIMEOUT).read_timeout(INACTIVITY_TIMEOUT).timeout(TOTAL_TIMEOUT))
    };
    if tls.trusts_the_system() { build(builder) } else { Ok(builder().build()?) }
}

impl Controller {
    pub(crate) fn new(config: &ControllerConfig, client: Client, id: CellId, reports: mpsc::Sender<Input>, tasks: TaskTracker) -> Self {
        let slots = Arc::new(Semaphore::new(CONCURRENT_REPORTS));
        Self { url: config.url.clone(), client, id, slots, waiting: Arc::default(), reports, tasks }
    }

    /// Tells how a staging has ended, and the driver when that is done with, one way or another.
    pub(crate) fn report(&self, task: TaskKey, reply: Box<StagingReply>) {
        let controller = self.clone();
        let span = info_span!("report", task_id = %reply.task_id, app_id = reply.app_id.as_ref().map(AppId::as_str));
        let crowded = self.waiting.fetch_add(1, Ordering::Relaxed) >= MAX_REPORTS;
        self.tasks.spawn(
            async move {
                if crowded {
                    warn!("end of a staging not reported, too many are being reported");
                } else {
                    let _slot = controller.slots.acquire().await;
                    controller.tell(&reply).await;
                }
                controller.waiting.fetch_sub(1, Ordering::Relaxed);
                // The driver is gone only when the agent ends, and then nobody wants to know.
                let _ = controller.reports.send(Input::Staging(task, StagingEvent::Reported)).await;
            }
            .instrument(span),
        );
    }

    async fn tell(&self, reply: &StagingReply) {
        let mut body = staging_reply::staged(StagingReplyKeys::Modern, reply);
        if let Value::Object(keys) = &mut body {
            keys.insert("dea_id".to_owned(), self.id.as_str().into());
        }
        let app_id = reply.app_id.as_ref().map_or("", AppId::as_str);
        let url = self.at(&["internal", "dea", "staging", app_id, "completed"]);
        for attempt in 1..=ATTEMPTS {
            match self.post(url.clone(), &body).await {
                Attempt::Done => return info!("end of the staging reported"),
                Attempt::Refused(why) => return warn!(why, "end of the staging not reported"),
                Attempt::Failed(why) => warn!(why, attempt, of = ATTEMPTS, "end of the staging not reported"),
            }
        }
    }

    async fn post(&self, url: Url, body: &Value) -> Attempt {
        let request = self.client.post(url).header(reqwest::header::CONTENT_TYPE, "application/json").body(body.to_string());
        match request.send().await {
            Ok(response) if response.status() == StatusCode::OK => Attempt::Done,
            Ok(response) if response.status() == StatusCode::NOT_FOUND || response.status().is_server_error() => {
                Attempt::Failed(format!("HTTP status {}", response.status()))
            }
            Ok(response) => Attempt::Refused(format!("HTTP status {}", response.status())),
            Err(error) => Attempt::Failed(reason(&error)),
        }
    }

    /// The operator's buildpacks that stagings will name.
    ///
    /// # Errors
    /// See [`NoList`].
    pub(crate) async fn buildpacks(&self) -> Result<Vec<AdminBuildpack>, NoList> {
        let transport = |error: reqwest::Error| NoList::Transport(reason(&error));
        let mut response = self.client.get(self.at(&["internal", "buildpacks"])).send().await.map_err(transport)?;
        if response.status() != StatusCode::OK {
            return Err(NoList::Status(response.status()));
        }
        let mut list = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(transport)? {
            list.extend_from_slice(&chunk);
            if list.len() > MAX_LIST {
                return Err(NoList::TooLong);
            }
        }
        serde_json::from_slice(&list).map_err(|_| NoList::Invalid)
    }

    /// A place below the base.
    fn at(&self, path: &[&str]) -> Url {
        let mut url = self.url.expose().clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path);
        }
        url
    }
}

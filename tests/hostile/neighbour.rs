//! The well-behaved app beside every attacker, and the clients it answers all the while.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::OnceCell;
use tokio_util::sync::CancellationToken;

use crate::fixture::{Instance, Plan};

/// How long an answer may take. The machine has few cores and attackers that compute have a share of them.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between an answer and the next request.
const PAUSE: Duration = Duration::from_millis(10);
/// Requests that are answered during an attack, at least, however short it is.
const DURING: u64 = 3;

static OF_ALL: OnceCell<Neighbour> = OnceCell::const_new();
static RETIRED: Mutex<Option<std::thread::JoinHandle<()>>> = Mutex::new(None);

/// An app that requests come to, one after the other, until it is dropped.
pub(crate) struct Neighbour {
    record: Arc<Record>,
    stop: CancellationToken,
}

#[derive(Default)]
struct Record {
    answered: AtomicU64,
    failures: Mutex<Vec<String>>,
}

impl Record {
    fn failures(&self) -> Vec<String> {
        self.failures.lock().unwrap().clone()
    }
}

/// The one that all attacks have beside them.
pub(crate) async fn of_all() -> &'static Neighbour {
    OF_ALL
        .get_or_init(|| async {
            let app = Plan::of("examples/hello").await.start().await;
            let (neighbour, clients) = Neighbour::start(app, "/", PATIENCE);
            *RETIRED.lock().unwrap() = Some(clients);
            neighbour
        })
        .await
}

/// Ends the one that all attacks had beside them.
pub(crate) fn retire() {
    let (Some(neighbour), Some(clients)) = (OF_ALL.get(), RETIRED.lock().unwrap().take()) else { return };
    neighbour.stop.cancel();
    clients.join().unwrap();
}

impl Neighbour {
    /// Sends requests to an app, which are to be answered with 200 in this time. They come from a thread of their own, so that
    /// nothing but the app can keep them waiting.
    pub(crate) fn start(app: Instance, path: &'static str, patience: Duration) -> (Self, std::thread::JoinHandle<()>) {
        let neighbour = Self { record: Arc::default(), stop: CancellationToken::new() };
        let (record, stop) = (neighbour.record.clone(), neighbour.stop.clone());
        let clients = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                stop.run_until_cancelled(requests(&app, path, patience, &record)).await;
                app.sandbox.kill();
                app.exit().await;
            });
        });
        (neighbour, clients)
    }

    pub(crate) fn watch(&self) -> Watch {
        let record = self.record.clone();
        Watch { answered: record.answered.load(Ordering::Relaxed), failed: record.failures().len(), record }
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn requests(app: &Instance, path: &'static str, patience: Duration, record: &Record) {
    loop {
        // Each on a new connection: that an old one works says nothing about whether the app can be reached.
        let failure = match tokio::time::timeout(patience, app.try_send("GET", path, Bytes::new())).await {
            Ok(Ok(answer)) if answer.status == 200 => None,
            Ok(Ok(answer)) => Some(format!("{} {}", answer.status, answer.text())),
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some(format!("no answer within {patience:?}")),
        };
        match failure {
            None => drop(record.answered.fetch_add(1, Ordering::Relaxed)),
            Some(failure) => record.failures.lock().unwrap().push(failure),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// What became of the neighbour's requests since a moment.
pub(crate) struct Watch {
    record: Arc<Record>,
    answered: u64,
    failed: usize,
}

impl Watch {
    /// Waits until some requests were answered; an error tells those that were not.
    pub(crate) async fn end(self) -> Result<(), String> {
        // One of them may have been sent before the attack began.
        let enough = self.answered + DURING + 1;
        let waiting = async {
            while self.record.answered.load(Ordering::Relaxed) < enough && self.record.failures().len() == self.failed {
                tokio::time::sleep(PAUSE).await;
            }
        };
        let waited = tokio::time::timeout(2 * PATIENCE, waiting).await;
        let failures = &self.record.failures()[self.failed..];
        match (failures, waited) {
            ([], Ok(())) => Ok(()),
            ([], Err(_)) => Err("the neighbour has no requests any more".to_owned()),
            (failures, _) => Err(format!("the neighbour failed {} requests: {}", failures.len(), failures.join(", "))),
        }
    }
}

//! Carries out what the cell asks for. Nothing here waits: what takes long becomes a task that reports back.

use std::sync::Arc;

use dewar_core::{Answer, DropletEvent, Effect, Input, ReplyTo};
use dewar_protocol::{DropletSha1, Secret};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument as _, Span, debug, field, info, info_span, warn};

use crate::complaints::{Complaint, Complaints};
use crate::controller::Controller;
use crate::droplet_store::DropletStore;
use crate::housekeeping::Housekeeper;
use crate::instances::Instances;
use crate::logs::Logs;
use crate::outbox::Outbox;
use crate::snapshot::Saver;
use crate::stagings::Stagings;
use crate::telemetry::{Outcome, TARGET, Telemetry};

/// Droplets that are downloaded at a time; the others wait.
const CONCURRENT_FETCHES: usize = 8;

/// What the cell's effects act on.
pub(crate) struct Effects {
    pub(crate) outbox: Outbox,
    pub(crate) instances: Instances,
    pub(crate) stagings: Option<Stagings>,
    pub(crate) controller: Option<Controller>,
    pub(crate) droplets: Droplets,
    pub(crate) housekeeper: Housekeeper,
    pub(crate) logs: Logs,
    pub(crate) telemetry: Telemetry,
    pub(crate) saver: Saver,
    /// Cancelled when no more requests are to be taken from the bus.
    pub(crate) listening: CancellationToken,
    /// About requests that the cell refuses.
    pub(crate) complaints: Complaints,
}

/// Droplets on their way into the store.
pub(crate) struct Droplets {
    store: DropletStore,
    fetches: Arc<Semaphore>,
    /// To the driver, which always takes what comes.
    reports: mpsc::Sender<Input>,
    tasks: TaskTracker,
    telemetry: Telemetry,
}

/// Who waits for an answer.
#[derive(Debug)]
pub(crate) enum Asker {
    /// Nobody.
    Nobody,
    /// Whoever listens on this subject.
    Bus(String),
    /// A task of this process; it is answered before the next input is taken, or never.
    Here(oneshot::Sender<Answer>),
}

impl Asker {
    /// Whether nobody waits any more. Subjects always count as waited for.
    pub(crate) fn has_left(&self) -> bool {
        matches!(self, Self::Here(sender) if sender.is_closed())
    }

    /// How the cell may name this asker.
    pub(crate) fn token(&self) -> Option<ReplyTo> {
        match self {
            Self::Nobody => None,
            Self::Bus(subject) => Some(ReplyTo(format!("{BUS_TOKEN}{subject}").into())),
            Self::Here(_) => Some(ReplyTo(HERE_TOKEN.into())),
        }
    }
}

/// Tokens of askers on the bus begin with this, so that no subject is taken for [`HERE_TOKEN`].
const BUS_TOKEN: &str = "bus/";
const HERE_TOKEN: &str = "here";

impl Effects {
    /// Carries out one effect of the input that `asker` sent. Returns the exit code when the process is to end.
    pub(crate) fn carry_out(&mut self, effect: Effect, asker: &mut Asker) -> Option<u8> {
        match effect {
            Effect::Publish(publication) => self.outbox.publish(&publication),
            Effect::Reply(to, answer) => self.reply(&to, answer, asker),
            Effect::FetchDroplet { sha1, uri } => self.droplets.fetch(sha1, uri),
            Effect::StartSandbox(spec) => self.instances.start(spec),
            Effect::StopSandbox(key) => self.instances.stop(key),
            Effect::KillSandbox(key) => self.instances.kill(key),
            Effect::DeleteInstanceFiles(id) => self.instances.delete_files(&id),
            Effect::MakeRoom(id) => self.housekeeper.make_room(&id),
            Effect::EvictDroplet(sha1) => self.housekeeper.evict(sha1),
            Effect::StartStaging(spec) => match &self.stagings {
                Some(stagings) => stagings.start(spec),
                None => warn!(task_id = %spec.message.task_id, "staging is not enabled"),
            },
            Effect::CancelStaging(key) => self.stagings.iter().for_each(|stagings| stagings.cancel(key)),
            Effect::ReportStaging { task, reply } => match &self.controller {
                Some(controller) => controller.report(task, reply),
                None => warn!(task_id = %reply.task_id, "there is no Cloud Controller to report to"),
            },
            Effect::SaveSnapshot(image) => self.saver.save(image),
            Effect::Transitioned { instance, app_id, instance_id, index, from, to, why } => {
                self.telemetry.transition(instance, to);
                info!(%app_id, %instance_id, index, %from, %to, why, "instance transitioned");
            }
            Effect::AppLog { app_id, index, stream, text } => self.logs.say(&app_id, index, stream, &text),
            Effect::Refused { request, why } => {
                if let Some(Complaint { cause, suppressed }) = self.complaints.about(&why) {
                    warn!(request, why = cause, suppressed, "request refused");
                }
            }
            Effect::Unsubscribe => self.listening.cancel(),
            Effect::Exit(code) => return Some(code),
        }
        None
    }

    fn reply(&self, to: &ReplyTo, answer: Answer, asker: &mut Asker) {
        if let Some(subject) = to.0.strip_prefix(BUS_TOKEN) {
            self.outbox.reply(subject, &answer);
        } else if let Asker::Here(sender) = std::mem::replace(asker, Asker::Nobody)
            && sender.send(answer).is_err()
        {
            debug!("answer dropped, its asker is gone");
        }
    }
}

impl Droplets {
    pub(crate) fn new(store: DropletStore, reports: mpsc::Sender<Input>, tasks: TaskTracker, telemetry: Telemetry) -> Self {
        Self { store, fetches: Arc::new(Semaphore::new(CONCURRENT_FETCHES)), reports, tasks, telemetry }
    }

    /// Fetches a droplet in a task of its own. A panic there counts as a failed download.
    fn fetch(&self, sha1: DropletSha1, uri: Option<Secret<String>>) {
        self.store.reprieve(&sha1);
        let (store, fetches, reports) = (self.store.clone(), Arc::clone(&self.fetches), self.reports.clone());
        let span = info_span!(target: TARGET, "droplet", %sha1, otel.status_code = field::Empty);
        let (tasks, telemetry, begun) = (self.tasks.clone(), self.telemetry.clone(), Instant::now());
        let supervise = async move {
            let wanted = sha1.clone();
            let fetching = tasks.spawn(
                async move {
                    let _permit = fetches.acquire().await;
                    store.fetch(&wanted, uri.as_ref()).await
                }
                .in_current_span(),
            );
            let fetched = fetching.await;
            telemetry.fetched(begun.elapsed(), if matches!(fetched, Ok(Ok(()))) { Outcome::Done } else { Outcome::Failed });
            let event = match fetched {
                Ok(Ok(())) => DropletEvent::Ready,
                Ok(Err(error)) => DropletEvent::Failed(error.to_string()),
                Err(panic) => DropletEvent::Failed(panic.to_string()),
            };
            if let DropletEvent::Failed(error) = &event {
                Span::current().record("otel.status_code", "ERROR");
                warn!(error, "droplet not fetched");
            }
            // The driver is gone only when the agent ends, and then nobody wants to know.
            let _ = reports.send(Input::Droplet(sha1, event)).await;
        };
        self.tasks.spawn(supervise.instrument(span));
    }
}

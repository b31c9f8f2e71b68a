//! What comes from the bus, decoded and handed on, one message at a time.
//!
//! One subscription holds all subjects, so that order is kept where it matters: a stop that was sent before a start is seen before
//! it. A Cloud Controller sends such pairs, `dea.stop` and `dea.<id>.start` to restart, `staging.stop` and `staging.<id>.start` to
//! stage anew, and a stop that came late would end what has just begun.

use std::sync::{Arc, Mutex, PoisonError};

use dewar_bus::{Bus, BusError, Message, Subscribe, Subscription};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use crate::complaints::{Complaint, Complaints};
use crate::driver::Asked;
use crate::effects::Asker;
use crate::inbound::{Inbound, Interest, Malformed, decode};
use crate::logs::Logs;
use crate::stagings::Stagings;

/// Takes messages from subscriptions and hands them on. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Listener {
    requests: mpsc::Sender<Asked>,
    logs: Logs,
    stagings: Option<Stagings>,
    complaints: Arc<Mutex<Complaints>>,
}

impl Listener {
    pub(crate) fn new(requests: mpsc::Sender<Asked>, logs: Logs, stagings: Option<Stagings>) -> Self {
        Self { requests, logs, stagings, complaints: Arc::new(Mutex::new(Complaints::new())) }
    }

    /// Subscribes, and forwards until `listening` is cancelled. With no server there yet the subscriptions wait for one.
    ///
    /// # Errors
    /// When a subscription cannot be made.
    pub(crate) async fn listen(
        &self,
        bus: &Bus,
        interests: Vec<Interest>,
        tasks: &TaskTracker,
        listening: &CancellationToken,
    ) -> Result<(), BusError> {
        let subjects: Vec<_> = interests.iter().map(|it| Subscribe { subject: &it.subject, group: it.group }).collect();
        let subscription = bus.subscribe_all(&subjects).await?;
        tasks.spawn(self.clone().forward(subscription, interests, listening.clone()));
        Ok(())
    }

    async fn forward(self, mut subscription: Subscription, interests: Vec<Interest>, listening: CancellationToken) {
        loop {
            let message = tokio::select! {
                biased;
                () = listening.cancelled() => break,
                message = subscription.next() => message,
            };
            let Some(message) = message else { return };
            // There are no wildcards among them.
            let Some(interest) = interests.iter().find(|it| it.subject == message.subject) else { continue };
            if self.hand_on(message, interest).await.is_err() {
                break;
            }
        }
        subscription.unsubscribe().await;
    }

    /// Fails when the driver is gone. Waits when it is busy; the subscription's own bounded queue fills meanwhile.
    async fn hand_on(&self, message: Message, interest: &Interest) -> Result<(), mpsc::error::SendError<Asked>> {
        match decode(interest.topic, &message.payload) {
            Ok(Inbound::Cell(request)) => {
                let asker = message.reply_to.map_or(Asker::Nobody, Asker::Bus);
                self.requests.send(Asked { request, asker }).await?;
            }
            Ok(Inbound::Buildpacks(buildpacks)) => self.stagings.iter().for_each(|stagings| stagings.fetch_ahead(buildpacks.clone())),
            Ok(Inbound::Logs(request)) => match message.reply_to {
                Some(reply_to) => self.logs.follow(request, reply_to),
                None => debug!(subject = interest.subject, "log request without a reply subject ignored"),
            },
            Err(malformed) => self.complain(&interest.subject, &malformed),
        }
        Ok(())
    }

    fn complain(&self, subject: &str, malformed: &Malformed) {
        let complaint = self.complaints.lock().unwrap_or_else(PoisonError::into_inner).about(malformed);
        if let Some(Complaint { cause, suppressed }) = complaint {
            warn!(subject, cause, suppressed, "message ignored");
        }
    }
}

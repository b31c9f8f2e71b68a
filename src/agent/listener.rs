//! Subscriptions: each has a task that decodes what comes and hands it on, one message at a time.
//!
//! Messages on one subject keep their order. Messages on different subjects mostly do, but nothing here makes them: the client
//! library hands out each subscription's messages on their own.

use std::sync::{Arc, Mutex, PoisonError};

use dewar_bus::{Bus, BusError, Message, Subscription};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::debug;

use crate::driver::Asked;
use crate::effects::Asker;
use crate::inbound::{Complaints, Inbound, Interest, decode};
use crate::logs::Logs;

/// Takes messages from subscriptions and hands them on. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Listener {
    requests: mpsc::Sender<Asked>,
    logs: Logs,
    complaints: Arc<Mutex<Complaints>>,
}

impl Listener {
    pub(crate) fn new(requests: mpsc::Sender<Asked>, logs: Logs) -> Self {
        Self { requests, logs, complaints: Arc::new(Mutex::new(Complaints::new())) }
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
        for interest in interests {
            let subscription = match interest.group {
                Some(group) => bus.queue_subscribe(&interest.subject, group).await?,
                None => bus.subscribe(&interest.subject).await?,
            };
            tasks.spawn(self.clone().forward(subscription, interest, listening.clone()));
        }
        Ok(())
    }

    async fn forward(self, mut subscription: Subscription, interest: Interest, listening: CancellationToken) {
        loop {
            let message = tokio::select! {
                biased;
                () = listening.cancelled() => break,
                message = subscription.next() => message,
            };
            let Some(message) = message else { return };
            if self.hand_on(message, &interest).await.is_err() {
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
            Ok(Inbound::Logs(request)) => match message.reply_to {
                Some(reply_to) => self.logs.follow(request, reply_to),
                None => debug!(subject = interest.subject, "log request without a reply subject ignored"),
            },
            Err(malformed) => {
                self.complaints.lock().unwrap_or_else(PoisonError::into_inner).note(&interest.subject, &malformed);
            }
        }
        Ok(())
    }
}

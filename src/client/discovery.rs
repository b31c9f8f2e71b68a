//! Who is there: agents, stagers, and every app that lives on the bus.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use dewar_protocol::{Advertise, AppId, Heartbeat, HeartbeatEntry, StagingAdvertise, subjects};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, timeout_at};

use crate::client::{ANSWER_WINDOW, Client, decode};
use crate::error::ClientError;

/// Agents that do not answer when asked advertise by themselves every five seconds.
const FIRST_ADVERTISEMENT_MAX: Duration = Duration::from_millis(5500);
/// Those who answer at all answer about as fast as the first.
const OTHERS_AFTER_FIRST: Duration = Duration::from_millis(150);

impl Client {
    /// The newest advertisement of each agent; waits some seconds for the first.
    ///
    /// # Errors
    /// [`ClientError::NoAgent`] when there is none.
    pub async fn agents(&self) -> Result<Vec<Advertise>, ClientError> {
        let advertisements: Vec<Advertise> = self.advertisements(subjects::DEA_LOCATE, subjects::DEA_ADVERTISE).await?;
        let agents: BTreeMap<_, _> = advertisements.into_iter().map(|a| (a.id.clone(), a)).collect();
        if agents.is_empty() { Err(ClientError::NoAgent { after: FIRST_ADVERTISEMENT_MAX }) } else { Ok(agents.into_values().collect()) }
    }

    /// The same for agents that stage.
    pub(crate) async fn stagers(&self) -> Result<Vec<StagingAdvertise>, ClientError> {
        let stagers = self.advertisements(subjects::STAGING_LOCATE, subjects::STAGING_ADVERTISE).await?;
        if stagers.is_empty() { Err(ClientError::NoStager { after: FIRST_ADVERTISEMENT_MAX }) } else { Ok(stagers) }
    }

    /// All instances that agents report, by app.
    pub(crate) async fn apps_on_the_bus(&self) -> Result<BTreeMap<AppId, Vec<HeartbeatEntry>>, ClientError> {
        let heartbeats: Vec<Heartbeat> =
            self.asked_for(subjects::HEALTHMANAGER_START, subjects::DEA_HEARTBEAT, ANSWER_WINDOW, ANSWER_WINDOW).await?;
        let newest: BTreeMap<_, _> = heartbeats.into_iter().map(|heartbeat| (heartbeat.dea, heartbeat.droplets)).collect();
        let mut apps: BTreeMap<AppId, Vec<HeartbeatEntry>> = BTreeMap::new();
        for entry in newest.into_values().flatten() {
            apps.entry(entry.app_id.clone()).or_default().push(entry);
        }
        Ok(apps)
    }

    async fn advertisements<T: DeserializeOwned>(&self, locate: &str, advertise: &str) -> Result<Vec<T>, ClientError> {
        self.asked_for(locate, advertise, FIRST_ADVERTISEMENT_MAX, OTHERS_AFTER_FIRST).await
    }

    /// Publishes an empty question and collects what comes on another subject: for `first` until something does, then for `others`.
    async fn asked_for<T: DeserializeOwned>(
        &self,
        question: &str,
        answers: &str,
        first: Duration,
        others: Duration,
    ) -> Result<Vec<T>, ClientError> {
        let mut subscription = self.bus.subscribe(answers).await?;
        self.bus.publish_raw(question, None, Bytes::new())?;
        let mut found = Vec::new();
        let mut deadline = Instant::now() + first;
        while let Ok(Some(message)) = timeout_at(deadline, subscription.next()).await {
            if let Some(answer) = decode(&message.payload) {
                if found.is_empty() {
                    deadline = Instant::now() + others;
                }
                found.push(answer);
            }
        }
        Ok(found)
    }
}

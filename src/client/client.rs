//! A client on a bus.

use std::path::Path;
use std::time::Duration;

use dewar_bus::{Bus, BusConfig};
use dewar_protocol::{AppId, FindDroplet, FoundInstance, InstanceState};
use serde::de::DeserializeOwned;

use crate::app_name::AppName;
use crate::bus_address::bus_key;
use crate::error::ClientError;
use crate::records::{AppRecord, Records};
use crate::transfer::AdvertiseHost;

/// How long a command waits for the bus.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the server may take to confirm what was subscribed or published.
pub(crate) const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);
/// Agents answer a question within this time, or count as gone.
pub(crate) const ANSWER_WINDOW: Duration = Duration::from_millis(400);

/// Plays the Cloud Controller's part towards the agents on one bus. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Client {
    pub(crate) bus: Bus,
    pub(crate) records: Records,
    pub(crate) advertise: AdvertiseHost,
}

/// An app as a command names it.
#[derive(Debug, Clone)]
pub struct Target {
    /// Its name.
    pub name: AppName,
    /// Its id on the bus.
    pub id: AppId,
    /// What this client remembers, if it pushed the app.
    pub record: Option<AppRecord>,
}

impl Client {
    /// Connects, and looks for records of this bus under `home`.
    ///
    /// # Errors
    /// When the bus cannot be reached in a few seconds, or its address or credentials are wrong.
    pub async fn connect(bus: BusConfig, home: &Path, advertise: AdvertiseHost) -> Result<Self, ClientError> {
        let records = Records::new(home, &bus_key(&bus.servers));
        let (bus, _events) = Bus::connect(bus).await?;
        bus.wait_up(CONNECT_TIMEOUT).await?;
        Ok(Self { bus, records, advertise })
    }

    /// Hands all that was published to the server; for the end of a command.
    ///
    /// # Errors
    /// When the server does not confirm in time.
    pub async fn flush(&self) -> Result<(), ClientError> {
        Ok(self.bus.flush(FLUSH_TIMEOUT).await?)
    }

    /// What is remembered of an app that was pushed from here.
    ///
    /// # Errors
    /// When the record cannot be read or understood.
    pub fn record(&self, name: &AppName) -> Result<Option<AppRecord>, ClientError> {
        Ok(self.records.read(name)?)
    }

    /// The app of this name: as recorded here, else whatever runs under it on the bus.
    ///
    /// # Errors
    /// [`ClientError::UnknownApp`] when it is neither.
    pub async fn resolve(&self, name: &AppName) -> Result<Target, ClientError> {
        if let Some(record) = self.records.read(name)? {
            return Ok(Target { name: name.clone(), id: record.id.clone(), record: Some(record) });
        }
        for id in self.apps_on_the_bus().await?.into_keys() {
            let instances = self.find(&FindDroplet { app_id: Some(id.clone()), include_stats: true, ..FindDroplet::default() }).await?;
            if instances.iter().filter_map(|instance| instance.stats.as_ref()).any(|stats| stats.name == name.as_str()) {
                return Ok(Target { name: name.clone(), id, record: None });
            }
        }
        Err(ClientError::UnknownApp(name.clone()))
    }

    /// The instances that agents have, by index; the newest of an index first.
    pub(crate) async fn find(&self, question: &FindDroplet) -> Result<Vec<FoundInstance>, ClientError> {
        let answers = self.bus.request_many(dewar_protocol::subjects::DEA_FIND_DROPLET, question, ANSWER_WINDOW).await?;
        let mut instances: Vec<FoundInstance> = answers.iter().filter_map(|message| decode(&message.payload)).collect();
        instances.sort_by(|a, b| a.index.cmp(&b.index).then(b.state_timestamp.0.total_cmp(&a.state_timestamp.0)));
        Ok(instances)
    }

    /// As [`Client::find`], only those that hold or will hold memory.
    pub(crate) async fn find_live(&self, app: &AppId) -> Result<Vec<FoundInstance>, ClientError> {
        let question = FindDroplet { app_id: Some(app.clone()), ..FindDroplet::default() };
        let mut instances = self.find(&question).await?;
        instances.retain(|instance| is_live(instance.state));
        Ok(instances)
    }
}

/// Whether an instance in this state is there, or about to be or to go.
pub(crate) fn is_live(state: InstanceState) -> bool {
    match state {
        InstanceState::Born
        | InstanceState::Starting
        | InstanceState::Running
        | InstanceState::Stopping
        | InstanceState::Resuming
        | InstanceState::Evacuating => true,
        InstanceState::Stopped | InstanceState::Crashed => false,
    }
}

/// A message of the expected form; anything else on the bus is logged and ignored.
pub(crate) fn decode<T: DeserializeOwned>(payload: &[u8]) -> Option<T> {
    match serde_json::from_slice(payload) {
        Ok(message) => Some(message),
        Err(error) => {
            tracing::debug!(error = %error, "strange message ignored");
            None
        }
    }
}

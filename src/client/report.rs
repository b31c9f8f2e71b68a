//! What `apps`, `app` and `agents` tell. These structs are also the JSON that `--json` prints: keys are only ever added.

use dewar_protocol::{AppId, CellId, Crash, FindDroplet, FoundInstance, InstanceId, InstanceState, Mib, UnixSeconds};
use serde::Serialize;

use crate::app_name::AppName;
use crate::client::{Client, Target, is_live};
use crate::error::ClientError;
use crate::records::{AppRecord, Phase};

/// One app in a list. Null is what this client does not know, since somebody else pushed the app.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AppSummary {
    /// Its name.
    pub name: Option<AppName>,
    /// Its id on the bus.
    pub id: AppId,
    /// `staged`, `started` or `stopped`, as this client last left it.
    pub phase: Option<Phase>,
    /// Instances wanted.
    pub wanted: Option<u32>,
    /// Instances in RUNNING or EVACUATING.
    pub running: usize,
    /// Instances in STARTING.
    pub starting: usize,
    /// Instances in CRASHED that their agent still keeps.
    pub crashed: usize,
    /// Memory of each instance, in MiB.
    pub memory_mib: Option<Mib>,
    /// Disk of each instance, in MiB.
    pub disk_mib: Option<Mib>,
    /// Routes.
    pub uris: Vec<String>,
    /// What the buildpack called the app.
    pub buildpack: Option<String>,
}

/// One app in full.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AppReport {
    /// As in the list.
    #[serde(flatten)]
    pub summary: AppSummary,
    /// Version that is to run.
    pub version: Option<String>,
    /// Digest of its droplet.
    pub droplet_sha1: Option<String>,
    /// Start command in effect.
    pub start_command: Option<String>,
    /// Where the package came from.
    pub package: Option<String>,
    /// Instances, by index.
    pub instances: Vec<InstanceReport>,
}

/// One instance. Null where its agent does not tell: only a RUNNING instance has figures.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct InstanceReport {
    /// Index.
    pub index: u32,
    /// State, in upper case.
    pub state: InstanceState,
    /// When it was entered, in seconds since the epoch.
    pub since: UnixSeconds,
    /// Seconds since the start.
    pub uptime_seconds: Option<u64>,
    /// Fraction of one core.
    pub cpu: Option<f64>,
    /// Memory in use.
    pub memory_bytes: Option<u64>,
    /// Memory quota.
    pub memory_quota_bytes: Option<u64>,
    /// Disk in use.
    pub disk_bytes: Option<u64>,
    /// Disk quota.
    pub disk_quota_bytes: Option<u64>,
    /// `host:port`.
    pub address: Option<String>,
    /// Agent.
    pub agent: CellId,
    /// Instance id.
    pub id: InstanceId,
    /// Version.
    pub version: String,
    /// How it ended, when it has crashed.
    pub crash: Option<Crash>,
}

impl Client {
    /// Every app that was pushed from here, and every other app on the bus.
    ///
    /// # Errors
    /// When records cannot be read or the bus refuses.
    pub async fn list_apps(&self) -> Result<Vec<AppSummary>, ClientError> {
        let mut on_the_bus = self.apps_on_the_bus().await?;
        let mut apps = Vec::new();
        for record in self.records.all()? {
            let states = on_the_bus.remove(&record.id).unwrap_or_default().into_iter().map(|entry| entry.state);
            apps.push(summary(Some(&record), record.id.clone(), &states.collect::<Vec<_>>()));
        }
        for (id, entries) in on_the_bus {
            let states: Vec<_> = entries.into_iter().map(|entry| entry.state).collect();
            let mut app = summary(None, id.clone(), &states);
            let question = FindDroplet { app_id: Some(id), include_stats: true, ..FindDroplet::default() };
            if let Some(stats) = self.find(&question).await?.into_iter().find_map(|instance| instance.stats) {
                app.name = stats.name.parse().ok();
                app.uris = stats.uris;
            }
            apps.push(app);
        }
        Ok(apps)
    }

    /// One app with its instances. Crashed instances of versions other than the current are left out.
    ///
    /// # Errors
    /// When there is no such app.
    pub async fn describe_app(&self, name: &AppName) -> Result<AppReport, ClientError> {
        let Target { id, record, .. } = self.resolve(name).await?;
        let question = FindDroplet { app_id: Some(id.clone()), include_stats: true, ..FindDroplet::default() };
        let mut instances = self.find(&question).await?;
        if let Some(record) = &record {
            instances.retain(|instance| is_live(instance.state) || instance.version == record.release.version);
        }
        let states: Vec<_> = instances.iter().map(|instance| instance.state).collect();
        let mut app = summary(record.as_ref(), id, &states);
        if record.is_none() {
            app.name = Some(name.clone());
            app.uris = instances.iter().find_map(|instance| instance.stats.as_ref()).map(|stats| stats.uris.clone()).unwrap_or_default();
        }
        let release = record.as_ref().map(|record| &record.release);
        Ok(AppReport {
            summary: app,
            version: release.map(|release| release.version.clone()),
            droplet_sha1: release.map(|release| release.droplet.to_string()),
            start_command: record.as_ref().and_then(|r| r.start_command.clone().or_else(|| r.release.detected_start_command.clone())),
            package: record.as_ref().map(|record| record.package.display().to_string()),
            instances: instances.into_iter().map(InstanceReport::from).collect(),
        })
    }
}

fn summary(record: Option<&AppRecord>, id: AppId, states: &[InstanceState]) -> AppSummary {
    let count = |wanted: &[InstanceState]| states.iter().filter(|state| wanted.contains(state)).count();
    AppSummary {
        name: record.map(|record| record.name.clone()),
        id,
        phase: record.map(|record| record.phase),
        wanted: record.map(|record| record.instances),
        running: count(&[InstanceState::Running, InstanceState::Evacuating]),
        starting: count(&[InstanceState::Starting]),
        crashed: count(&[InstanceState::Crashed]),
        memory_mib: record.map(|record| record.memory),
        disk_mib: record.map(|record| record.disk),
        uris: record.map(|record| record.uris.clone()).unwrap_or_default(),
        buildpack: record.and_then(|record| record.release.detected_buildpack.clone().or_else(|| record.buildpack.clone())),
    }
}

impl From<FoundInstance> for InstanceReport {
    fn from(found: FoundInstance) -> Self {
        let stats = found.stats.as_ref();
        Self {
            index: found.index,
            state: found.state,
            since: found.state_timestamp,
            uptime_seconds: stats.map(|stats| stats.uptime),
            cpu: stats.map(|stats| stats.usage.cpu),
            memory_bytes: stats.map(|stats| stats.usage.mem.0),
            memory_quota_bytes: stats.map(|stats| stats.mem_quota.0),
            disk_bytes: stats.map(|stats| stats.usage.disk.0),
            disk_quota_bytes: stats.map(|stats| stats.disk_quota.0),
            address: stats.and_then(|stats| stats.port.map(|port| format!("{}:{port}", stats.host))),
            agent: found.dea,
            id: found.instance_id,
            version: found.version,
            crash: found.crash,
        }
    }
}

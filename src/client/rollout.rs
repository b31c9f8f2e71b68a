//! From a release on disk to running instances, and from running instances to none.

use std::collections::{BTreeSet, HashSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use dewar_protocol::{AppId, FoundInstance, InstanceFilter, InstanceId, InstanceState, LogSource, Secret, Stop, UnixSeconds, subjects};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::client::{Client, is_live};
use crate::error::ClientError;
use crate::launch::Launch;
use crate::push_event::{PushEvent, Reporter};
use crate::records::{AppRecord, LockedApp};
use crate::transfer::{TransferServer, Uses};
use crate::watch::{InstanceWatch, Sight};

/// How long instances may take to end: requests in flight, then the agent's own grace time.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);
/// Polls without a live instance after which there is none: one may have been asked just before the agent took the message in.
const EMPTY_POLLS: u8 = 2;
/// How much of a crashed instance's output is told.
const CRASH_LINES: u32 = 100;

/// A release to bring up.
pub(crate) struct Rollout<'a> {
    pub(crate) locked: &'a LockedApp,
    pub(crate) app: &'a AppRecord,
    pub(crate) indices: Vec<u32>,
    pub(crate) before: Before,
}

/// What was there before.
pub(crate) enum Before {
    /// Nothing: the app is new.
    Nothing,
    /// Other versions, maybe, and these instances of the same version.
    Instances(HashSet<InstanceId>),
}

impl Client {
    /// Starts instances of the app's release; what then runs of other versions is stopped, and the record saved.
    ///
    /// # Errors
    /// As [`Client::launch`]. Instances of this call are stopped again then, and everything else is as before.
    pub(crate) async fn roll_out(
        &self,
        rollout: Rollout<'_>,
        server: &TransferServer,
        report: Reporter<'_>,
        stop: &CancellationToken,
    ) -> Result<(), ClientError> {
        let Rollout { locked, app, indices, before } = rollout;
        let (older, is_new) = match before {
            Before::Nothing => (HashSet::new(), true),
            Before::Instances(older) => (older, false),
        };
        let began = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let launch = Launch { app, indices, droplet_uri: offer_droplet(locked, app, server)?, older };
        if let Err(error) = self.launch(&launch, &mut *report, stop).await {
            self.give_up(app, launch.indices).await?;
            if let ClientError::Crashed { index, .. } = error {
                self.report_last_lines(app, index, UnixSeconds(began), report).await?;
            }
            return Err(error);
        }
        locked.save(app)?;
        if is_new { Ok(()) } else { self.retire_other_versions(app, report).await }
    }

    async fn give_up(&self, app: &AppRecord, indices: Vec<u32>) -> Result<(), ClientError> {
        let version = Some(app.release.version.clone());
        let filter = InstanceFilter { app_id: Some(app.id.clone()), version, indices: Some(indices), ..InstanceFilter::default() };
        self.bus.publish(subjects::DEA_STOP, &Stop { filter, whole_app: false })?;
        self.flush().await
    }

    async fn report_last_lines(&self, app: &AppRecord, index: u32, since: UnixSeconds, report: Reporter<'_>) -> Result<(), ClientError> {
        for line in self.recent_logs(&app.id, CRASH_LINES).await? {
            if line.source == LogSource::App && line.index == Some(index) && line.timestamp >= since {
                report(PushEvent::Log { app: app.name.clone(), line });
            }
        }
        Ok(())
    }

    async fn retire_other_versions(&self, app: &AppRecord, report: Reporter<'_>) -> Result<(), ClientError> {
        let mut others = self.find_live(&app.id).await?;
        others.retain(|instance| instance.version != app.release.version);
        if others.is_empty() {
            return Ok(());
        }
        report(PushEvent::Stopping { app: app.name.clone(), count: others.len() });
        let versions: BTreeSet<String> = others.into_iter().map(|instance| instance.version).collect();
        let watch = InstanceWatch::open(self, &app.id, None).await?;
        for version in versions {
            let filter = InstanceFilter { app_id: Some(app.id.clone()), version: Some(version), ..InstanceFilter::default() };
            self.bus.publish(subjects::DEA_STOP, &Stop { filter, whole_app: false })?;
        }
        self.until_gone(watch, |instance| instance.version != app.release.version).await
    }

    /// Stops the instances of a version with these indices.
    pub(crate) async fn stop_indices(&self, app: &AppRecord, indices: Vec<u32>, report: Reporter<'_>) -> Result<(), ClientError> {
        report(PushEvent::Stopping { app: app.name.clone(), count: indices.len() });
        let version = app.release.version.as_str();
        let watch = InstanceWatch::open(self, &app.id, Some(version)).await?;
        self.give_up(app, indices.clone()).await?;
        self.until_gone(watch, |instance| indices.contains(&instance.index)).await
    }

    /// Stops these very instances.
    pub(crate) async fn stop_instances(&self, app: &AppRecord, ids: Vec<InstanceId>, report: Reporter<'_>) -> Result<(), ClientError> {
        report(PushEvent::Stopping { app: app.name.clone(), count: ids.len() });
        let watch = InstanceWatch::open(self, &app.id, Some(&app.release.version)).await?;
        let filter = InstanceFilter { app_id: Some(app.id.clone()), instances: Some(ids.clone()), ..InstanceFilter::default() };
        self.bus.publish(subjects::DEA_STOP, &Stop { filter, whole_app: false })?;
        self.flush().await?;
        self.until_gone(watch, |instance| ids.contains(&instance.instance_id)).await
    }

    /// Stops an app as a whole, its staging included.
    pub(crate) async fn stop_all(&self, id: &AppId) -> Result<(), ClientError> {
        let watch = InstanceWatch::open(self, id, None).await?;
        let filter = InstanceFilter { app_id: Some(id.clone()), ..InstanceFilter::default() };
        self.bus.publish(subjects::DEA_STOP, &Stop { filter, whole_app: true })?;
        self.flush().await?;
        self.until_gone(watch, |_| true).await
    }

    /// Waits until no live instance of those concerned is seen any more.
    async fn until_gone(&self, mut watch: InstanceWatch, concerned: impl Fn(&FoundInstance) -> bool) -> Result<(), ClientError> {
        let deadline = Instant::now() + STOP_TIMEOUT;
        let (mut empty_polls, mut seen) = (0, BTreeSet::new());
        loop {
            match tokio::time::timeout_at(deadline, watch.next()).await {
                Err(_) => return Err(ClientError::StopTimedOut { count: seen.len().max(1), after: STOP_TIMEOUT }),
                Ok(sight) => match sight? {
                    Sight::Found(found) if is_live(found.state) && concerned(&found) => {
                        seen.insert(found.instance_id);
                    }
                    Sight::Found(_) | Sight::Exited(_) => {}
                    Sight::Tick if seen.is_empty() => {
                        empty_polls += 1;
                        // The first tick only asks.
                        if empty_polls > EMPTY_POLLS {
                            return Ok(());
                        }
                    }
                    Sight::Tick => {
                        empty_polls = 0;
                        seen.clear();
                    }
                },
            }
        }
    }
}

fn is_present(instance: &&FoundInstance) -> bool {
    is_live(instance.state) && instance.state != InstanceState::Stopping
}

/// Instances beyond the first of their index. They come about when an agent was away while its instances were looked for, and others
/// were started in their place. The one that stays is a running one where there is one.
#[must_use]
pub(crate) fn doubles(wanted: u32, found: &[FoundInstance]) -> Vec<InstanceId> {
    let mut present: Vec<&FoundInstance> = found.iter().filter(is_present).filter(|instance| instance.index < wanted).collect();
    present.sort_by_key(|instance| (instance.index, instance.state != InstanceState::Running));
    let beyond = present.windows(2).filter(|pair| pair[0].index == pair[1].index);
    beyond.map(|pair| pair[1].instance_id.clone()).collect()
}

/// The indices of a release that are wanted and not there, and those that are there and not wanted.
#[must_use]
pub(crate) fn difference(wanted: u32, found: &[FoundInstance]) -> (Vec<u32>, Vec<u32>) {
    let present: BTreeSet<u32> = found.iter().filter(is_present).map(|instance| instance.index).collect();
    let missing = (0..wanted).filter(|index| !present.contains(index)).collect();
    let surplus = present.into_iter().filter(|index| *index >= wanted).collect();
    (missing, surplus)
}

fn offer_droplet(locked: &LockedApp, app: &AppRecord, server: &TransferServer) -> Result<Secret<String>, ClientError> {
    let sha1 = &app.release.droplet;
    let path = locked.droplet_path(sha1);
    if !path.is_file() {
        return Err(ClientError::DropletGone { name: app.name.clone(), path: locked.droplets_dir() });
    }
    Ok(server.offer(&format!("droplet/{sha1}"), &path, Uses::Many))
}

#[cfg(test)]
mod tests {
    use dewar_protocol::CellId;

    use super::*;

    fn instance(index: u32, state: InstanceState) -> FoundInstance {
        FoundInstance {
            dea: CellId::from("a"),
            app_id: AppId::from("app"),
            version: "v".to_owned(),
            instance_id: InstanceId::from("i"),
            index,
            state,
            state_timestamp: UnixSeconds(0.0),
            staged: "/i".to_owned(),
            file_uri: None,
            credentials: None,
            file_uri_v2: None,
            stats: None,
            crash: None,
        }
    }

    #[test]
    fn what_scaling_has_to_do() {
        use InstanceState::{Crashed, Running, Starting, Stopping};
        let found = [
            instance(0, Running),
            instance(2, Starting),
            instance(2, Running),
            instance(3, Stopping),
            instance(1, Crashed),
            instance(5, Running),
        ];
        assert_eq!(difference(4, &found), (vec![1, 3], vec![5]));
        assert_eq!(difference(0, &found), (vec![], vec![0, 2, 5]));
        assert_eq!(difference(2, &[]), (vec![0, 1], vec![]));
    }

    #[test]
    fn of_doubles_a_running_one_stays() {
        use InstanceState::{Crashed, Running, Starting, Stopping};
        let named = |id: &str, index, state| FoundInstance { instance_id: InstanceId::from(id), ..instance(index, state) };
        let found = [
            named("a", 0, Starting),
            named("b", 0, Running),
            named("c", 0, Running),
            named("d", 1, Crashed),
            named("e", 1, Running),
            named("f", 2, Stopping),
            named("g", 3, Running),
            named("h", 3, Running),
        ];
        assert_eq!(doubles(3, &found), [InstanceId::from("c"), InstanceId::from("a")], "index 3 is not wanted at all");
    }
}

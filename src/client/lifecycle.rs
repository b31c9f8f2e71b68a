//! Verbs on an app that has been pushed: scale, start, stop, restart, delete.

use dewar_protocol::{FindDroplet, FoundInstance};
use tokio_util::sync::CancellationToken;

use crate::app_name::AppName;
use crate::client::Client;
use crate::error::ClientError;
use crate::push::fresh_uuid;
use crate::push_event::Reporter;
use crate::records::{AppRecord, LockedApp, Phase};
use crate::rollout::{Before, Rollout, difference, doubles};
use crate::transfer::TransferServer;

impl Client {
    /// Brings the app to `instances` instances, one of each index: missing ones are started, surplus ones stopped. A stopped app only
    /// remembers.
    ///
    /// # Errors
    /// When the app was not pushed from here, waits to be started, or as starting and stopping fail.
    pub async fn scale(
        &self,
        name: &AppName,
        instances: u32,
        report: Reporter<'_>,
        stop: &CancellationToken,
    ) -> Result<AppRecord, ClientError> {
        let (locked, mut app) = self.lock_ours(name).await?;
        if app.phase == Phase::Staged {
            return Err(ClientError::OnlyStaged(name.clone()));
        }
        app.instances = instances;
        if app.phase == Phase::Stopped {
            locked.save(&app)?;
            return Ok(app);
        }
        let found = self.find_release(&app).await?;
        let (missing, surplus) = difference(instances, &found);
        let doubles = doubles(instances, &found);
        if !missing.is_empty() {
            self.roll_out_here(rollout(&locked, &app, missing, found), &mut *report, stop).await?;
        }
        locked.save(&app)?;
        if !surplus.is_empty() {
            self.stop_indices(&app, surplus, &mut *report).await?;
        }
        if !doubles.is_empty() {
            self.stop_instances(&app, doubles, report).await?;
        }
        Ok(app)
    }

    /// Starts what is missing of the app's release, and stops other versions once it is healthy.
    ///
    /// # Errors
    /// When the app was not pushed from here, or as starting fails.
    pub async fn start(&self, name: &AppName, report: Reporter<'_>, stop: &CancellationToken) -> Result<AppRecord, ClientError> {
        let (locked, mut app) = self.lock_ours(name).await?;
        app.phase = Phase::Started;
        let found = self.find_release(&app).await?;
        let (missing, _) = difference(app.instances, &found);
        self.roll_out_here(rollout(&locked, &app, missing, found), report, stop).await?;
        Ok(app)
    }

    /// Starts a full new set of instances, and stops the old ones once it is healthy.
    ///
    /// # Errors
    /// When the app was not pushed from here, or as starting fails; the old instances then go on.
    pub async fn restart(&self, name: &AppName, report: Reporter<'_>, stop: &CancellationToken) -> Result<AppRecord, ClientError> {
        let (locked, mut app) = self.lock_ours(name).await?;
        app.phase = Phase::Started;
        app.release.version = fresh_uuid()?;
        let all = (0..app.instances).collect();
        self.roll_out_here(rollout(&locked, &app, all, Vec::new()), report, stop).await?;
        Ok(app)
    }

    /// Stops all instances of an app, whoever pushed it, and waits until they are gone.
    ///
    /// # Errors
    /// When there is no such app, or instances do not go.
    pub async fn stop(&self, name: &AppName) -> Result<(), ClientError> {
        let locked = self.records.lock(name)?;
        let target = self.resolve(name).await?;
        self.stop_all(&target.id).await?;
        if let Some(app) = target.record {
            locked.save(&AppRecord { phase: Phase::Stopped, ..app })?;
        }
        Ok(())
    }

    /// Stops an app and forgets it.
    ///
    /// # Errors
    /// When there is no such app, or instances do not go; it is not forgotten then.
    pub async fn delete(&self, name: &AppName) -> Result<(), ClientError> {
        let locked = self.records.lock(name)?;
        let target = self.resolve(name).await?;
        self.stop_all(&target.id).await?;
        Ok(locked.forget()?)
    }

    async fn lock_ours(&self, name: &AppName) -> Result<(LockedApp, AppRecord), ClientError> {
        let locked = self.records.lock(name)?;
        match locked.read()? {
            Some(app) => Ok((locked, app)),
            // Either it is known on the bus, or the error says that it is not.
            None => self.resolve(name).await.and(Err(ClientError::NotOurs(name.clone()))),
        }
    }

    /// Every instance of the app's release that any agent knows, crashed ones included.
    async fn find_release(&self, app: &AppRecord) -> Result<Vec<FoundInstance>, ClientError> {
        let (app_id, version) = (Some(app.id.clone()), Some(app.release.version.clone()));
        self.find(&FindDroplet { app_id, version, ..FindDroplet::default() }).await
    }

    async fn roll_out_here(&self, rollout: Rollout<'_>, report: Reporter<'_>, stop: &CancellationToken) -> Result<(), ClientError> {
        let server = TransferServer::start(&self.advertise).await.map_err(ClientError::Serve)?;
        let outcome = self.roll_out(rollout, &server, report, stop).await;
        server.close().await;
        outcome
    }
}

fn rollout<'a>(locked: &'a LockedApp, app: &'a AppRecord, indices: Vec<u32>, found: Vec<FoundInstance>) -> Rollout<'a> {
    let before = Before::Instances(found.into_iter().map(|instance| instance.instance_id).collect());
    Rollout { locked, app, indices, before }
}

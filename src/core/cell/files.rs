//! File access: signed URLs in answers, what they lead to, and the route to the file server.

use std::collections::BTreeMap;

use dewar_protocol::{FileUrls, FilesOf, FindDroplet, FoundInstance, InstanceState, RouteRegistration, STAGING_LOG, Secret, TaskId};

use super::Cell;
use crate::lifecycle::Phase;
use crate::staging_task::TaskState;
use crate::{Effect, FilesAt, Now, Publication};

impl Cell {
    /// Adds URLs to an answer: a signed one if the question has a path, even an empty one; that of the old server where there is one.
    pub(super) fn add_file_urls(&self, now: Now, question: &FindDroplet, found: &mut FoundInstance) {
        let Some(files) = &self.config.files else { return };
        if let Some(path) = &question.path {
            found.file_uri_v2 = Some(sign(&files.urls, now, &FilesOf::Instance(found.instance_id.clone()), path.as_deref()));
        }
        if let Some(v1) = &files.v1 {
            (found.file_uri, found.credentials) = (Some(v1.uri.clone()), Some(v1.credentials.clone()));
        }
    }

    /// Where a Cloud Controller's user may read along while a task stages.
    pub(super) fn staging_log_url(&self, now: Now, task_id: &TaskId) -> Option<Secret<String>> {
        let files = self.config.files.as_ref()?;
        Some(sign(&files.urls, now, &FilesOf::StagingTask(task_id.clone()), Some(STAGING_LOG)))
    }

    /// Where the edge finds the files that a URL is about. Only instances in RUNNING and CRASHED have any to show, and a staging task
    /// from its first reply on.
    pub(super) fn locate_files(&self, of: &FilesOf) -> FilesAt {
        match of {
            FilesOf::Instance(id) => {
                let Some(instance) = self.registry.by_id(id) else { return FilesAt::Unknown };
                match (instance.state(), instance.files()) {
                    (InstanceState::Running, Some(files)) => FilesAt::Instance(files.clone()),
                    (InstanceState::Crashed, Some(files)) => FilesAt::Crash(files.clone()),
                    _ => FilesAt::Unavailable,
                }
            }
            FilesOf::StagingTask(id) => match self.tasks.by_id(id) {
                None => FilesAt::Unknown,
                Some(task) if task.state == TaskState::SettingUp => FilesAt::Unavailable,
                Some(task) => FilesAt::StagingTask(task.key),
            },
        }
    }

    /// `router.register` for the file server, as long as the agent wants to be found.
    pub(super) fn register_files(&self, out: &mut Vec<Effect>) {
        match self.phase {
            Phase::Serving | Phase::Evacuating(_) => {
                out.extend(self.files_registration().map(|route| Effect::Publish(Publication::RouterRegister(route))))
            }
            Phase::Stopping { .. } | Phase::Exited => {}
        }
    }

    /// `router.unregister` for the file server.
    pub(super) fn unregister_files(&self, out: &mut Vec<Effect>) {
        out.extend(self.files_registration().map(|route| Effect::Publish(Publication::RouterUnregister(route))));
    }

    /// `None` where routers do not lead to it.
    fn files_registration(&self) -> Option<RouteRegistration> {
        let route = self.config.files.as_ref()?.route.as_ref()?;
        Some(RouteRegistration {
            uris: vec![route.host_name.clone()],
            host: self.config.ip.clone(),
            port: route.port,
            tags: BTreeMap::from([("component".to_owned(), format!("directory-server-{}", self.config.index))]),
            ..RouteRegistration::default()
        })
    }
}

fn sign(urls: &FileUrls, now: Now, of: &FilesOf, file: Option<&str>) -> Secret<String> {
    urls.sign(of, file, now.wall.whole_seconds())
}

//! Where the files are that a URL is about.

use std::time::Duration;

use dewar_core::{Answer, FilesAt, Request};
use dewar_protocol::FilesOf;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tracing::warn;

use super::open::{Links, Root};
use super::refusal::Refusal;
use crate::base_dir::Paths;
use crate::driver::Asked;
use crate::effects::Asker;

/// For the driver to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Finds the directories that may be shown, by what the cell says.
#[derive(Debug, Clone)]
pub(super) struct Places {
    paths: Paths,
    requests: mpsc::Sender<Asked>,
}

impl Places {
    pub(super) fn new(paths: Paths, requests: mpsc::Sender<Asked>) -> Self {
        Self { paths, requests }
    }

    /// The root of what an instance or a staging task has.
    ///
    /// # Errors
    /// When it has nothing to show.
    pub(super) async fn root(&self, of: &FilesOf) -> Result<Root, Refusal> {
        let (directory, links) = match self.locate(of).await? {
            FilesAt::Unknown => return Err(Refusal::unknown(of)),
            FilesAt::Unavailable => return Err(Refusal::unavailable(of)),
            FilesAt::Instance(id) => (self.paths.instance(&id), Links::Followed),
            FilesAt::Crash(id) => (self.paths.crash(&id), Links::Followed),
            FilesAt::StagingTask(key) => (self.paths.staging_log(key), Links::Refused),
        };
        Root::open(&directory, links).map_err(|error| {
            // It ends just now, or it crashed before there was anything to keep.
            if error.kind() != std::io::ErrorKind::NotFound {
                warn!(path = %directory.display(), %error, "directory to show cannot be opened");
            }
            Refusal::unavailable(of)
        })
    }

    async fn locate(&self, of: &FilesOf) -> Result<FilesAt, Refusal> {
        let (sender, answer) = oneshot::channel();
        let asked = Asked { request: Request::LocateFiles(of.clone()), asker: Asker::Here(sender) };
        let answer = timeout(ANSWER_TIMEOUT, async {
            self.requests.send(asked).await.ok()?;
            answer.await.ok()
        });
        match answer.await {
            Ok(Some(Answer::Files(at))) => Ok(at),
            _ => Err(Refusal::NoAnswer),
        }
    }
}

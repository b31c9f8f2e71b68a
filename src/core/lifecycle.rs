//! The phases of a cell, and what each of them refuses.

use crate::{Mono, Request};

/// How far the cell's own life has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Takes everything.
    Serving,
    /// Takes nothing new, and waits for what it has to end.
    Stopping {
        /// When to stop waiting.
        exit_by: Mono,
    },
    /// Has asked for the end of the process; nothing matters any more.
    Exited,
}

/// What becomes of a request in a phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Take,
    /// Nobody waits for an answer and nothing is lost.
    Ignore,
    /// Something that was wanted does not happen; worth a line in the log.
    Refuse(&'static str),
}

impl Phase {
    pub(crate) fn judge(self, request: &Request) -> Verdict {
        match self {
            Self::Serving => Verdict::Take,
            Self::Stopping { .. } => match request {
                Request::StartInstance(_) | Request::Stage(_) => Verdict::Refuse("this agent is shutting down"),
                // An advertisement after `dea.shutdown` would put the agent back into placement.
                Request::Locate | Request::LocateStager => Verdict::Ignore,
                Request::StopInstances(_)
                | Request::UpdateApp(_)
                | Request::FindInstances(_)
                | Request::StopStaging(_)
                | Request::ReportHeartbeat
                | Request::RegisterRoutes(_)
                | Request::ReportStatus
                | Request::DiscoverComponent
                | Request::ReportVarz => Verdict::Take,
            },
            Self::Exited => Verdict::Ignore,
        }
    }
}

/// Where a request came from, for the log.
pub(crate) fn subject(request: &Request) -> &'static str {
    match request {
        Request::StartInstance(_) => "dea.<id>.start",
        Request::StopInstances(_) => "dea.stop",
        Request::UpdateApp(_) => "dea.update",
        Request::FindInstances(_) => "dea.find.droplet",
        Request::Locate => "dea.locate",
        Request::LocateStager => "staging.locate",
        Request::Stage(_) => "staging.<id>.start",
        Request::StopStaging(_) => "staging.stop",
        Request::ReportHeartbeat => "healthmanager.start",
        Request::RegisterRoutes(_) => "router.start",
        Request::ReportStatus => "dea.status",
        Request::DiscoverComponent => "vcap.component.discover",
        Request::ReportVarz => "/varz",
    }
}

//! The phases of a cell, and what each of them refuses.

use crate::{Mono, Request};

/// How far the cell's own life has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Takes everything.
    Serving,
    /// Takes nothing new, and keeps what it has until that is replaced elsewhere.
    Evacuating(Departure),
    /// Takes nothing new, and waits for what it has to end.
    Stopping {
        /// When to stop waiting.
        exit_by: Mono,
        /// Whether it was evacuated before, so that health managers know of every end.
        evacuated: bool,
    },
    /// Has asked for the end of the process; nothing matters any more.
    Exited,
}

/// How far an evacuation has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Departure {
    /// When to look again whether anything is left.
    pub(crate) next_pass: Mono,
    /// When to shut down, whatever is left.
    pub(crate) bail_out: Mono,
    /// Whether health managers take the instances for lost from the beginning.
    pub(crate) silent: bool,
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
            Self::Evacuating(_) if is_new(request) => Verdict::Refuse("this agent is being evacuated"),
            Self::Stopping { .. } if is_new(request) => Verdict::Refuse("this agent is shutting down"),
            Self::Evacuating(_) | Self::Stopping { .. } => Verdict::Take,
            Self::Exited => Verdict::Ignore,
        }
    }
}

/// Whether it would begin something.
fn is_new(request: &Request) -> bool {
    match request {
        Request::StartInstance(_) | Request::StartInstanceByHttp(_) | Request::Stage(_) | Request::StageByHttp(_) => true,
        Request::StopInstances(_)
        | Request::UpdateApp(_)
        | Request::FindInstances(_)
        | Request::Locate
        | Request::LocateStager
        | Request::StopStaging(_)
        | Request::ReportHeartbeat
        | Request::RegisterRoutes(_)
        | Request::ReportStatus
        | Request::DiscoverComponent
        | Request::LocateFiles(_)
        | Request::ReportVarz => false,
    }
}

/// Where a request came from, for the log.
pub(crate) fn subject(request: &Request) -> &'static str {
    match request {
        Request::StartInstance(_) => "dea.<id>.start",
        Request::StartInstanceByHttp(_) => "/v1/apps",
        Request::StopInstances(_) => "dea.stop",
        Request::UpdateApp(_) => "dea.update",
        Request::FindInstances(_) => "dea.find.droplet",
        Request::Locate => "dea.locate",
        Request::LocateStager => "staging.locate",
        Request::Stage(_) => "staging.<id>.start",
        Request::StageByHttp(_) => "/v1/stage",
        Request::StopStaging(_) => "staging.stop",
        Request::ReportHeartbeat => "healthmanager.start",
        Request::RegisterRoutes(_) => "router.start",
        Request::ReportStatus => "dea.status",
        Request::DiscoverComponent => "vcap.component.discover",
        Request::LocateFiles(_) => "file access",
        Request::ReportVarz => "/varz",
    }
}

//! Why a staging fails, and how the app's developer is told.

use dewar_core::StagingError;
use dewar_protocol::{ErrorInfo, StagingFailure};
use dewar_sandbox::{BuildpackError, InvalidEgressRule, ProgramError};

use super::buildpacks::BuildpackSetupError;
use super::droplet::PackError;
use super::info::{InvalidProcfile, MAX_BYTES};
use super::upload::UploadError;
use crate::archive::UnpackError;
use crate::droplet_store::StoreError;
use crate::transfer::DownloadError;
use crate::tree::TreeError;

/// Why a staging fails.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("Error staging: Stack {0} does not exist")]
    UnknownStack(String),
    #[error("Error staging: failed to {0}")]
    Egress(#[from] InvalidEgressRule),
    #[error("Error staging: {0}")]
    Buildpacks(#[source] BuildpackSetupError),
    #[error("Error staging: app package: {0}")]
    Download(#[source] DownloadError),
    #[error("Error staging: app package: failed to {0}")]
    Package(#[source] UnpackError),
    #[error("An application could not be detected by any available buildpack")]
    NoAppDetected,
    #[error("Buildpack compilation step failed: {0}")]
    Compile(String),
    #[error("Release info failed:\n{0}")]
    Release(String),
    #[error("{0}")]
    Procfile(#[from] InvalidProcfile),
    #[error("The buildpack wrote no droplet.wasm")]
    NoComponent,
    #[error("The droplet is of no use: failed to {0}")]
    Component(#[source] ProgramError),
    #[error("The droplet is of no use: the buildpack wants it run as {wanted}, which it does not export")]
    WrongWorld { wanted: &'static str },
    #[error("Buildpack {name} is of no use: failed to {source}")]
    Buildpack { name: String, source: ProgramError },
    #[error("Staging in container timed out")]
    TimedOut,
    #[error("The droplet is of no use: its staging_info.yml (process types above all) has {0} bytes, and may have {MAX_BYTES}")]
    LongInfo(usize),
    #[error("The droplet is of no use: failed to {0}")]
    Droplet(#[source] PackError),
    #[error("Error staging: failed to {0}")]
    Pack(#[source] PackError),
    #[error("Error staging: failed to {0}")]
    Store(#[from] StoreError),
    #[error("Error staging: failed to {what}: {source}")]
    Disk { what: &'static str, source: std::io::Error },
    #[error("Error staging: failed to store {entry:?} of the app package: {source}")]
    StorePackage { entry: String, source: std::io::Error },
    #[error("Error staging: failed to {0}")]
    Agent(String),
    #[error(transparent)]
    Upload(#[from] UploadError),
    #[error("Error staging: task stopped")]
    Stopped,
}

impl Failure {
    /// What a failed compile step means.
    pub(super) fn of_compile(error: BuildpackError) -> Self {
        Self::of_step(error, Self::Compile)
    }

    /// What a failed release step means.
    pub(super) fn of_release(error: BuildpackError) -> Self {
        Self::of_step(error, Self::Release)
    }

    fn of_step(error: BuildpackError, failed: fn(String) -> Self) -> Self {
        match error {
            BuildpackError::Refused(text) => failed(text),
            BuildpackError::TimedOut(_) => Self::TimedOut,
            BuildpackError::Cancelled => Self::Stopped,
            BuildpackError::Setup(_) => Self::Agent(error.to_string()),
            BuildpackError::Trapped(_) | BuildpackError::Exited(_) | BuildpackError::OutOfMemory(_) | BuildpackError::DiskFull { .. } => {
                failed(format!("failed to {error}"))
            }
        }
    }

    /// The class under which a Cloud Controller knows it; none for what the developer cannot mend.
    fn kind(&self) -> Option<StagingFailure> {
        match self {
            Self::NoAppDetected => Some(StagingFailure::NoAppDetectedError),
            Self::Compile(_) => Some(StagingFailure::BuildpackCompileFailed),
            Self::Release(_) => Some(StagingFailure::BuildpackReleaseFailed),
            Self::Package(_) | Self::Procfile(_) | Self::NoComponent | Self::Component(_) | Self::WrongWorld { .. } => {
                Some(StagingFailure::StagingError)
            }
            Self::Buildpack { .. } | Self::LongInfo(_) | Self::Droplet(_) => Some(StagingFailure::StagingError),
            Self::UnknownStack(_) | Self::Egress(_) | Self::Buildpacks(_) | Self::Download(_) | Self::TimedOut => None,
            Self::Pack(_)
            | Self::Store(_)
            | Self::Disk { .. }
            | Self::StorePackage { .. }
            | Self::Agent(_)
            | Self::Upload(_)
            | Self::Stopped => None,
        }
    }
}

/// Bytes of the text of a failure. A reply has it twice, and has to fit into a message of a mebibyte when each byte is escaped.
const MAX_TEXT: usize = 16 << 10;

/// What a buildpack says, cut to what can be told.
pub(super) fn cut(text: &str) -> String {
    if text.len() <= MAX_TEXT { text.to_owned() } else { format!("{}…", &text[..text.floor_char_boundary(MAX_TEXT)]) }
}

impl From<Failure> for StagingError {
    fn from(failure: Failure) -> Self {
        let message = cut(&failure.to_string());
        let info = failure.kind().map(|kind| ErrorInfo { kind, message: message.clone() });
        Self { message, info }
    }
}

impl From<UnpackError> for Failure {
    fn from(error: UnpackError) -> Self {
        match error {
            UnpackError::Tree(TreeError::Cancelled) => Self::Stopped,
            UnpackError::Tree(TreeError::Write { entry, source }) => Self::StorePackage { entry, source },
            error => Self::Package(error),
        }
    }
}

impl From<BuildpackSetupError> for Failure {
    fn from(error: BuildpackSetupError) -> Self {
        if matches!(error, BuildpackSetupError::Stopped) { Self::Stopped } else { Self::Buildpacks(error) }
    }
}

impl From<PackError> for Failure {
    fn from(error: PackError) -> Self {
        match error {
            PackError::Cancelled => Self::Stopped,
            PackError::Read { .. } | PackError::Write(_) => Self::Pack(error),
            _ => Self::Droplet(error),
        }
    }
}

impl From<ProgramError> for Failure {
    fn from(error: ProgramError) -> Self {
        match error {
            ProgramError::Read { .. } | ProgramError::Compiler(_) | ProgramError::Busy { .. } => Self::Agent(error.to_string()),
            error => Self::Component(error),
        }
    }
}

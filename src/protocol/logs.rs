//! Log lines of apps over the bus: Dewar's own addition to the protocol.
//!
//! A client publishes a [`LogRequest`] on [`crate::subjects::LOGS`] with a reply subject of its own. Every agent that knows the
//! app sends the last lines it kept there, oldest first, and then each new line until the lease ends. Nobody asking costs nothing.

use serde::{Deserialize, Serialize};

use crate::{AppId, UnixSeconds};

/// `dewar.logs`: send me log lines of this app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogRequest {
    /// Application id.
    #[serde(rename = "droplet")]
    pub app_id: AppId,
    /// How many lines of the past to send, at most as many as the agent keeps (it states how many in its documents).
    #[serde(default)]
    pub tail: u32,
    /// How long to send new lines, in seconds; 0 only the past. Renewed by another request with the same reply subject.
    #[serde(default)]
    pub follow_seconds: u32,
}

/// Who wrote a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum LogSource {
    /// The app.
    App,
    /// A buildpack, or the stager about its work.
    Stg,
    /// The agent about the app's instances.
    Dea,
}

/// Standard output or standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogStream {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

/// One line, without its line end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LogLine {
    /// Application id.
    #[serde(rename = "droplet")]
    pub app_id: AppId,
    /// Who wrote it.
    pub source: LogSource,
    /// Instance index; null for staging.
    pub index: Option<u32>,
    /// Which stream.
    pub stream: LogStream,
    /// When.
    pub timestamp: UnixSeconds,
    /// The text. A line that was too long ends in ` [cut]`; control characters are as the app wrote them.
    pub text: String,
}

//! How a command that failed says so.

use std::io::Write;

use dewar_client::{ClientError, OutputFormat, RED, exit_code, styled};
use serde::Serialize;

/// What the user gets to know, and the exit code for scripts.
#[derive(Debug, Serialize)]
pub(crate) struct Failure {
    /// One line, or one a mistake in a configuration file.
    pub(crate) error: String,
    /// What to do about it, where that is known.
    pub(crate) hint: Option<String>,
    /// As documented in `dewar --help`.
    pub(crate) exit_code: u8,
}

impl Failure {
    /// Without a hint.
    pub(crate) fn new(exit_code: u8, error: impl Into<String>) -> Self {
        Self { error: error.into(), hint: None, exit_code }
    }

    /// With one.
    #[must_use]
    pub(crate) fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    /// Of an error with its causes, all in one line.
    pub(crate) fn from_chain(exit_code: u8, attempt: &str, error: &dyn std::error::Error) -> Self {
        let mut line = format!("{attempt}: {error}");
        let mut cause = error.source();
        while let Some(error) = cause {
            line = format!("{line}: {error}");
            cause = error.source();
        }
        Self::new(exit_code, line)
    }

    /// To standard error.
    pub(crate) fn print(&self, format: OutputFormat) {
        let mut stderr = anstream::stderr().lock();
        let printed = match format {
            OutputFormat::Json => serde_json::to_string(self).map_err(std::io::Error::from).and_then(|text| writeln!(stderr, "{text}")),
            OutputFormat::Human => {
                let hint = self.hint.as_ref().map(|hint| format!("\nhint: {hint}")).unwrap_or_default();
                writeln!(stderr, "{} {}{hint}", styled(RED, "error:"), self.error)
            }
        };
        // Nobody to tell that nobody can be told; the exit code still says it.
        drop(printed);
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        Self { error: error.one_line(), hint: error.hint(), exit_code: error.exit_code() }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::new(exit_code::IO, error.to_string())
    }
}

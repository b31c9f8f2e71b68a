//! Standard output and standard error of guests, as lines.

use std::sync::Arc;

use dewar_protocol::LogStream;

/// Where lines go. Called from guest context, so it must not block. Lines come already cut and rate-limited.
pub trait Output: Send + Sync + 'static {
    /// One line, without its line end.
    fn line(&self, stream: LogStream, text: &str);
}

/// A shared [`Output`].
pub type OutputSink = Arc<dyn Output>;

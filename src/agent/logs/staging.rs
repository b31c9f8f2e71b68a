//! The log of a staging task as a file, for who reads along over HTTP.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use dewar_protocol::STAGING_LOG;
use tracing::warn;

use crate::removal::remove_tree;

/// Bytes that are written; then comes [`CUT`], and no more.
const BYTES: usize = 4 << 20;

const CUT: &[u8] = b"[cut]\n";

/// A file below a directory of its own, at the path that the log has in the task's own file system.
#[derive(Debug)]
pub(crate) struct StagingLog {
    root: PathBuf,
    file: Mutex<Writer>,
}

#[derive(Debug)]
struct Writer {
    /// `None` when it is full, or the disk failed.
    file: Option<File>,
    bytes: usize,
}

impl StagingLog {
    /// Makes the directory, and in it the empty log.
    ///
    /// # Errors
    /// When the disk fails.
    pub(crate) fn create(root: &Path) -> io::Result<Self> {
        let path = root.join(STAGING_LOG.trim_start_matches('/'));
        fs::create_dir_all(path.parent().unwrap_or(root))?;
        let file = File::options().append(true).create_new(true).mode(0o600).open(&path)?;
        Ok(Self { root: root.to_owned(), file: Mutex::new(Writer { file: Some(file), bytes: 0 }) })
    }

    /// Appends a line. A failure is logged and ends the writing: a full disk must not harm the task.
    pub(super) fn write(&self, text: &str) {
        let mut writer = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = writer.append(text) {
            warn!(path = %self.root.display(), %error, "staging log given up");
            writer.file = None;
        }
    }

    /// Removes all of it; whoever reads still gets what was written.
    pub(super) fn remove(&self) {
        if let Err(error) = remove_tree(&self.root) {
            warn!(path = %self.root.display(), %error, "staging log not removed");
        }
    }
}

impl Writer {
    fn append(&mut self, text: &str) -> io::Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        let mut line = Vec::with_capacity(text.len() + 1);
        line.extend_from_slice(text.as_bytes());
        line.push(b'\n');
        if self.bytes + line.len() > BYTES {
            file.write_all(CUT)?;
            self.file = None;
            return Ok(());
        }
        self.bytes += line.len();
        file.write_all(&line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_where_urls_say_and_goes_as_a_whole() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("logs/1");
        let log = StagingLog::create(&root).unwrap();
        let path = root.join("tmp/staged/logs/staging_task.log");
        assert_eq!(fs::read_to_string(&path).unwrap(), "");
        log.write("one");
        log.write("two");
        assert_eq!(fs::read_to_string(&path).unwrap(), "one\ntwo\n");
        log.remove();
        assert!(!root.exists());
        log.write("nobody reads this any more");
        assert!(!root.exists());
    }

    #[test]
    fn a_log_has_an_end() {
        let dir = tempfile::tempdir().unwrap();
        let log = StagingLog::create(&dir.path().join("1")).unwrap();
        let line = "x".repeat((64 << 10) - 1);
        for _ in 0..BYTES / (64 << 10) + 10 {
            log.write(&line);
        }
        let text = fs::read_to_string(dir.path().join("1/tmp/staged/logs/staging_task.log")).unwrap();
        assert_eq!(text.len(), BYTES + CUT.len());
        assert!(text.ends_with("x\n[cut]\n"));
    }
}

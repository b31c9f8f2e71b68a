//! `logs/stdout.log` and `logs/stderr.log` of one instance.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use dewar_protocol::LogStream;
use rustix::fs::{AtFlags, Mode, OFlags};
use tracing::warn;

/// Bytes after which a file becomes `….log.1`, in place of the one before: an instance's four files take at most four times this.
const FILE_BYTES: u64 = 512 << 10;

/// The log files of one instance. They are reached through their directory's descriptor, so that they stay right when it is moved
/// away with a crash.
#[derive(Debug)]
pub(crate) struct InstanceLogFiles {
    dir: File,
    out: Mutex<LogFile>,
    err: Mutex<LogFile>,
}

#[derive(Debug)]
struct LogFile {
    name: &'static str,
    old_name: &'static str,
    /// `None` after the disk failed; further lines are not written.
    file: Option<File>,
    bytes: u64,
}

impl InstanceLogFiles {
    /// Makes both files in `logs_dir`. What a droplet brought under these names is replaced, never followed or appended to.
    ///
    /// # Errors
    /// When a file cannot be made.
    pub(crate) fn create(logs_dir: &Path) -> io::Result<Self> {
        let dir = File::open(logs_dir)?;
        let file =
            |name, old_name| -> io::Result<_> { Ok(Mutex::new(LogFile { name, old_name, file: Some(create(&dir, name)?), bytes: 0 })) };
        let (out, err) = (file("stdout.log", "stdout.log.1")?, file("stderr.log", "stderr.log.1")?);
        Ok(Self { dir, out, err })
    }

    /// Appends a line. The first failure is logged and ends the writing of this file: a full disk must not harm the instance.
    pub(crate) fn write(&self, stream: LogStream, text: &str) {
        let file = match stream {
            LogStream::Out => &self.out,
            LogStream::Err => &self.err,
        };
        let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = file.append(&self.dir, text) {
            warn!(file = file.name, %error, "instance's log file given up");
            file.file = None;
        }
    }
}

impl LogFile {
    fn append(&mut self, dir: &File, text: &str) -> io::Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        let mut line = Vec::with_capacity(text.len() + 1);
        line.extend_from_slice(text.as_bytes());
        line.push(b'\n');
        file.write_all(&line)?;
        self.bytes = self.bytes.saturating_add(u64::try_from(line.len()).unwrap_or(u64::MAX));
        if self.bytes >= FILE_BYTES {
            rustix::fs::renameat(dir, self.name, dir, self.old_name)?;
            self.file = Some(create(dir, self.name)?);
            self.bytes = 0;
        }
        Ok(())
    }
}

fn create(dir: &File, name: &str) -> io::Result<File> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::APPEND | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(0o600))?.into())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn lines_reach_their_file_even_after_the_directory_was_moved() {
        let base = tempfile::tempdir().unwrap();
        let (before, after) = (base.path().join("logs"), base.path().join("kept"));
        fs::create_dir(&before).unwrap();
        let files = InstanceLogFiles::create(&before).unwrap();
        files.write(LogStream::Out, "one");
        fs::rename(&before, &after).unwrap();
        files.write(LogStream::Out, "two");
        files.write(LogStream::Err, "three");
        assert_eq!(fs::read_to_string(after.join("stdout.log")).unwrap(), "one\ntwo\n");
        assert_eq!(fs::read_to_string(after.join("stderr.log")).unwrap(), "three\n");
    }

    #[test]
    fn files_stay_within_their_bound_and_keep_the_newest_lines() {
        let dir = tempfile::tempdir().unwrap();
        let files = InstanceLogFiles::create(dir.path()).unwrap();
        let line = "x".repeat(1023);
        for _ in 0..3 * FILE_BYTES / 1024 + 1 {
            files.write(LogStream::Out, &line);
        }
        files.write(LogStream::Out, "last");
        let size = |name: &str| fs::metadata(dir.path().join(name)).unwrap().len();
        assert_eq!((size("stdout.log"), size("stdout.log.1")), (1024 + 5, FILE_BYTES));
        assert!(fs::read_to_string(dir.path().join("stdout.log")).unwrap().ends_with("\nlast\n"));
    }

    #[test]
    fn a_link_in_a_droplets_logs_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let victim = dir.path().join("victim");
        fs::write(&victim, "mine").unwrap();
        let logs = dir.path().join("logs");
        fs::create_dir(&logs).unwrap();
        std::os::unix::fs::symlink(&victim, logs.join("stdout.log")).unwrap();
        InstanceLogFiles::create(&logs).unwrap().write(LogStream::Out, "theirs");
        assert_eq!(fs::read_to_string(&victim).unwrap(), "mine");
    }
}

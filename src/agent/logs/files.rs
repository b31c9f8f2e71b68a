//! `logs/stdout.log` and `logs/stderr.log` of instances.
//!
//! A file is made with its first line. Few are open at a time, those that were written last: most instances are silent most of the
//! time, and an agent that has thousands of them has no descriptors to spare.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use dewar_protocol::LogStream;
use rustix::fs::OFlags;
use tracing::warn;

/// Bytes after which a file becomes `….log.1`, in place of the one before: an instance's four files take at most four times this.
const FILE_BYTES: u64 = 512 << 10;

/// Files that are open at a time; the one that was not written for longest is closed for another.
const OPEN: usize = 128;

/// Where the log files of one instance are. Nothing that an app brought or made is in either place.
#[derive(Debug)]
pub(crate) struct InstanceLogFiles {
    /// While it lives.
    pub(crate) logs: PathBuf,
    /// After it has crashed.
    pub(crate) crashed_logs: PathBuf,
}

/// Writes lines to the files of all instances.
#[derive(Debug)]
pub(super) struct LogWriter {
    /// By the address of whose it is, and its name.
    files: HashMap<(usize, &'static str), LogFile>,
    most: usize,
    /// Counts lines, to tell which file was written last.
    lines: u64,
}

#[derive(Debug)]
struct LogFile {
    /// Whose it is; once all others have dropped it there are no more lines.
    of: Weak<InstanceLogFiles>,
    /// `None` after the disk failed; further lines are not written.
    file: Option<File>,
    /// Where it is, as long as its instance has not crashed.
    path: PathBuf,
    bytes: u64,
    written: u64,
}

impl LogWriter {
    pub(super) fn new() -> Self {
        Self { files: HashMap::new(), most: OPEN, lines: 0 }
    }

    /// Appends a line. A failure is logged and ends the writing of this file, for as long as it is remembered: a full disk must not
    /// harm the instance.
    pub(super) fn write(&mut self, of: &Arc<InstanceLogFiles>, stream: LogStream, text: &str) {
        self.lines += 1;
        let name = match stream {
            LogStream::Out => "stdout.log",
            LogStream::Err => "stderr.log",
        };
        // Nobody else has the address as long as there is the weak reference.
        let key = (Arc::as_ptr(of).addr(), name);
        if !self.files.contains_key(&key) {
            self.make_room();
            self.files.insert(key, LogFile::open(of, name));
        }
        let Some(file) = self.files.get_mut(&key) else { return };
        file.written = self.lines;
        if let Err(error) = file.append(text) {
            warn!(path = %file.path.display(), %error, "instance's log file given up");
            file.file = None;
        }
    }

    fn make_room(&mut self) {
        if self.files.len() < self.most {
            return;
        }
        self.files.retain(|_, file| file.of.strong_count() > 0);
        if self.files.len() >= self.most {
            let oldest = self.files.iter().min_by_key(|(_, file)| file.written).map(|(key, _)| *key);
            oldest.and_then(|key| self.files.remove(&key));
        }
    }
}

impl LogFile {
    fn open(of: &Arc<InstanceLogFiles>, name: &str) -> Self {
        let path = of.logs.join(name);
        let opened = open(&path).or_else(|error| match error.kind() {
            io::ErrorKind::NotFound => open(&of.crashed_logs.join(name)),
            _ => Err(error),
        });
        let opened = opened.and_then(|file| Ok((file.metadata()?.len(), file)));
        let (bytes, file) = match opened {
            Ok((bytes, file)) => (bytes, Some(file)),
            Err(error) => {
                // A last line may come when the instance's files are gone already.
                if error.kind() != io::ErrorKind::NotFound {
                    warn!(path = %path.display(), %error, "instance's log file cannot be written");
                }
                (0, None)
            }
        };
        Self { of: Arc::downgrade(of), file, path, bytes, written: 0 }
    }

    fn append(&mut self, text: &str) -> io::Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        let mut line = Vec::with_capacity(text.len() + 1);
        line.extend_from_slice(text.as_bytes());
        line.push(b'\n');
        file.write_all(&line)?;
        self.bytes = self.bytes.saturating_add(u64::try_from(line.len()).unwrap_or(u64::MAX));
        if self.bytes >= FILE_BYTES {
            // An instance that is gone has no more lines to come, so that its last file may grow beyond the bound by some.
            match fs::rename(&self.path, self.path.with_added_extension("1")) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                moved => moved?,
            }
            self.file = Some(open(&self.path)?);
            self.bytes = 0;
        }
        Ok(())
    }
}

fn open(path: &Path) -> io::Result<File> {
    let nofollow = i32::try_from(OFlags::NOFOLLOW.bits()).map_err(io::Error::other)?;
    File::options().append(true).create(true).mode(0o600).custom_flags(nofollow).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(base: &Path) -> Arc<InstanceLogFiles> {
        let logs = base.join("logs");
        fs::create_dir_all(&logs).unwrap();
        Arc::new(InstanceLogFiles { logs, crashed_logs: base.join("kept") })
    }

    #[test]
    fn lines_reach_their_file_even_after_the_directory_was_moved() {
        let base = tempfile::tempdir().unwrap();
        let (files, mut writer) = (instance(base.path()), LogWriter::new());
        assert_eq!(fs::read_dir(&files.logs).unwrap().count(), 0, "a file is made with its first line");
        writer.write(&files, LogStream::Out, "one");
        fs::rename(&files.logs, &files.crashed_logs).unwrap();
        writer.write(&files, LogStream::Out, "two");
        writer.write(&files, LogStream::Err, "three");
        assert_eq!(fs::read_to_string(files.crashed_logs.join("stdout.log")).unwrap(), "one\ntwo\n");
        assert_eq!(fs::read_to_string(files.crashed_logs.join("stderr.log")).unwrap(), "three\n");
    }

    #[test]
    fn files_stay_within_their_bound_and_keep_the_newest_lines() {
        let dir = tempfile::tempdir().unwrap();
        let (files, mut writer) = (instance(dir.path()), LogWriter::new());
        let line = "x".repeat(1023);
        for _ in 0..3 * FILE_BYTES / 1024 + 1 {
            writer.write(&files, LogStream::Out, &line);
        }
        writer.write(&files, LogStream::Out, "last");
        let size = |name: &str| fs::metadata(files.logs.join(name)).unwrap().len();
        assert_eq!((size("stdout.log"), size("stdout.log.1")), (1024 + 5, FILE_BYTES));
        assert!(fs::read_to_string(files.logs.join("stdout.log")).unwrap().ends_with("\nlast\n"));
    }

    #[test]
    fn few_files_are_open_and_none_loses_a_line() {
        let base = tempfile::tempdir().unwrap();
        let mut writer = LogWriter { most: 4, ..LogWriter::new() };
        let instances: Vec<_> = (0..10).map(|number: u32| instance(&base.path().join(number.to_string()))).collect();
        for round in ["one", "two"] {
            for files in &instances {
                writer.write(files, LogStream::Out, round);
                assert!(writer.files.len() <= 4);
            }
        }
        for files in &instances {
            assert_eq!(fs::read_to_string(files.logs.join("stdout.log")).unwrap(), "one\ntwo\n");
        }
    }

    #[test]
    fn a_link_in_the_place_of_a_file_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let victim = dir.path().join("victim");
        fs::write(&victim, "mine").unwrap();
        let (files, mut writer) = (instance(dir.path()), LogWriter::new());
        std::os::unix::fs::symlink(&victim, files.logs.join("stdout.log")).unwrap();
        writer.write(&files, LogStream::Out, "theirs");
        assert_eq!(fs::read_to_string(&victim).unwrap(), "mine");
    }
}

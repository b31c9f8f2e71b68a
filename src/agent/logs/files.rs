//! `logs/stdout.log` and `logs/stderr.log` of instances.
//!
//! A file is made with its first line, and one that follows another with the other's last: who reads along finds it. Few are open at a time, those that were written last: most instances are silent most of the
//! time, and an agent that has thousands of them has no descriptors to spare.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use dewar_protocol::LogStream;
use rustix::fs::OFlags;
use tracing::{info, warn};

/// Bytes after which a file becomes `….log.1`, in place of the one before: an instance's four files take at most four times this.
const FILE_BYTES: u64 = 512 << 10;

/// Files that are open at a time; the one that was not written for longest is closed for another.
const OPEN: usize = 128;

/// After the disk has failed, an instance's lines are dropped for so long before it is tried again.
const RETRY: Duration = Duration::from_secs(1);

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
    retry: Duration,
    /// Counts lines, to tell which file was written last.
    lines: u64,
}

#[derive(Debug)]
struct LogFile {
    /// Whose it is; once all others have dropped it there are no more lines.
    of: Weak<InstanceLogFiles>,
    target: Target,
    /// Where it is, as long as its instance has not crashed.
    path: PathBuf,
    bytes: u64,
    written: u64,
}

/// Where the next line goes.
#[derive(Debug)]
enum Target {
    /// To a file that has yet to be opened.
    New,
    File(File),
    /// Nowhere: the instance's files are gone.
    Gone,
    /// Nowhere for a while: the disk has failed.
    Failed(Instant),
}

impl LogWriter {
    pub(super) fn new() -> Self {
        Self { files: HashMap::new(), most: OPEN, retry: RETRY, lines: 0 }
    }

    /// Appends a line. When the disk fails it is dropped, and so are those that follow until the disk has recovered: a full disk
    /// must not harm the instance.
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
            self.files.insert(key, LogFile::new(of, name));
        }
        if let Some(file) = self.files.get_mut(&key) {
            file.written = self.lines;
            file.write(of, name, text, self.retry);
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
    fn new(of: &Arc<InstanceLogFiles>, name: &str) -> Self {
        Self { of: Arc::downgrade(of), target: Target::New, path: of.logs.join(name), bytes: 0, written: 0 }
    }

    fn write(&mut self, of: &InstanceLogFiles, name: &str, text: &str, retry: Duration) {
        let failed = match &self.target {
            Target::Failed(since) if since.elapsed() < retry => return,
            Target::Failed(_) => true,
            Target::New | Target::File(_) | Target::Gone => false,
        };
        let written = self.open(of, name).and_then(|target| self.append(target, text));
        let written = written.and_then(|target| if matches!(target, Target::New) { self.open(of, name) } else { Ok(target) });
        let path = self.path.display();
        match written {
            Ok(target) => {
                if failed && matches!(target, Target::File(_)) {
                    info!(%path, "instance's log file is written again");
                }
                self.target = target;
            }
            Err(error) => {
                if !failed {
                    warn!(%path, %error, "instance's log file cannot be written, lines are dropped until it can");
                }
                self.target = Target::Failed(Instant::now());
            }
        }
    }

    /// What to write to: the file that is open, or one that is opened now.
    fn open(&mut self, of: &InstanceLogFiles, name: &str) -> io::Result<Target> {
        match std::mem::replace(&mut self.target, Target::New) {
            target @ (Target::File(_) | Target::Gone) => return Ok(target),
            Target::New | Target::Failed(_) => {}
        }
        let opened = open(&self.path).or_else(|error| match error.kind() {
            io::ErrorKind::NotFound => open(&of.crashed_logs.join(name)),
            _ => Err(error),
        });
        match opened {
            Ok(file) => {
                self.bytes = file.metadata()?.len();
                Ok(Target::File(file))
            }
            // A last line may come when the instance's files are gone already.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Target::Gone),
            Err(error) => Err(error),
        }
    }

    /// Yields where the line after this one goes.
    fn append(&mut self, target: Target, text: &str) -> io::Result<Target> {
        let Target::File(mut file) = target else { return Ok(target) };
        let mut line = Vec::with_capacity(text.len() + 1);
        line.extend_from_slice(text.as_bytes());
        line.push(b'\n');
        if let Err(error) = file.write_all(&line) {
            // Where half a line would stay, the next one would be its other half.
            let _ = file.set_len(self.bytes);
            return Err(error);
        }
        self.bytes = self.bytes.saturating_add(u64::try_from(line.len()).unwrap_or(u64::MAX));
        if self.bytes < FILE_BYTES {
            return Ok(Target::File(file));
        }
        // An instance that is gone has no more lines to come, so that its last file may grow beyond the bound by some.
        match fs::rename(&self.path, self.path.with_added_extension("1")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Target::File(file)),
            moved => moved.map(|()| Target::New),
        }
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
        writer.write(&files, LogStream::Err, &"x".repeat(usize::try_from(FILE_BYTES).unwrap()));
        assert_eq!((size("stderr.log"), size("stderr.log.1")), (0, FILE_BYTES + 1), "who follows it finds the next one");
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
    fn lines_are_dropped_while_the_disk_fails_and_written_when_it_has_recovered() {
        let base = tempfile::tempdir().unwrap();
        let (files, mut writer) = (instance(base.path()), LogWriter { retry: Duration::ZERO, ..LogWriter::new() });
        let path = files.logs.join("stdout.log");
        writer.write(&files, LogStream::Out, "one");
        // Every write to this device says that no space is left.
        let full = File::options().append(true).open("/dev/full").unwrap();
        writer.files.values_mut().next().unwrap().target = Target::File(full);
        writer.write(&files, LogStream::Out, "lost");
        assert_eq!(fs::read_to_string(&path).unwrap(), "one\n");
        writer.write(&files, LogStream::Out, "two");
        assert_eq!(fs::read_to_string(&path).unwrap(), "one\ntwo\n");

        let mut patient = LogWriter { retry: Duration::from_secs(3600), ..LogWriter::new() };
        patient.write(&files, LogStream::Out, "three");
        let full = File::options().append(true).open("/dev/full").unwrap();
        patient.files.values_mut().next().unwrap().target = Target::File(full);
        for _ in 0..3 {
            patient.write(&files, LogStream::Out, "lost");
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), "one\ntwo\nthree\n", "a disk that has failed is not tried with each line");
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

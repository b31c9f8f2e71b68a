//! What an attacker used, against what it may use.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use dewar_protocol::{Bytes, LogStream};
use dewar_sandbox::Quota;
use tokio_util::task::AbortOnDropHandle;

use crate::fixture::{Instance, Lines};
use crate::process;

/// How often an instance's figures are taken down.
const SAMPLE: Duration = Duration::from_millis(5);
/// What the log may carry at once and for each second, and its longest line.
const LINES_AT_ONCE: usize = 4_000;
const LINES_PER_SECOND: usize = 1_000;
const LINE_BYTES: usize = 8 << 10;
/// What a file's length is rounded up to.
const BLOCK: u64 = 4096;
/// How long the host may take to let go of what an instance held.
const LETTING_GO: Duration = Duration::from_secs(30);

/// Looks on while an instance runs.
pub(crate) struct Witness {
    quota: Quota,
    began: Instant,
    /// The most disk that was seen; memory has a peak of its own.
    peak: Arc<Mutex<Bytes>>,
    _looking: AbortOnDropHandle<()>,
}

impl Witness {
    pub(crate) fn of(app: Arc<Instance>, quota: Quota) -> Self {
        let peak = Arc::new(Mutex::new(Bytes(0)));
        let looking = tokio::spawn(look(app, peak.clone()));
        Self { quota, began: Instant::now(), peak, _looking: AbortOnDropHandle::new(looking) }
    }

    /// What is wrong about an instance that has ended.
    pub(crate) async fn objections(self, app: Arc<Instance>) -> Vec<String> {
        let Self { quota, began, peak, _looking: looking } = self;
        drop(looking);
        let disk = *peak.lock().unwrap();
        let memory = app.sandbox.usage().memory_peak;
        let mut objections = Vec::new();
        let mut object = |wrong: bool, text: String| {
            if wrong {
                objections.push(text);
            }
        };
        object(memory > quota.memory, format!("it had {memory:?} of memory, of {:?}", quota.memory));
        object(disk > quota.disk, format!("its ledger had {disk:?} of disk, of {:?}", quota.disk));
        let (bytes, names) = held(&[app.app_dir(), app.tmp_dir()]);
        object(bytes > quota.disk, format!("its directories have {bytes:?}, of {:?}", quota.disk));
        object(names > quota.inodes, format!("its directories have {names} files, of {}", quota.inodes));
        let left = app.sandbox.usage().memory;
        object(left != Bytes(0), format!("{left:?} of memory were not given back"));
        objections.extend(log_objection(&app.lines, began.elapsed()));
        let root = app.app_dir().parent().unwrap().to_owned();
        let open = until_none(|| process::open_below(&root)).await;
        objections.extend(open.iter().map(|path| format!("{} is still open", path.display())));
        let port = app.address.port();
        let listening = until_none(|| process::listening_on(port)).await;
        objections.extend(listening.iter().map(|socket| format!("somebody listens on the instance's port: {socket}")));
        objections
    }
}

async fn look(app: Arc<Instance>, peak: Arc<Mutex<Bytes>>) {
    loop {
        let disk = app.sandbox.usage().disk;
        {
            let mut peak = peak.lock().unwrap();
            *peak = disk.max(*peak);
        }
        tokio::time::sleep(SAMPLE).await;
    }
}

/// Asks until there is nothing left, or for long enough; gives what is left then.
async fn until_none<T>(mut probe: impl FnMut() -> Vec<T>) -> Vec<T> {
    let deadline = Instant::now() + LETTING_GO;
    loop {
        let left = probe();
        if left.is_empty() || Instant::now() > deadline {
            return left;
        }
        tokio::time::sleep(SAMPLE).await;
    }
}

pub(crate) fn assert_log_within_rate(lines: &Lines, time: Duration) {
    let objection = log_objection(lines, time);
    assert!(objection.is_none(), "{objection:?}");
}

/// What is wrong about a log that was written for so long.
pub(crate) fn log_objection(lines: &Lines, time: Duration) -> Option<String> {
    let lines = [lines.of(LogStream::Out), lines.of(LogStream::Err)].concat();
    let seconds = usize::try_from(time.as_secs()).unwrap_or(usize::MAX) + 1;
    // What is dropped is told in a line of its own, at most one for each that passed.
    let most = (LINES_AT_ONCE + LINES_PER_SECOND * seconds) * 2;
    let longest = lines.iter().map(String::len).max().unwrap_or(0);
    if lines.len() > most {
        return Some(format!("{} lines came through in {time:?}", lines.len()));
    }
    (longest > LINE_BYTES).then(|| format!("a line of {longest} bytes came through"))
}

/// Bytes and names below directories, counted as the quota's documentation says, independently of the sandbox.
pub(crate) fn held(directories: &[PathBuf]) -> (Bytes, u64) {
    let mut seen = HashSet::new();
    let mut sum = (0, 0);
    for directory in directories {
        count(directory, &mut seen, &mut sum);
    }
    (Bytes(sum.0), sum.1)
}

fn count(directory: &Path, seen: &mut HashSet<u64>, sum: &mut (u64, u64)) {
    for entry in walkdir::WalkDir::new(directory).min_depth(1) {
        let metadata = entry.unwrap().metadata().unwrap();
        sum.1 += 1;
        sum.0 += match () {
            () if !metadata.is_file() => BLOCK,
            () if seen.insert(metadata.ino()) => metadata.len().div_ceil(BLOCK) * BLOCK,
            () => 0,
        };
    }
}

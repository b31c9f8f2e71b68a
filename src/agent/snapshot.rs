//! `<base>/db/instances.json`: what the next process has to know, as [`Snapshot`] says it.
//!
//! The file holds secrets, so only this user may read it. It is replaced as a whole: written beside, forced to the disk, renamed. What
//! cannot be understood is kept aside as `instances.json.refused-<epoch>`, and the agent starts with nothing: a host must come up again
//! by itself, and health managers start elsewhere what is missing here.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use dewar_core::{Input, SnapshotImage};
use dewar_protocol::{InstanceId, InstanceState, SNAPSHOT_VERSION, Snapshot};
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

use crate::base_dir::Paths;
use crate::blocking;
use crate::inbound;

const FILE: &str = "instances.json";
const PARTIAL: &str = "instances.json.partial";
const REFUSED: &str = "instances.json.refused-";

/// Files that are kept aside; of more the oldest go.
const KEPT: usize = 4;

/// Bytes that are read, more than the largest agent writes.
const MAX_BYTES: u64 = 1 << 30;

/// Images that wait to be written: the cell has one under way, and one more at its end.
const WAITING: usize = 2;

/// Why a snapshot is of no use. Never holds a value from it.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("{0}")]
    Read(#[from] io::Error),
    #[error("more than {MAX_BYTES} bytes")]
    TooLarge,
    #[error("{0}")]
    Malformed(inbound::Malformed),
    #[error("it has no `version`, so it is not of this agent's making")]
    Foreign,
    #[error("it has version {0}, and this agent knows them up to {SNAPSHOT_VERSION}")]
    Future(u32),
    #[error("`instances[{0}]`: its ids are not names of their own")]
    Names(usize),
}

/// What tells whether the rest can be understood.
#[derive(Deserialize)]
struct Head {
    version: Option<u32>,
}

/// What an earlier process has left, if it has, and if it can be understood.
pub(crate) fn load(paths: &Paths) -> Option<Snapshot> {
    let path = paths.db().join(FILE);
    match read(&path) {
        Ok(snapshot) => {
            info!(instances = snapshot.instances.len(), staging_tasks = snapshot.staging_tasks.len(), "snapshot loaded");
            Some(snapshot)
        }
        Err(Refused::Read(error)) if error.kind() == io::ErrorKind::NotFound => None,
        Err(cause) => {
            let kept = keep_aside(&paths.db());
            let kept =
                kept.as_deref().map_or_else(|error| format!("it cannot be kept: {error}"), |path| format!("kept as {}", path.display()));
            error!("Failed to parse {}: {cause}; {kept}; the agent starts with nothing", path.display());
            None
        }
    }
}

fn read(path: &Path) -> Result<Snapshot, Refused> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(Refused::TooLarge);
    }
    let head: Head = inbound::own_json(&bytes).map_err(Refused::Malformed)?;
    match head.version {
        None => return Err(Refused::Foreign),
        Some(version) if version > SNAPSHOT_VERSION => return Err(Refused::Future(version)),
        Some(_) => {}
    }
    let snapshot: Snapshot = inbound::own_json(&bytes).map_err(Refused::Malformed)?;
    check_names(&snapshot)?;
    Ok(snapshot)
}

/// Instances are found by their ids, and the first of them is the name of a directory.
fn check_names(snapshot: &Snapshot) -> Result<(), Refused> {
    let is_plain = |id: &InstanceId| {
        !id.as_str().is_empty() && id.as_str().len() <= 64 && id.as_str().bytes().all(|byte| byte.is_ascii_alphanumeric())
    };
    let (mut ids, mut handles) = (HashSet::new(), HashSet::new());
    for (number, instance) in snapshot.instances.iter().enumerate() {
        let (id, handle) = (&instance.instance_id, &instance.warden_handle);
        if !(is_plain(id) && is_plain(handle) && ids.insert(id) && handles.insert(handle)) {
            return Err(Refused::Names(number));
        }
    }
    Ok(())
}

/// Where it is now.
fn keep_aside(db: &Path) -> io::Result<PathBuf> {
    let epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let kept = db.join(format!("{REFUSED}{epoch}"));
    fs::rename(db.join(FILE), &kept)?;
    let age = |path: &PathBuf| path.to_str()?.rsplit_once('-')?.1.parse::<u64>().ok();
    let mut all: Vec<PathBuf> = fs::read_dir(db)?.filter_map(|entry| Some(entry.ok()?.path())).collect();
    all.retain(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(REFUSED)));
    all.sort_by_key(age);
    for old in all.iter().rev().skip(KEPT) {
        fs::remove_file(old)?;
    }
    Ok(kept)
}

/// Writes snapshots, one after the other, aside from whoever wants them written.
#[derive(Debug)]
pub(crate) struct Saver(mpsc::Sender<Box<SnapshotImage>>);

impl Saver {
    /// Reports each to the driver. Ends, with the last one written, when this is dropped.
    pub(crate) fn start(paths: Paths, reports: mpsc::Sender<Input>, tasks: &TaskTracker) -> Self {
        let (images, mut wanted) = mpsc::channel::<Box<SnapshotImage>>(WAITING);
        tasks.spawn(async move {
            let mut failing = None;
            while let Some(image) = wanted.recv().await {
                let paths = paths.clone();
                let written = blocking::run(move || write(&paths, &image)).await;
                let ok = written.is_ok();
                tell(written.err().map(|error| error.to_string()), &mut failing);
                // The driver is gone only when the agent ends, and then nobody wants to know.
                let _ = reports.send(Input::SnapshotSaved { ok }).await;
            }
        });
        Self(images)
    }

    pub(crate) fn save(&self, image: Box<SnapshotImage>) {
        if self.0.try_send(image).is_err() {
            error!("snapshot not saved, its writer is gone or behind");
        }
    }
}

/// Tells of an error when it is another one than before, and of its end.
fn tell(error: Option<String>, failing: &mut Option<String>) {
    if error == *failing {
        return;
    }
    match &error {
        Some(error) => warn!(error, "snapshot not saved, it is tried again"),
        None => info!("snapshot saved again"),
    }
    *failing = error;
}

fn write(paths: &Paths, image: &SnapshotImage) -> io::Result<()> {
    let directory = |id: &InstanceId, state| match state {
        InstanceState::Crashed => paths.crash(id).display().to_string(),
        _ => paths.instance(id).display().to_string(),
    };
    let (db, snapshot) = (paths.db(), image.snapshot(directory));
    let partial = db.join(PARTIAL);
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&partial)?;
    let mut file = BufWriter::with_capacity(256 << 10, file);
    serde_json::to_writer(&mut file, &snapshot)?;
    file.flush()?;
    file.get_ref().sync_all()?;
    fs::rename(&partial, db.join(FILE))?;
    File::open(&db)?.sync_all()
}

#[cfg(test)]
mod tests;

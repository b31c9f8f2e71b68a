//! What this process holds of the operating system's.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::components;
use crate::fixture::{runtime, sandboxes};

/// How long the process may take to let go of what it held: threads that wait for blocking work stay for ten seconds.
const LETTING_GO: Duration = Duration::from_secs(60);

/// Descriptors and threads.
pub(crate) struct Inventory {
    descriptors: Vec<String>,
    threads: usize,
}

impl Inventory {
    /// As it is when all engines and runtimes are there and nothing runs.
    pub(crate) fn take_quiet() -> Self {
        sandboxes();
        components::sandboxes();
        runtime();
        Self::take()
    }

    fn take() -> Self {
        let mut descriptors: Vec<String> = descriptors().into_iter().map(|(_, target)| kind(&target)).collect();
        descriptors.sort();
        Self { descriptors, threads: std::fs::read_dir("/proc/self/task").unwrap().count() }
    }

    /// Waits until there is no more than there was; an error tells what there is besides.
    pub(crate) fn compare(&self) -> Result<(), String> {
        let deadline = Instant::now() + LETTING_GO;
        loop {
            let mut now = Self::take();
            for known in &self.descriptors {
                if let Some(place) = now.descriptors.iter().position(|descriptor| descriptor == known) {
                    now.descriptors.swap_remove(place);
                }
            }
            if now.descriptors.is_empty() && now.threads <= self.threads {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(format!("{} threads instead of {}, and these descriptors: {:?}", now.threads, self.threads, now.descriptors));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// What a descriptor leads to, without the number that no two of a kind have in common.
fn kind(target: &Path) -> String {
    let target = target.to_string_lossy();
    match target.split_once(":[") {
        Some((kind, _)) => kind.to_owned(),
        None => target.into_owned(),
    }
}

/// Every open descriptor, and what it leads to.
fn descriptors() -> Vec<(PathBuf, PathBuf)> {
    let entries = std::fs::read_dir("/proc/self/fd").unwrap();
    // One that is closed meanwhile, such as that of this very listing, leads nowhere.
    entries
        .filter_map(|entry| {
            let path = entry.unwrap().path();
            let target = std::fs::read_link(&path).ok()?;
            Some((path, target))
        })
        .collect()
}

/// Open files below a directory, those without a name among them.
pub(crate) fn open_below(directory: &Path) -> Vec<PathBuf> {
    descriptors().into_iter().map(|(_, target)| target).filter(|target| target.starts_with(directory)).collect()
}

/// Sockets that listen on a port, as the kernel lists them.
pub(crate) fn listening_on(port: u16) -> Vec<String> {
    const LISTENS: &str = "0A";
    let sockets = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
    let address = format!(":{port:04X}");
    sockets
        .lines()
        .filter(|line| {
            let mut fields = line.split_whitespace();
            fields.nth(1).is_some_and(|local| local.ends_with(&address)) && fields.nth(1) == Some(LISTENS)
        })
        .map(str::to_owned)
        .collect()
}

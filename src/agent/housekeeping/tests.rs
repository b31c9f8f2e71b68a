use std::fs;
use std::path::Path;

use dewar_protocol::Bytes;
use tempfile::TempDir;
use tokio::time::timeout;

use super::*;
use crate::base_dir::BaseDir;
use crate::transfer::{TransferConfig, Transfers};

const PATIENCE: Duration = Duration::from_secs(60);
const QUICK: Periods = Periods { crashes: Duration::from_millis(5), droplets: 2, rest: 3 };

struct Scene {
    dir: TempDir,
    _base: BaseDir,
    housekeeper: Housekeeper,
    reported: mpsc::Receiver<Input>,
}

impl Scene {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let base = BaseDir::claim(dir.path()).unwrap();
        let (reports, reported) = mpsc::channel(1);
        let paths = base.paths().clone();
        let droplets = DropletStore::open(&paths.droplets(), Transfers::new(TransferConfig::default()).unwrap()).unwrap();
        let workspaces = Workspaces::prepare(dir.path().join("staging")).unwrap();
        let housekeeper = Housekeeper::new(paths, droplets, Some(workspaces), reports, TaskTracker::new());
        Self { dir, _base: base, housekeeper, reported }
    }

    fn make(&self, path: &str) {
        fs::create_dir_all(self.dir.path().join(path)).unwrap();
    }

    fn is_there(&self, path: &str) -> bool {
        self.dir.path().join(path).exists()
    }

    /// Lets the rounds go on until something of this kind is reported.
    async fn until<T>(&mut self, what: impl Fn(Input) -> Option<T>) -> T {
        let house = Arc::clone(&self.housekeeper.0);
        let reported = &mut self.reported;
        let found = async {
            loop {
                if let Some(found) = what(reported.recv().await.unwrap()) {
                    return found;
                }
            }
        };
        tokio::select! {
            () = house.run(QUICK) => unreachable!("the rounds have no end"),
            found = timeout(PATIENCE, found) => found.expect("nothing of the kind is reported"),
        }
    }

    /// Lets the rounds go on until this is so.
    async fn until_so(&mut self, so: impl Fn(&Path) -> bool) {
        let dir = self.dir.path().to_owned();
        self.until(move |_| so(&dir).then_some(())).await;
    }
}

#[test]
fn only_what_is_there_twice_in_a_row_counts() {
    let mut sightings = Sightings::default();
    let mut again = |names: &[&str]| sightings.again(names.iter().map(|name| (*name).to_owned()).collect());
    assert_eq!(again(&["a", "b"]), Vec::<String>::new());
    assert_eq!(again(&["b", "c"]), ["b"]);
    assert_eq!(again(&["b", "a"]), ["b"], "a was not there in between");
    assert_eq!(again(&[]), Vec::<String>::new());
    assert_eq!(again(&["b"]), Vec::<String>::new());
}

#[tokio::test]
async fn directories_of_crashes_and_instances_are_reported_when_seen_twice() {
    let mut scene = Scene::new();
    scene.make("crashes/c1/logs");
    let strays = |input| match input {
        Input::Strays(ids) => Some(ids.into_iter().map(|id| id.as_str().to_owned()).collect::<Vec<_>>()),
        _ => None,
    };
    assert_eq!(scene.until(strays).await, ["c1"]);
    assert!(scene.is_there("crashes/c1"), "it is for the cell to say whether it goes");
    fs::remove_dir_all(scene.dir.path().join("crashes/c1")).unwrap();
    scene.make("instances/i1/app");
    assert_eq!(scene.until(strays).await, ["i1"]);
}

#[tokio::test]
async fn what_is_left_of_stagings_and_in_tmp_goes_and_what_is_under_way_stays() {
    let mut scene = Scene::new();
    scene.make("staging/left/app/deep");
    scene.make("tmp/left");
    let workspaces = Arc::clone(scene.housekeeper.0.workspaces.as_ref().unwrap());
    let live = crate::staging::test_workspace(&workspaces);
    scene.until_so(|dir| !dir.join("staging/left").exists() && !dir.join("tmp/left").exists()).await;
    let mut rounds = 0;
    while rounds < 10 {
        scene.until(|input| matches!(input, Input::CrashDisk(_)).then_some(())).await;
        rounds += 1;
    }
    assert_eq!(fs::read_dir(scene.dir.path().join("staging")).unwrap().count(), 1, "the one that is under way");
    drop(live);
    assert_eq!(fs::read_dir(scene.dir.path().join("staging")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_directory_that_cannot_be_read_is_passed_over() {
    let mut scene = Scene::new();
    for dir in ["crashes", "staging"] {
        fs::remove_dir_all(scene.dir.path().join(dir)).unwrap();
    }
    scene.make("tmp/left");
    scene.make("instances/i1");
    // Everything else goes on: droplets are reported, and so is what is in the directories that are there.
    scene.until(|input| matches!(input, Input::Droplets(_)).then_some(())).await;
    scene.until(|input| matches!(input, Input::Strays(ids) if ids[0].as_str() == "i1").then_some(())).await;
    scene.until_so(|dir| !dir.join("tmp/left").exists()).await;
}

#[tokio::test]
async fn a_full_disk_is_measured_and_one_that_cannot_be_is_not_full() {
    assert_eq!([part(10, 2), part(10, 10), part(0, 0), part(3, 9)], [0.8, 0.0, 0.0, 0.0]);
    let mut scene = Scene::new();
    let used = scene.until(|input| if let Input::CrashDisk(used) = input { Some(used) } else { None }).await;
    assert!(used.blocks > 0.0 && used.blocks <= 1.0 && (0.0..=1.0).contains(&used.inodes), "{used:?}");
    fs::remove_dir_all(scene.dir.path().join("crashes")).unwrap();
    scene.housekeeper.0.measure().await;
    assert!(scene.reported.try_recv().is_err());
}

#[tokio::test]
async fn the_disk_is_measured_when_the_files_are_gone() {
    let mut scene = Scene::new();
    scene.make("crashes/c1/logs");
    scene.make("instances/c1/app");
    scene.housekeeper.make_room(&InstanceId("c1".to_owned()));
    let measured = timeout(PATIENCE, scene.reported.recv()).await.unwrap();
    assert!(matches!(measured, Some(Input::CrashDisk(_))), "{measured:?}");
    assert!(!scene.is_there("crashes/c1") && !scene.is_there("instances/c1"));
}

#[tokio::test]
async fn droplets_are_reported_with_their_size_and_an_evicted_one_goes() {
    let mut scene = Scene::new();
    let sha1 = DropletSha1::parse(&"a".repeat(40)).unwrap();
    let dir = format!("droplets/{sha1}");
    scene.make(&dir);
    fs::write(scene.dir.path().join(&dir).join("droplet.tgz"), [0; 100]).unwrap();
    let droplets = scene.until(|input| if let Input::Droplets(droplets) = input { Some(droplets) } else { None }).await;
    assert_eq!(droplets, [dewar_core::KeptDroplet { sha1: sha1.clone(), size: Bytes(100) }]);
    scene.housekeeper.evict(sha1);
    scene.until_so(move |base| !base.join(&dir).exists()).await;
}

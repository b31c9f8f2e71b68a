//! What guests plant.

use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use rustix::fs::{CWD, FileType, Mode, RenameFlags, mknodat, renameat_with};

use super::super::open::{Links, OpenError, Opened, Root};
use super::*;

#[tokio::test]
async fn links_are_followed_within_the_root_and_no_further() {
    let world = World::new(settings()).await;
    fs::write(world.dir.path().join("secret"), "of another").unwrap();
    fs::create_dir(world.shop("app/deep")).unwrap();
    for (target, at) in [
        ("note.txt", "app/link"),
        ("../logs/note.txt", "app/across"),
        ("../../logs", "app/deep/directory"),
        ("across", "app/chain"),
        ("../../../secret", "app/out"),
        ("../..", "app/up"),
        ("/etc/passwd", "app/passwd"),
        ("/dev/zero", "app/zero"),
        ("/proc/self/environ", "app/environ"),
        ("/app/note.txt", "app/absolute"),
        ("loop", "app/loop"),
        ("nothing", "app/dangling"),
    ] {
        symlink(target, world.shop(at)).unwrap();
    }
    for (path, body) in [
        ("link", "app of a guest"),
        ("across", "logs of a guest"),
        ("chain", "logs of a guest"),
        ("deep/directory/note.txt", "logs of a guest"),
    ] {
        assert_eq!(world.file(&format!("/app/{path}")).await, (200, body.to_owned()), "{path}");
    }
    for path in ["out", "up", "up/secret", "passwd", "zero", "environ", "absolute", "loop", "up/shop-files/app/note.txt"] {
        assert_eq!(world.file(&format!("/app/{path}")).await.0, 403, "{path}");
    }
    assert_eq!(world.file("/app/dangling").await.0, 404);
    let listed = world.file("/app").await.1;
    assert!(listed.contains("passwd                                     11B\n"), "a link is shown as itself: {listed}");
}

#[tokio::test]
async fn neither_pipes_nor_sockets_are_opened_for_long() {
    let world = World::new(settings()).await;
    mknodat(CWD, world.shop("app/pipe"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let _listener = UnixListener::bind(world.shop("app/socket")).unwrap();
    symlink("pipe", world.shop("app/to-pipe")).unwrap();
    for path in ["/app/pipe", "/app/socket", "/app/to-pipe"] {
        assert_eq!(world.file(path).await, (403, r#"{"error":"Not accessible"}"#.to_owned()), "{path}");
    }
}

#[tokio::test]
async fn a_staging_task_shows_nothing_by_a_link() {
    let world = World::new(settings()).await;
    let staged = world.dir.path().join("staging_logs/7/tmp/staged");
    symlink("logs/staging_task.log", staged.join("link")).unwrap();
    symlink("logs", staged.join("directory")).unwrap();
    let status = async |path: &str| world.get(&world.url_of(&FilesOf::StagingTask(TaskId::from("task")), Some(path), now())).await.status;
    assert_eq!(status("/tmp/staged/logs/staging_task.log").await, 200);
    for path in ["/tmp/staged/link", "/tmp/staged/directory/staging_task.log", "/tmp/staged/../staged/logs", ".."] {
        assert_eq!(status(path).await, 403, "{path}");
    }
}

/// What a path shows at this moment.
fn shown(root: &Root, path: &str) -> Result<String, OpenError> {
    match root.open_path(path)? {
        Opened::File(mut opened) => {
            let mut text = String::new();
            opened.file.read_to_string(&mut text)?;
            Ok(text)
        }
        Opened::Directory(_) => Ok("a directory".to_owned()),
    }
}

fn exchange(one: &Path, other: &Path) {
    renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE).unwrap();
}

/// While a guest exchanges a directory, a file and a link out of its root as fast as it can, nothing from outside is ever shown.
#[test]
fn no_race_opens_what_lies_outside() {
    let dir = tempfile::tempdir().unwrap();
    let (root, outside) = (dir.path().join("root"), dir.path().join("outside"));
    fs::create_dir_all(root.join("app/real")).unwrap();
    fs::create_dir_all(outside.join("real")).unwrap();
    for (at, text) in
        [(root.join("app/real"), "inside"), (root.join("app"), "inside"), (outside.join("real"), "OUTSIDE"), (outside.clone(), "OUTSIDE")]
    {
        fs::write(at.join("file"), text).unwrap();
    }
    symlink("../../outside/real", root.join("app/link")).unwrap();
    symlink("../../outside/file", root.join("app/file-link")).unwrap();
    let opened = Root::open(&root, Links::Followed).unwrap();
    let done = AtomicBool::new(false);
    let mut seen = HashMap::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                exchange(&root.join("app/real"), &root.join("app/link"));
                exchange(&root.join("app/file"), &root.join("app/file-link"));
            }
        });
        let start = Instant::now();
        // Until both sides of the race were seen often, each of which depends on what the other thread gets to run.
        while start.elapsed() < PATIENCE && !(seen.get("inside") > Some(&2000) && seen.get("refused") > Some(&2000)) {
            for path in ["app/real/file", "app/link/file", "app/real/../real/file", "app/file", "app/file-link"] {
                let what = match shown(&opened, path) {
                    Ok(text) => text,
                    Err(OpenError::NotAccessible) => "refused".to_owned(),
                    Err(OpenError::NotFound | OpenError::Failed(_)) => "gone".to_owned(),
                };
                *seen.entry(what).or_insert(0_u32) += 1;
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    assert!(!seen.contains_key("OUTSIDE"), "{seen:?}");
    assert!(seen.contains_key("inside") && seen.contains_key("refused"), "there was no race: {seen:?}");
}

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

use dewar_protocol::Bytes;
use tokio_util::sync::CancellationToken;

use super::{Packer, pack_droplet, pack_tree};
use crate::archive::unpack;
use crate::tree::{Node, Tree, TreeLimits};

fn write(root: &Path, path: &str, content: &[u8]) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

fn pack(from: &Path) -> Result<Vec<u8>, String> {
    let folder = tempfile::tempdir().unwrap();
    let archive = folder.path().join("droplet.tgz");
    pack_droplet(from, b"start_command: x\n", &archive, &CancellationToken::new()).map_err(|error| error.to_string())?;
    Ok(fs::read(archive).unwrap())
}

fn unpacked(archive: &[u8]) -> Tree {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("archive");
    fs::write(&path, archive).unwrap();
    let into = folder.path().join("into");
    fs::create_dir(&into).unwrap();
    unpack(&path, &into, TreeLimits { bytes: Bytes(1 << 20), entries: 1000 }, &CancellationToken::new()).unwrap()
}

fn names(archive: &[u8]) -> Vec<String> {
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(archive));
    archive.entries().unwrap().map(|entry| String::from_utf8(entry.unwrap().path_bytes().into_owned()).unwrap()).collect()
}

/// Of the regular files, the mode of each.
fn modes(archive: &[u8]) -> Vec<(String, u32)> {
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(archive));
    let files = archive.entries().unwrap().map(Result::unwrap).filter(|entry| entry.header().entry_type().is_file());
    files.map(|file| (file.path().unwrap().display().to_string(), file.header().mode().unwrap())).collect()
}

#[test]
fn a_droplet_has_the_layout_that_the_original_had() {
    let from = tempfile::tempdir().unwrap();
    write(from.path(), "droplet.wasm", b"\0asm");
    write(from.path(), "app/index.html", b"<p>");
    write(from.path(), "app/b/c", b"");
    write(from.path(), "left-over", b"not part of a droplet");
    let long = format!("app/{}/{}", "n".repeat(120), "m".repeat(120));
    write(from.path(), &long, b"long");
    let archive = pack(from.path()).unwrap();
    let long = [format!("./app/{}/", "n".repeat(120)), format!("./{long}")];
    let expected = [
        "./app/",
        "./app/b/",
        "./app/b/c",
        "./app/index.html",
        &long[0],
        &long[1],
        "./droplet.wasm",
        "./logs/",
        "./staging_info.yml",
        "./tmp/",
    ];
    assert_eq!(names(&archive), expected);
    let tree = unpacked(&archive);
    assert!(matches!(tree.nodes["staging_info.yml"], Node::File { size: 17, .. }));
    assert!(tree.nodes.contains_key(&long[1][2..]));
}

#[test]
fn the_same_files_give_the_same_bytes_whenever_and_however_they_came_about() {
    let make = |order: [&str; 4], mode: u32, age: u64| {
        let from = tempfile::tempdir().unwrap();
        for path in order {
            write(from.path(), path, path.as_bytes());
        }
        let program = from.path().join("app/run");
        fs::set_permissions(&program, fs::Permissions::from_mode(mode)).unwrap();
        let changed = SystemTime::now() - Duration::from_secs(age);
        fs::File::open(&program).unwrap().set_modified(changed).unwrap();
        symlink("run", from.path().join("app/link")).unwrap();
        pack(from.path()).unwrap()
    };
    let one = make(["droplet.wasm", "app/run", "app/z", "app/a/b"], 0o700, 0);
    let other = make(["app/a/b", "app/z", "app/run", "droplet.wasm"], 0o777, 100_000);
    assert_eq!(one, other);
    assert_eq!(one[..10], [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255], "no name, no time, no system in the header");
    let plain = make(["droplet.wasm", "app/run", "app/z", "app/a/b"], 0o600, 0);
    assert_ne!(one, plain, "who may execute it makes a difference");
    let mode_of = |archive: &[u8], path: &str| modes(archive).into_iter().find(|(name, _)| name == path).unwrap().1;
    assert_eq!((mode_of(&one, "./app/run"), mode_of(&one, "./app/z"), mode_of(&plain, "./app/run")), (0o755, 0o644, 0o644));
}

#[test]
fn an_app_without_files_is_a_directory() {
    let from = tempfile::tempdir().unwrap();
    write(from.path(), "droplet.wasm", b"\0asm");
    assert_eq!(names(&pack(from.path()).unwrap())[..2], ["./app/", "./droplet.wasm"]);
}

#[test]
fn links_that_lead_out_and_special_files_are_refused() {
    for target in ["/etc/passwd", "../droplet.wasm", "x/../../y"] {
        let from = tempfile::tempdir().unwrap();
        write(from.path(), "droplet.wasm", b"\0asm");
        fs::create_dir(from.path().join("app")).unwrap();
        symlink(target, from.path().join("app/link")).unwrap();
        assert_eq!(pack(from.path()).unwrap_err(), "pack \"app/link\": it is a link that may lead out of the tree");
    }
    let outside = tempfile::tempdir().unwrap();
    write(outside.path(), "secret", b"secret");
    let from = tempfile::tempdir().unwrap();
    write(from.path(), "droplet.wasm", b"\0asm");
    symlink(outside.path(), from.path().join("app")).unwrap();
    assert_eq!(pack(from.path()).unwrap_err(), "pack \"app\": it is neither file nor directory nor link");
    let from = tempfile::tempdir().unwrap();
    symlink(outside.path().join("secret"), from.path().join("droplet.wasm")).unwrap();
    assert!(pack(from.path()).unwrap_err().starts_with("pack \"droplet.wasm\": "));
    let from = tempfile::tempdir().unwrap();
    write(from.path(), "droplet.wasm", b"\0asm");
    fs::create_dir(from.path().join("app")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(from.path().join("app/socket")).unwrap();
    assert_eq!(pack(from.path()).unwrap_err(), "pack \"app/socket\": it is neither file nor directory nor link");
}

#[test]
fn what_could_not_be_unpacked_is_not_packed() {
    let deep = format!("{}f", "d/".repeat(63));
    for (name, why) in [("a\\b", "its name contains a backslash"), (&deep, "it is deeper than 64 directories")] {
        let from = tempfile::tempdir().unwrap();
        write(from.path(), "droplet.wasm", b"\0asm");
        write(from.path(), &format!("app/{name}"), b"");
        assert_eq!(pack(from.path()).unwrap_err(), format!("pack {:?}: {why}", format!("app/{name}")));
    }
    let from = tempfile::tempdir().unwrap();
    write(from.path(), "droplet.wasm", b"\0asm");
    write(from.path(), "app/zeros", b"");
    let zeros = fs::File::options().write(true).open(from.path().join("app/zeros")).unwrap();
    zeros.set_len(20 << 20).unwrap();
    pack(from.path()).unwrap();
    zeros.set_len(64 << 20).unwrap();
    assert!(pack(from.path()).is_err_and(|error| error.ends_with(", which looks like a bomb")));
}

#[test]
fn all_paths_together_are_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let mut packer = Packer::create(&dir.path().join("archive"), &CancellationToken::new()).unwrap();
    let long = format!("{}f", "directory/".repeat(50));
    let refused = (0..100_000).find_map(|number| packer.name(&format!("{number}/{long}")).err());
    assert_eq!(refused.unwrap().to_string(), "pack more than 33554432 bytes of paths");
}

#[test]
fn a_cache_is_packed_under_its_name() {
    let from = tempfile::tempdir().unwrap();
    write(from.path(), "deps/one", b"1");
    let archive = from.path().with_extension("tgz");
    pack_tree("name", from.path(), &archive, &CancellationToken::new()).unwrap();
    assert_eq!(names(&fs::read(&archive).unwrap()), ["./name/", "./name/deps/", "./name/deps/one"]);
    fs::remove_file(archive).unwrap();
}

#[test]
fn cancelling_ends_it() {
    let from = tempfile::tempdir().unwrap();
    let stop = CancellationToken::new();
    stop.cancel();
    let error = pack_droplet(from.path(), b"", &from.path().join("droplet.tgz"), &stop).unwrap_err();
    assert_eq!(error.to_string(), "go on: cancelled");
}

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;

fn write(root: &Path, name: &str, content: &str) {
    let path = root.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

fn names(root: &Path) -> Vec<String> {
    Listing::of_folder(root).unwrap().entries.into_iter().map(|entry| entry.name).collect()
}

fn packed(root: &Path) -> Vec<u8> {
    fs::read(PackageSource::at(root).unwrap().pack().unwrap().path()).unwrap()
}

#[test]
fn the_same_content_packs_to_the_same_bytes() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for (root, order) in [(&one, ["b.txt", "a/z.txt", "a/b.txt"]), (&two, ["a/b.txt", "a/z.txt", "b.txt"])] {
        for name in order {
            write(root.path(), name, name);
        }
        write(root.path(), "run", "x");
        fs::set_permissions(root.path().join("run"), fs::Permissions::from_mode(0o750)).unwrap();
    }
    let old = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    File::options().write(true).open(two.path().join("b.txt")).unwrap().set_modified(old).unwrap();
    fs::set_permissions(two.path().join("b.txt"), fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(packed(one.path()), packed(two.path()));

    let before = packed(one.path());
    fs::set_permissions(one.path().join("b.txt"), fs::Permissions::from_mode(0o755)).unwrap();
    assert_ne!(packed(one.path()), before, "the executable bit is content");
}

#[test]
fn a_package_unpacks_to_what_was_packed() {
    let root = tempfile::tempdir().unwrap();
    write(root.path(), "a/b.txt", "hello");
    fs::create_dir(root.path().join("empty")).unwrap();
    let package = PackageSource::at(root.path()).unwrap().pack().unwrap();
    assert_eq!(package.files, 1);
    let mut zip = zip::ZipArchive::new(File::open(package.path()).unwrap()).unwrap();
    let names: Vec<String> = (0..zip.len()).map(|at| zip.name_for_index(at).unwrap().unwrap().into_owned()).collect();
    assert_eq!(names, ["a/", "a/b.txt", "empty/"]);
    let mut text = String::new();
    zip.by_name("a/b.txt").unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "hello");
}

#[test]
fn what_is_not_the_app_stays_out() {
    let root = tempfile::tempdir().unwrap();
    for name in [".git/config", "target/debug/x", "sub/target/y", "node_modules/m/i.js", "src/main.rs", ".hidden", "sub/.git"] {
        write(root.path(), name, "x");
    }
    write(root.path(), "targets", "a file of almost that name");
    assert_eq!(names(root.path()), [".hidden", "src", "src/main.rs", "sub", "targets"]);
}

#[test]
fn ignore_files_follow_gitignore_rules() {
    let root = tempfile::tempdir().unwrap();
    for name in ["a.log", "keep.log", "build/x", "deep/build/y", "deep/b.log", "deep/c.tmp", "c.tmp", "docs/a.md"] {
        write(root.path(), name, "x");
    }
    write(root.path(), ".dewarignore", "# comment\n*.log\n!keep.log\n/build/\ndocs\n");
    write(root.path(), "deep/.dewarignore", "*.tmp\n");
    // What version control ignores may well be the app, such as a built component.
    write(root.path(), ".gitignore", "c.tmp\n");
    assert_eq!(names(root.path()), [".gitignore", "c.tmp", "deep", "deep/build", "deep/build/y", "keep.log"]);
}

#[test]
fn a_malformed_ignore_file_is_named() {
    let root = tempfile::tempdir().unwrap();
    write(root.path(), "a", "x");
    write(root.path(), ".dewarignore", "{a\n");
    let error = Listing::of_folder(root.path()).unwrap_err().to_string();
    assert!(error.contains(".dewarignore"), "{error}");
}

#[test]
fn links_stay_inside() {
    let (root, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write(root.path(), "real.txt", "content");
    symlink("real.txt", root.path().join("link.txt")).unwrap();
    assert_eq!(names(root.path()), ["link.txt", "real.txt"]);

    write(outside.path(), "secret", "x");
    for target in [outside.path().join("secret"), root.path().to_owned(), root.path().join("nowhere")] {
        let bad = root.path().join("bad");
        symlink(&target, &bad).unwrap();
        let error = Listing::of_folder(root.path()).unwrap_err();
        assert!(error.to_string().contains("/bad"), "{error}");
        fs::remove_file(&bad).unwrap();
    }
}

#[test]
fn a_module_is_zipped_alone_and_an_archive_is_sent_as_it_is() {
    let root = tempfile::tempdir().unwrap();
    write(root.path(), "hello.WAT", "(module)");
    write(root.path(), "app.zip", "not really a zip");
    write(root.path(), "app.txt", "x");
    let module = PackageSource::at(&root.path().join("hello.WAT")).unwrap().pack().unwrap();
    assert_eq!(
        zip::ZipArchive::new(File::open(module.path()).unwrap()).unwrap().file_names().map(Result::unwrap).collect::<Vec<_>>(),
        ["hello.WAT"]
    );
    assert_eq!(packed(&root.path().join("app.zip")), b"not really a zip");
    assert!(matches!(PackageSource::at(&root.path().join("app.txt")), Err(PackageError::UnknownKind(_))));
    assert!(matches!(PackageSource::at(&root.path().join("nowhere")), Err(PackageError::Unreadable { .. })));
}

#[test]
fn nothing_to_push_is_an_error() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("empty")).unwrap();
    assert!(matches!(PackageSource::at(root.path()).unwrap().pack(), Err(PackageError::Empty(_))));
}

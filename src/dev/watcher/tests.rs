use std::fs;

use tokio::time::timeout;

use super::*;

/// Far more than any change needs.
const PATIENCE: Duration = Duration::from_secs(20);

async fn watch(path: &Path) -> Watcher {
    Watcher::start(PackageSource::at(path).unwrap()).await.unwrap()
}

async fn noticed(watcher: &mut Watcher) {
    timeout(PATIENCE, watcher.changed()).await.expect("the change is noticed").unwrap();
}

/// What does not count is followed by something that does: the first notice must come with the second change already there.
async fn unnoticed_until(watcher: &mut Watcher, root: &Path, change: impl FnOnce()) {
    let before = watcher.last.clone();
    change();
    assert!(timeout(QUIET * 4, watcher.changed()).await.is_err(), "nothing of the package has changed");
    assert_eq!(watcher.last, before);
    fs::write(root.join("counts"), format!("{:?}", before.map(|listing| listing.entries.len()))).unwrap();
    noticed(watcher).await;
}

#[tokio::test]
async fn changes_anywhere_in_the_package_are_noticed() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("old")).unwrap();
    let mut watcher = watch(root.path()).await;
    fs::write(root.path().join("a"), "1").unwrap();
    noticed(&mut watcher).await;
    fs::write(root.path().join("old/b"), "1").unwrap();
    noticed(&mut watcher).await;
    fs::create_dir_all(root.path().join("new/deep")).unwrap();
    noticed(&mut watcher).await;
    fs::write(root.path().join("new/deep/c"), "1").unwrap();
    noticed(&mut watcher).await;
    fs::rename(root.path().join("old"), root.path().join("renamed")).unwrap();
    noticed(&mut watcher).await;
    fs::write(root.path().join("renamed/b"), "22").unwrap();
    noticed(&mut watcher).await;
    fs::remove_file(root.path().join("a")).unwrap();
    noticed(&mut watcher).await;
}

#[tokio::test]
async fn what_is_not_packed_does_not_count() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path();
    fs::write(path.join(".dewarignore"), "*.log\n").unwrap();
    fs::create_dir(path.join("target")).unwrap();
    let mut watcher = watch(path).await;
    unnoticed_until(&mut watcher, path, || fs::write(path.join("target/x"), "1").unwrap()).await;
    unnoticed_until(&mut watcher, path, || fs::write(path.join("x.log"), "1").unwrap()).await;
    // Reading is no change either: packing must not cause another push.
    unnoticed_until(&mut watcher, path, || drop(PackageSource::at(path).unwrap().pack().unwrap())).await;
}

#[tokio::test]
async fn a_burst_is_one_change() {
    let root = tempfile::tempdir().unwrap();
    let mut watcher = watch(root.path()).await;
    for number in 0..100 {
        fs::write(root.path().join(format!("{number}")), "x").unwrap();
    }
    noticed(&mut watcher).await;
    assert_eq!(watcher.last.as_ref().unwrap().entries.len(), 100);
    assert!(timeout(QUIET * 4, watcher.changed()).await.is_err());
}

#[tokio::test]
async fn a_single_file_may_be_replaced() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("app.wasm");
    fs::write(&file, "1").unwrap();
    let mut watcher = watch(&file).await;
    fs::write(root.path().join("other"), "not the package").unwrap();
    assert!(timeout(QUIET * 4, watcher.changed()).await.is_err());
    fs::write(root.path().join("app.new"), "22").unwrap();
    fs::rename(root.path().join("app.new"), &file).unwrap();
    noticed(&mut watcher).await;
}

use std::fs;

use super::*;

#[test]
fn what_is_half_removed_is_not_whole() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("instance");
    let places: Vec<_> = (0..20).map(|number| root.join(number.to_string())).chain([root.join("app")]).collect();
    for place in &places {
        fs::create_dir_all(place).unwrap();
        (0..200).for_each(|file| fs::write(place.join(file.to_string()), "").unwrap());
    }
    let logs = root.join("logs");
    fs::create_dir(&logs).unwrap();
    let removing = std::thread::spawn({
        let root = root.clone();
        move || remove_files(&root)
    });
    let is_touched = |place: &Path| fs::read_dir(place).map_or(0, Iterator::count) < 200;
    while !places.iter().any(|place| is_touched(place)) {}
    assert!(!logs.exists(), "it goes first");
    removing.join().unwrap();
    assert!(!root.exists());
}

use std::collections::BTreeMap;
use std::fs;

use dewar_sandbox::World;

use super::{StagingInfo, read_procfile};

fn read(text: &str) -> Result<StagingInfo, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("staging_info.yml");
    fs::write(&path, text).unwrap();
    StagingInfo::read(&path).map_err(|error| error.to_string())
}

#[test]
fn what_is_written_is_read_again() {
    let info = StagingInfo {
        buildpack_path: Some("91f2_aa07".to_owned()),
        detected_buildpack: Some("Rust: \"http\"".to_owned()),
        start_command: Some("serve -p $PORT # all".to_owned()),
        effective_procfile: BTreeMap::from([("web".to_owned(), "yes".to_owned()), ("worker".to_owned(), "1".to_owned())]),
        world: Some(World::Command),
    };
    assert_eq!(read(&info.to_yaml().unwrap()).unwrap(), info);
    assert_eq!(read(&StagingInfo::default().to_yaml().unwrap()).unwrap(), StagingInfo::default());
}

#[test]
fn a_file_of_the_original_is_read() {
    let info = read(
        "---\nbuildpack_path: /var/vcap/data/dea_next/admin_buildpacks/91f2_aa07\ndetected_buildpack: Ruby/Rack\n\
         start_command: bundle exec rackup -p $PORT\neffective_procfile:\n  web: bundle exec rackup -p $PORT\nunknown: 1\n",
    )
    .unwrap();
    assert_eq!(info.start_command.as_deref(), Some("bundle exec rackup -p $PORT"));
    assert_eq!((info.effective_procfile["web"].as_str(), info.world), ("bundle exec rackup -p $PORT", None));
    assert_eq!(read("start_command: ~\n").unwrap(), StagingInfo::default());
}

#[test]
fn nonsense_is_an_error_of_one_line() {
    for text in ["- a\n- b", "world: browser", "start_command: {a: b}", "\"", &"x: y\n".repeat(20_000)] {
        let error = read(text).unwrap_err();
        assert!(error.contains("staging_info.yml") && !error.contains('\n'), "{error}");
    }
}

#[test]
fn a_procfile_is_a_map_or_an_error() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(read_procfile(folder.path()).unwrap(), None);
    let path = folder.path().join("Procfile");
    fs::write(&path, "web: ./server.wasm --verbose\nworker: work\n").unwrap();
    let processes = read_procfile(folder.path()).unwrap().unwrap();
    assert_eq!(processes["web"], "./server.wasm --verbose");
    for text in ["just words", "- web", "web:\n  nested: 1\n", "a: b: c: d"] {
        fs::write(&path, text).unwrap();
        let error = read_procfile(folder.path()).unwrap_err();
        assert_eq!(error.to_string(), "Invalid Procfile format. Please ensure it is a valid YAML hash", "{text}");
    }
    fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("/etc/hostname", &path).unwrap();
    assert!(read_procfile(folder.path()).unwrap_err().to_string().starts_with("read Procfile: "), "a link may lead anywhere");
}

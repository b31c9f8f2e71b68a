//! From a component to native code: what is refused, what compiling may cost, and whose native code is loaded.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use dewar_protocol::Bytes as Size;
use dewar_sandbox::{ProgramError, SandboxConfig, Sandboxes};
use libtest_mimic::Trial;

use crate::fixture::{config, guest, sandboxes, test};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        test("programs::what_is_no_program_is_refused_by_name", refused),
        test("programs::compiling_may_not_take_all_memory", memory),
        test("programs::compiling_may_not_take_for_ever", time),
        test("programs::a_component_may_not_be_too_large", size),
        test("programs::the_compiler_must_be_there", no_compiler),
        test("programs::everybody_waits_for_one_compilation", single_flight),
        test("programs::native_code_is_kept_and_checked", kept_and_checked),
    ]
}

async fn error_of(name: &str) -> String {
    sandboxes().program(&guest(name)).await.expect_err(name).to_string()
}

async fn refused() {
    let error = error_of("tests/does-not-validate").await;
    assert!(error.starts_with("compile component: "), "{error}");
    let error = error_of("tests/core-without-exports").await;
    assert!(error.starts_with("compile component: "), "{error}");
    let error = error_of("tests/no-known-world").await;
    assert!(error.starts_with("find a world to run: the component exports "), "{error}");
    let error = error_of("tests/unknown-import").await;
    assert!(error.starts_with("link component: "), "{error}");
    assert!(error.contains("is not granted") && error.contains(':'), "{error}");

    let directory = tempfile::tempdir().unwrap();
    for content in [&b""[..], b"this is no wasm", b"\0asm"] {
        let path = directory.path().join("garbage.wasm");
        fs::write(&path, content).unwrap();
        let error = sandboxes().program(&path).await.expect_err("garbage").to_string();
        assert!(error.starts_with("compile component: "), "{error}");
    }
    let missing = directory.path().join("missing.wasm");
    let error = sandboxes().program(&missing).await.expect_err("missing").to_string();
    assert!(error.contains("missing.wasm"), "{error}");
    let error = sandboxes().buildpack(&fs::read(guest("examples/hello")).unwrap()).await.expect_err("no buildpack").to_string();
    assert!(error.starts_with("use component as a buildpack: "), "{error}");
}

/// Sandboxes of their own, so that nothing is compiled yet.
fn fresh(change: impl FnOnce(&mut SandboxConfig)) -> (Sandboxes, tempfile::TempDir) {
    let state = tempfile::tempdir().unwrap();
    let mut config = config(state.path().to_owned());
    change(&mut config);
    (Sandboxes::new(config).unwrap(), state)
}

async fn memory() {
    let (sandboxes, _state) = fresh(|config| config.compile_limits.memory = Size(64 << 20));
    let error = sandboxes.program(&guest("tests/http-driver")).await.expect_err("it takes more");
    assert_eq!(error.to_string(), "compile component: it takes more than 64 MiB of memory");
}

async fn time() {
    let (sandboxes, _state) = fresh(|config| config.compile_limits.wall = Duration::from_millis(20));
    let start = Instant::now();
    let error = sandboxes.program(&guest("tests/http-driver")).await.expect_err("it takes longer");
    assert_eq!(error.to_string(), "compile component: it takes more than 20ms on the clock");
    assert!(start.elapsed() < Duration::from_secs(20));
}

async fn size() {
    let (sandboxes, _state) = fresh(|config| config.compile_limits.component = Size(1000));
    let error = sandboxes.program(&guest("tests/http-driver")).await.expect_err("it is larger").to_string();
    assert!(error.ends_with("bytes: at most 1000 are allowed"), "{error}");
}

async fn no_compiler() {
    let (sandboxes, _state) = fresh(|config| config.compiler = PathBuf::from("/nonexistent/dewar"));
    let error = sandboxes.program(&guest("tests/http-driver")).await.expect_err("there is none");
    assert!(matches!(&error, ProgramError::Compiler(text) if text.contains("/nonexistent/dewar")), "{error}");
}

/// A compiler that notes each of its runs in a file.
pub(crate) fn counting_compiler(directory: &Path) -> (PathBuf, PathBuf) {
    let (script, runs) = (directory.join("compiler"), directory.join("runs"));
    let text = format!("#!/bin/sh\necho run >>'{}'\nexec '{}' \"$@\"\n", runs.display(), std::env::current_exe().unwrap().display());
    fs::write(directory.join("text"), text).unwrap();
    // Copied by another process: a child that another test has forked meanwhile would hold a file that is open for writing here, and
    // nobody can run such a file.
    let copied = std::process::Command::new("install").args(["-m", "755"]).arg(directory.join("text")).arg(&script).status();
    assert!(copied.unwrap().success());
    (script, runs)
}

async fn single_flight() {
    let directory = tempfile::tempdir().unwrap();
    let (compiler, runs) = counting_compiler(directory.path());
    let (sandboxes, _state) = fresh(|config| config.compiler = compiler);
    let hello = guest("examples/hello");
    let programs = futures::future::join_all((0..10).map(|_| sandboxes.program(&hello))).await;
    let digests: Vec<String> = programs.into_iter().map(|program| program.unwrap().digest().to_owned()).collect();
    assert!(digests.iter().all(|digest| *digest == digests[0] && digest.len() == 64));
    assert_eq!(fs::read_to_string(runs).unwrap(), "run\n");
}

async fn kept_and_checked() {
    let directory = tempfile::tempdir().unwrap();
    let (compiler, runs) = counting_compiler(directory.path());
    let state = tempfile::tempdir().unwrap();
    let open = || {
        let mut config = config(state.path().to_owned());
        config.compiler.clone_from(&compiler);
        Sandboxes::new(config).unwrap()
    };
    let count = || fs::read_to_string(&runs).unwrap().lines().count();
    let hello = guest("examples/hello");
    open().program(&hello).await.unwrap();
    open().program(&hello).await.unwrap();
    assert_eq!(count(), 1, "the second time it is there");

    let artifacts = state.path().join("artifacts");
    let artifact = fs::read_dir(&artifacts).unwrap().next().unwrap().unwrap().path();
    let mut bytes = fs::read(&artifact).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x20;
    fs::write(&artifact, &bytes).unwrap();
    open().program(&hello).await.unwrap();
    assert_eq!(count(), 2, "altered code is not loaded");

    let other = tempfile::tempdir().unwrap();
    let (foreign, _) = (Sandboxes::new(config(other.path().to_owned())).unwrap(), ());
    foreign.program(&hello).await.unwrap();
    fs::copy(other.path().join("artifacts").join(artifact.file_name().unwrap()), &artifact).unwrap();
    open().program(&hello).await.unwrap();
    assert_eq!(count(), 3, "another host's code is not loaded");

    fs::remove_file(state.path().join("artifact.key")).unwrap();
    open().program(&hello).await.unwrap();
    assert_eq!(count(), 4, "code of a lost key is not loaded");

    let digest = artifact.file_name().unwrap().to_str().unwrap().split_once('-').unwrap().0;
    let older = artifacts.join(format!("{digest}-0123456789abcdef"));
    fs::rename(&artifact, &older).unwrap();
    let upgraded = open();
    assert!(!older.exists(), "another engine's code is removed");
    upgraded.program(&hello).await.unwrap();
    assert_eq!(count(), 5, "after an upgrade code is made anew");

    let elsewhere = directory.path().join("elsewhere");
    fs::rename(&artifact, &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &artifact).unwrap();
    open().program(&hello).await.unwrap();
    assert_eq!(count(), 6, "code behind a link is not loaded");
    assert!(fs::symlink_metadata(&artifact).unwrap().is_file());
}

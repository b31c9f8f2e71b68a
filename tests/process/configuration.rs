//! The agent's configuration file, from the command line.

use std::path::Path;
use std::process::{Command, Output};

use crate::bare_protocol::agent_yml;
use crate::harness::{Process, eventually, free_port};

fn agent(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_dewar")).arg("agent").args(arguments).output().unwrap()
}

fn check(text: &str) -> Output {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("agent.yml");
    std::fs::write(&file, text).unwrap();
    agent(&["--config", file.to_str().unwrap(), "--check-config"])
}

#[test]
fn the_printed_configuration_is_one_without_mistakes() {
    let printed = agent(&["--print-default-config"]);
    assert!(printed.status.success());
    let text = String::from_utf8(printed.stdout).unwrap();
    assert!(text.contains("\n# base_dir") || text.contains("\nbase_dir: "), "{text}");
    let checked = check(&text);
    assert!(checked.status.success() && checked.stderr.is_empty(), "{}", String::from_utf8_lossy(&checked.stderr));
    let effective = String::from_utf8(checked.stdout).unwrap();
    assert!(effective.contains("heartbeat: 10"), "{effective}");
    assert_eq!(agent(&[]).status.code(), Some(64), "a file has to be named");
}

#[test]
fn every_mistake_is_told_and_no_secret_is_shown() {
    let bad = check("base_dir: /tmp/x\nnats_servers: ['nats://me:hunter2@h']\nindex: x\nintervals: {router_register_in_seconds: 0}\n");
    let told = String::from_utf8(bad.stderr).unwrap();
    assert_eq!(bad.status.code(), Some(64));
    for text in ["`index` must be", "Invalid router register interval"] {
        assert!(told.contains(text), "{told}");
    }
    let good = check("base_dir: /tmp/x\nnats_servers: ['nats://me:hunter2@h']\nstatus: {password: hunter2}\nnats_server: h\nhooks: {}\n");
    assert!(good.status.success());
    let told = String::from_utf8(good.stderr).unwrap();
    assert!(told.contains("unknown keys: nats_server\n") && told.contains("keys without effect: hooks"), "{told}");
    let shown = String::from_utf8(good.stdout).unwrap();
    assert!(!told.contains("hunter2") && !shown.contains("hunter2"), "{shown}");
}

#[test]
fn an_agent_logs_where_and_what_its_configuration_says_and_its_pid_file_goes_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let run = |level: &str| {
        let (config, log) = (dir.path().join("agent.yml"), dir.path().join(level));
        let yml = agent_yml(&dir.path().join("base"), free_port());
        let yml = yml.replace("{level: debug}", &format!("{{level: {level}, file: {}}}", log.display()));
        std::fs::write(&config, yml).unwrap();
        let mut process = Process::dewar(&["agent", "--config", config.to_str().unwrap()]);
        let pid_file = dir.path().join("base.pid");
        let id = process.id().to_string();
        eventually("the pid file", || std::fs::read_to_string(&pid_file).ok().filter(|text| *text == format!("{id}\n")));
        if level == "info" {
            eventually("the log", || std::fs::read_to_string(&log).ok().filter(|text| text.contains("agent started id=3-")));
        }
        // Base directory and pid file come before everything else that makes an agent's directories.
        for name in ["db", "droplets", "instances", "tmp", "staging", "crashes"] {
            eventually(name, || dir.path().join("base").join(name).is_dir().then_some(()));
        }
        eventually("handlers of signals", || signals_are_caught(process.id()).then_some(()));
        process.signal("-TERM");
        assert_eq!(process.exit().code(), Some(0));
        assert!(!pid_file.exists());
        assert_eq!(process.printed(), "", "all of it is in the file");
        std::fs::read_to_string(log).unwrap()
    };
    assert_eq!(run("info").matches("agent started").count(), 1);
    assert!(!run("error").contains("INFO"));
}

/// Whether a process would not simply die of SIGTERM.
fn signals_are_caught(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap_or("0");
    u64::from_str_radix(caught.trim(), 16).is_ok_and(|caught| caught & (1 << (15 - 1)) != 0)
}

#[test]
fn an_agent_without_a_place_for_its_pid_file_does_not_start() {
    let dir = tempfile::tempdir().unwrap();
    let start = |pid_file: &Path| {
        let config = dir.path().join("agent.yml");
        let yml = agent_yml(&dir.path().join("base"), free_port());
        let own = format!("pid_filename: {}.pid", dir.path().join("base").display());
        std::fs::write(&config, yml.replace(&own, &format!("pid_filename: {}", pid_file.display()))).unwrap();
        let output = agent(&["--config", config.to_str().unwrap()]);
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, told) = start(&dir.path().join("missing/agent.pid"));
    assert!(code == Some(1) && told.contains("Cannot create pid file at "), "{told}");
    let other = dir.path().join("other.pid");
    std::fs::write(&other, format!("{}\n", std::process::id())).unwrap();
    let (code, told) = start(&other);
    assert!(code == Some(1) && told.contains(&format!("Process already running (pid={}).", std::process::id())), "{told}");
    assert!(other.exists(), "it is the other process's");
}

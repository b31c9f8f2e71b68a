use std::fs::{self, File};
use std::io::ErrorKind;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::Command;

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};

use super::*;

/// What a restricted thread finds. Restrictions are the thread's own, so that other tests go on freely.
fn restricted<T: Send + 'static>(config: &AgentConfig, deed: impl FnOnce() -> T + Send + 'static) -> (InForce, T) {
    let rules = Rules::of(config).unwrap();
    let thread = std::thread::spawn(move || (restrict_thread(Some(&rules)), deed()));
    thread.join().unwrap()
}

fn config(base: &Path, more: &str) -> AgentConfig {
    let yaml = format!("base_dir: {}\nnats_servers: ['nats://127.0.0.1:4222']\n{more}", base.display());
    AgentConfig::from_yaml(&yaml).unwrap().0
}

/// Whether this kernel has everything; elsewhere there is nothing to see here.
fn everything(in_force: &InForce) -> bool {
    let lacking = in_force.lacking();
    if !lacking.is_empty() {
        eprintln!("skipped: {lacking}");
    }
    lacking.is_empty()
}

fn is_refused<T>(result: io::Result<T>) -> bool {
    result.is_err_and(|error| error.kind() == ErrorKind::PermissionDenied)
}

#[test]
fn the_work_directory_remains_and_nothing_beside_it() {
    let dir = tempfile::tempdir().unwrap();
    let (base, beside) = (dir.path().join("base"), dir.path().join("beside"));
    fs::create_dir(&beside).unwrap();
    fs::write(beside.join("file"), "secret").unwrap();
    let inside = base.clone();
    let (in_force, (works, refused)) = restricted(&config(&base, ""), move || {
        let works = fs::create_dir(inside.join("a"))
            .and_then(|()| fs::create_dir(inside.join("b")))
            .and_then(|()| fs::write(inside.join("a/file"), "text"))
            .and_then(|()| fs::rename(inside.join("a/file"), inside.join("b/file")))
            .and_then(|()| File::create(inside.join("b/file")).map(drop))
            .and_then(|()| std::os::unix::fs::symlink(&beside, inside.join("link")))
            .and_then(|()| fs::read_dir(&inside).map(drop));
        let refused = [
            ("read", is_refused(File::open(beside.join("file")))),
            ("list", is_refused(fs::read_dir(&beside))),
            ("write", is_refused(File::options().append(true).open(beside.join("file")))),
            ("cut", is_refused(File::options().write(true).truncate(true).open(beside.join("file")))),
            ("make", is_refused(File::create_new(beside.join("new")))),
            ("remove", is_refused(fs::remove_file(beside.join("file")))),
            ("make by a link", is_refused(File::create_new(inside.join("link/new")))),
            ("read the shadow file", is_refused(File::open("/etc/shadow"))),
            ("list homes", is_refused(fs::read_dir("/home"))),
            ("run", is_refused(Command::new("/bin/true").spawn())),
            ("run its own", {
                fs::copy("/proc/self/exe", inside.join("program")).is_ok() && is_refused(Command::new(inside.join("program")).spawn())
            }),
        ];
        (works, refused)
    });
    if everything(&in_force) {
        works.unwrap();
        let open: Vec<_> = refused.iter().filter(|(_, refused)| !refused).map(|(what, _)| what).collect();
        assert!(open.is_empty(), "{open:?}");
        assert_eq!(in_force.to_json()["no_new_privs"], true);
        assert!(in_force.to_json()["landlock"].as_str().unwrap().starts_with("abi "), "{in_force}");
    }
}

#[test]
fn what_the_agent_and_its_libraries_need_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let pid_file = dir.path().join("agent.pid");
    let config = config(&dir.path().join("base"), &format!("pid_filename: {}\n", pid_file.display()));
    let (_, failed) = restricted(&config, move || {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let deeds: [(&str, io::Result<()>); 10] = [
            ("pid file", fs::write(&pid_file, "1\n")),
            ("remove pid file", fs::remove_file(&pid_file)),
            ("status", fs::read_to_string("/proc/self/status").map(drop)),
            ("meminfo", fs::read_to_string("/proc/meminfo").map(drop)),
            ("load", fs::read_to_string("/proc/loadavg").map(drop)),
            ("nothing", fs::write("/dev/null", "gone")),
            ("resolve", std::net::ToSocketAddrs::to_socket_addrs("localhost:80").map(drop)),
            ("connect", TcpStream::connect(listener.local_addr().unwrap()).map(drop)),
            ("datagrams", UdpSocket::bind("127.0.0.1:0").map(drop)),
            ("run the compiler", Command::new("/proc/self/exe").arg("--list").output().map(drop)),
        ];
        deeds.into_iter().filter_map(|(what, done)| Some(format!("{what}: {}", done.err()?))).collect::<Vec<_>>()
    });
    assert_eq!(failed, Vec::<String>::new());
}

#[test]
fn system_calls_that_nobody_needs_fail() {
    use rustix::net::{AddressFamily, SocketType, socket};
    use rustix::thread::{UnshareFlags, move_into_link_name_space};
    let results = std::thread::spawn(|| {
        system_calls::forbid().unwrap();
        #[expect(unsafe_code, reason = "some ways to leave a namespace are unsafe for files that are open; here nothing happens")]
        // SAFETY: it fails.
        let unshared = unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWUSER) };
        [
            ("namespace", unshared.err()),
            ("enter", File::open("/proc/self/ns/net").map_or(None, |ns| move_into_link_name_space(ns.as_fd(), None).err())),
            ("root", rustix::process::chroot("/").err()),
            ("raw packets", socket(AddressFamily::PACKET, SocketType::DGRAM, None).err()),
            ("kernel's cryptography", socket(AddressFamily::from_raw(38), SocketType::SEQPACKET, None).err()),
        ]
    });
    for (what, error) in results.join().unwrap() {
        assert_eq!(error, Some(rustix::io::Errno::PERM), "{what}");
    }
}

#[test]
fn a_kernel_without_landlock_is_told_of() {
    for (errno, why) in [(libc::ENOSYS, "built without Landlock"), (libc::EOPNOTSUPP, "switched off (kernel parameter `lsm=`)")] {
        let dir = tempfile::tempdir().unwrap();
        let config = config(&dir.path().join("base"), "");
        let rules = Rules::of(&config).unwrap();
        let thread = std::thread::spawn(move || {
            let without = std::collections::BTreeMap::from([(libc::SYS_landlock_create_ruleset, Vec::new())]);
            let fails = SeccompAction::Errno(errno.unsigned_abs());
            let arch = std::env::consts::ARCH.try_into().unwrap();
            let filter = SeccompFilter::new(without, SeccompAction::Allow, fails, arch).unwrap();
            let program: BpfProgram = filter.try_into().unwrap();
            apply_filter(&program).unwrap();
            restrict_thread(Some(&rules))
        });
        let in_force = thread.join().unwrap();
        let lacking = in_force.lacking();
        assert!(lacking.starts_with("landlock is not in force: ") && lacking.ends_with(why), "{lacking}");
        assert_eq!((&in_force.to_json()["no_new_privs"], &in_force.to_json()["seccomp"]), (&json!(true), &json!(true)));
    }
}

#[test]
fn it_is_refused_among_threads_and_skipped_when_off() {
    let dir = tempfile::tempdir().unwrap();
    // The harness and this test are two threads at least.
    let error = config(dir.path(), "hardening: required\n").harden().unwrap_err();
    assert!(matches!(error, HardeningError::Late(1..)), "{error}");
    let mut off = config(dir.path(), "hardening: off\n");
    off.harden().unwrap();
    assert_eq!(off.in_force.to_json()["landlock"], "off: `hardening` is `off`");
    assert!(!off.compile.confined);
}

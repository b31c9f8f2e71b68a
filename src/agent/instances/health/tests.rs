use std::fs;
use std::os::unix::fs::symlink;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;

use super::*;
use crate::free_port::free_port;
use crate::test_server::{Answer, Server};

/// Longer than a look at a state file takes to be repeated.
const PATIENCE: Duration = Duration::from_secs(60);

fn start() -> StartMessage {
    let message = json!({
        "droplet": "shop", "index": 3, "version": "v1", "name": "shop", "uris": ["shop.example.net/path"], "cc_partition": "default",
        "limits": { "mem": 1, "disk": 1, "fds": 1 }, "services": [],
    });
    serde_json::from_value(message).unwrap()
}

async fn until_healthy(address: SocketAddr, check: HealthCheck) -> Vec<String> {
    let (start, told) = (start(), Mutex::new(Vec::new()));
    let tell = |text: &str| told.lock().unwrap().push(text.to_owned());
    let probe = Probe { start: &start, address, dir: PathBuf::new(), tell: &tell };
    timeout(PATIENCE, probe.until_healthy(check, None)).await.expect("it gets healthy");
    told.into_inner().unwrap()
}

#[tokio::test]
async fn a_port_is_waited_for() {
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let listener = tokio::net::TcpListener::bind(address).await.unwrap();
    until_healthy(address, HealthCheck::Port).await;
    drop(listener);
    let late = async {
        sleep(Duration::from_millis(50)).await;
        let listener = tokio::net::TcpListener::bind(address).await.unwrap();
        listener.accept().await.unwrap();
    };
    tokio::join!(until_healthy(address, HealthCheck::Port), late);
}

#[tokio::test]
async fn nothing_is_not_waited_for() {
    let nobody = SocketAddr::from(([127, 0, 0, 1], 1));
    until_healthy(nobody, HealthCheck::Nothing).await;
    let waiting = timeout(Duration::from_millis(100), until_healthy(nobody, HealthCheck::Port)).await;
    assert!(waiting.is_err(), "nobody listens there");
}

#[tokio::test]
async fn a_path_is_asked_for_until_it_answers_200() {
    let asked = AtomicUsize::new(0);
    let server = Server::start(move |_| match asked.fetch_add(1, Ordering::Relaxed) {
        0 | 1 => Answer::status(503, "not yet"),
        2 => Answer::Close,
        3 => Answer::redirect("/".to_owned()),
        4 => Answer::status(204, ""),
        // Its body never ends, and nobody waits for it.
        _ => Answer::Stall { announced: 1 << 30, body: vec![b'x'; 1000] },
    })
    .await;
    let told = until_healthy(server.address, HealthCheck::Http("/ready?deep=1".to_owned())).await;
    let first = &server.requests()[0];
    assert_eq!((first.method.as_str(), first.target.as_str()), ("GET", "/ready?deep=1"));
    assert_eq!((first.header("host"), first.header("connection")), (Some("shop.example.net"), Some("close")));
    assert_eq!(server.requests().len(), 6);
    assert_eq!(told[0], "Instance (index 3): health check GET /ready?deep=1 answered 503");
    assert!(told[1].contains("failed: "), "{told:?}");
    assert!(told[2].ends_with("answered 302") && told[3].ends_with("answered 204"), "{told:?}");
}

#[tokio::test]
async fn a_head_without_end_is_a_failure_and_few_failures_are_told() {
    let asked = AtomicUsize::new(0);
    let server = Server::start(move |_| match asked.fetch_add(1, Ordering::Relaxed) {
        0 => Answer::Full { status: 200, headers: vec![("x", "y".repeat(100 << 10))], body: vec![] },
        number @ 1..9 => Answer::status(400 + u16::try_from(number).unwrap(), ""),
        _ => Answer::ok(""),
    })
    .await;
    let told = until_healthy(server.address, HealthCheck::Http("/".to_owned())).await;
    assert!(told[0].contains("failed: "), "{told:?}");
    assert_eq!(told.len(), COMPLAINTS);
}

#[tokio::test]
async fn a_state_file_is_looked_at_until_it_says_running() {
    let dir = tempfile::tempdir().unwrap();
    let (start, tell) = (start(), |_: &str| {});
    let probe = Probe { start: &start, address: SocketAddr::from(([127, 0, 0, 1], 1)), dir: dir.path().to_owned(), tell: &tell };
    let file = dir.path().join("app/state.json");
    let waits = || timeout(PATIENCE, probe.until_healthy(HealthCheck::StateFile, Some("app/state.json".into())));
    let write = async {
        fs::create_dir(dir.path().join("app")).unwrap();
        fs::write(&file, r#"{"state": "STARTING"}"#).unwrap();
        sleep(LAST_PAUSE).await;
        fs::write(&file, r#"{"state": "RUNNING", "pid": 1}"#).unwrap();
    };
    let (healthy, ()) = tokio::join!(waits(), write);
    healthy.expect("it says RUNNING");
    // At once: it takes less than the pause between two looks, but where the machine stands still meanwhile.
    for _ in 0..10 {
        let began = std::time::Instant::now();
        waits().await.expect("it says RUNNING");
        if began.elapsed() < LAST_PAUSE {
            return;
        }
    }
    panic!("it is not looked at at once");
}

#[test]
fn whatever_is_no_state_file_says_nothing() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("app/dir")).unwrap();
    let says = |content: &str| {
        fs::write(dir.path().join("app/state"), content).unwrap();
        says_running(dir.path(), Path::new("./app/state"))
    };
    assert!(says(r#"{"state":"RUNNING"}"#));
    for content in ["", "RUNNING", r#"{"state":"running"}"#, r#"{"state":"RUNNING""#, r#"{"state":1}"#, "[]", "null"] {
        assert!(!says(content), "{content}");
    }
    assert!(!says(&format!(r#"{{"state":"RUNNING","x":"{}"}}"#, "x".repeat(100_000))), "too long");
    fs::write(dir.path().join("outside"), r#"{"state":"RUNNING"}"#).unwrap();
    symlink("../outside", dir.path().join("app/link")).unwrap();
    symlink(dir.path(), dir.path().join("app/dir/link")).unwrap();
    rustix::fs::mknodat(CWD, dir.path().join("app/pipe"), rustix::fs::FileType::Fifo, Mode::RUSR, 0).unwrap();
    for path in ["app/link", "app/dir/link/outside", "app/dir", "app/pipe", "app/missing", "app/../outside"] {
        assert!(!says_running(dir.path(), Path::new(path)), "{path}");
        forget_state(dir.path(), Path::new(path));
    }
    assert!(dir.path().join("outside").exists() && dir.path().join("app/dir").exists(), "nor is it removed");
    assert!(says_running(dir.path(), Path::new("outside")));
    forget_state(dir.path(), Path::new("./outside"));
    assert!(!dir.path().join("outside").exists());
}

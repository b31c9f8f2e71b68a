use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use dewar_protocol::{Bytes, Secret};

use super::{DownloadError, Downloaded, Retry, TransferConfig, Transfers, without_secrets};
use crate::test_server::{Answer, Server, nobody};

const ROOM: Bytes = Bytes(1 << 20);

fn quick() -> TransferConfig {
    TransferConfig { pause: Duration::from_millis(5), ..TransferConfig::default() }
}

/// Soon gives up a server that is silent.
fn hasty() -> TransferConfig {
    TransferConfig { inactivity_timeout: Duration::from_secs(1), ..quick() }
}

async fn get(uri: &str, folder: &Path) -> Result<Downloaded, DownloadError> {
    get_with(quick(), uri, folder, ROOM, Retry::Transient).await
}

async fn get_with(config: TransferConfig, uri: &str, folder: &Path, limit: Bytes, retry: Retry) -> Result<Downloaded, DownloadError> {
    Transfers::new(config).unwrap().download(&Secret(uri.to_owned()), folder, limit, retry).await
}

async fn failure(uri: &str) -> String {
    failure_with(quick(), uri).await
}

/// The error's text; whatever goes wrong, nothing may stay in the folder.
async fn failure_with(config: TransferConfig, uri: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let error = get_with(config, uri, folder.path(), ROOM, Retry::Transient).await.unwrap_err();
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "nothing stays of a failed download");
    error.to_string()
}

#[tokio::test]
async fn a_file_arrives_with_its_size_and_digest() {
    let server = Server::start(|_| Answer::ok("hello")).await;
    let folder = tempfile::tempdir().unwrap();
    let downloaded = get(&server.url("/package"), folder.path()).await.unwrap();
    assert_eq!(fs::read(downloaded.file.path()).unwrap(), b"hello");
    assert_eq!(downloaded.size, Bytes(5));
    assert_eq!(downloaded.sha1.as_str(), "aaf4c61ddcc5e8a2dabede0f3b482cd9aea9434d");
    drop(downloaded);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "the file goes with its owner");
}

#[tokio::test]
async fn user_and_password_become_basic_authentication() {
    let server = Server::start(|request| match request.header("authorization") {
        Some("Basic dXA6c2UvY3JldA==") => Answer::ok("in"),
        _ => Answer::status(401, ""),
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    get(&format!("http://up:se%2Fcret@{}/package", server.address), folder.path()).await.unwrap();
    assert!(failure(&server.url("/package")).await.starts_with("Error downloading: HTTP status: 401 "));
}

#[tokio::test]
async fn redirects_are_followed_without_credentials_for_others_and_not_for_ever() {
    let blobstore = Server::start(|request| match request.header("authorization").or(request.header("referer")) {
        None => Answer::ok("blob"),
        Some(_) => Answer::status(400, ""),
    })
    .await;
    let blob = blobstore.url("/blob?signature=s");
    let controller = Server::start(move |request| match request.target.as_str() {
        "/loop" => Answer::redirect("/loop".to_owned()),
        "/scheme" => Answer::redirect("ftp://127.0.0.1/x".to_owned()),
        _ => Answer::redirect(blob.clone()),
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let uri = format!("http://up:secret@{}/package?token=t", controller.address);
    assert_eq!(fs::read(get(&uri, folder.path()).await.unwrap().file.path()).unwrap(), b"blob");
    assert_eq!(blobstore.requests().len(), 1);
    assert!(failure(&controller.url("/loop")).await.contains("too many redirects"));
    let text = failure(&controller.url("/scheme")).await;
    assert!(text.starts_with("Error downloading: Response status: unknown, Error: "), "{text}");
}

#[tokio::test]
async fn what_may_pass_is_tried_again_with_a_bound() {
    let tried = AtomicUsize::new(0);
    let server = Server::start(move |_| match tried.fetch_add(1, Ordering::Relaxed) {
        0 => Answer::status(503, ""),
        1 => Answer::Cut { announced: 100, body: b"some".to_vec() },
        _ => Answer::ok("at last"),
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(get(&server.url("/"), folder.path()).await.unwrap().size, Bytes(7));
    let broken = Server::start(|_| Answer::status(500, "")).await;
    let text = failure(&broken.url("/p?secret=s")).await;
    assert_eq!(text, format!("Error downloading: HTTP status: 500 ({}?…)", broken.url("/p")));
    assert_eq!(broken.requests().len(), 3);
}

#[tokio::test]
async fn a_refusal_is_final_unless_everything_is_to_be_tried_again() {
    let server = Server::start(|_| Answer::status(404, "")).await;
    assert!(failure(&server.url("/")).await.starts_with("Error downloading: HTTP status: 404 "));
    assert_eq!(server.requests().len(), 1);
    let folder = tempfile::tempdir().unwrap();
    get_with(quick(), &server.url("/"), folder.path(), ROOM, Retry::Any).await.unwrap_err();
    assert_eq!(server.requests().len(), 4);
}

#[tokio::test]
async fn silence_ends_a_download_but_slowness_does_not() {
    for silent in [Answer::Hang, Answer::Stall { announced: 100, body: b"some".to_vec() }] {
        let server = Server::start(move |_| silent.clone()).await;
        let text = failure_with(hasty(), &server.url("/")).await;
        assert!(text.contains("Error: timed out "), "{text}");
    }
    let slow = Server::start(|_| Answer::Drip { body: b"0123456789".to_vec(), pause: 120 }).await;
    let folder = tempfile::tempdir().unwrap();
    let began = Instant::now();
    assert_eq!(get_with(hasty(), &slow.url("/"), folder.path(), ROOM, Retry::Transient).await.unwrap().size, Bytes(10));
    assert!(began.elapsed() > hasty().inactivity_timeout, "the test must take longer than the server may be silent");
    let hurried = TransferConfig { total_timeout: Duration::from_millis(200), ..quick() };
    let error = get_with(hurried, &slow.url("/"), folder.path(), ROOM, Retry::Transient).await.unwrap_err();
    assert!(error.to_string().contains("it takes more than 200ms"), "{error}");
}

#[tokio::test]
async fn a_cut_connection_is_no_file() {
    let server = Server::start(|_| Answer::Cut { announced: 100, body: b"some".to_vec() }).await;
    assert!(failure(&server.url("/")).await.starts_with("Error downloading: Response status: unknown, Error: "));
    let closing = Server::start(|_| Answer::Close).await;
    assert!(failure(&closing.url("/")).await.starts_with("Error downloading: Response status: unknown, Error: "));
    drop(closing);
    let (nobody, _kept) = nobody();
    let text = failure(&format!("http://{nobody}/")).await;
    assert!(text.contains("Connection refused"), "{text}");
}

#[tokio::test]
async fn a_server_that_lies_about_the_length_is_not_believed() {
    // Less than was announced, in whatever way it ends.
    for lie in [Answer::Cut { announced: 1000, body: b"some".to_vec() }, Answer::Stall { announced: 1000, body: b"some".to_vec() }] {
        let server = Server::start(move |_| lie.clone()).await;
        let text = failure_with(hasty(), &server.url("/")).await;
        assert!(text.starts_with("Error downloading: Response status: unknown, Error: "), "{text}");
        assert_eq!(server.requests().len(), 3, "it may do better the next time");
    }
    // More than was announced: what was announced is the file, and its digest says whether it is the right one.
    let server = Server::start(|_| Answer::Cut { announced: 4, body: b"some and more".to_vec() }).await;
    let folder = tempfile::tempdir().unwrap();
    let downloaded = get(&server.url("/"), folder.path()).await.unwrap();
    assert_eq!(fs::read(downloaded.file.path()).unwrap(), b"some");
    // So much that it is not even begun.
    let server = Server::start(|_| Answer::Cut { announced: usize::MAX >> 1, body: b"some".to_vec() }).await;
    assert!(failure(&server.url("/")).await.starts_with("Error downloading: more than 1048576 bytes"));
    // A length that is none.
    let headers = vec![("Content-Length", "many".to_owned())];
    let server = Server::start(move |_| Answer::Full { status: 200, headers: headers.clone(), body: b"x".to_vec() }).await;
    let text = failure(&server.url("/")).await;
    assert!(text.starts_with("Error downloading: Response status: unknown, Error: "), "{text}");
}

#[tokio::test]
async fn a_disk_that_fails_is_named_and_it_is_not_tried_again() {
    let server = Server::start(|_| Answer::ok("hello")).await;
    let folder = tempfile::tempdir().unwrap();
    let gone = folder.path().join("gone");
    let uri = format!("http://up:secret@{}/package?sig=s", server.address);
    let text = get(&uri, &gone).await.unwrap_err().to_string();
    let stored = format!("Error downloading: cannot store {}?… in {}: ", server.url("/package"), gone.display());
    assert!(text.starts_with(&stored) && text.contains("No such file or directory"), "{text}");
    assert_eq!(server.requests().len(), 1);
}

#[tokio::test]
async fn more_than_the_limit_is_refused_announced_or_not() {
    let folder = tempfile::tempdir().unwrap();
    let honest = Server::start(|_| Answer::ok(vec![0; 11])).await;
    let chunked = Server::start(|_| Answer::Full {
        status: 200,
        headers: vec![("Transfer-Encoding", "chunked".to_owned())],
        body: b"b\r\n01234567890\r\n0\r\n\r\n".to_vec(),
    })
    .await;
    for server in [honest, chunked] {
        let error = get_with(quick(), &server.url("/"), folder.path(), Bytes(10), Retry::Any).await.unwrap_err();
        assert!(matches!(error, DownloadError::TooLarge { limit: Bytes(10), .. }), "{error}");
        assert_eq!(server.requests().len(), 1, "it would not get smaller");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}

#[tokio::test]
async fn only_http_is_spoken() {
    for uri in ["file:///etc/passwd", "ftp://up:secret@host/x", "no url", "http://", ""] {
        let text = failure(uri).await;
        assert!(text.contains("not an http or https URL"), "{uri}: {text}");
        assert!(!text.contains("secret"), "{text}");
    }
}

#[test]
fn what_is_shown_of_a_url_is_no_secret() {
    assert_eq!(without_secrets("http://up:secret@cc:9022/staging/apps/x?sig=s#f"), "http://cc:9022/staging/apps/x?…");
    assert_eq!(without_secrets("http://up@cc/x"), "http://cc/x");
    assert_eq!(without_secrets("mailto:up@cc"), "mailto:…");
    assert_eq!(without_secrets("http://["), "<<uri parse error>>");
}

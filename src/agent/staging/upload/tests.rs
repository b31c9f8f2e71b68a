use std::fs;
use std::time::{Duration, Instant};

use dewar_protocol::Secret;

use super::upload;
use crate::test_server::{Answer, Request, Server, nobody};
use crate::transfer::{TransferConfig, Transfers};

fn quick() -> TransferConfig {
    TransferConfig { poll_interval: Duration::from_millis(20), polls: 5, ..TransferConfig::default() }
}

/// Soon gives up a controller that is silent.
fn hasty() -> TransferConfig {
    TransferConfig { inactivity_timeout: Duration::from_secs(3), ..quick() }
}

#[test]
fn unless_told_otherwise_half_a_minute_is_silence_and_jobs_are_looked_at_every_second() {
    let TransferConfig { inactivity_timeout, poll_interval, polls, .. } = TransferConfig::default();
    assert_eq!((inactivity_timeout, poll_interval, polls), (Duration::from_secs(30), Duration::from_secs(1), 300));
}

async fn send_with(config: TransferConfig, uri: &str, bytes: usize) -> Result<(), String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("some-file");
    fs::write(&path, vec![b'x'; bytes]).unwrap();
    let transfers = Transfers::new(config).unwrap();
    upload(&transfers, &Secret(uri.to_owned()), &path, "droplet.tgz").await.map_err(|error| error.to_string())
}

async fn send_bytes(uri: &str, bytes: usize) -> Result<(), String> {
    send_with(quick(), uri, bytes).await
}

async fn send(uri: &str) -> Result<(), String> {
    send_bytes(uri, 10).await
}

/// A Cloud Controller that makes a job of each upload, and answers questions about it one after the other; the last answer stays.
async fn controller(answers: Vec<Answer>) -> Server {
    let asked = std::sync::atomic::AtomicUsize::new(0);
    Server::start(move |request: &Request| {
        if request.method == "POST" {
            let url = format!("http://poll:pw@{}/staging/jobs/1", request.header("host").unwrap());
            return Answer::ok(format!(r#"{{"metadata":{{"guid":"1","url":"{url}"}},"entity":{{"status":"queued"}}}}"#));
        }
        let number = asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        answers[number.min(answers.len() - 1)].clone()
    })
    .await
}

fn state(state: &str) -> Answer {
    Answer::ok(format!(r#"{{"entity":{{"guid":"1","status":"{state}"}}}}"#))
}

#[tokio::test]
async fn the_form_is_what_a_cloud_controller_reads() {
    let server = Server::start(|_| Answer::ok("ok")).await;
    send_bytes(&format!("http://up:secret@{}/droplets/1/upload?x=y", server.address), 200_000).await.unwrap();
    let [request] = &server.requests()[..] else { panic!("one request") };
    assert_eq!((request.method.as_str(), request.target.as_str()), ("POST", "/droplets/1/upload?x=y&async=true"));
    assert_eq!(request.header("authorization"), Some("Basic dXA6c2VjcmV0"));
    assert_eq!(request.header("content-length").unwrap(), request.body.len().to_string());
    assert_eq!(request.header("transfer-encoding"), None);
    let boundary = request.header("content-type").unwrap().strip_prefix("multipart/form-data; boundary=").unwrap();
    let body = String::from_utf8(request.body.clone()).unwrap();
    let head = format!(
        "--{boundary}\r\nContent-Disposition: form-data; name=\"upload[droplet]\"; filename=\"droplet.tgz\"\r\n\
         Content-Type: application/octet-stream\r\n\r\n"
    );
    let content = body.strip_prefix(&head).unwrap_or_else(|| panic!("{}", &body[..300]));
    assert_eq!(content.strip_suffix(&format!("\r\n--{boundary}--\r\n")).unwrap(), "x".repeat(200_000));
}

#[tokio::test]
async fn async_is_asked_for_once() {
    let server = Server::start(|_| Answer::ok("")).await;
    send(&server.url("/up?async=true")).await.unwrap();
    send(&server.url("/up")).await.unwrap();
    let targets: Vec<String> = server.requests().into_iter().map(|request| request.target).collect();
    assert_eq!(targets, ["/up?async=true", "/up?async=true"]);
}

#[tokio::test]
async fn refusals_of_an_upload_are_told_as_the_original_told_them() {
    for (answer, expected) in [
        (Answer::status(500, "oops"), "(Upload failed - status 500)"),
        (Answer::redirect("/elsewhere".to_owned()), "(Upload failed - status 302)"),
        (Answer::ok("this url is no json"), "(invalid json)"),
        (Answer::ok(r#"{"metadata":{"url":"/staging/jobs/1"}}"#), "(invalid URL relative URL without a base)"),
        (Answer::ok(r#"{"metadata":{"url":"file:///etc/passwd"}}"#), "(invalid URL it is neither http nor https)"),
        (Answer::ok(r#"{"metadata":{"url":null}}"#), "(invalid URL metadata.url is not there)"),
    ] {
        let server = Server::start(move |_| answer.clone()).await;
        assert_eq!(send(&server.url("/up?sig=secret")).await.unwrap_err(), format!("Error uploading: {expected}"));
    }
    let silent = Server::start(|_| Answer::Hang).await;
    let error = send_with(hasty(), &silent.url("/up?sig=secret"), 10).await.unwrap_err();
    assert_eq!(error, "Error uploading: (Upload failed - status 0; error: timed out)");
    assert_eq!(send("nowhere").await.unwrap_err(), "Error uploading: (Upload failed - status 0; error: not an http or https URL)");
}

#[tokio::test]
async fn a_server_that_is_gone_is_status_0_and_a_reason() {
    let (nobody, _kept) = nobody();
    let text = send(&format!("http://up:secret@{nobody}/")).await.unwrap_err();
    assert_eq!(text, "Error uploading: (Upload failed - status 0; error: Connection refused (os error 111))");
    let closing = Server::start(|_| Answer::Close).await;
    let text = send(&closing.url("/")).await.unwrap_err();
    assert!(text.starts_with("Error uploading: (Upload failed - status 0; error: "), "{text}");
}

#[tokio::test]
async fn a_server_that_refuses_before_it_has_read_all_is_understood_or_at_least_not_waited_for() {
    let server = Server::start_impatient(|_| Answer::status(413, "too large")).await;
    let text = send_bytes(&server.url("/"), 8 << 20).await.unwrap_err();
    assert!(text.starts_with("Error uploading: (Upload failed - status "), "{text}");
}

#[tokio::test]
async fn an_answer_without_a_job_is_success() {
    for body in ["", "{}", "done"] {
        let server = Server::start(move |_| Answer::ok(body)).await;
        send(&server.url("/")).await.unwrap();
        assert_eq!(server.requests().len(), 1);
    }
}

#[tokio::test]
async fn a_job_is_followed_until_it_is_finished() {
    let controller = controller(vec![state("queued"), Answer::ok("{}"), state("running"), state("finished")]).await;
    let began = Instant::now();
    send(&controller.url("/")).await.unwrap();
    assert!(began.elapsed() >= 3 * quick().poll_interval, "there is a pause between two looks");
    let polls = &controller.requests()[1..];
    assert_eq!(polls.len(), 4);
    assert!(polls.iter().all(|poll| poll.method == "GET" && poll.header("authorization") == Some("Basic cG9sbDpwdw==")));
}

#[tokio::test]
async fn jobs_that_fail_are_told_as_the_original_told_them() {
    for (answer, expected) in [
        (state("failed"), "(Staging upload failed.)"),
        (state("queued"), "(Job took too long)"),
        (Answer::ok("no json"), "(polling invalid json)"),
        (Answer::status(404, ""), "(Polling failed - status 404)"),
        (Answer::status(503, ""), "(Polling failed - status 503)"),
    ] {
        let controller = controller(vec![answer]).await;
        assert_eq!(send(&controller.url("/")).await.unwrap_err(), format!("Error uploading: {expected}"));
    }
    let silent = controller(vec![Answer::Hang]).await;
    let error = send_with(hasty(), &silent.url("/"), 10).await.unwrap_err();
    assert_eq!(error, "Error uploading: (Polling failed - status 0; error: timed out)");
    let closing = controller(vec![Answer::Close]).await;
    let text = send(&closing.url("/")).await.unwrap_err();
    assert!(text.starts_with("Error uploading: (Polling failed - status 0; error: "), "{text}");
}

/// A socket whose queue of connections is full: the next connection is neither accepted nor refused.
#[tokio::test]
async fn a_controller_too_busy_to_accept_is_asked_again() {
    let address: std::net::SocketAddr = "127.0.0.1:0".parse().unwrap();
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&address.into()).unwrap();
    socket.listen(0).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    let mut filling = Vec::new();
    while let Ok(connection) = std::net::TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
        filling.push(connection);
    }
    let server = Server::start(move |_| Answer::ok(format!(r#"{{"metadata":{{"url":"http://{address}/jobs/1"}}}}"#))).await;
    let config = TransferConfig { connect_timeout: Duration::from_secs(1), ..quick() };
    assert_eq!(send_with(config, &server.url("/"), 10).await.unwrap_err(), "Error uploading: (Job took too long)");
}

#[tokio::test]
async fn a_slow_upload_may_take_longer_than_silence_may() {
    let server = SlowReader::start().await;
    let began = Instant::now();
    send_with(hasty(), &format!("http://{}/", server.0), 24 << 20).await.unwrap();
    assert!(began.elapsed() > hasty().inactivity_timeout, "the test must take longer than the inactivity timeout");
}

/// Reads a request in small pieces with pauses, and answers at its end.
struct SlowReader(std::net::SocketAddr);

impl SlowReader {
    async fn start() -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            use std::io::{Read as _, Write as _};
            let (mut connection, _) = listener.accept().unwrap();
            let mut buffer = vec![0; 1 << 20];
            // The content is all `x`, so that only the end of the form can look like this.
            let mut ends = false;
            while !ends {
                let length = connection.read(&mut buffer).unwrap();
                ends = buffer[..length].ends_with(b"--\r\n");
                std::thread::sleep(Duration::from_millis(150));
            }
            connection.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").unwrap();
        });
        Self(address)
    }
}

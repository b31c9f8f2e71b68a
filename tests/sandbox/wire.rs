//! What goes over the wire between a client and a `wasi:http` droplet, byte by byte.

use libtest_mimic::Trial;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::fixture::{Instance, PATIENCE, Plan, test};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        test("wire::a_body_that_may_not_be_is_not_sent", forbidden_bodies),
        test("wire::fields_of_one_connection_do_not_reach_the_guest", hop_by_hop),
        test("wire::a_request_names_one_host", hosts),
        test("wire::an_absolute_target_overrides_the_host", absolute_target),
        test("wire::an_announced_length_is_kept_or_the_connection_ends", announced_length),
        test("wire::a_guest_cannot_announce_two_lengths", two_lengths),
        test("wire::a_guest_cannot_answer_with_less_than_200", informational),
        test("wire::a_body_in_codings_we_do_not_read_ends_the_connection", codings),
        test("wire::no_answer_is_an_error", no_answer),
        test("wire::heads_have_an_end", heads),
        test("wire::a_slow_client_is_cut_off", slow_client),
    ]
}

/// Sends bytes, gives all that comes back until the server closes.
async fn exchange(app: &Instance, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(app.address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
    // A connection that is reset has ended too.
    let _ = read.expect("the server closes the connection");
    String::from_utf8_lossy(&answer).into_owned()
}

async fn driver() -> Instance {
    Plan::of("tests/http-driver").await.start().await
}

async fn forbidden_bodies() {
    let app = driver().await;
    let requests = "HEAD /bytes?count=5 HTTP/1.1\r\nhost: a\r\n\r\n\
        GET /status?code=204&text=smuggled HTTP/1.1\r\nhost: a\r\n\r\n\
        GET /status?code=304&text=smuggled HTTP/1.1\r\nhost: a\r\n\r\n\
        HEAD /stream?chunks=3&bytes=8&pause_ms=1 HTTP/1.1\r\nhost: a\r\n\r\n\
        GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    let answers = exchange(&app, requests.as_bytes()).await;
    let heads: Vec<&str> = answers.split("\r\n\r\n").collect();
    assert_eq!(heads.len(), 6, "five heads and one body: {answers}");
    let starts = ["HTTP/1.1 200", "HTTP/1.1 204", "HTTP/1.1 304", "HTTP/1.1 200", "HTTP/1.1 200"];
    for (head, start) in heads.iter().zip(starts) {
        assert!(head.starts_with(start), "{start} expected: {head}");
    }
    assert_eq!(heads[5], "http-driver");
    assert!(heads[0].to_lowercase().contains("content-length: 5"), "HEAD tells the length: {}", heads[0]);
    assert!(!heads[1].to_lowercase().contains("content-length"), "{}", heads[1]);
}

async fn hop_by_hop() {
    let app = driver().await;
    let request = "GET /headers HTTP/1.1\r\nhost: a\r\nx-kept: yes\r\nx-named: no\r\nconnection: close, x-named, host\r\nkeep-alive: 5\r\n\
        proxy-connection: x\r\nproxy-authorization: x\r\nte: trailers\r\nupgrade: websocket\r\n\r\n";
    let answer = exchange(&app, request.as_bytes()).await.to_lowercase();
    let body = answer.split("\r\n\r\n").nth(1).unwrap();
    assert!(body.contains("x-kept: yes"), "{answer}");
    for field in ["connection", "x-named", "keep-alive", "proxy-", "te:", "upgrade"] {
        assert!(!body.contains(field), "{field}: {body}");
    }
}

async fn hosts() {
    let app = driver().await;
    for request in ["GET / HTTP/1.1\r\nconnection: close\r\n\r\n", "GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\nconnection: close\r\n\r\n"] {
        assert!(exchange(&app, request.as_bytes()).await.starts_with("HTTP/1.1 400"), "{request}");
    }
    assert!(exchange(&app, b"GET / HTTP/1.0\r\n\r\n").await.starts_with("HTTP/1.0 200"));
    assert!(exchange(&app, b"CONNECT a:1 HTTP/1.1\r\nhost: a:1\r\nconnection: close\r\n\r\n").await.starts_with("HTTP/1.1 405"));
    assert!(exchange(&app, b"nonsense\r\n\r\n").await.starts_with("HTTP/1.1 400"));
}

async fn absolute_target() {
    let app = driver().await;
    let answer = exchange(&app, b"GET http://other.test/counter HTTP/1.1\r\nhost: app.test\r\nconnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("\r\n\r\n1"), "{answer}");
}

async fn announced_length() {
    let app = driver().await;
    for path in ["/short?bytes=10", "/cut?bytes=10"] {
        let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n");
        let answer = exchange(&app, request.as_bytes()).await;
        // What was announced and did not come ends the connection: nothing may be taken for the rest of it.
        assert!(!answer.contains("http-driver"), "{path}: {answer}");
    }
    assert_eq!(app.ok("/").await, "http-driver");
}

async fn two_lengths() {
    let app = driver().await;
    for value in ["1,%202", "abc", "%2B5"] {
        let answer = exchange(
            &app,
            format!("GET /header?name=content-length&value={value} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").as_bytes(),
        )
        .await;
        assert!(!answer.starts_with("HTTP/1.1 200"), "{value}: {answer}");
    }
    let two = "GET /header?name=content-length&value=1&name=content-length&value=2 HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    let answer = exchange(&app, two.as_bytes()).await.to_lowercase();
    assert!(answer.matches("content-length").count() <= 1, "{answer}");
}

async fn informational() {
    let app = driver().await;
    for code in [100, 101, 103] {
        let answer =
            exchange(&app, format!("GET /status?code={code}&text=x HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 500") || answer.starts_with("HTTP/1.1 4"), "{code}: {answer}");
    }
}

async fn codings() {
    let app = driver().await;
    for coding in ["x, chunked", "x\r\ntransfer-encoding: chunked", "chunked\r\ntransfer-encoding: chunked"] {
        let request =
            format!("POST /drain HTTP/1.1\r\nhost: a\r\ntransfer-encoding: {coding}\r\n\r\n0\r\n\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n");
        let answer = exchange(&app, request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 501") && answer.matches("HTTP/1.1").count() == 1, "{coding}: {answer}");
    }
    let whole = "POST /drain HTTP/1.1\r\nhost: a\r\ntransfer-encoding: Chunked\r\nconnection: close\r\n\r\n2\r\nhi\r\n0\r\n\r\n";
    assert!(exchange(&app, whole.as_bytes()).await.starts_with("HTTP/1.1 200"));
}

async fn no_answer() {
    let app = Plan::of("tests/no-answer").await.start().await;
    assert_eq!(app.get("/").await.status, 500);
    assert_eq!(app.get("/").await.status, 500);
}

async fn heads() {
    let app = Plan::of("tests/http-driver").await.http(|limits| (limits.head_bytes, limits.headers) = (10_000, 20)).start().await;
    let long = format!("GET / HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "x".repeat(20_000));
    assert!(exchange(&app, long.as_bytes()).await.starts_with("HTTP/1.1 431"));
    let many: String = (0..30).map(|number| format!("x-{number}: 1\r\n")).collect();
    assert!(exchange(&app, format!("GET / HTTP/1.1\r\nhost: a\r\n{many}\r\n").as_bytes()).await.starts_with("HTTP/1.1 431"));
    assert_eq!(app.ok("/").await, "http-driver");
}

async fn slow_client() {
    let app = Plan::of("tests/http-driver").await.http(|limits| limits.head_timeout = std::time::Duration::from_millis(300)).start().await;
    let answer = exchange(&app, b"GET / HTTP/1.1\r\nhost:").await;
    assert!(!answer.starts_with("HTTP/1.1 200"), "{answer}");
}

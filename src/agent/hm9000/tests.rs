use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::test_authority::Authority;
use crate::tls::{ClientTls, KeyPair, ServerTls};

fn pair(authority: &Authority) -> KeyPair {
    let (certificate, key) = authority.signs();
    KeyPair { certificates: certificate.into_bytes(), key: Secret(key.into_bytes()) }
}

/// A health manager that lets in whom `authority` has signed, and what it gets to read; without an answer it hangs.
async fn listener(authority: &Authority, answer: Option<&'static str>) -> (String, mpsc::UnboundedReceiver<String>) {
    let tls = ServerTls::new(&pair(authority), Some(authority.pem().as_bytes())).unwrap();
    let (acceptor, listener) = (TlsAcceptor::from(tls.config), TcpListener::bind("127.0.0.1:0").await.unwrap());
    let url = format!("https://localhost:{}", listener.local_addr().unwrap().port());
    let (tell, told) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, tell) = (acceptor.clone(), tell.clone());
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return tell.send("refused".to_owned()) };
                let mut request = Vec::new();
                loop {
                    let mut piece = [0; 1024];
                    match stream.read(&mut piece).await {
                        Ok(length) if length > 0 => request.extend_from_slice(&piece[..length]),
                        _ => return Ok(()),
                    }
                    if request.ends_with(b"}") {
                        tell.send(String::from_utf8(std::mem::take(&mut request)).unwrap()).unwrap();
                        match answer {
                            Some(answer) => stream.write_all(answer.as_bytes()).await.unwrap(),
                            None => std::future::pending().await,
                        }
                    }
                }
            });
        }
    });
    (url, told)
}

fn hm9000(url: &str, tls: ClientTls) -> Hm9000 {
    let config = Hm9000Config { url: Secret(Url::parse(url).unwrap()), tls };
    Hm9000::new(&config, Duration::from_secs(10), TaskTracker::new()).unwrap()
}

const TAKEN: &str = "HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n";

#[tokio::test]
async fn heartbeats_are_posted_and_the_connection_is_kept() {
    let authority = Authority::new();
    let (url, mut told) = listener(&authority, Some(TAKEN)).await;
    let tls = ClientTls::new(Some(&pair(&authority)), Some(authority.pem().as_bytes())).unwrap();
    let hm9000 = hm9000(&url, tls);
    for _ in 0..2 {
        hm9000.beat(Bytes::from_static(br#"{"droplets":[],"dea":"d"}"#));
        let request = told.recv().await.unwrap();
        assert!(request.starts_with("POST /dea/heartbeat HTTP/1.1\r\n"), "{request}");
        assert!(request.to_ascii_lowercase().contains("\r\ncontent-type: application/json\r\n"), "{request}");
        assert!(request.ends_with("\r\n\r\n{\"droplets\":[],\"dea\":\"d\"}"), "{request}");
    }
}

#[tokio::test]
async fn one_that_takes_no_heartbeat_is_not_asked_again() {
    let authority = Authority::new();
    let (url, mut told) = listener(&authority, Some("HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n")).await;
    let tls = ClientTls::new(Some(&pair(&authority)), Some(authority.pem().as_bytes())).unwrap();
    let hm9000 = hm9000(&url, tls);
    hm9000.beat(Bytes::from_static(b"{}"));
    hm9000.tasks.close();
    hm9000.tasks.wait().await;
    assert!(told.try_recv().is_ok());
    assert!(told.try_recv().is_err(), "the next heartbeat tells the same, and later news");
    assert_eq!(hm9000.slots.available_permits(), CONCURRENT);
}

#[tokio::test]
async fn neither_side_talks_to_strangers() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let (url, mut told) = listener(&authority, Some(TAKEN)).await;
    for (own, trusted) in [(&stranger, &authority), (&authority, &stranger)] {
        let tls = ClientTls::new(Some(&pair(own)), Some(trusted.pem().as_bytes())).unwrap();
        hm9000(&url, tls).beat(Bytes::from_static(b"{}"));
        assert_eq!(told.recv().await.unwrap(), "refused");
    }
}

#[tokio::test]
async fn one_that_does_not_answer_gets_no_more_than_a_few_at_a_time() {
    let authority = Authority::new();
    let (url, mut told) = listener(&authority, None).await;
    let tls = ClientTls::new(Some(&pair(&authority)), Some(authority.pem().as_bytes())).unwrap();
    let hm9000 = hm9000(&url, tls);
    for _ in 0..CONCURRENT + 3 {
        hm9000.beat(Bytes::from_static(b"{}"));
    }
    assert_eq!(hm9000.tasks.len(), CONCURRENT, "the others are left out");
    for _ in 0..CONCURRENT {
        told.recv().await.unwrap();
    }
    assert!(told.try_recv().is_err());
}

#[tokio::test]
async fn one_that_is_silent_is_given_up() {
    // Accepts at the level of the operating system, and never says a word.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let tls = ClientTls::new(None, Some(Authority::new().pem().as_bytes())).unwrap();
    let hm9000 = hm9000(&format!("https://localhost:{}", silent.local_addr().unwrap().port()), tls);
    let began = tokio::time::Instant::now();
    hm9000.beat(Bytes::from_static(b"{}"));
    hm9000.tasks.close();
    hm9000.tasks.wait().await;
    assert!(began.elapsed() < TOTAL_TIMEOUT, "{:?}", began.elapsed());
    assert_eq!(hm9000.slots.available_permits(), CONCURRENT);
}

use std::fs;

use reqwest::Client;
use reqwest::multipart::{Form, Part};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

async fn server() -> TransferServer {
    TransferServer::start(&AdvertiseHost::Loopback).await.unwrap()
}

async fn status(client: &Client, url: &str) -> u16 {
    client.get(url).send().await.unwrap().status().as_u16()
}

/// A plain client; no request here needs TLS, but the library wants a provider to exist.
fn client() -> Client {
    // An error means that another test was first.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder().no_proxy().build().unwrap()
}

fn droplet_form(content: Vec<u8>) -> Form {
    Form::new().part("upload[droplet]", Part::bytes(content).file_name("droplet.tgz"))
}

#[tokio::test]
async fn a_package_is_handed_out_once() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("package.zip");
    let content = vec![7; 300_000];
    fs::write(&file, &content).unwrap();
    let (server, client) = (server().await, client());
    let url = server.offer("package/1", &file, Uses::Once);
    assert_eq!(client.get(url.expose()).send().await.unwrap().bytes().await.unwrap(), content);
    assert_eq!(status(&client, url.expose()).await, 410);

    let url = server.offer("droplet/1", &file, Uses::Many);
    for _ in 0..2 {
        assert_eq!(status(&client, url.expose()).await, 200);
    }
    server.close().await;
    assert!(client.get(url.expose()).send().await.is_err(), "nobody listens after close");
}

#[tokio::test]
async fn a_download_that_was_cut_may_be_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("package.zip");
    fs::write(&file, vec![7; 64 << 20]).unwrap();
    let (server, client) = (server().await, client());
    let url = server.offer("package/1", &file, Uses::Once);
    let mut cut = client.get(url.expose()).send().await.unwrap();
    assert!(cut.chunk().await.unwrap().is_some());
    drop(cut);
    assert_eq!(client.get(url.expose()).send().await.unwrap().bytes().await.unwrap().len(), 64 << 20);
}

#[tokio::test]
async fn without_a_signature_nothing_is_served() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("package.zip");
    fs::write(&file, "x").unwrap();
    let (server, client) = (server().await, client());
    let url = server.offer("package/1", &file, Uses::Once);
    let (bare, _) = url.expose().split_once('?').unwrap();
    assert_eq!(status(&client, bare).await, 403);
    assert_eq!(status(&client, &format!("{}/etc/passwd", server.origin)).await, 403);
    assert_eq!(status(&client, &url.expose().replace("package/1", "package/2")).await, 403);
    let upload = client.post(url.expose()).multipart(droplet_form(vec![1])).send().await.unwrap();
    assert_eq!(upload.status(), 403, "a URL for reading does not write");
    let expired = server.shared.signer.sign(Access::Read, "/package/1", since_epoch() - Duration::from_secs(2));
    assert_eq!(status(&client, &format!("{}{expired}", server.origin)).await, 403);
    assert_eq!(client.delete(url.expose()).send().await.unwrap().status(), 405);
    assert_eq!(status(&client, url.expose()).await, 200, "none of this has used the URL up");
}

#[tokio::test]
async fn an_upload_arrives_with_its_digest() {
    let dir = tempfile::tempdir().unwrap();
    let (server, client) = (server().await, client());
    let (url, intake) = server.take_in("droplet/1", dir.path(), 1 << 20);
    let url = format!("{}&async=true", url.expose());
    let sent = client.post(&url).multipart(droplet_form(b"The quick brown fox jumps over the lazy dog".to_vec())).send().await.unwrap();
    assert_eq!(sent.status(), 201);
    assert!(!sent.text().await.unwrap().contains("url"));
    let received = intake.take().unwrap();
    assert_eq!(received.sha1.as_str(), "2fd4e1c67a2d28fced849ee1bb76e7391b93eb12");
    let kept = dir.path().join("kept");
    received.keep(&kept).unwrap();
    assert_eq!(fs::read_to_string(kept).unwrap(), "The quick brown fox jumps over the lazy dog");
    assert!(intake.take().is_none());
}

#[tokio::test]
async fn an_upload_that_is_too_large_cut_off_or_no_form_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (server, client) = (server().await, client());
    let (url, intake) = server.take_in("droplet/1", dir.path(), 1000);
    let too_large = client.post(url.expose()).multipart(droplet_form(vec![1; 1001])).send().await.unwrap();
    assert_eq!(too_large.status(), 413);
    let no_form = client.post(url.expose()).body("hello").send().await.unwrap();
    assert_eq!(no_form.status(), 400);

    let (authority, path) = url.expose().strip_prefix("http://").unwrap().split_once('/').unwrap();
    let mut cut = tokio::net::TcpStream::connect(authority).await.unwrap();
    let body = "--b\r\ncontent-disposition: form-data; name=\"upload[droplet]\"; filename=\"d\"\r\n\r\nhalf a file";
    let head = format!("POST /{path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: multipart/form-data; boundary=b\r\n");
    cut.write_all(format!("{head}content-length: {}\r\n\r\n{body}", body.len()).as_bytes()).await.unwrap();
    let mut answer = String::new();
    cut.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");

    assert!(intake.take().is_none());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "no temporary file stays");
}

#[test]
fn advertised_hosts() {
    let named = |host: &str, port| Ok(AdvertiseHost::Named { host: host.to_owned(), port });
    assert_eq!("10.0.0.7".parse(), named("10.0.0.7", 0));
    assert_eq!("ci.example.net:9000".parse(), named("ci.example.net", 9000));
    assert_eq!("[::1]:80".parse(), named("[::1]", 80));
    assert_eq!("[fd00::7]".parse(), named("[fd00::7]", 0));
    for bad in ["", "a b", "user@host", "host:port", "host:99999", "http://host", ":80"] {
        assert!(bad.parse::<AdvertiseHost>().is_err(), "{bad}");
    }
}

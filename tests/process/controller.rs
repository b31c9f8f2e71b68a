//! The Cloud Controller's half of a conversation: a blobstore over HTTP, and messages written by hand.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// Serves what was put, takes what is posted. Every request must carry the user and password `up:secret`.
pub(crate) struct Blobstore {
    pub(crate) address: SocketAddr,
    blobs: Arc<Mutex<BTreeMap<String, Vec<u8>>>>,
}

impl Blobstore {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let blobs = Arc::new(Mutex::new(BTreeMap::new()));
        let shared = blobs.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let shared = shared.clone();
                std::thread::spawn(move || serve(stream, &shared));
            }
        });
        Self { address, blobs }
    }

    /// A URL as a Cloud Controller writes it: with the credentials inside.
    pub(crate) fn url(&self, name: &str) -> String {
        format!("http://up:secret@{}/{name}", self.address)
    }

    pub(crate) fn put(&self, name: &str, content: Vec<u8>) {
        self.blobs.lock().unwrap().insert(name.to_owned(), content);
    }

    pub(crate) fn take(&self, name: &str) -> Option<Vec<u8>> {
        self.blobs.lock().unwrap().remove(name)
    }
}

fn serve(stream: TcpStream, blobs: &Mutex<BTreeMap<String, Vec<u8>>>) {
    stream.set_nodelay(true).unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        if line == "\r\n" {
            break;
        }
        head.push(line.trim_end().to_owned());
    }
    let header = |name: &str| {
        head.iter()
            .find_map(|line| line.split_once(": ").filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned()))
    };
    let mut words = head[0].split(' ');
    let (method, target) = (words.next().unwrap(), words.next().unwrap());
    let name = target.trim_start_matches('/').split('?').next().unwrap().to_owned();
    // "up:secret" in base64.
    let (status, body) = if header("authorization").as_deref() != Some("Basic dXA6c2VjcmV0") {
        ("401 Unauthorized", Vec::new())
    } else if method == "POST" {
        let mut body = vec![0; header("content-length").unwrap().parse().unwrap()];
        reader.read_exact(&mut body).unwrap();
        blobs.lock().unwrap().insert(name, only_part(&body));
        ("200 OK", b"{}".to_vec())
    } else {
        match blobs.lock().unwrap().get(&name) {
            Some(content) => ("200 OK", content.clone()),
            None => ("404 Not Found", Vec::new()),
        }
    };
    let mut stream = stream;
    // The peer may have gone; that is its business.
    let _ = write!(stream, "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
    let _ = stream.write_all(&body);
}

/// The content of the single part of a multipart body.
fn only_part(body: &[u8]) -> Vec<u8> {
    let find = |wanted: &[u8]| body.windows(wanted.len()).position(|window| window == wanted).unwrap();
    let boundary = &body[..find(b"\r\n")];
    let start = find(b"\r\n\r\n") + 4;
    let length =
        body[start..].windows(boundary.len() + 2).position(|window| window.starts_with(b"\r\n") && window.ends_with(boundary)).unwrap();
    body[start..start + length].to_vec()
}

/// A package as a Cloud Controller sends it: a zip of these files.
pub(crate) fn zip(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, content) in files {
        archive.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
        archive.write_all(content).unwrap();
    }
    archive.finish().unwrap().into_inner()
}

//! TCP, both ways.

use std::io;
use std::net::SocketAddr;

use wstd::io::{AsyncRead, AsyncWrite};
use wstd::iter::AsyncIterator;
use wstd::net::{TcpListener, TcpStream};
use wstd::runtime::spawn;

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 15\r\nconnection: close\r\n\r\ncommand-driver\n";
const LONGEST_HEAD: usize = 64 * 1024;

pub(crate) async fn connect(to: &str) {
    let address: SocketAddr = to.parse().unwrap_or_else(|e| panic!("{to}: {e}"));
    match TcpStream::connect_addr(address).await {
        Ok(_) => println!("connected"),
        Err(error) => println!("{:?}", error.kind()),
    }
}

pub(crate) async fn bind(to: &str) {
    match TcpListener::bind(to).await {
        Ok(_) => println!("bound"),
        Err(error) => println!("{:?}", error.kind()),
    }
}

pub(crate) async fn serve() {
    let listener = listen().await;
    let mut incoming = listener.incoming();
    while let Some(stream) = incoming.next().await {
        match stream {
            Ok(stream) => spawn(async move { report(answer(stream).await) }).detach(),
            Err(error) => report(Err(error)),
        }
    }
}

pub(crate) async fn echo() {
    let listener = listen().await;
    let mut incoming = listener.incoming();
    while let Some(stream) = incoming.next().await {
        report(async { send_back(stream?).await }.await);
    }
}

async fn listen() -> TcpListener {
    let port = std::env::var("PORT").expect("PORT is set");
    let listener = TcpListener::bind(&format!("0.0.0.0:{port}")).await.unwrap_or_else(|e| panic!("cannot listen on {port}: {e}"));
    println!("listening on {port}");
    listener
}

fn report(result: io::Result<()>) {
    if let Err(error) = result {
        println!("{:?}", error.kind());
    }
}

async fn answer(mut stream: TcpStream) -> io::Result<()> {
    let mut head = Vec::new();
    let mut chunk = [0; 4096];
    while !head.windows(4).any(|window| window == b"\r\n\r\n") && head.len() < LONGEST_HEAD {
        match stream.read(&mut chunk).await? {
            0 => return Ok(()),
            length => head.extend_from_slice(&chunk[..length]),
        }
    }
    stream.write_all(ANSWER).await?;
    stream.flush().await
}

async fn send_back(mut stream: TcpStream) -> io::Result<()> {
    let mut chunk = [0; 4096];
    loop {
        match stream.read(&mut chunk).await? {
            0 => return Ok(()),
            length => stream.write_all(&chunk[..length]).await?,
        }
        stream.flush().await?;
    }
}

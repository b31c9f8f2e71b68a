//! A web server for tests, on a real socket, that behaves as it is told: well, slowly, or badly.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// A request as it came in.
#[derive(Debug, Clone, Default)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// Path and query.
    pub(crate) target: String,
    /// Names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(header, _)| header == name).map(|(_, value)| value.as_str())
    }
}

/// What to do about a request.
#[derive(Debug, Clone)]
pub(crate) enum Answer {
    /// Answer it.
    Full { status: u16, headers: Vec<(&'static str, String)>, body: Vec<u8> },
    /// Announce more bytes than these, then close.
    Cut { announced: usize, body: Vec<u8> },
    /// Announce more bytes than these, then send no more.
    Stall { announced: usize, body: Vec<u8> },
    /// Send these one by one, with a pause (in milliseconds) after each.
    Drip { body: Vec<u8>, pause: u64 },
    /// Close without a word.
    Close,
    /// Say nothing.
    Hang,
}

impl Answer {
    pub(crate) fn ok(body: impl Into<Vec<u8>>) -> Self {
        Self::status(200, body)
    }

    pub(crate) fn status(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self::Full { status, headers: Vec::new(), body: body.into() }
    }

    pub(crate) fn redirect(to: String) -> Self {
        Self::Full { status: 302, headers: vec![("Location", to)], body: Vec::new() }
    }
}

/// An address where connections are refused for as long as the socket lives.
pub(crate) fn nobody() -> (SocketAddr, Socket) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    (socket.local_addr().unwrap().as_socket().unwrap(), socket)
}

type Behaviour = Arc<dyn Fn(&Request) -> Answer + Send + Sync>;

/// Runs until it is dropped.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
    running: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.running.abort();
    }
}

impl Server {
    pub(crate) async fn start(behaviour: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        Self::run(Arc::new(behaviour), Body::Read).await
    }

    /// Answers as soon as the head of a request is there, does not read its body, and closes.
    pub(crate) async fn start_impatient(behaviour: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        Self::run(Arc::new(behaviour), Body::Ignore).await
    }

    async fn run(behaviour: Behaviour, body: Body) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&requests);
        let running = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((connection, _)) = listener.accept().await {
                connections.spawn(serve(connection, Arc::clone(&behaviour), Arc::clone(&seen), body));
            }
        });
        Self { address, requests, running }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// What has come in so far.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Body {
    Read,
    Ignore,
}

/// One request a connection. Errors are the client's business.
async fn serve(connection: TcpStream, behaviour: Behaviour, seen: Arc<Mutex<Vec<Request>>>, body: Body) -> Option<()> {
    let mut connection = BufReader::new(connection);
    let request = read_request(&mut connection, body).await?;
    let answer = behaviour(&request);
    seen.lock().unwrap().push(request);
    let (status, headers, announced, body) = match answer {
        Answer::Full { status, headers, body } => (status, headers, body.len(), body),
        Answer::Cut { announced, body } => (200, Vec::new(), announced, body),
        Answer::Stall { announced, body } => {
            connection.write_all(format!("HTTP/1.1 200 OK\r\ncontent-length: {announced}\r\n\r\n").as_bytes()).await.ok()?;
            connection.write_all(&body).await.ok()?;
            return std::future::pending().await;
        }
        Answer::Drip { body, pause } => {
            connection.write_all(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len()).as_bytes()).await.ok()?;
            for byte in body {
                connection.write_all(&[byte]).await.ok()?;
                connection.flush().await.ok()?;
                tokio::time::sleep(std::time::Duration::from_millis(pause)).await;
            }
            return None;
        }
        Answer::Close => return None,
        Answer::Hang => return std::future::pending().await,
    };
    let mut head = format!("HTTP/1.1 {status} Whatever\r\ncontent-length: {announced}\r\nconnection: close\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    connection.write_all(format!("{head}\r\n").as_bytes()).await.ok()?;
    connection.write_all(&body).await.ok()?;
    connection.shutdown().await.ok()
}

async fn read_request(connection: &mut BufReader<TcpStream>, body: Body) -> Option<Request> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(connection.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).ok()?;
    let mut lines = head.lines();
    let mut start = lines.next()?.split(' ');
    let mut request = Request { method: start.next()?.to_owned(), target: start.next()?.to_owned(), ..Request::default() };
    for line in lines.filter(|line| !line.is_empty()) {
        let (name, value) = line.split_once(':')?;
        request.headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let length = request.header("content-length").map_or(0, |length| length.parse().unwrap());
    if body == Body::Read {
        request.body = vec![0; length];
        connection.read_exact(&mut request.body).await.ok()?;
    }
    Some(request)
}

//! Following.

use std::fs::OpenOptions;
use std::io::{BufRead as _, BufReader};
use std::path::Path;

use super::*;

/// A response that goes on.
struct Follower {
    reader: BufReader<TcpStream>,
    head: String,
}

impl Follower {
    fn start(world: &World, target: &str) -> Self {
        let mut stream = TcpStream::connect(world.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(format!("GET {target} HTTP/1.1\r\nhost: files\r\n\r\n").as_bytes()).unwrap();
        let mut reader = BufReader::new(stream);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert_ne!(reader.read_line(&mut head).unwrap(), 0, "no head but {head:?}");
        }
        Self { reader, head }
    }

    /// The next chunk; empty is the final one. `None`: the connection was broken off.
    fn chunk(&mut self) -> Option<String> {
        let mut size = String::new();
        if self.reader.read_line(&mut size).ok()? == 0 {
            return None;
        }
        let mut chunk = vec![0; usize::from_str_radix(size.trim_end(), 16).unwrap() + 2];
        self.reader.read_exact(&mut chunk).ok()?;
        chunk.truncate(chunk.len() - 2);
        Some(String::from_utf8(chunk).unwrap())
    }

    /// Reads until so many bytes have come.
    fn text(&mut self, length: usize) -> String {
        let mut text = String::new();
        while text.len() < length {
            text += &self.chunk().expect("the connection lasts");
        }
        text
    }
}

fn append(path: &Path, text: &str) {
    OpenOptions::new().append(true).open(path).unwrap().write_all(text.as_bytes()).unwrap();
}

fn tail(world: &World, more: &str) -> String {
    format!("{}&tail{more}", world.url("shop", Some("/logs/note.txt")))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_appended_comes_from_the_end_or_from_an_offset_on() {
    let world = World::new(settings()).await;
    blocking(move || {
        let path = world.shop("logs/note.txt");
        let mut from_end = Follower::start(&world, &tail(&world, ""));
        assert!(from_end.head.starts_with("HTTP/1.1 200 ") && from_end.head.contains("transfer-encoding: chunked"), "{}", from_end.head);
        let mut from_start = Follower::start(&world, &tail(&world, "&tail_offset=0"));
        assert_eq!(from_start.text(15), "logs of a guest", "what is there comes before anything is added");
        let mut from_within = Follower::start(&world, &tail(&world, "=yes&tail_offset=10"));
        assert_eq!(from_within.text(5), "guest");
        let mut from_beyond = Follower::start(&world, &tail(&world, "&tail_offset=17"));
        append(&path, "+1");
        assert_eq!((from_end.text(2), from_start.text(2), from_within.text(2)), ("+1".to_owned(), "+1".to_owned(), "+1".to_owned()));
        append(&path, "+2");
        assert_eq!((from_end.text(2), from_start.text(2)), ("+2".to_owned(), "+2".to_owned()));
        assert_eq!(from_beyond.text(2), "+2", "nothing until the file is longer than that");
        let much = "x".repeat(300_000);
        append(&path, &much);
        assert!(from_end.text(much.len()) == much && from_beyond.text(much.len()) == much);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_renamed_or_removed_ends_cleanly_with_all_that_was_in_it() {
    let world = World::new(settings()).await;
    blocking(move || {
        let path = world.shop("logs/note.txt");
        let mut renamed = Follower::start(&world, &tail(&world, ""));
        append(&path, "last");
        fs::rename(&path, path.with_extension("1")).unwrap();
        assert_eq!((renamed.text(4), renamed.chunk().as_deref()), ("last".to_owned(), Some("")));
        fs::write(&path, "new").unwrap();
        let mut removed = Follower::start(&world, &tail(&world, "&tail_offset=0"));
        append(&path, "+1");
        fs::remove_file(&path).unwrap();
        assert_eq!((removed.text(5), removed.chunk().as_deref()), ("new+1".to_owned(), Some("")));
        let mut moved = Follower::start(&world, &format!("{}&tail", world.url("shop", Some("/app/note.txt"))));
        fs::rename(world.shop("app"), world.shop("elsewhere")).unwrap();
        assert_eq!(moved.chunk().as_deref(), Some(""), "a directory above counts, too");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn silence_breaks_the_connection_off() {
    let world = World::new(FilesSettings { streaming_timeout: Duration::from_secs(2), ..settings() }).await;
    blocking(move || {
        let path = world.shop("logs/note.txt");
        let mut silent = Follower::start(&world, &tail(&world, ""));
        append(&path, "once");
        assert_eq!(silent.text(4), "once");
        assert_eq!(silent.chunk(), None, "no final chunk");
        let mut beyond = Follower::start(&world, &tail(&world, "&tail_offset=1000"));
        assert_eq!(beyond.chunk(), None);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn offsets_that_are_none_are_told() {
    let world = World::new(settings()).await;
    for offset in ["-1", "x", "", "%2B1", "1.5", "9223372036854775808", "99999999999999999999999"] {
        let reply = world.get(&tail(&world, &format!("&tail_offset={offset}"))).await;
        let text = "Can't serve request due to error: Tail offset must be a positive integer.\n";
        assert_eq!((reply.status, reply.body.as_str()), (500, text), "{offset}");
    }
    let directory = world.get(&format!("{}&tail&tail_offset=x", world.url("shop", Some("/logs")))).await;
    assert_eq!(directory.status, 200, "a directory is listed, whatever is wanted of it");
    let head = ask(world.address, "HEAD", &tail(&world, ""), "").await;
    assert_eq!((head.status, head.body.as_str()), (200, ""));
}

#[tokio::test(flavor = "multi_thread")]
async fn so_many_are_followed_and_one_more_is_refused_until_one_ends() {
    let world = World::new(settings()).await;
    blocking(move || {
        let begin =
            |number: usize| Follower::start(&world, &format!("{}&tail", world.url(&format!("shop-{number}"), Some("/logs/note.txt"))));
        // Eight of each of eight instances.
        let mut followers: Vec<_> = (0..8).map(|_| begin(0)).collect();
        assert!(begin(0).head.starts_with("HTTP/1.1 503 "), "one instance has its share");
        followers.extend((8..64).map(|number| begin(number / 8)));
        assert!(followers.iter().all(|follower| follower.head.starts_with("HTTP/1.1 200 ")));
        assert!(begin(8).head.starts_with("HTTP/1.1 503 "));
        followers.pop();
        let start = std::time::Instant::now();
        while !begin(8).head.starts_with("HTTP/1.1 200 ") {
            assert!(start.elapsed() < PATIENCE, "its place is not given back");
            std::thread::sleep(Duration::from_millis(20));
        }
    })
    .await;
}

/// A client that asks for more than sockets hold and reads none of it is given up.
#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_read_is_given_up() {
    use tokio::io::AsyncWriteExt as _;

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let reader = tokio::net::TcpStream::connect(address).await.unwrap();
    let (stream, _) = listener.accept().await.unwrap();
    let mut stall = super::super::stall::Stall::new(stream, Duration::from_millis(200));
    let piece = vec![0; 1 << 20];
    let writing = async {
        loop {
            if let Err(error) = stall.write_all(&piece).await {
                return error;
            }
        }
    };
    let error = tokio::time::timeout(PATIENCE, writing).await.expect("an end");
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    drop(reader);
}

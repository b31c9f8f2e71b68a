//! A NATS client of sixty lines that knows the protocol's text and nothing of Dewar: what any language's client does.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::{PATIENCE, eventually};

pub(crate) struct Nats {
    writer: TcpStream,
    reader: BufReader<TcpStream>,
    subscriptions: usize,
    waiting: VecDeque<Message>,
    /// Pings of ours whose answers have not come yet.
    unanswered: usize,
}

#[derive(Debug, Clone)]
pub(crate) struct Message {
    pub(crate) subject: String,
    pub(crate) json: Value,
}

impl Nats {
    pub(crate) fn connect(server: SocketAddr) -> Self {
        let writer = eventually("a NATS server", || TcpStream::connect(server).ok());
        writer.set_nodelay(true).unwrap();
        writer.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let reader = BufReader::new(writer.try_clone().unwrap());
        let mut client = Self { writer, reader, subscriptions: 0, waiting: VecDeque::new(), unanswered: 1 };
        client.send("CONNECT {\"verbose\":false,\"pedantic\":false,\"lang\":\"none\"}\r\nPING\r\n");
        client
    }

    fn send(&mut self, text: &str) {
        self.writer.write_all(text.as_bytes()).unwrap();
    }

    pub(crate) fn subscribe(&mut self, subject: &str) {
        self.subscriptions += 1;
        let id = self.subscriptions;
        self.send(&format!("SUB {subject} {id}\r\n"));
    }

    pub(crate) fn publish(&mut self, subject: &str, json: &Value) {
        let payload = json.to_string();
        self.send(&format!("PUB {subject} {}\r\n{payload}\r\n", payload.len()));
    }

    /// Publishes bytes that need not be JSON; answers are wanted on `reply_to`, whether somebody listens there or not.
    #[allow(dead_code, reason = "the benches, which share this file, send messages only")]
    pub(crate) fn publish_bytes(&mut self, subject: &str, reply_to: &str, payload: &[u8]) {
        self.send(&format!("PUB {subject} {reply_to} {}\r\n", payload.len()));
        self.writer.write_all(payload).unwrap();
        self.send("\r\n");
    }

    /// Publishes the same bytes so often, as fast as it goes.
    #[allow(dead_code, reason = "the benches share this file")]
    pub(crate) fn publish_many(&mut self, subject: &str, payload: &[u8], count: usize) {
        let message = [format!("PUB {subject} nowhere {}\r\n", payload.len()).as_bytes(), payload, b"\r\n"].concat();
        for pieces in vec![message; count].chunks(1000) {
            self.writer.write_all(&pieces.concat()).unwrap();
        }
    }

    /// Publishes with a reply subject; the answers come as messages on it.
    pub(crate) fn ask(&mut self, subject: &str, reply_to: &str, json: &Value) {
        let payload = json.to_string();
        self.subscribe(reply_to);
        self.send(&format!("PUB {subject} {reply_to} {}\r\n{payload}\r\n", payload.len()));
    }

    /// Waits for a message on `subject` that `wanted` accepts; messages on other subjects stay for later calls.
    pub(crate) fn expect(&mut self, subject: &str, mut wanted: impl FnMut(&Message) -> bool) -> Message {
        let deadline = Instant::now() + PATIENCE;
        loop {
            while let Some(at) = self.waiting.iter().position(|message| message.subject == subject) {
                let message = self.waiting.remove(at).unwrap();
                if wanted(&message) {
                    return message;
                }
            }
            assert!(Instant::now() < deadline, "no fitting message on {subject}");
            self.receive();
        }
    }

    /// Reads everything that the server has for us by now.
    #[allow(dead_code, reason = "the benches share this file")]
    pub(crate) fn catch_up(&mut self) {
        self.send("PING\r\n");
        self.unanswered += 1;
        let deadline = Instant::now() + PATIENCE;
        while self.unanswered > 0 {
            assert!(Instant::now() < deadline, "the server does not answer");
            self.receive();
        }
    }

    /// Takes everything that is waiting, or comes first.
    #[allow(dead_code, reason = "for the benches, which share this file")]
    pub(crate) fn take(&mut self) -> Vec<Message> {
        self.receive();
        self.waiting.drain(..).collect()
    }

    /// Drops everything that is waiting.
    #[allow(dead_code, reason = "for the benches, which share this file")]
    pub(crate) fn forget(&mut self) {
        self.waiting.clear();
    }

    /// How many messages on `subject` are waiting after listening for `span`.
    pub(crate) fn count_within(&mut self, subject: &str, span: Duration) -> usize {
        let deadline = Instant::now() + span;
        while Instant::now() < deadline {
            self.receive();
        }
        self.waiting.iter().filter(|message| message.subject == subject).count()
    }

    /// Reads one operation, or nothing for a while.
    fn receive(&mut self) {
        let mut line = String::new();
        let deadline = Instant::now() + PATIENCE;
        while !line.ends_with('\n') {
            match self.reader.read_line(&mut line) {
                Ok(0) => panic!("the server closed the connection"),
                Ok(_) => {}
                Err(_) if line.is_empty() => return,
                // The rest of a line comes when it pleases.
                Err(error) => assert!(Instant::now() < deadline, "half a line from the server: {error}"),
            }
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["MSG", subject, _id, .., length] => {
                let mut payload = vec![0; length.parse::<usize>().unwrap() + 2];
                self.read_exactly(&mut payload);
                payload.truncate(payload.len() - 2);
                let json = if payload.is_empty() { Value::Null } else { serde_json::from_slice(&payload).unwrap() };
                self.waiting.push_back(Message { subject: (*subject).to_owned(), json });
            }
            ["PING"] => self.send("PONG\r\n"),
            ["PONG"] => self.unanswered -= 1,
            ["-ERR", ..] => panic!("server: {line}"),
            _ => {}
        }
    }

    fn read_exactly(&mut self, mut buffer: &mut [u8]) {
        let deadline = Instant::now() + PATIENCE;
        while !buffer.is_empty() {
            assert!(Instant::now() < deadline, "half a message from the server");
            match self.reader.read(buffer) {
                Ok(0) => panic!("the server closed the connection"),
                Ok(read) => buffer = &mut buffer[read..],
                Err(_) => {}
            }
        }
    }
}

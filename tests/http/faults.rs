//! Requests with arbitrary faults in them.

use proptest::prelude::*;
use proptest::sample::Index;

/// One to three requests to `a.example`, damaged in up to three places.
pub(crate) fn requests() -> impl Strategy<Value = Vec<u8>> {
    (conversation(), prop::collection::vec(fault(), 0..4)).prop_map(|(mut bytes, faults)| {
        faults.iter().for_each(|fault| fault.apply(&mut bytes));
        bytes
    })
}

/// Requests that are well-formed, many of them with another one hidden where it is not one.
fn conversation() -> impl Strategy<Value = Vec<u8>> {
    let hidden = "GET /hidden HTTP/1.1\r\nHost: a.example\r\n\r\n";
    let body = prop_oneof!["[a-z\r\n]{0,20}", Just(hidden.to_owned()), Just(format!("0\r\n\r\n{hidden}"))];
    let lines = prop::collection::vec(
        prop::sample::select(vec![
            "Accept: */*\r\n",
            "Cookie: JSESSIONID=a; __VCAP_ID__=i\r\n",
            "X-CF-App-Instance: an-app:0\r\n",
            "Connection: keep-alive\r\n",
            "Connection: Host, X-A\r\n",
            "X-A: \t a b \r\n",
            "Expect: 100-continue\r\n",
            "TE: trailers\r\n",
            "Upgrade: websocket\r\nConnection: Upgrade\r\n",
            "X-Forwarded-For: 10.0.0.1\r\n",
        ]),
        0..4,
    );
    let request = (prop::sample::select(vec!["GET", "POST", "PUT", "OPTIONS"]), 0..1000_u32, lines, body, 0..4_u8).prop_map(
        |(method, number, lines, body, framing)| {
            let (length, body) = match framing {
                0 => (String::new(), String::new()),
                1 => (format!("Content-Length: {}\r\n", body.len()), body),
                2 if body.is_empty() => ("Transfer-Encoding: chunked\r\n".to_owned(), "0\r\n\r\n".to_owned()),
                2 => ("Transfer-Encoding: chunked\r\n".to_owned(), format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len())),
                _ => (format!("content-length: 0{}\r\n", body.len()), body),
            };
            format!("{method} /{number} HTTP/1.1\r\nHost: a.example\r\n{}{length}\r\n{body}", lines.concat())
        },
    );
    prop::collection::vec(request, 1..4).prop_map(|requests| requests.concat().into_bytes())
}

/// Texts that decide where a message ends, or that parsers have disagreed about.
const SPLINTERS: [&str; 24] = [
    "\r\n",
    "\n",
    "\r",
    "\0",
    " ",
    "\t",
    ":",
    "\r\n\r\n",
    "\r\n ",
    "Content-Length: 5\r\n",
    "Content-Length: 0\r\n",
    "Content-Length:\r\n",
    "Content-Length: +5\r\n",
    "Content-Length: 5, 5\r\n",
    "Content-Length : 5\r\n",
    "Transfer-Encoding: chunked\r\n",
    "Transfer-Encoding : chunked\r\n",
    "Transfer-Encoding:\x0bchunked\r\n",
    "Transfer-Encoding: identity\r\n",
    "Transfer-Encoding: x, chunked\r\n",
    "Connection: close\r\n",
    "HTTP/1.0",
    "0\r\n\r\n",
    "ffffffffffffffff1\r\n",
];

#[derive(Debug, Clone)]
enum Fault {
    Byte(Index, u8),
    Insert(Index, &'static str),
    /// Put in where a line begins.
    Line(Index, &'static str),
    Cut(Index, usize),
    Double(Index, usize),
}

fn fault() -> impl Strategy<Value = Fault> {
    let splinter = || prop::sample::select(SPLINTERS.to_vec());
    prop_oneof![
        2 => (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Fault::Byte(at, byte)),
        2 => (any::<Index>(), splinter()).prop_map(|(at, text)| Fault::Insert(at, text)),
        3 => (any::<Index>(), splinter()).prop_map(|(at, text)| Fault::Line(at, text)),
        1 => (any::<Index>(), 1..8_usize).prop_map(|(at, length)| Fault::Cut(at, length)),
        1 => (any::<Index>(), 1..40_usize).prop_map(|(at, length)| Fault::Double(at, length)),
    ]
}

impl Fault {
    fn apply(&self, bytes: &mut Vec<u8>) {
        if bytes.is_empty() {
            return;
        }
        match self {
            Self::Byte(at, byte) => *at.get_mut(bytes) = *byte,
            Self::Insert(at, text) => drop(bytes.splice(at.index(bytes.len())..at.index(bytes.len()), text.bytes())),
            Self::Line(at, text) => {
                let lines: Vec<usize> = (1..bytes.len()).filter(|at| bytes[at - 1] == b'\n').collect();
                if !lines.is_empty() {
                    let at = *at.get(&lines);
                    drop(bytes.splice(at..at, text.bytes()));
                }
            }
            Self::Cut(at, length) => {
                let at = at.index(bytes.len());
                let end = (at + length).min(bytes.len());
                bytes.drain(at..end);
            }
            Self::Double(at, length) => {
                let at = at.index(bytes.len());
                let copy = bytes[at..(at + length).min(bytes.len())].to_vec();
                drop(bytes.splice(at..at, copy));
            }
        }
    }
}

//! The client's side of the NATS protocol: bytes to operations, without copying and without state.
//!
//! [`parse`] looks at what has arrived so far and either borrows one whole operation from it or says how many bytes it needs before it
//! is worth another look.

use std::fmt;

/// How much of an operation the broker accepts.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Bytes of a protocol line.
    pub(super) control_line: usize,
    /// Bytes of headers and payload together.
    pub(super) payload: usize,
}

/// One operation of a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Op<'a> {
    /// `CONNECT {json}`
    Connect { options: &'a [u8] },
    /// `PING`
    Ping,
    /// `PONG`
    Pong,
    /// `PUB subject [reply] size` or `HPUB subject [reply] headers-size total-size`, and the bytes
    Publish(Publish<'a>),
    /// `SUB subject [queue] sid`
    Subscribe { subject: &'a [u8], queue: Option<&'a [u8]>, sid: &'a [u8] },
    /// `UNSUB sid [max]`; without `max`, or with one that is not a positive number: at once
    Unsubscribe { sid: &'a [u8], max: Option<u64> },
}

/// A message on its way in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Publish<'a> {
    pub(super) subject: &'a [u8],
    pub(super) reply: Option<&'a [u8]>,
    /// How much of `body` is headers; `None` for a `PUB`.
    pub(super) headers: Option<usize>,
    /// Headers and payload.
    pub(super) body: &'a [u8],
}

/// What the bytes hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Parsed<'a> {
    /// An operation in the first `length` bytes.
    Op { op: Op<'a>, length: usize },
    /// Not yet an operation; it needs this many bytes or more.
    Incomplete { at_least: usize },
}

/// Why a connection is ended. `Display` is what the client is told, in nats-server's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Violation {
    /// Not an operation of a client, or one with impossible arguments.
    Protocol,
    ControlLine,
    Payload,
    Authorization,
    AuthenticationTimeout,
    Stale,
    HeadersNotNegotiated,
    NoRespondersWithoutHeaders,
    TooManyConnections,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Protocol => "Unknown Protocol Operation",
            Self::ControlLine => "maximum control line exceeded",
            Self::Payload => "Maximum Payload Violation",
            Self::Authorization => "Authorization Violation",
            Self::AuthenticationTimeout => "Authentication Timeout",
            Self::Stale => "Stale Connection",
            Self::HeadersNotNegotiated => "message headers not supported",
            Self::NoRespondersWithoutHeaders => "no responders requires headers support",
            Self::TooManyConnections => "maximum connections exceeded",
        })
    }
}

/// The first operation in `input`.
pub(super) fn parse(input: &[u8], limits: Limits) -> Result<Parsed<'_>, Violation> {
    let Some(&first) = input.first() else { return Ok(Parsed::Incomplete { at_least: 1 }) };
    if !matches!(first.to_ascii_uppercase(), b'C' | b'H' | b'P' | b'S' | b'U') {
        return Err(Violation::Protocol);
    }
    let within = &input[..input.len().min(limits.control_line)];
    let Some(end) = memchr::memchr(b'\n', within) else {
        return if input.len() < limits.control_line {
            Ok(Parsed::Incomplete { at_least: input.len() + 1 })
        } else {
            Err(Violation::ControlLine)
        };
    };
    let (line, length) = (&input[..end], end + 1);
    let (name, arguments) = line.split_at(line.iter().position(|byte| is_blank(*byte)).unwrap_or(line.len()));
    let is = |operation: &str| name.eq_ignore_ascii_case(operation.as_bytes());
    let op = if is("PUB") {
        return publish(Arguments::split(arguments)?, input, length, limits);
    } else if is("HPUB") {
        return publish_with_headers(Arguments::split(arguments)?, input, length, limits);
    } else if is("SUB") {
        subscribe(Arguments::split(arguments)?)?
    } else if is("UNSUB") {
        unsubscribe(Arguments::split(arguments)?)?
    } else if is("PING") {
        Op::Ping
    } else if is("PONG") {
        Op::Pong
    } else if is("CONNECT") {
        Op::Connect { options: arguments.trim_ascii() }
    } else {
        return Err(Violation::Protocol);
    };
    Ok(Parsed::Op { op, length })
}

fn publish<'a>(arguments: Arguments<'a>, input: &'a [u8], line: usize, limits: Limits) -> Result<Parsed<'a>, Violation> {
    let (subject, reply, size) = match *arguments.as_slice() {
        [subject, size] => (subject, None, size),
        [subject, reply, size] => (subject, Some(reply), size),
        _ => return Err(Violation::Protocol),
    };
    with_body(input, line, parse_size(size)?, limits, |body| Publish { subject, reply, headers: None, body })
}

fn publish_with_headers<'a>(arguments: Arguments<'a>, input: &'a [u8], line: usize, limits: Limits) -> Result<Parsed<'a>, Violation> {
    let (subject, reply, headers, total) = match *arguments.as_slice() {
        [subject, headers, total] => (subject, None, headers, total),
        [subject, reply, headers, total] => (subject, Some(reply), headers, total),
        _ => return Err(Violation::Protocol),
    };
    let (headers, total) = (parse_size(headers)?, parse_size(total)?);
    if headers > total {
        return Err(Violation::Protocol);
    }
    with_body(input, line, total, limits, |body| Publish { subject, reply, headers: Some(headers), body })
}

/// Completes a message by the `size` bytes after its line, and the line end after them.
fn with_body<'a>(
    input: &'a [u8],
    line: usize,
    size: usize,
    limits: Limits,
    make: impl FnOnce(&'a [u8]) -> Publish<'a>,
) -> Result<Parsed<'a>, Violation> {
    if size > limits.payload {
        return Err(Violation::Payload);
    }
    let end = line + size;
    let terminator = input.get(end..).unwrap_or_default();
    match terminator {
        [b'\r', b'\n', ..] => Ok(Parsed::Op { op: Op::Publish(make(&input[line..end])), length: end + 2 }),
        [] | [b'\r'] => Ok(Parsed::Incomplete { at_least: end + 2 }),
        _ => Err(Violation::Protocol),
    }
}

fn subscribe(arguments: Arguments<'_>) -> Result<Op<'_>, Violation> {
    match *arguments.as_slice() {
        [subject, sid] => Ok(Op::Subscribe { subject, queue: None, sid }),
        [subject, queue, sid] => Ok(Op::Subscribe { subject, queue: Some(queue), sid }),
        _ => Err(Violation::Protocol),
    }
}

fn unsubscribe(arguments: Arguments<'_>) -> Result<Op<'_>, Violation> {
    match *arguments.as_slice() {
        [sid] => Ok(Op::Unsubscribe { sid, max: None }),
        [sid, max] => {
            let max = std::str::from_utf8(max).ok().and_then(|text| text.parse().ok()).filter(|max| *max > 0);
            Ok(Op::Unsubscribe { sid, max })
        }
        _ => Err(Violation::Protocol),
    }
}

/// The words of a line, four at most.
struct Arguments<'a> {
    words: [&'a [u8]; 4],
    count: usize,
}

impl<'a> Arguments<'a> {
    fn split(line: &'a [u8]) -> Result<Self, Violation> {
        let mut arguments = Self { words: [&[]; 4], count: 0 };
        for word in line.split(|byte| is_blank(*byte)).filter(|word| !word.is_empty()) {
            *arguments.words.get_mut(arguments.count).ok_or(Violation::Protocol)? = word;
            arguments.count += 1;
        }
        Ok(arguments)
    }

    fn as_slice(&self) -> &[&'a [u8]] {
        &self.words[..self.count]
    }
}

fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r')
}

/// Up to nine digits: anything longer is beyond every payload limit, and beyond no integer.
fn parse_size(digits: &[u8]) -> Result<usize, Violation> {
    if digits.is_empty() || digits.len() > 9 || !digits.iter().all(u8::is_ascii_digit) {
        return Err(Violation::Protocol);
    }
    Ok(digits.iter().fold(0, |size, digit| size * 10 + usize::from(digit - b'0')))
}

#[cfg(test)]
mod tests;

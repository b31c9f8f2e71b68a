//! A second opinion on HTTP/1.1: where messages begin and end, read by the letter of RFC 9112 with nothing of hyper's in it.
//!
//! It serves to see whether the router and others agree. What it does not like it does not read, and then nothing after it.

/// A request or response as it went over the wire, its body decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Parsed {
    /// Of a request: method and target. Of a response: version and status.
    pub(crate) start: (String, String),
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

/// What the bytes of a connection begin with.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Read {
    /// A whole message, and where the next begins; `None`: there can be none.
    Whole(Parsed, Option<usize>),
    /// The beginning of one.
    Part,
    /// Something else.
    Malformed(&'static str),
}

/// All whole requests from the start of a connection to the first thing that is none.
pub(crate) fn requests(bytes: &[u8]) -> Vec<Parsed> {
    let (mut found, mut at) = (Vec::new(), Some(0));
    while let Some(start) = at {
        let Read::Whole(request, next) = request(&bytes[start..]) else { break };
        found.push(request);
        at = next.map(|next| start + next);
    }
    found
}

/// How many whole responses there are, one after the other, with at most the beginning of another after them.
///
/// # Errors
/// When something else is there.
pub(crate) fn responses(bytes: &[u8]) -> Result<usize, String> {
    let (mut count, mut at) = (0, 0);
    while at < bytes.len() {
        match response(&bytes[at..]) {
            Read::Whole(_, Some(next)) => (count, at) = (count + 1, at + next),
            Read::Whole(_, None) => return Ok(count + 1),
            Read::Part => return Ok(count),
            Read::Malformed(why) => return Err(format!("{why} at {at} of {:?}", String::from_utf8_lossy(bytes))),
        }
    }
    Ok(count)
}

impl Parsed {
    pub(crate) fn header(&self, name: &str) -> impl Iterator<Item = &str> {
        self.headers.iter().filter(move |(header, _)| header.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    fn has_token(&self, name: &str, token: &str) -> bool {
        self.header(name).flat_map(|value| value.split(',')).any(|part| part.trim().eq_ignore_ascii_case(token))
    }
}

pub(crate) fn request(bytes: &[u8]) -> Read {
    // Empty lines before a request are to be ignored (section 2.2).
    let blank = bytes.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
    let (start, headers, head) = match head(&bytes[blank..]) {
        Ok(Some(head)) => head,
        Ok(None) => return Read::Part,
        Err(why) => return Read::Malformed(why),
    };
    let words: Vec<&str> = start.split(' ').collect();
    let [method, target, version] = words[..] else { return Read::Malformed("request line") };
    if !is_token(method) || target.is_empty() || !matches!(version, "HTTP/1.1" | "HTTP/1.0") {
        return Read::Malformed("request line");
    }
    let parsed = Parsed { start: (method.to_owned(), target.to_owned()), headers, body: Vec::new() };
    let persistent =
        if version == "HTTP/1.1" { !parsed.has_token("connection", "close") } else { parsed.has_token("connection", "keep-alive") };
    if version == "HTTP/1.0" && parsed.header("transfer-encoding").next().is_some() {
        return Read::Malformed("transfer encoding in HTTP/1.0");
    }
    with_body(parsed, bytes, blank + head, persistent, Some(0))
}

/// Of a request other than HEAD. The end of a response without a length is that of the bytes.
fn response(bytes: &[u8]) -> Read {
    let (start, headers, head) = match head(bytes) {
        Ok(Some(head)) => head,
        Ok(None) => return Read::Part,
        Err(why) => return Read::Malformed(why),
    };
    let mut words = start.splitn(3, ' ');
    let (Some("HTTP/1.1" | "HTTP/1.0"), Some(status)) = (words.next(), words.next()) else { return Read::Malformed("status line") };
    if status.len() != 3 || !status.bytes().all(|byte| byte.is_ascii_digit()) {
        return Read::Malformed("status line");
    }
    let parsed = Parsed { start: ("HTTP/1.1".to_owned(), status.to_owned()), headers, body: Vec::new() };
    if status.starts_with('1') || matches!(status, "204" | "304") {
        return Read::Whole(parsed, Some(head));
    }
    let persistent = !parsed.has_token("connection", "close");
    with_body(parsed, bytes, head, persistent, None)
}

type Head = (String, Vec<(String, String)>, usize);

/// Start line, headers, and the length of it all; `None` when it has not ended.
fn head(bytes: &[u8]) -> Result<Option<Head>, &'static str> {
    let (mut at, mut lines) = (0, Vec::new());
    loop {
        let Some(length) = bytes[at..].iter().position(|byte| *byte == b'\n') else { return Ok(None) };
        // A lone LF may end a line (section 2.2).
        let line = &bytes[at..at + length];
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        at += length + 1;
        if line.is_empty() {
            break;
        }
        lines.push(String::from_utf8_lossy(line).into_owned());
    }
    let mut lines = lines.into_iter();
    let start = lines.next().ok_or("no start line")?;
    let mut headers = Vec::new();
    for line in lines {
        let (name, value) = line.split_once(':').ok_or("a header without a colon")?;
        if !is_token(name) || value.contains(['\r', '\0']) {
            return Err("a header that is none");
        }
        headers.push((name.to_owned(), value.trim_matches([' ', '\t']).to_owned()));
    }
    Ok(Some((start, headers, at)))
}

/// `unsaid`: the length where the head says none; `None`: to the end of the connection.
fn with_body(mut parsed: Parsed, bytes: &[u8], head: usize, persistent: bool, unsaid: Option<usize>) -> Read {
    let rest = &bytes[head..];
    let encodings: Vec<String> = parsed.header("transfer-encoding").map(str::to_ascii_lowercase).collect();
    let lengths: Vec<String> = parsed.header("content-length").map(str::to_owned).collect();
    if !encodings.is_empty() {
        if encodings != ["chunked"] {
            return Read::Malformed("a transfer encoding other than chunked");
        }
        return match chunks(rest) {
            // With both, the connection is to be closed (section 6.3).
            Ok(Some((body, length))) => {
                parsed.body = body;
                Read::Whole(parsed, (persistent && lengths.is_empty()).then_some(head + length))
            }
            Ok(None) => Read::Part,
            Err(why) => Read::Malformed(why),
        };
    }
    let digits = |text: &String| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !lengths.iter().all(digits) {
        return Read::Malformed("length");
    }
    // The same number again says nothing new (section 6.3 of RFC 9112), however many zeros it begins with.
    let numbers: Result<Vec<usize>, _> = lengths.iter().map(|length| length.parse()).collect();
    let Ok(numbers) = numbers else { return Read::Malformed("length") };
    if numbers.iter().any(|number| *number != numbers[0]) {
        return Read::Malformed("two lengths");
    }
    let length = numbers.first().copied().unwrap_or_else(|| unsaid.unwrap_or(rest.len()));
    if rest.len() < length {
        return Read::Part;
    }
    parsed.body = rest[..length].to_vec();
    Read::Whole(parsed, persistent.then_some(head + length))
}

/// A chunked body and its length with everything around it; `None` when it has not ended.
fn chunks(bytes: &[u8]) -> Result<Option<(Vec<u8>, usize)>, &'static str> {
    let (mut body, mut at) = (Vec::new(), 0);
    loop {
        let Some(length) = bytes[at..].windows(2).position(|pair| pair == b"\r\n") else { return Ok(None) };
        let line = String::from_utf8_lossy(&bytes[at..at + length]).into_owned();
        at += length + 2;
        let digits = line.split(';').next().unwrap_or_default().trim_end_matches([' ', '\t']);
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err("the size of a chunk");
        }
        let size = usize::from_str_radix(digits, 16).map_err(|_| "the size of a chunk")?;
        if size == 0 {
            break;
        }
        let Some(data) = bytes[at..].get(..size) else { return Ok(None) };
        body.extend_from_slice(data);
        at += size;
        match &bytes[at..] {
            [b'\r', b'\n', ..] => at += 2,
            [] | [b'\r'] => return Ok(None),
            _ => return Err("the end of a chunk"),
        }
    }
    // Trailers, up to an empty line.
    loop {
        let Some(length) = bytes[at..].windows(2).position(|pair| pair == b"\r\n") else { return Ok(None) };
        at += length + 2;
        if length == 0 {
            return Ok(Some((body, at)));
        }
    }
}

fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

#[test]
fn the_second_opinion_reads_what_is_plain() {
    let bytes = b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n\r\nPOST /b HTTP/1.1\nContent-Length: 2\n\nhiPUT /c HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n\
        3;x=y\r\nabc\r\n0\r\nT: t\r\n\r\nGET /d HTTP/1.0\r\n\r\nGET /e HTTP/1.1\r\n\r\n";
    let found = requests(bytes);
    let seen: Vec<(&str, &[u8])> = found.iter().map(|request| (request.start.1.as_str(), &*request.body)).collect();
    assert_eq!(seen, [("/a", &b""[..]), ("/b", b"hi"), ("/c", b"abc"), ("/d", b"")]);
    for malformed in [
        "GET /a b HTTP/1.1\r\n\r\n",
        "GET /a HTTP/1.1\r\nA : b\r\n\r\n",
        "GET /a HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        "GET /a HTTP/1.1\r\nTransfer-Encoding: x\r\n\r\n",
        "GET /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n",
    ] {
        assert!(matches!(request(malformed.as_bytes()), Read::Malformed(_)), "{malformed:?}");
    }
}

//! Does what the request's path says; the operations are listed in ../README.md.

mod files;
mod misbehaviour;
mod network;
mod output;
mod query;
mod start;

use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use dewar_guest::types::{HeaderName, HeaderValue, StatusCode, header};
use dewar_guest::{Body, IntoResponse, Request, Response};
use query::Query;

static REQUESTS: AtomicU64 = AtomicU64::new(0);

/// Why an operation has no answer of its own.
enum Refusal {
    /// The request doesn't say what it should.
    Parameter(String),
    UnknownPath,
    /// The host said no: name of the error, and its message.
    Host(String, String),
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Refusal {
        Refusal::Host(format!("{:?}", error.kind()), error.to_string())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        match self {
            Refusal::Parameter(problem) => (StatusCode::BAD_REQUEST, problem).into_response(),
            Refusal::UnknownPath => StatusCode::NOT_FOUND.into_response(),
            Refusal::Host(name, message) => (StatusCode::UNPROCESSABLE_ENTITY, format!("{name}: {message}\n")).into_response(),
        }
    }
}

type Answer = Result<Response, Refusal>;

#[dewar_guest::http]
fn handle(request: Request) -> Response {
    REQUESTS.fetch_add(1, Ordering::Relaxed);
    let query = Query::of(request.uri());
    let path = request.uri().path().to_owned();
    let answer = match path.strip_prefix("/fs/") {
        Some(operation) => files::answer(operation, &query, request),
        None => answer(&path, &query, request),
    };
    answer.unwrap_or_else(IntoResponse::into_response)
}

fn answer(path: &str, query: &Query, request: Request) -> Answer {
    match path {
        "/" => text("http-driver"),
        "/env" => environment(query),
        "/args" => lines(std::env::args()),
        "/headers" => lines(request.headers().iter().map(|(name, value)| format!("{name}: {}", String::from_utf8_lossy(value.as_bytes())))),
        "/counter" => text(&REQUESTS.load(Ordering::Relaxed).to_string()),
        "/clock" => clock(),
        "/random" => Ok(Response::new(dewar_guest::wasip2::random::random::get_random_bytes(query.number("bytes")?).into())),
        "/echo" => echo(request),
        "/drain" => Ok(io::copy(&mut request.into_body(), &mut io::sink())?.to_string().into_response()),
        "/ignore-body" => text("ignored"),
        "/status" => status(query),
        "/header" => header(query),
        "/bytes" => sized(query.number("count")?, query.number("count")?),
        "/stream" => stream(query),
        "/cut" => misbehaviour::cut(query.number("bytes")?),
        "/short" => sized(query.number("bytes")? + 1, query.number("bytes")?),
        "/sleep" => {
            sleep(Duration::from_millis(query.number("ms")?));
            text("slept")
        }
        "/never" => loop {
            sleep(Duration::from_secs(3600));
        },
        "/spin" => {
            misbehaviour::spin(query.number("ms").map_or(Duration::MAX, Duration::from_millis));
            text("spun")
        }
        "/panic" => panic!("{}", query.text("text")?),
        "/trap" => misbehaviour::trap(),
        "/overflow" => text(&misbehaviour::descend(0).to_string()),
        "/exit" => dewar_guest::exit(u8::try_from(query.number("status")?).unwrap_or(u8::MAX)),
        "/grow" => misbehaviour::grow(query.number("bytes")?),
        "/hog" => misbehaviour::hog(),
        "/log" => output::log(query),
        "/flood" => output::flood(query),
        "/partial" => output::partial(query),
        "/connect" => network::attempt(query, |_| network::connect(query.text("to")?)),
        "/sockets" => network::sockets(query.number("count")?),
        "/bind" => network::bind(query.text("to")?),
        "/udp" => network::attempt(query, |_| network::udp(query.text("to")?)),
        "/resolve" => network::attempt(query, |number| network::resolve(&query.text("name")?.replace("{}", &number.to_string()))),
        "/fetch" => network::attempt(query, |_| network::fetch(query)),
        _ => Err(Refusal::UnknownPath),
    }
}

fn text(text: &str) -> Answer {
    Ok(text.into_response())
}

fn lines(lines: impl Iterator<Item = String>) -> Answer {
    Ok(lines.map(|line| line + "\n").collect::<String>().into_response())
}

fn environment(query: &Query) -> Answer {
    match query.text("name") {
        Ok(name) => std::env::var(name).map(IntoResponse::into_response).map_err(|_| Refusal::Host("NotFound".to_owned(), name.to_owned())),
        Err(_) => {
            let mut variables: Vec<_> = std::env::vars().map(|(name, value)| format!("{name}={value}")).collect();
            variables.sort();
            lines(variables.into_iter())
        }
    }
}

fn clock() -> Answer {
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_err(io::Error::other)?;
    let since_start = dewar_guest::wasip2::clocks::monotonic_clock::now();
    text(&format!("{}\n{since_start}\n", since_1970.as_nanos()))
}

fn echo(request: Request) -> Answer {
    let content_type = request.headers().get(header::CONTENT_TYPE).cloned();
    let mut body = request.into_body();
    let mut response = Response::new(Body::stream(move |output| {
        let mut chunk = [0; 16 * 1024];
        loop {
            match body.read(&mut chunk)? {
                0 => return Ok(()),
                length => output.write_all(&chunk[..length])?,
            }
        }
    }));
    if let Some(content_type) = content_type {
        response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    }
    Ok(response)
}

fn status(query: &Query) -> Answer {
    let code = u16::try_from(query.number("code")?).map_err(|e| Refusal::Parameter(e.to_string()))?;
    let status = StatusCode::from_u16(code).map_err(|e| Refusal::Parameter(e.to_string()))?;
    let text = query.text("text").unwrap_or_default().to_owned();
    // As a stream: the length of a body that must not be isn't announced.
    let mut response = Response::new(Body::stream(move |output| output.write_all(text.as_bytes())));
    *response.status_mut() = status;
    Ok(response)
}

fn header(query: &Query) -> Answer {
    let mut response = "header".into_response();
    for (name, value) in query.all("name").zip(query.all("value")) {
        let name: HeaderName = name.parse().map_err(|_| Refusal::Parameter("name is no header's name".to_owned()))?;
        let value: HeaderValue = value.parse().map_err(|_| Refusal::Parameter("value is no header's value".to_owned()))?;
        response.headers_mut().append(name, value);
    }
    Ok(response)
}

/// A body that is announced with one length and has another.
fn sized(announced: u64, written: u64) -> Answer {
    let mut response = Response::new(Body::stream(move |output| write_filler(output, written)));
    response.headers_mut().insert(header::CONTENT_LENGTH, announced.into());
    Ok(response)
}

fn stream(query: &Query) -> Answer {
    let (chunks, bytes) = (query.number("chunks")?, query.number("bytes")?);
    let pause = Duration::from_millis(query.number("pause_ms").unwrap_or(0));
    Ok(Response::new(Body::stream(move |output| {
        for _ in 0..chunks {
            write_filler(output, bytes)?;
            output.flush()?;
            sleep(pause);
        }
        Ok(())
    })))
}

/// Writes so many `x`.
fn write_filler(output: &mut dyn Write, bytes: u64) -> io::Result<()> {
    io::copy(&mut io::repeat(b'x').take(bytes), output).map(drop)
}

/// Burns CPU until then.
fn spin_until(end: Option<Instant>) {
    while end.is_none_or(|end| Instant::now() < end) {
        std::hint::spin_loop();
    }
}

/// For errors that aren't those of `std::io`: the name, and what was attempted.
fn refused(name: &str, attempted: &str) -> Refusal {
    Refusal::Host(name.to_owned(), attempted.to_owned())
}

//! The app's log.

use std::io::{self, Write};

use crate::query::Query;
use crate::{Answer, Refusal, text};

fn stream(query: &Query) -> Result<Box<dyn Write>, Refusal> {
    match query.text("stream").unwrap_or("stdout") {
        "stdout" => Ok(Box::new(io::stdout())),
        "stderr" => Ok(Box::new(io::stderr())),
        other => Err(Refusal::Parameter(format!("stream: {other} is neither stdout nor stderr\n"))),
    }
}

pub(crate) fn log(query: &Query) -> Answer {
    let line = format!("{}\n", query.text("text")?);
    stream(query)?.write_all(line.as_bytes())?;
    text("logged")
}

pub(crate) fn flood(query: &Query) -> Answer {
    let mut stream = stream(query)?;
    let length = usize::try_from(query.number("bytes")?).unwrap_or(usize::MAX).min(16 * 1024 * 1024);
    let line = "x".repeat(length) + "\n";
    for _ in 0..query.number("lines")? {
        stream.write_all(line.as_bytes())?;
    }
    text("logged")
}

pub(crate) fn partial(query: &Query) -> Answer {
    let mut stream = stream(query)?;
    stream.write_all(query.text("text")?.as_bytes())?;
    stream.flush()?;
    text("logged")
}

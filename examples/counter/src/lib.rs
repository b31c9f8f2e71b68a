//! Counts visits in a file. Every instance has files of its own, and they go with it: what must last belongs in a service.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};

use dewar_guest::types::StatusCode;
use dewar_guest::{Error, IntoResponse, Request, Response};

const VISITS: &str = "/app/visits";
const FILLER: &str = "/app/filler";
const MIB: usize = 1024 * 1024;

#[dewar_guest::http]
fn handle(request: Request) -> Result<Response, Error> {
    match request.uri().path() {
        "/" => Ok(format!("visit {}\n", count()?).into_response()),
        "/fill" => fill(request.uri().query().unwrap_or_default()),
        "/clear" => {
            fs::remove_file(FILLER).or_else(|error| if error.kind() == ErrorKind::NotFound { Ok(()) } else { Err(error) })?;
            Ok("cleared\n".into_response())
        }
        _ => Ok(StatusCode::NOT_FOUND.into_response()),
    }
}

fn count() -> Result<u64, Error> {
    let before = match fs::read_to_string(VISITS) {
        Ok(text) => text.trim().parse()?,
        Err(error) if error.kind() == ErrorKind::NotFound => 0,
        Err(error) => return Err(error.into()),
    };
    let visits: u64 = before + 1;
    // Renamed into place, so that no visit ever finds half a number.
    fs::write("/app/visits.new", visits.to_string())?;
    fs::rename("/app/visits.new", VISITS)?;
    Ok(visits)
}

fn fill(query: &str) -> Result<Response, Error> {
    let Some(Ok(mib)) = query.strip_prefix("mib=").map(str::parse::<usize>) else {
        return Ok((StatusCode::BAD_REQUEST, "say how much: /fill?mib=10\n").into_response());
    };
    // A C library that runs on an adapter calls a full disk an I/O error, so its kind says nothing.
    Ok(match write_filler(mib) {
        Ok(()) => format!("{mib} MiB written\n").into_response(),
        Err(error) => (StatusCode::INSUFFICIENT_STORAGE, format!("cannot write {mib} MiB: {error}\n")).into_response(),
    })
}

fn write_filler(mib: usize) -> io::Result<()> {
    let mut file = File::create(FILLER)?;
    let block = vec![0_u8; MIB];
    (0..mib).try_for_each(|_| file.write_all(&block))
}

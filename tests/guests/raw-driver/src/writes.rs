//! `/write/…`: streams, not used as they are meant to be.

use dewar_guest::wasip2::cli::stdout::get_stdout;
use dewar_guest::wasip2::http::types::ResponseOutparam;
use dewar_guest::wasip2::io::streams::OutputStream;

use crate::{Query, reply};

pub(crate) fn write(operation: &str, query: &Query, answer: ResponseOutparam) {
    let log = get_stdout();
    match operation {
        "nothing" => nothing(&log),
        "without-permit" => without_permit(&log, query.number("bytes")),
        "no-line-end" => no_line_end(&log),
        "zeroes" => zeroes(&log),
        _ => panic!("{operation}: no such operation"),
    }
    reply(answer, "written");
}

/// Writes no bytes, for ever.
fn nothing(stream: &OutputStream) {
    while stream.write(&[]).and_then(|()| stream.flush()).is_ok() {}
}

fn without_permit(stream: &OutputStream, bytes: u64) {
    let data = vec![b'x'; usize::try_from(bytes).unwrap_or(usize::MAX)];
    let _ = stream.write(&data);
}

/// One line, for ever.
fn no_line_end(stream: &OutputStream) {
    while stream.blocking_write_and_flush(&[b'x'; 4096]).is_ok() {}
}

/// Has the host write zeroes, for ever.
fn zeroes(stream: &OutputStream) {
    while stream.blocking_write_zeroes_and_flush(4096).is_ok() {}
}

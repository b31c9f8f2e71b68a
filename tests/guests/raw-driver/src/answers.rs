//! `/answer/…`: answers that are none.

use dewar_guest::wasip2::http::types::{Fields, OutgoingBody, OutgoingResponse, ResponseOutparam};

use crate::{Query, reply};

pub(crate) fn answer(operation: &str, query: &Query, answer: ResponseOutparam) {
    match operation {
        "twice" => twice(answer),
        "unfinished" => unfinished(answer),
        "endless" => endless(answer),
        "spin-afterwards" => {
            reply(answer, "answered");
            loop {
                std::hint::spin_loop();
            }
        }
        "exit-midway" => {
            drop(begin(answer, Fields::new()));
            dewar_guest::exit(3)
        }
        "field" => field(query, answer),
        "fields" => fields(query, answer),
        "status" => status(query, answer),
        "trailers" => trailers(query, answer),
        _ => panic!("{operation}: no such answer"),
    }
}

/// Sets the answer.
fn set(answer: ResponseOutparam, fields: Fields) -> OutgoingBody {
    let response = OutgoingResponse::new(fields);
    let body = response.body().expect("the first time");
    ResponseOutparam::set(answer, Ok(response));
    body
}

/// Sets the answer and writes a little.
fn begin(answer: ResponseOutparam, fields: Fields) -> OutgoingBody {
    let body = set(answer, fields);
    body.write().expect("the first time").blocking_write_and_flush(b"begun").expect("there is room for five bytes");
    body
}

fn twice(answer: ResponseOutparam) {
    let handle = answer.handle();
    reply(answer, "once");
    // SAFETY: nothing of this component's own memory depends on whether the handle is still there; the host has to see to it.
    reply(unsafe { ResponseOutparam::from_handle(handle) }, "twice");
}

/// A body that is dropped without having been finished.
fn unfinished(answer: ResponseOutparam) {
    drop(begin(answer, Fields::new()));
}

/// Writes for as long as somebody takes it.
fn endless(answer: ResponseOutparam) {
    let body = set(answer, Fields::new());
    let stream = body.write().expect("the first time");
    while stream.blocking_write_and_flush(&[b'x'; 4096]).is_ok() {}
}

/// Whether the host takes this field.
fn field(query: &Query, answer: ResponseOutparam) {
    let fields = Fields::new();
    match fields.append(query.text("name"), query.text("value").as_bytes()) {
        Err(error) => reply(answer, &format!("refused: {error:?}")),
        Ok(()) => drop(OutgoingBody::finish(begin(answer, fields), None)),
    }
}

/// So many fields of so many bytes, as far as the host takes them.
fn fields(query: &Query, answer: ResponseOutparam) {
    let fields = Fields::new();
    let value = vec![b'x'; usize::try_from(query.number("bytes")).unwrap_or(usize::MAX)];
    for number in 0..query.number("count") {
        if let Err(error) = fields.append(&format!("x-{number}"), &value) {
            return reply(answer, &format!("refused after {number}: {error:?}"));
        }
    }
    drop(OutgoingBody::finish(begin(answer, fields), None));
}

fn status(query: &Query, answer: ResponseOutparam) {
    let response = OutgoingResponse::new(Fields::new());
    match response.set_status_code(u16::try_from(query.number("code")).unwrap_or(u16::MAX)) {
        Err(()) => reply(answer, "refused"),
        Ok(()) => ResponseOutparam::set(answer, Ok(response)),
    }
}

fn trailers(query: &Query, answer: ResponseOutparam) {
    let trailers = Fields::new();
    if let Err(error) = trailers.append(query.text("name"), query.text("value").as_bytes()) {
        return reply(answer, &format!("refused: {error:?}"));
    }
    let body = begin(answer, Fields::new());
    // What became of them is for the client to see.
    let _ = OutgoingBody::finish(body, Some(trailers));
}

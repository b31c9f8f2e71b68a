//! Calls WASI as no library would; the operations are listed in ../README.md.

mod answers;
mod files;
mod hoard;
mod writes;

use dewar_guest::wasip2::clocks::monotonic_clock;
use dewar_guest::wasip2::exports::http::incoming_handler::Guest;
use dewar_guest::wasip2::http::types::{Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam};
use dewar_guest::wasip2::random::random;

struct RawDriver;

impl Guest for RawDriver {
    fn handle(request: IncomingRequest, answer: ResponseOutparam) {
        let target = request.path_with_query().unwrap_or_default();
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        let query = Query(form_urlencoded::parse(query.as_bytes()).into_owned().collect());
        match path.split('/').collect::<Vec<_>>()[..] {
            ["", "answer", operation] => answers::answer(operation, &query, answer),
            ["", "fs", operation] => reply(answer, &files::answer(operation, &query)),
            ["", "hoard", kind] => reply(answer, &hoard::hoard(kind, query.number("count"))),
            ["", "write", operation] => writes::write(operation, &query, answer),
            ["", "poll"] => reply(answer, &hoard::poll(query.number("count"))),
            ["", "wait"] => {
                monotonic_clock::subscribe_duration(query.number("ns")).block();
                reply(answer, "waited");
            }
            ["", "wait-until"] => {
                monotonic_clock::subscribe_instant(query.number("ns")).block();
                reply(answer, "waited");
            }
            ["", "random"] => reply(answer, &random::get_random_bytes(query.number("bytes")).len().to_string()),
            ["", "descend"] => reply(answer, &descend(0).to_string()),
            ["", ""] => reply(answer, "raw-driver"),
            _ => panic!("{path}: no such operation"),
        }
    }
}

dewar_guest::wasip2::http::proxy::export!(RawDriver with_types_in dewar_guest::wasip2);

/// Parameters; one that is missing or no number is a panic.
struct Query(Vec<(String, String)>);

impl Query {
    fn text(&self, name: &str) -> &str {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str()).unwrap_or_else(|| panic!("{name} is missing"))
    }

    fn number(&self, name: &str) -> u64 {
        self.text(name).parse().unwrap_or_else(|error| panic!("{name}: {error}"))
    }
}

/// A whole answer with status 200.
fn reply(answer: ResponseOutparam, text: &str) {
    let response = OutgoingResponse::new(Fields::new());
    let body = response.body().expect("the first time");
    ResponseOutparam::set(answer, Ok(response));
    let stream = body.write().expect("the first time");
    for chunk in text.as_bytes().chunks(4096) {
        // Whoever does not want it need not have it.
        let _ = stream.blocking_write_and_flush(chunk);
    }
    drop(stream);
    let _ = OutgoingBody::finish(body, None);
}

/// Recursion without an end, each step of which asks the host for something.
#[inline(never)]
fn descend(depth: u64) -> u64 {
    let frame = std::hint::black_box([monotonic_clock::now(); 16]);
    if std::hint::black_box(true) { frame[15] ^ descend(depth + 1) } else { depth }
}

//! Answers `http` to requests, prints `command` when run.

use dewar_guest::Request;

#[dewar_guest::http]
fn handle(_request: Request) -> &'static str {
    "http"
}

fn main() {
    println!("command");
}

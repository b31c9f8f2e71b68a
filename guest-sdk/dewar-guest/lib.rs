//! What an app or a buildpack for Dewar is built on. Three kinds of guest:
//!
//! **An HTTP app** is a `cdylib` with one function. The agent listens, and calls it for each request:
//!
//! ```
//! use dewar_guest::{Request, Response};
//!
//! #[dewar_guest::http]
//! fn handle(request: Request) -> Response {
//!     Response::new(format!("Hello from {}\n", request.uri().path()).into())
//! }
//! ```
//!
//! Requests and responses are those of the `http` crate, so any router for them can be used. Environment, files and output are those of `std`:
//! `std::env::var("VCAP_APPLICATION")`, `/app` (the app's own files, also its home) and `/tmp`, `println!` for the app's log.
//!
//! **A worker, or a server of another protocol,** is an ordinary `fn main`. It needs nothing from here, save [`exit`] for an exit status of its own
//! choosing and [`wasip2::sockets`] to listen on `$PORT`.
//!
//! **A buildpack** is a `cdylib` with a [`Buildpack`] and one line:
//!
//! ```
//! use dewar_guest::buildpack::{Buildpack, Release};
//!
//! struct Greeter;
//!
//! impl Buildpack for Greeter {
//!     fn detect() -> Result<Option<String>, String> {
//!         Ok(std::fs::exists("/app/greeting.txt").is_ok_and(|is_there| is_there).then(|| "Greeter".to_owned()))
//!     }
//!
//!     fn compile() -> Result<(), String> {
//!         println!("Copying the greeting");
//!         std::fs::copy("/app/greeting.txt", "/droplet/app/greeting.txt").map(drop).map_err(|e| format!("cannot copy greeting.txt: {e}"))
//!     }
//!
//!     fn release() -> Result<Release, String> {
//!         Ok(Release::web("greeter"))
//!     }
//! }
//!
//! dewar_guest::buildpack!(Greeter);
//! ```

#[doc(hidden)]
#[rustfmt::skip]
#[allow(clippy::all, clippy::allow_attributes_without_reason, clippy::unwrap_used, unreachable_pub, unused_lifetimes, missing_docs, reason = "generated code")]
pub mod bindings;
mod body;
pub mod buildpack;
mod serve;

/// Methods, status codes, header names and values.
pub use ::http as types;
pub use body::{Body, BodyError, IncomingBody};
pub use buildpack::Buildpack;
pub use dewar_guest_macros::http;
pub use serve::{Error, IntoResponse, Request, Response};
#[doc(hidden)]
pub use serve::{is_handler, respond};
/// The interfaces of WASI 0.2 beneath all this, for what `std` lacks (sockets, outbound HTTP).
pub use wasip2;

/// Ends the instance with an exit status. `std::process::exit` can only tell zero from one.
pub fn exit(status: u8) -> ! {
    wasip2::cli::exit::exit_with_code(status);
    unreachable!("the host ends the instance in this call")
}

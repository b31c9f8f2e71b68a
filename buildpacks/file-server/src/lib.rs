//! Serves the files of a static site: `file-server FOLDER [OPTION…]`, the droplet of the static buildpack.
//!
//! - `GET` and `HEAD`; anything else is 405.
//! - Folders: `/docs` is redirected to `/docs/`, which is `docs/index.html`, or a listing with `--listing`, or 404.
//! - What isn't there is `404.html` where the site has one; with `--fallback` it is `/index.html` with status 200 instead, for apps that route in the browser.
//! - Names that begin with a dot are not there, `/.well-known/` aside.
//! - A strong `etag` where the buildpack's [index](site_index::Index) knows the file, `last-modified` where the file has a time; conditions and one byte range are
//!   honoured. Several ranges are answered with the whole file, as a server may.
//! - `app.js.gz` beside `app.js` is sent to those who accept gzip.
//! - Files are sent in pieces: memory does not grow with their size.

mod byte_range;
mod conditions;
mod encoding;
mod listing;
mod request_path;
mod settings;
mod site;

use dewar_guest::{Request, Response};
use settings::Settings;

#[dewar_guest::http]
fn handle(request: Request) -> Result<Response, dewar_guest::Error> {
    let settings = Settings::from_arguments(std::env::args().skip(1))?;
    Ok(site::answer(&settings, request.method(), request.uri(), request.headers())?)
}

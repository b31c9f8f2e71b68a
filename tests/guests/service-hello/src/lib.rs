//! Answers requests with a line of text, a POST with its own body, and does what some paths ask for: an HTTP service of WASI 0.3.

use std::sync::atomic::{AtomicU32, Ordering};

use wasip3::clocks::monotonic_clock::wait_for;
use wasip3::http::client;
use wasip3::http::types::{ErrorCode, Fields, Method, Request, Response, Scheme};
use wasip3::{wit_bindgen, wit_future, wit_stream};

struct Service;

impl wasip3::exports::http::handler::Guest for Service {
    async fn handle(request: Request) -> Result<Response, ErrorCode> {
        if matches!(request.get_method(), Method::Post) {
            let (received, receipt) = wit_future::new(|| Ok(()));
            let (body, trailers) = Request::consume_body(request, receipt);
            let (response, _sent) = Response::new(Fields::new(), Some(body), trailers);
            drop(received);
            return Ok(response);
        }
        let path = request.get_path_with_query().unwrap_or_default();
        let (action, number) = path.rsplit_once('=').unwrap_or((&path, ""));
        let number = number.parse().unwrap_or(0);
        match action {
            "/wait?ms" => Ok(wait(number).await),
            "/parts?ms" => Ok(parts(number)),
            "/later?ms" => Ok(later(number)),
            "/spin?ms" => {
                wait(number).await;
                loop {
                    std::hint::spin_loop();
                }
            }
            "/panic?ms" => {
                wait(number).await;
                panic!("as asked");
            }
            _ => match path.strip_prefix("/fetch?url=") {
                Some(url) => Ok(fetch(url).await.unwrap_or_else(|code| {
                    let response = text(format!("{code:?}\n"));
                    let _ = response.set_status_code(422);
                    response
                })),
                None => Ok(text("Hello from WASI 0.3\n".to_owned())),
            },
        }
    }
}

/// Says that it waits, and answers after some milliseconds with how many wait in this store by then, itself included, and how many
/// ever did.
async fn wait(ms: u64) -> Response {
    static WAIT: AtomicU32 = AtomicU32::new(0);
    static EVER: AtomicU32 = AtomicU32::new(0);
    WAIT.fetch_add(1, Ordering::Relaxed);
    EVER.fetch_add(1, Ordering::Relaxed);
    println!("waits");
    wait_for(ms * 1_000_000).await;
    text(format!("{} of {}", WAIT.fetch_sub(1, Ordering::Relaxed), EVER.load(Ordering::Relaxed)))
}

/// Answers at once with one part of a body, and after some milliseconds with another.
fn parts(ms: u64) -> Response {
    let (mut output, body) = wit_stream::new();
    let (_no_trailers, trailers) = wit_future::new(|| Ok(None));
    let (response, _sent) = Response::new(Fields::new(), Some(body), trailers);
    wit_bindgen::spawn_local(async move {
        let _ = output.write_all(b"one".to_vec()).await;
        wait_for(ms * 1_000_000).await;
        let _ = output.write_all(b"two".to_vec()).await;
    });
    response
}

/// Answers at once, and has something to do for some milliseconds more, which it says then.
fn later(ms: u64) -> Response {
    wit_bindgen::spawn_local(async move {
        wait_for(ms * 1_000_000).await;
        println!("done {ms} ms later");
    });
    text("later".to_owned())
}

fn text(text: String) -> Response {
    let (mut output, body) = wit_stream::new();
    let (_no_trailers, trailers) = wit_future::new(|| Ok(None));
    let (response, _sent) = Response::new(Fields::new(), Some(body), trailers);
    wit_bindgen::spawn_local(async move {
        // What is left was not wanted: the client has gone.
        let _ = output.write_all(text.into_bytes()).await;
    });
    response
}

/// Gives the response on as it comes.
async fn fetch(url: &str) -> Result<Response, ErrorCode> {
    let (scheme, rest) = url.split_once("://").ok_or(ErrorCode::HttpRequestUriInvalid)?;
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let scheme = if scheme == "https" { Scheme::Https } else { Scheme::Http };
    let (_no_trailers, trailers) = wit_future::new(|| Ok(None));
    let (request, _sent) = Request::new(Fields::new(), None, trailers, None);
    let accepted = request
        .set_scheme(Some(&scheme))
        .and_then(|()| request.set_authority(Some(authority)))
        .and_then(|()| request.set_path_with_query(Some(path)));
    accepted.map_err(|()| ErrorCode::HttpRequestUriInvalid)?;
    let response = client::send(request).await?;
    let status = response.get_status_code();
    let (received, receipt) = wit_future::new(|| Ok(()));
    let (body, trailers) = Response::consume_body(response, receipt);
    drop(received);
    let (answer, _sent) = Response::new(Fields::new(), Some(body), trailers);
    let _ = answer.set_status_code(status);
    Ok(answer)
}

wasip3::http::service::export!(Service);

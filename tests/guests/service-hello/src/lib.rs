//! Answers every request with a line of text, and a POST with its own body: an HTTP service of WASI 0.3.

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
        match path.strip_prefix("/fetch?url=") {
            Some(url) => Ok(fetch(url).await.unwrap_or_else(|code| {
                let response = text(format!("{code:?}\n"));
                let _ = response.set_status_code(422);
                response
            })),
            None => Ok(text("Hello from WASI 0.3\n".to_owned())),
        }
    }
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

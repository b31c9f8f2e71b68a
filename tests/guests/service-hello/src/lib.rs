//! Answers every request with a line of text, and a POST with its own body: an HTTP service of WASI 0.3.

use wasip3::http::types::{ErrorCode, Fields, Method, Request, Response};
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
        let (mut output, body) = wit_stream::new();
        let (_no_trailers, trailers) = wit_future::new(|| Ok(None));
        let (response, _sent) = Response::new(Fields::new(), Some(body), trailers);
        wit_bindgen::spawn_local(async move {
            // What is left was not wanted: the client has gone.
            let _ = output.write_all(b"Hello from WASI 0.3\n".to_vec()).await;
        });
        Ok(response)
    }
}

wasip3::http::service::export!(Service);

//! Returns from every request without having answered.

use dewar_guest::wasip2::exports::http::incoming_handler::Guest;
use dewar_guest::wasip2::http::types::{IncomingRequest, ResponseOutparam};

struct NoAnswer;

impl Guest for NoAnswer {
    fn handle(_request: IncomingRequest, _response: ResponseOutparam) {}
}

dewar_guest::wasip2::http::proxy::export!(NoAnswer with_types_in dewar_guest::wasip2);

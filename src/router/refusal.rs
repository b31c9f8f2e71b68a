//! Answers that the router gives by itself.

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use http::{Response, StatusCode};

use crate::body::ResponseBody;
use crate::exchange::Exchange;
use crate::headers::{X_CF_ROUTER_ERROR, X_VCAP_REQUEST_ID};

/// Why a request was not passed on, or its answer not passed back. Statuses, texts and `X-Cf-RouterError` are gorouter's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// 400, with the cause.
    BadRequest(&'static str),
    /// 400: `Host` is missing or empty.
    EmptyHost,
    /// 400: `X-CF-App-Instance` is no `app:index`.
    InvalidAppInstance,
    /// 408: the client did not send the body it had announced.
    RequestTimeout,
    /// 501: a body in an encoding that is not ours to undo.
    UnsupportedEncoding,
    /// 404.
    UnknownRoute { host: String },
    /// 400, as in gorouter: the host is there, the instance that the client named is not.
    UnknownInstance { host: String },
    /// 503: the host is known, but its endpoints have gone without a word.
    NoEndpoints { host: String },
    /// 503: every endpoint has all the requests it may have.
    Overloaded { host: String },
    /// 502.
    EndpointFailure,
    /// 504.
    EndpointTimeout,
}

impl Refusal {
    fn status(&self) -> StatusCode {
        match self {
            Self::BadRequest(_) | Self::EmptyHost | Self::InvalidAppInstance | Self::UnknownInstance { .. } => StatusCode::BAD_REQUEST,
            Self::RequestTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::UnsupportedEncoding => StatusCode::NOT_IMPLEMENTED,
            Self::UnknownRoute { .. } => StatusCode::NOT_FOUND,
            Self::NoEndpoints { .. } | Self::Overloaded { .. } => StatusCode::SERVICE_UNAVAILABLE,
            Self::EndpointFailure => StatusCode::BAD_GATEWAY,
            Self::EndpointTimeout => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    /// The value of `X-Cf-RouterError`.
    fn code(&self) -> Option<&'static str> {
        match self {
            Self::BadRequest(_) | Self::RequestTimeout | Self::UnsupportedEncoding => None,
            Self::EmptyHost => Some("empty_host"),
            Self::InvalidAppInstance => Some("invalid_cf_app_instance_header"),
            Self::UnknownRoute { .. } | Self::UnknownInstance { .. } => Some("unknown_route"),
            Self::NoEndpoints { .. } => Some("no_endpoints"),
            Self::Overloaded { .. } => Some("Connection Limit Reached"),
            Self::EndpointFailure | Self::EndpointTimeout => Some("endpoint_failure"),
        }
    }

    fn explanation(&self) -> String {
        match self {
            Self::BadRequest(cause) => format!("{cause}."),
            Self::EmptyHost => "Request had an empty Host header.".to_owned(),
            Self::InvalidAppInstance => "X-CF-App-Instance must be an application id, a colon and an index.".to_owned(),
            Self::RequestTimeout => "The request's body did not come.".to_owned(),
            Self::UnsupportedEncoding => "Only the transfer encoding `chunked` is supported.".to_owned(),
            Self::UnknownRoute { host } => format!("Requested route ('{host}') does not exist."),
            Self::UnknownInstance { host } => format!("Requested instance does not exist for route ('{host}')."),
            Self::NoEndpoints { host } => format!("Requested route ('{host}') has no available endpoints."),
            Self::Overloaded { host } => format!("Requested route ('{host}') has reached the connection limit."),
            Self::EndpointFailure => "Registered endpoint failed to handle the request.".to_owned(),
            Self::EndpointTimeout => "Registered endpoint did not answer in time.".to_owned(),
        }
    }

    /// Whether it is doubtful where the request ends: then nothing after it is taken for another one.
    fn closes(&self) -> bool {
        match self {
            Self::BadRequest(_) | Self::EmptyHost | Self::RequestTimeout | Self::UnsupportedEncoding => true,
            Self::InvalidAppInstance
            | Self::UnknownRoute { .. }
            | Self::UnknownInstance { .. }
            | Self::NoEndpoints { .. }
            | Self::Overloaded { .. }
            | Self::EndpointFailure
            | Self::EndpointTimeout => false,
        }
    }

    /// The answer itself.
    pub(crate) fn into_response(self, mut exchange: Exchange, request_id: HeaderValue) -> Response<ResponseBody> {
        let status = self.status();
        let (code, closes) = (self.code(), self.closes());
        let text = format!("{} {}: {}\n", status.as_u16(), status.canonical_reason().unwrap_or_default(), self.explanation());
        exchange.refused(status, code);
        let mut response = Response::new(ResponseBody::text(Bytes::from(text), Some(exchange)));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, no-store"));
        headers.insert(X_VCAP_REQUEST_ID, request_id);
        if closes {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        if let Some(code) = code {
            headers.insert(X_CF_ROUTER_ERROR, HeaderValue::from_static(code));
        }
        response
    }
}

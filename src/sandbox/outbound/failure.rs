//! What goes wrong with a request, in the words of `wasi:http`. Nothing of it reaches the operator's log: guests could fill it.

use std::error::Error as _;
use std::io::{self, ErrorKind};

use http_body_util::LengthLimitError;
use wasmtime_wasi_http::Error;

use crate::network::LookupError;

/// No connection.
pub(super) fn of_connecting(error: &io::Error) -> Error {
    match error.kind() {
        ErrorKind::ConnectionRefused => Error::ConnectionRefused,
        ErrorKind::TimedOut => Error::ConnectionTimeout,
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable | ErrorKind::AddrNotAvailable => Error::DestinationIpUnroutable,
        // A firewall of the host.
        ErrorKind::PermissionDenied => Error::DestinationIpProhibited,
        _ => Error::DestinationUnavailable,
    }
}

/// No TLS on a connection: what the guest is told, and for the developer why.
pub(super) fn of_tls(error: &io::Error) -> (Error, String) {
    let Some(cause) = error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>()) else {
        let code = if error.kind() == ErrorKind::UnexpectedEof { Error::ConnectionTerminated } else { Error::TlsProtocolError };
        return (code, error.to_string());
    };
    let code = match cause {
        rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented => Error::TlsCertificateError,
        rustls::Error::AlertReceived(alert) => {
            Error::TlsAlertReceived { alert_id: Some(u8::from(*alert)), alert_message: Some(format!("{alert:?}")) }
        }
        _ => Error::TlsProtocolError,
    };
    (code, cause.to_string())
}

/// No addresses.
pub(super) fn of_lookup(error: LookupError) -> Error {
    let dns = |what: &str| Error::DnsError { rcode: Some(what.to_owned()), info_code: None };
    match error {
        LookupError::Denied => Error::HttpRequestDenied,
        LookupError::TooMany => dns("too many look-ups"),
        LookupError::TimedOut => Error::DnsTimeout,
        LookupError::NotFound => dns("the name does not resolve"),
    }
}

/// The exchange broke.
pub(super) fn of_exchange(error: &hyper::Error) -> Error {
    // The guest's own body was too large, or failed.
    if let Some(Error::HttpRequestBodySize(limit)) = error.source().and_then(|cause| cause.downcast_ref()) {
        return Error::HttpRequestBodySize(*limit);
    }
    if error.is_parse_too_large() {
        Error::HttpResponseHeaderSectionSize(None)
    } else if error.is_incomplete_message() {
        Error::HttpResponseIncomplete
    } else if error.is_parse() {
        Error::HttpProtocolError
    } else if error.is_timeout() {
        Error::ConnectionReadTimeout
    } else if error.is_user() {
        Error::HttpRequestBodySize(None)
    } else {
        Error::ConnectionTerminated
    }
}

/// The limit of a body, or what is wrong with the body below it.
pub(super) fn of_body(error: Box<dyn std::error::Error + Send + Sync>, too_long: Error) -> Error {
    if error.is::<LengthLimitError>() {
        return too_long;
    }
    match error.downcast::<hyper::Error>() {
        Ok(error) => of_exchange(&error),
        Err(error) => error.downcast::<Error>().map_or(Error::HttpProtocolError, |error| *error),
    }
}

//! Where a request goes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use http::uri::{PathAndQuery, Scheme};
use http::{HeaderValue, Method, Request, Uri, header};
use rustls::pki_types::ServerName;
use url::Host;
use wasmtime_wasi_http::{Error, WasiBody};

use crate::network::parse_host;

/// Longest target in bytes.
const TARGET_BYTES: usize = 16 << 10;

/// Scheme, host and port.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Origin {
    pub(super) tls: bool,
    pub(super) host: Host,
    pub(super) port: u16,
}

impl Origin {
    /// The origin of a request, which is made fit to be sent there: as to an origin, not as to a proxy, and with a `Host` that is
    /// the origin itself, however the guest spelt it.
    pub(super) fn take(request: &mut Request<WasiBody>) -> Result<Self, Error> {
        // A tunnel would be no HTTP, so no rule of HTTP would hold in it.
        if request.method() == Method::CONNECT {
            return Err(Error::HttpRequestMethodInvalid);
        }
        let origin = Self::of(request.uri())?;
        let target = request.uri().path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
        if target.as_str().len() > TARGET_BYTES {
            return Err(Error::HttpRequestUriTooLong);
        }
        *request.uri_mut() = target.into();
        let host = HeaderValue::try_from(origin.host_field()).map_err(|_| Error::HttpRequestUriInvalid)?;
        request.headers_mut().insert(header::HOST, host);
        Ok(origin)
    }

    fn of(uri: &Uri) -> Result<Self, Error> {
        let tls = match uri.scheme() {
            Some(scheme) if *scheme == Scheme::HTTP => false,
            Some(scheme) if *scheme == Scheme::HTTPS => true,
            Some(_) | None => return Err(Error::HttpProtocolError),
        };
        let authority = uri.authority().ok_or(Error::HttpRequestUriInvalid)?;
        // `user@host` is read as one host by some and as another by others.
        if authority.as_str().contains('@') {
            return Err(Error::HttpRequestUriInvalid);
        }
        let port = match authority.port() {
            Some(port) => Some(port.as_str().parse::<u16>().ok().filter(|port| *port != 0).ok_or(Error::HttpRequestUriInvalid)?),
            None => None,
        };
        // What is neither host nor port of an authority is a port that is no number.
        let spelt = authority.port().map_or(authority.host().len(), |port| authority.host().len() + 1 + port.as_str().len());
        if spelt != authority.as_str().len() {
            return Err(Error::HttpRequestUriInvalid);
        }
        let host = parse_host(authority.host()).ok_or(Error::HttpRequestUriInvalid)?;
        Ok(Self { tls, host, port: port.unwrap_or(if tls { 443 } else { 80 }) })
    }

    fn host_field(&self) -> String {
        let default = if self.tls { 443 } else { 80 };
        if self.port == default { self.host.to_string() } else { format!("{}:{}", self.host, self.port) }
    }

    /// The name that the origin's certificate must have.
    pub(super) fn server_name(&self) -> Result<ServerName<'static>, Error> {
        Ok(match &self.host {
            Host::Domain(name) => ServerName::try_from(name.trim_end_matches('.').to_owned()).map_err(|_| Error::HttpRequestUriInvalid)?,
            Host::Ipv4(address) => ServerName::from(IpAddr::from(Ipv4Addr::from(address.octets()))),
            Host::Ipv6(address) => ServerName::from(IpAddr::from(Ipv6Addr::from(address.octets()))),
        })
    }
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}://{}", if self.tls { "https" } else { "http" }, self.host_field())
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt, Empty};

    use super::*;

    /// Origin and `Host`, or nothing.
    fn taken(uri: &str) -> Option<(String, String)> {
        let body = Empty::new().map_err(|never| match never {}).boxed_unsync();
        let mut request = Request::builder().uri(uri).header("host", "elsewhere").body(body).ok()?;
        let origin = Origin::take(&mut request).ok()?;
        assert!(request.uri().authority().is_none() && request.uri().scheme().is_none());
        let hosts: Vec<_> = request.headers().get_all("host").iter().collect();
        assert_eq!(hosts.len(), 1);
        Some((origin.to_string(), hosts[0].to_str().unwrap().to_owned()))
    }

    #[test]
    fn host_is_the_origin_however_it_is_spelt() {
        for (uri, origin, host) in [
            ("http://Example.com/x", "http://example.com", "example.com"),
            ("https://example.com:443/", "https://example.com", "example.com"),
            ("https://example.com:80/", "https://example.com:80", "example.com:80"),
            ("http://0x7f.1:8080/", "http://127.0.0.1:8080", "127.0.0.1:8080"),
            ("http://[::FFFF:127.0.0.1]/", "http://[::ffff:7f00:1]", "[::ffff:7f00:1]"),
            ("http://2130706433/", "http://127.0.0.1", "127.0.0.1"),
        ] {
            assert_eq!(taken(uri), Some((origin.to_owned(), host.to_owned())), "{uri}");
        }
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        for uri in [
            "http://user@127.0.0.1/",
            "http://example.com:80@127.0.0.1/",
            "http://127.0.0.1:0/",
            "http://127.0.0.1:99999/",
            "http://127.0.0.1:/",
            "http://1.2.3.4.5/",
            "/relative",
            "ftp://example.com/",
        ] {
            assert_eq!(taken(uri), None, "{uri}");
        }
    }
}

//! Host names: what a registration may name and what a request may ask for.

use std::borrow::{Borrow, Cow};
use std::fmt;
use std::sync::Arc;

/// The longest name DNS can carry.
pub const MAX_HOST_LENGTH: usize = 253;

/// The longest uri that a registration may name; its path is not used.
pub const MAX_URI_LENGTH: usize = 2048;

/// What a route is known by: a host name, lower-case, without port and path; or every name below a domain, however deep.
///
/// `*.example.net` is kept as `.example.net`, which no host name looks like and which is a tail of every name below it:
/// looking up a wildcard needs no new text.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RouteKey(Arc<str>);

impl RouteKey {
    /// The key of a uri as it stands in a registration: `Shop.example.net`, `*.example.net`, `shop.example.net:80/path`.
    ///
    /// # Errors
    /// When the uri is too long or names no host.
    pub fn parse(uri: &str) -> Result<Self, UriRefused> {
        if uri.len() > MAX_URI_LENGTH {
            return Err(UriRefused::TooLong(uri.len()));
        }
        let no_host = || UriRefused::NoHost(uri.to_owned());
        let authority = uri.split_once('/').map_or(uri, |(authority, _path)| authority);
        match authority.strip_prefix("*.") {
            Some(domain) => Ok(Self(format!(".{}", request_host(domain).ok_or_else(no_host)?).into())),
            None => Ok(Self(request_host(authority).ok_or_else(no_host)?.into())),
        }
    }
}

impl Borrow<str> for RouteKey {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// The keys that a request for `host` may be found under: itself, then the domains above it, the closest first.
pub(super) fn lookups(host: &str) -> impl Iterator<Item = &str> {
    std::iter::once(host).chain(host.match_indices('.').map(|(dot, _)| &host[dot..]))
}

impl fmt::Display for RouteKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let wildcard = if self.0.starts_with('.') { "*" } else { "" };
        write!(f, "{wildcard}{}", self.0)
    }
}

/// Why a uri is no route.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UriRefused {
    /// Longer than [`MAX_URI_LENGTH`]; the text itself is not repeated.
    #[error("uri of {0} bytes is longer than {MAX_URI_LENGTH}")]
    TooLong(usize),
    /// Its host part is missing or malformed.
    #[error("uri {0:?} names no host")]
    NoHost(String),
}

/// The table's form of a `Host` header: lower-case, without port and trailing dot. `None` when it is no host name.
///
/// Nothing is allocated when the header is in lower case already, as browsers send it.
#[must_use]
pub fn request_host(header: &str) -> Option<Cow<'_, str>> {
    let (name, port) = split_port(header)?;
    if !port.bytes().all(|b| b.is_ascii_digit()) || port.len() > 5 {
        return None;
    }
    let name = name.strip_suffix('.').unwrap_or(name);
    let valid = !name.is_empty() && name.len() <= MAX_HOST_LENGTH && is_name_or_address(name);
    if !valid {
        return None;
    }
    Some(if name.bytes().any(|b| b.is_ascii_uppercase()) { Cow::Owned(name.to_ascii_lowercase()) } else { Cow::Borrowed(name) })
}

fn split_port(authority: &str) -> Option<(&str, &str)> {
    if authority.starts_with('[') {
        let end = authority.find(']')? + 1;
        let (address, rest) = authority.split_at(end);
        return if rest.is_empty() { Some((address, "")) } else { rest.strip_prefix(':').map(|port| (address, port)) };
    }
    Some(authority.split_once(':').unwrap_or((authority, "")))
}

fn is_name_or_address(name: &str) -> bool {
    if let Some(address) = name.strip_prefix('[') {
        return address.bytes().all(|b| b.is_ascii_hexdigit() || matches!(b, b':' | b'.' | b']'));
    }
    // Underscores are no host-name characters, yet app names have them. An empty label would make `a..b` and `.a` names.
    name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.')) && !name.starts_with('.') && !name.contains("..")
}

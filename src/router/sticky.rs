//! Sticky sessions: a client that an application has given a session goes back to the instance that holds it.

use dewar_core::routes::EndpointInfo;
use http::HeaderMap;
use http::header::{COOKIE, HeaderValue, SET_COOKIE};

use crate::config::StickyConfig;

const VCAP_COOKIE: &str = "__VCAP_ID__";

/// The instance that a request must go back to while it exists: it carries a session of the application's and our cookie.
pub(crate) fn wished_instance<'a>(headers: &'a HeaderMap, config: &StickyConfig) -> Option<&'a str> {
    let mut has_session = false;
    let mut instance = None;
    for (name, value) in headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok()).flat_map(cookies) {
        has_session |= config.cookie_names.iter().any(|session| session == name);
        if name == VCAP_COOKIE && instance.is_none() {
            instance = Some(value);
        }
    }
    instance.filter(|_| has_session)
}

fn cookies(header: &str) -> impl Iterator<Item = (&str, &str)> {
    header.split(';').filter_map(|pair| pair.trim().split_once('=')).map(|(name, value)| (name.trim(), value.trim()))
}

/// Adds our cookie to a response that starts a session, and to one from another instance than the client's earlier one. As in
/// gorouter it lives as long as the session: `Expires`, `Secure` and `SameSite` are the session cookie's, and so is the end of it.
pub(crate) fn bind(headers: &mut HeaderMap, wished: Option<&str>, endpoint: &EndpointInfo, config: &StickyConfig) {
    let Some(instance) = endpoint.instance_id.as_deref() else { return };
    let set: Vec<SetCookie<'_>> = headers.get_all(SET_COOKIE).iter().filter_map(|value| SetCookie::parse(value.to_str().ok()?)).collect();
    // An application that sets it by itself knows better.
    if set.iter().any(|cookie| cookie.name == VCAP_COOKIE) {
        return;
    }
    let session = set.iter().find(|cookie| config.cookie_names.iter().any(|name| name == cookie.name));
    if session.is_none() && wished.is_none_or(|wished| wished == instance) {
        return;
    }
    let mut cookie = format!("{VCAP_COOKIE}={instance}; Path=/");
    if let Some(expires) = session.and_then(|session| session.expires) {
        cookie.push_str("; Expires=");
        cookie.push_str(expires);
    }
    if session.is_some_and(|session| session.ends_now) {
        cookie.push_str("; Max-Age=0");
    }
    cookie.push_str("; HttpOnly");
    if config.secure || session.is_some_and(|session| session.secure) {
        cookie.push_str("; Secure");
    }
    if let Some(same_site) = session.and_then(|session| session.same_site) {
        cookie.push_str("; SameSite=");
        cookie.push_str(same_site);
    }
    if let Ok(value) = HeaderValue::try_from(cookie) {
        headers.append(SET_COOKIE, value);
    }
}

/// What is of interest in a `Set-Cookie` header.
#[derive(Debug, Default)]
struct SetCookie<'a> {
    name: &'a str,
    expires: Option<&'a str>,
    same_site: Option<&'a str>,
    ends_now: bool,
    secure: bool,
}

impl<'a> SetCookie<'a> {
    fn parse(header: &'a str) -> Option<Self> {
        let mut parts = header.split(';').map(str::trim);
        let (name, _value) = parts.next()?.split_once('=')?;
        let mut cookie = Self { name: name.trim(), ..Self::default() };
        for part in parts {
            let (attribute, value) = part.split_once('=').unwrap_or((part, ""));
            let (attribute, value) = (attribute.trim(), value.trim());
            if attribute.eq_ignore_ascii_case("expires") {
                cookie.expires = Some(value);
            } else if attribute.eq_ignore_ascii_case("max-age") {
                cookie.ends_now = value.parse::<i64>().is_ok_and(|seconds| seconds <= 0);
            } else if attribute.eq_ignore_ascii_case("secure") {
                cookie.secure = true;
            } else if attribute.eq_ignore_ascii_case("samesite") {
                cookie.same_site = Some(value);
            }
        }
        Some(cookie)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn config(secure: bool) -> StickyConfig {
        StickyConfig { cookie_names: vec!["JSESSIONID".to_owned()], secure }
    }

    fn endpoint(instance: &str) -> EndpointInfo {
        EndpointInfo {
            address: "10.0.0.1:61001".parse().unwrap(),
            app: None,
            instance_id: Some(instance.to_owned()),
            index: None,
            tags: BTreeMap::new(),
        }
    }

    #[test]
    fn a_wish_needs_the_session_and_our_cookie() {
        for (header, wish) in [
            ("JSESSIONID=a; __VCAP_ID__=i-1", Some("i-1")),
            ("__VCAP_ID__=i-1;JSESSIONID=a", Some("i-1")),
            ("__VCAP_ID__=i-1", None),
            ("JSESSIONID=a", None),
            ("jsessionid=a; __VCAP_ID__=i-1", None),
            ("", None),
            (";;=;", None),
        ] {
            let headers = HeaderMap::from_iter([(COOKIE, HeaderValue::from_static(header))]);
            assert_eq!(wished_instance(&headers, &config(false)), wish, "{header}");
        }
    }

    /// Our cookie in the answer of instance `i-1` that sets `set`, to a client that wished for `wished`.
    fn bound(set: &str, wished: Option<&str>, secure: bool) -> Option<String> {
        let mut headers = HeaderMap::new();
        if !set.is_empty() {
            headers.insert(SET_COOKIE, HeaderValue::from_str(set).unwrap());
        }
        bind(&mut headers, wished, &endpoint("i-1"), &config(secure));
        let ours = headers.get_all(SET_COOKIE).iter().map(|value| value.to_str().unwrap()).find(|value| *value != set);
        ours.map(str::to_owned)
    }

    #[test]
    fn a_session_binds_its_client() {
        let plain = Some("__VCAP_ID__=i-1; Path=/; HttpOnly".to_owned());
        assert_eq!(bound("JSESSIONID=a", None, false), plain);
        assert_eq!(bound("other=a", None, false), None);
        assert_eq!(bound("", Some("i-1"), false), None);
        assert_eq!(bound("", Some("i-gone"), false), plain, "the client is bound to the instance that took over");
        assert_eq!(bound("__VCAP_ID__=own", Some("i-gone"), false), None);
        let secure = Some("__VCAP_ID__=i-1; Path=/; HttpOnly; Secure".to_owned());
        assert_eq!(bound("JSESSIONID=a; Secure", None, false), secure);
        assert_eq!(bound("JSESSIONID=a", None, true), secure);
        assert_eq!(
            bound("JSESSIONID=a; Expires=Wed, 21 Oct 2026 07:28:00 GMT; Max-Age=0; SameSite=Lax", None, false),
            Some("__VCAP_ID__=i-1; Path=/; Expires=Wed, 21 Oct 2026 07:28:00 GMT; Max-Age=0; HttpOnly; SameSite=Lax".to_owned())
        );
        assert_eq!(bound("JSESSIONID=a; Max-Age=60", None, false), plain);
    }

    proptest! {
        /// Whatever stands in a cookie, ours is one of its own or none is read; and what is bound is read again.
        #[test]
        fn any_cookie_is_read_without_harm(text in "([ -~]|JSESSIONID=|__VCAP_ID__=|; ?|Expires=|SameSite=){0,40}") {
            let value = HeaderValue::from_str(&text).unwrap();
            let headers = HeaderMap::from_iter([(COOKIE, value)]);
            if let Some(wish) = wished_instance(&headers, &config(false)) {
                prop_assert!(text.contains(VCAP_COOKIE) && text.contains(wish) && !wish.contains(';'), "{wish:?} of {text:?}");
            }
            if let Some(cookie) = bound(&text, Some("i-gone"), false) {
                let pair = cookie.split(';').next().unwrap();
                let sent = HeaderMap::from_iter([(COOKIE, HeaderValue::from_str(&format!("JSESSIONID=a; {pair}")).unwrap())]);
                prop_assert_eq!(wished_instance(&sent, &config(false)), Some("i-1"), "{}", cookie);
            }
        }
    }
}

//! Names of hosts and their addresses.
//!
//! A name means the same for all instances of an app for a while: an answer is kept, so that a name that resolves to something
//! else each time cannot alternate between an address that is looked at and one that is used. Addresses are judged by whoever
//! asks, every time.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr, ToSocketAddrs};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use url::Host;

use super::{InstanceNetwork, Resolve};

/// Longest that a guest waits for an answer, its turn included.
const PATIENCE: Duration = Duration::from_secs(10);
/// Look-ups under way for all guests together: each keeps a thread of the host busy.
const CONCURRENT: usize = 64;
/// How long an answer is kept, since the host does not tell how long it holds.
const KEPT: Duration = Duration::from_secs(10);
/// Answers kept for an app; for one more, that goes which would end first.
const ANSWERS: usize = 256;
/// Addresses of an answer that are kept.
const ADDRESSES: usize = 16;
/// Longest name in bytes (RFC 1035).
const NAME_BYTES: usize = 253;

/// As the host does it: files, DNS, whatever is configured.
pub(super) fn by_the_host(name: &str) -> io::Result<Vec<IpAddr>> {
    Ok((name, 0).to_socket_addrs()?.map(|address| address.ip().to_canonical()).collect())
}

/// Reads a host as it stands in a URL or as a guest asks for it. All spellings of an IPv4 address (`127.1`, `0x7f000001`,
/// `2130706433`, `0177.0.0.1`, a dot at the end) come out as that address, and of a name as lower-case ASCII.
pub(crate) fn parse_host(text: &str) -> Option<Host> {
    let parsed = match text.parse::<Ipv6Addr>() {
        Ok(address) => Host::Ipv6(address),
        Err(_) => Host::parse(text).ok()?,
    };
    match &parsed {
        Host::Domain(name) if name.trim_end_matches('.').is_empty() || name.len() > NAME_BYTES => None,
        Host::Domain(_) | Host::Ipv4(_) | Host::Ipv6(_) => Some(parsed),
    }
}

/// Resolves names for all guests.
#[derive(Clone)]
pub(crate) struct Resolver {
    resolve: Resolve,
    turns: Arc<Semaphore>,
}

impl Resolver {
    pub(super) fn new(resolve: Resolve) -> Self {
        Self { resolve, turns: Arc::new(Semaphore::new(CONCURRENT)) }
    }
}

/// Why there are no addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LookupError {
    /// The operator does not want it looked up.
    Denied,
    /// More look-ups than the instance may make.
    TooMany,
    /// No answer in time.
    TimedOut,
    /// There is no such name, or nobody who knows.
    NotFound,
}

/// Names that an app's instances have looked up.
pub(crate) struct Names {
    resolver: Resolver,
    answers: Mutex<HashMap<String, Answer>>,
}

struct Answer {
    addresses: Arc<[IpAddr]>,
    until: Instant,
}

impl Names {
    pub(super) fn new(resolver: Resolver) -> Self {
        Self { resolver, answers: Mutex::default() }
    }

    fn known(&self, name: &str) -> Option<Arc<[IpAddr]>> {
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.get(name).filter(|answer| Instant::now() < answer.until).map(|answer| answer.addresses.clone())
    }

    fn keep(&self, name: String, addresses: Arc<[IpAddr]>) {
        let now = Instant::now();
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        if answers.len() >= ANSWERS {
            answers.retain(|_, answer| now < answer.until);
        }
        if answers.len() >= ANSWERS {
            let first = answers.iter().min_by_key(|(_, answer)| answer.until).map(|(name, _)| name.clone());
            first.and_then(|name| answers.remove(&name));
        }
        answers.insert(name, Answer { addresses, until: now + KEPT });
    }
}

impl InstanceNetwork {
    /// The addresses of a host, whether they are allowed or not; at least one.
    pub(crate) async fn addresses(&self, host: &Host) -> Result<Arc<[IpAddr]>, LookupError> {
        let name = match host {
            Host::Ipv4(address) => return Ok([IpAddr::V4(*address)].into()),
            Host::Ipv6(address) => return Ok([IpAddr::V6(*address)].into()),
            Host::Domain(name) => name,
        };
        if !self.egress.allows_name(name) {
            return Err(LookupError::Denied);
        }
        match self.app.names.known(name) {
            Some(addresses) => Ok(addresses),
            None => timeout(PATIENCE, self.look_up(name)).await.map_err(|_| LookupError::TimedOut)?,
        }
    }

    async fn look_up(&self, name: &str) -> Result<Arc<[IpAddr]>, LookupError> {
        let turn = |turns: &Arc<Semaphore>| turns.clone().acquire_owned();
        let own = turn(&self.allowance.concurrent_lookups).await.map_err(|_| LookupError::TooMany)?;
        // Whoever waited may find that somebody else has asked.
        if let Some(addresses) = self.app.names.known(name) {
            return Ok(addresses);
        }
        if !self.allowance.lookups.take() {
            return Err(LookupError::TooMany);
        }
        let names = &self.app.names;
        let everybodys = turn(&names.resolver.turns).await.map_err(|_| LookupError::TooMany)?;
        let found = resolve(names.resolver.resolve, name.to_owned(), [own, everybodys]).await;
        if found.is_empty() {
            return Err(LookupError::NotFound);
        }
        let addresses: Arc<[IpAddr]> = found.into();
        names.keep(name.to_owned(), addresses.clone());
        Ok(addresses)
    }
}

/// The permits go with the thread that is busy, not with the guest that may have lost its patience.
async fn resolve(resolve: Resolve, name: String, permits: [OwnedSemaphorePermit; 2]) -> Vec<IpAddr> {
    let resolving = tokio::task::spawn_blocking(move || {
        let found = resolve(&name);
        drop(permits);
        found
    });
    let mut found = resolving.await.map_err(io::Error::other).flatten().unwrap_or_default();
    found.truncate(ADDRESSES);
    found
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn every_spelling_of_an_address_is_that_address() {
        let loopback = Some(Host::Ipv4(Ipv4Addr::LOCALHOST));
        for spelling in
            ["127.0.0.1", "127.1", "127.0.1", "0x7f000001", "0x7f.0.0.1", "0177.0.0.1", "2130706433", "127.0.0.1.", "１２７.0.0.1"]
        {
            assert_eq!(parse_host(spelling), loopback, "{spelling}");
        }
        let mapped = Some(Host::Ipv6("::ffff:127.0.0.1".parse().unwrap()));
        assert_eq!((parse_host("[::ffff:127.0.0.1]"), parse_host("::ffff:7f00:1")), (mapped.clone(), mapped));
        assert_eq!(parse_host("Example.COM."), Some(Host::Domain("example.com.".to_owned())));
        assert_eq!(parse_host("bücher.example"), Some(Host::Domain("xn--bcher-kva.example".to_owned())));
        let long = "a.".repeat(127);
        for text in ["", ".", "1.2.3.4.5", "256.0.0.1", "a b", "user@host", "host:80", "a/b", "fe80::1%eth0", "[fe80::1%25eth0]", &long] {
            assert_eq!(parse_host(text), None, "{text:?}");
        }
    }

    #[test]
    fn what_is_kept_is_bounded_and_the_oldest_goes_first() {
        let names = Names::new(Resolver::new(by_the_host));
        for number in 0..=ANSWERS {
            names.keep(number.to_string(), [IpAddr::V4(Ipv4Addr::LOCALHOST)].into());
        }
        assert_eq!(names.answers.lock().unwrap().len(), ANSWERS);
        assert!(names.known("0").is_none() && names.known("1").is_some() && names.known(&ANSWERS.to_string()).is_some());
    }
}

//! Signed URLs: whoever holds one may make this one request until it expires, and no other.

use std::time::Duration;

use dewar_protocol::Secret;
use hmac::{Hmac, KeyInit, Mac};
use rand::TryRng;
use rand::rngs::SysRng;
use sha2::Sha256;

/// Signs paths with a key of its own that never leaves it, so each push has its own secret.
pub(crate) struct Signer {
    key: Secret<[u8; 32]>,
}

/// What a signed URL allows to do with its path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// `GET`.
    Read,
    /// `POST`.
    Write,
}

/// Why a request is refused. The reason is for our log; the answer tells only that it was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Denied {
    /// Not signed, or for another path, method or time.
    #[error("the signature does not fit")]
    BadSignature,
    /// Signed, but too late.
    #[error("the URL has expired")]
    Expired,
}

impl Signer {
    /// With a fresh key.
    ///
    /// # Errors
    /// When the operating system has no randomness to give.
    pub(crate) fn new() -> std::io::Result<Self> {
        let mut key = [0; 32];
        SysRng.try_fill_bytes(&mut key).map_err(std::io::Error::other)?;
        Ok(Self { key: Secret(key) })
    }

    /// `<path>?expires=<unix seconds>&signature=<hex>`.
    #[must_use]
    pub(crate) fn sign(&self, access: Access, path: &str, expires: Duration) -> String {
        let expires = expires.as_secs();
        let signature = self.mac(access, path, expires).finalize().into_bytes();
        let hex: String = signature.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{path}?expires={expires}&signature={hex}")
    }

    /// Whether a request for this path and query at this time (since the Unix epoch) is allowed. Other parameters do not matter.
    ///
    /// # Errors
    /// When it is not, with the reason.
    pub(crate) fn verify(&self, access: Access, path: &str, query: &str, now: Duration) -> Result<(), Denied> {
        let parameter = |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
        let expires: u64 = parameter("expires").and_then(|text| text.parse().ok()).ok_or(Denied::BadSignature)?;
        let signature = parameter("signature").and_then(decode_hex).ok_or(Denied::BadSignature)?;
        // Constant time: `verify_slice` compares without an early end.
        self.mac(access, path, expires).verify_slice(&signature).map_err(|_| Denied::BadSignature)?;
        if now.as_secs() > expires { Err(Denied::Expired) } else { Ok(()) }
    }

    fn mac(&self, access: Access, path: &str, expires: u64) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(self.key.expose()).expect("HMAC takes a key of any length");
        mac.update(match access {
            Access::Read => b"GET",
            Access::Write => b"POST",
        });
        // The fixed-width number comes first, so that no path can be read as another path and another time.
        mac.update(&expires.to_be_bytes());
        mac.update(path.as_bytes());
        mac
    }
}

fn decode_hex(text: &str) -> Option<Vec<u8>> {
    // Only what we write: the conversion of a number would take a sign as well.
    if !text.len().is_multiple_of(2) || !text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::Index;

    use super::*;

    const NOW: Duration = Duration::from_secs(1_000);
    const LATER: Duration = Duration::from_secs(1_060);

    fn split(url: &str) -> (&str, &str) {
        url.split_once('?').unwrap()
    }

    #[test]
    fn a_signed_url_is_good_until_it_expires() {
        let signer = Signer::new().unwrap();
        let url = signer.sign(Access::Read, "/package/1", LATER);
        let (path, query) = split(&url);
        assert_eq!(signer.verify(Access::Read, path, query, NOW), Ok(()));
        assert_eq!(signer.verify(Access::Read, path, query, LATER), Ok(()));
        assert_eq!(signer.verify(Access::Read, path, query, LATER + Duration::from_secs(1)), Err(Denied::Expired));
        assert_eq!(signer.verify(Access::Read, path, &format!("{query}&async=true"), NOW), Ok(()), "a stager adds a parameter");
    }

    #[test]
    fn a_tampered_url_is_refused() {
        let signer = Signer::new().unwrap();
        let url = signer.sign(Access::Read, "/package/1", LATER);
        let (path, query) = split(&url);
        let longer = query.replace("1060", "9999");
        let short = &query[..query.len() - 2];
        let odd = &query[..query.len() - 1];
        for (access, path, query) in [
            (Access::Write, path, query),
            (Access::Read, "/package/2", query),
            (Access::Read, path, longer.as_str()),
            (Access::Read, path, short),
            (Access::Read, path, odd),
            (Access::Read, path, ""),
            (Access::Read, path, "expires=1060"),
            (Access::Read, path, "expires=1060&signature="),
            (Access::Read, path, "expires=1060&signature=éé"),
            (Access::Read, path, "expires=x&signature=00"),
        ] {
            assert_eq!(signer.verify(access, path, query, NOW), Err(Denied::BadSignature), "{access:?} {path} {query}");
        }
    }

    proptest! {
        /// Nothing but the URL itself opens its path: no change of a single character does, nor any text in its place.
        #[test]
        fn no_other_url_is_good(at in any::<Index>(), byte in 0x20..0x7f_u8, path in "[/a-z0-9?&=%]{0,12}", query in "\\PC{0,80}") {
            let signer = Signer::new().unwrap();
            let url = signer.sign(Access::Read, "/package/1", LATER);
            let mut changed = url.clone().into_bytes();
            let at = at.index(changed.len());
            changed[at] = byte;
            let changed = String::from_utf8(changed).unwrap();
            if changed != url && let Some((path, query)) = changed.split_once('?') {
                prop_assert!(signer.verify(Access::Read, path, query, NOW).is_err(), "{changed} for {url}");
            }
            prop_assert!(signer.verify(Access::Read, &path, &query, NOW).is_err());
            let with_digits = format!("expires=1060&signature={query}");
            prop_assert!(signer.verify(Access::Read, &path, &with_digits, NOW).is_err());
        }
    }

    #[test]
    fn another_push_has_another_key() {
        let url = Signer::new().unwrap().sign(Access::Read, "/package/1", LATER);
        let (path, query) = split(&url);
        assert_eq!(Signer::new().unwrap().verify(Access::Read, path, query, NOW), Err(Denied::BadSignature));
    }
}

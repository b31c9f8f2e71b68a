//! Digests as hex text.

use std::fmt::Write as _;

use dewar_protocol::{DropletSha1, Fingerprint};
use sha1::Sha1;
use sha2::{Digest as _, Sha256};

/// Lower-case hex digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a string takes all that is written to it");
        text
    })
}

/// The digest of a droplet.
pub(crate) fn sha1(hash: Sha1) -> DropletSha1 {
    DropletSha1::parse(&hex(&hash.finalize())).expect("SHA-1 has 40 hex digits")
}

/// The fingerprint of what decides a staging.
pub(crate) fn fingerprint(hash: Sha256) -> Fingerprint {
    Fingerprint::parse(&hex(&hash.finalize())).expect("SHA-256 has 64 hex digits")
}

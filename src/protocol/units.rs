//! One type per unit and per kind of identifier, so that a mistake is a compile error.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Mebibytes. The DEA protocol writes "MB" and means 1024×1024 bytes. Signed: what remains of an overbooked resource is negative.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Mib(pub i64);

impl Mib {
    /// The same amount in bytes; a negative amount has none, an absurd one saturates.
    #[must_use]
    pub fn to_bytes(self) -> Bytes {
        Bytes(u64::try_from(self.0).unwrap_or(0).saturating_mul(1 << 20))
    }
}

impl fmt::Display for Mib {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}M", self.0)
    }
}

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Bytes(pub u64);

/// Seconds since the Unix epoch with a fraction, the form of every `state_timestamp`.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UnixSeconds(pub f64);

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub String);

        impl $name {
            /// The identifier as it stands on the wire.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(text.to_owned())
            }
        }
    };
}

text_id!(
    /// One running copy of an app: 32 lower-case hex digits, replaced when `dea.update` changes the app's version.
    InstanceId
);
text_id!(
    /// An agent as a placement target (`dea` and `id` on the wire). New at every process start; a token of NATS subjects.
    CellId
);
text_id!(
    /// One staging request, as the Cloud Controller names it.
    TaskId
);

/// An application (`droplet`, `app`, `app_id` on the wire). A JSON number is accepted and becomes its decimal text.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct AppId(pub String);

impl AppId {
    /// The identifier as it stands on the wire.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for AppId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<&str> for AppId {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl<'de> Deserialize<'de> for AppId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextOrInteger;
        impl serde::de::Visitor<'_> for TextOrInteger {
            type Value = AppId;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an application id (a string or an integer)")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<AppId, E> {
                Ok(AppId::from(text))
            }
            fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<AppId, E> {
                Ok(AppId(number.to_string()))
            }
            fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<AppId, E> {
                Ok(AppId(number.to_string()))
            }
        }
        deserializer.deserialize_any(TextOrInteger)
    }
}

/// Why a text is no digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidDigest {
    /// How many hex digits were wanted.
    pub digits: usize,
}

impl fmt::Display for InvalidDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not a digest of {} lower-case hex digits", self.digits)
    }
}

impl std::error::Error for InvalidDigest {}

macro_rules! hex_digest {
    ($(#[$doc:meta])* $name:ident, $digits:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// The digest from its hex digits.
            ///
            /// # Errors
            /// When the text is anything but the right number of lower-case hex digits: it becomes a directory name.
            pub fn parse(text: &str) -> Result<Self, InvalidDigest> {
                let hex = text.len() == $digits && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
                if hex { Ok(Self(text.to_owned())) } else { Err(InvalidDigest { digits: $digits }) }
            }

            /// The hex digits.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                Self::parse(&text).map_err(serde::de::Error::custom)
            }
        }
    };
}

hex_digest!(
    /// SHA-1 of a droplet archive: the name under which the droplet registry keeps it.
    DropletSha1,
    40
);
hex_digest!(
    /// SHA-256 over everything that decides a staging result (package, buildpacks, options): equal fingerprints, equal droplets.
    Fingerprint,
    64
);

/// A value that must not reach a log: environment, credentials, URLs that carry a password. `Debug` prints `…`.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Secret<T>(pub T);

impl<T> Secret<T> {
    /// The value itself, for the one place that needs it.
    pub fn expose(&self) -> &T {
        &self.0
    }
}

impl<T> fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

impl<T: Serialize> Serialize for Secret<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Secret<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        T::deserialize(deserializer).map(Self)
    }
}

//! What makes an app's instances healthy, as its developer says it.

use std::fmt;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

/// Bytes of the longest path that agents ask for.
const PATH_BYTES_MAX: usize = 2048;

/// What an instance has to show before it gets requests. As a text `port`, `none`, or `http:/path`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum AppHealthCheck {
    /// Its port takes connections; nothing where it has no routes.
    Port,
    /// Nothing: it is healthy as soon as it runs.
    None,
    /// It answers 200 to a `GET` of this path.
    Http(String),
}

/// Why a text is no health check.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no health check: write port, none, or http:/path")]
pub struct InvalidHealthCheck(String);

impl FromStr for AppHealthCheck {
    type Err = InvalidHealthCheck;

    fn from_str(text: &str) -> Result<Self, InvalidHealthCheck> {
        match text {
            "port" => Ok(Self::Port),
            "none" | "process" => Ok(Self::None),
            "http" => Ok(Self::Http("/".to_owned())),
            _ => match text.strip_prefix("http:").filter(|path| is_path(path)) {
                Some(path) => Ok(Self::Http(path.to_owned())),
                None => Err(InvalidHealthCheck(text.chars().take(80).collect::<String>().escape_debug().to_string())),
            },
        }
    }
}

fn is_path(text: &str) -> bool {
    text.starts_with('/') && text.len() <= PATH_BYTES_MAX && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#')
}

impl fmt::Display for AppHealthCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port => f.write_str("port"),
            Self::None => f.write_str("none"),
            Self::Http(path) => write!(f, "http:{path}"),
        }
    }
}

impl TryFrom<String> for AppHealthCheck {
    type Error = InvalidHealthCheck;

    fn try_from(text: String) -> Result<Self, InvalidHealthCheck> {
        text.parse()
    }
}

impl From<AppHealthCheck> for String {
    fn from(check: AppHealthCheck) -> Self {
        check.to_string()
    }
}

impl AppHealthCheck {
    /// Type and path, as the start message has them.
    pub(crate) fn on_the_wire(&self) -> (&'static str, Option<String>) {
        match self {
            Self::Port => ("port", None),
            Self::None => ("none", None),
            Self::Http(path) => ("http", Some(path.clone())),
        }
    }
}

/// Reads a table with `type` and maybe `path`.
pub(crate) fn of_table<'de, D: Deserializer<'de>>(table: D) -> Result<Option<AppHealthCheck>, D::Error> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Table {
        r#type: String,
        path: Option<String>,
    }
    let Table { r#type, path } = Table::deserialize(table)?;
    let text = path.map_or_else(|| r#type.clone(), |path| format!("{}:{path}", r#type));
    text.parse().map(Some).map_err(D::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_health_check_is_a_word_or_a_path() {
        for (text, shown) in [("port", "port"), ("none", "none"), ("process", "none"), ("http", "http:/"), ("http:/a?b=1", "http:/a?b=1")] {
            assert_eq!(text.parse::<AppHealthCheck>().unwrap().to_string(), shown);
        }
        for bad in ["", "tcp", "http:", "http:a", "https://host/", "http:/a b", "http:/\r\nX: 1", "http:/ä"] {
            assert!(bad.parse::<AppHealthCheck>().unwrap_err().to_string().contains("is no health check"), "{bad}");
        }
    }
}

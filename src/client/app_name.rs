//! Names of apps: they become host names, file names and prefixes of log lines.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The longest name: that of a DNS label.
const LENGTH_MAX: usize = 63;

/// A DNS label: 1 to 63 of `a`–`z`, `0`–`9` and `-`, no `-` at either end.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AppName(String);

/// Why a text is no name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{}` is no app name: use 1 to 63 of a-z, 0-9 and -, no - at either end{}", .text.escape_debug(), suggestion(.text))]
pub struct InvalidName {
    text: String,
}

fn suggestion(text: &str) -> String {
    AppName::sanitised(text).map_or_else(String::new, |name| format!(" (such as `{name}`)"))
}

impl AppName {
    /// The nearest name to any text: lower case, every run of other characters one `-`. `None` when nothing is left.
    #[must_use]
    pub fn sanitised(text: &str) -> Option<Self> {
        let mut label = String::new();
        for c in text.chars().map(|c| c.to_ascii_lowercase()) {
            if c.is_ascii_lowercase() || c.is_ascii_digit() {
                label.push(c);
            } else if !label.is_empty() && !label.ends_with('-') {
                label.push('-');
            }
            if label.len() == LENGTH_MAX {
                break;
            }
        }
        let label = label.trim_end_matches('-');
        (!label.is_empty()).then(|| Self(label.to_owned()))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for AppName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let label = (1..=LENGTH_MAX).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !text.starts_with('-')
            && !text.ends_with('-');
        if label { Ok(Self(text.to_owned())) } else { Err(InvalidName { text: text.chars().take(LENGTH_MAX + 1).collect() }) }
    }
}

impl TryFrom<String> for AppName {
    type Error = InvalidName;

    fn try_from(text: String) -> Result<Self, InvalidName> {
        text.parse()
    }
}

impl From<AppName> for String {
    fn from(name: AppName) -> Self {
        name.0
    }
}

impl fmt::Display for AppName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_dns_labels_are_names() {
        for good in ["a", "hello", "my-app-2", "0"] {
            assert!(good.parse::<AppName>().is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a.b", "../x", "a/b", "a b", "ä", "a\n", &"x".repeat(64)] {
            assert!(bad.parse::<AppName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn any_text_is_sanitised_to_a_name_or_nothing() {
        for (text, name) in [("Hello World", "hello-world"), ("..my_app..", "my-app"), ("hello.wasm", "hello-wasm"), ("Ünder", "nder")] {
            assert_eq!(AppName::sanitised(text).unwrap().as_str(), name);
        }
        assert_eq!(AppName::sanitised("___"), None);
        let long = AppName::sanitised(&"a-".repeat(60)).unwrap();
        assert!(long.as_str().parse::<AppName>().is_ok());
    }
}

//! Reading a YAML mapping key by key: a wrong value does not hide the next one, and a key that nobody asked for is noticed.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Map, Value};

/// The longest span that a configuration may ask for. Far beyond use, it keeps arithmetic on time from overflowing.
const MAX_SPAN: Duration = Duration::from_secs(7 * 24 * 3600);

/// A value that the configuration may not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{key}`: {problem}")]
pub struct ConfigError {
    /// Where it stands, as `status.port`.
    pub key: String,
    /// What is wrong with it.
    pub problem: String,
}

/// What has been found wrong so far.
#[derive(Debug, Default)]
pub(super) struct Findings {
    pub(super) errors: Vec<ConfigError>,
    pub(super) warnings: Vec<String>,
}

impl Findings {
    pub(super) fn error(&mut self, key: impl Into<String>, problem: impl Into<String>) {
        self.errors.push(ConfigError { key: key.into(), problem: problem.into() });
    }
}

/// A mapping of which every key is taken at most once; what is left at the end is unknown.
#[derive(Debug)]
pub(super) struct Section {
    path: String,
    values: Map<String, Value>,
}

impl Section {
    pub(super) fn root(values: Map<String, Value>) -> Self {
        Self { path: String::new(), values }
    }

    pub(super) fn key(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// The value of `name`; `None` when it is absent, null, or wrong (which is then among the findings).
    pub(super) fn take<T: FromConfig>(&mut self, findings: &mut Findings, name: &str) -> Option<T> {
        let value = self.values.remove(name).filter(|value| !value.is_null())?;
        match T::from_config(&value) {
            Some(value) => Some(value),
            None => {
                findings.error(self.key(name), format!("is not {}", T::WANTED));
                None
            }
        }
    }

    /// The mapping under `name`; an empty one when it is absent.
    pub(super) fn section(&mut self, findings: &mut Findings, name: &str) -> Section {
        let values = self.take(findings, name).unwrap_or_default();
        Section { path: self.key(name), values }
    }

    /// The mapping that a value is, if it is one; for values that may be something else as well.
    pub(super) fn within(&self, name: &str, value: Value) -> Option<Section> {
        let Value::Object(values) = value else { return None };
        Some(Section { path: self.key(name), values })
    }

    pub(super) fn finish(self, findings: &mut Findings) {
        let unknown = self.values.keys().map(|name| format!("unknown key `{}` is ignored", self.key(name)));
        findings.warnings.extend(unknown);
    }
}

/// A type that a configuration value can have.
pub(super) trait FromConfig: Sized {
    /// Completes "is not …".
    const WANTED: &'static str;
    fn from_config(value: &Value) -> Option<Self>;
}

macro_rules! whole_number {
    ($($type:ty: $wanted:literal),*) => {$(
        impl FromConfig for $type {
            const WANTED: &'static str = $wanted;
            fn from_config(value: &Value) -> Option<Self> {
                value.as_u64()?.try_into().ok()
            }
        }
    )*};
}
whole_number!(u16: "a port number", u32: "a whole number below 2^32", usize: "a whole number");

impl FromConfig for bool {
    const WANTED: &'static str = "true or false";
    fn from_config(value: &Value) -> Option<Self> {
        value.as_bool()
    }
}

impl FromConfig for String {
    const WANTED: &'static str = "a text";
    /// Numbers count as text: YAML makes one of an unquoted password of digits.
    fn from_config(value: &Value) -> Option<Self> {
        value.as_str().map(str::to_owned).or_else(|| value.as_number().map(ToString::to_string))
    }
}

impl FromConfig for PathBuf {
    const WANTED: &'static str = "a path";
    fn from_config(value: &Value) -> Option<Self> {
        value.as_str().filter(|text| !text.is_empty()).map(PathBuf::from)
    }
}

impl FromConfig for Duration {
    const WANTED: &'static str = "a span of time such as 30s, 1m30s or a number of seconds, longer than 0 and up to 7 days";
    fn from_config(value: &Value) -> Option<Self> {
        let span = match value {
            Value::Number(seconds) => Duration::try_from_secs_f64(seconds.as_f64()?).ok()?,
            Value::String(text) => Duration::try_from(text.parse::<jiff::SignedDuration>().ok()?).ok()?,
            Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => return None,
        };
        (!span.is_zero() && span <= MAX_SPAN).then_some(span)
    }
}

impl FromConfig for Value {
    const WANTED: &'static str = "a value";
    fn from_config(value: &Value) -> Option<Self> {
        Some(value.clone())
    }
}

impl FromConfig for Map<String, Value> {
    const WANTED: &'static str = "a mapping";
    fn from_config(value: &Value) -> Option<Self> {
        value.as_object().cloned()
    }
}

impl<T: FromConfig> FromConfig for Vec<T> {
    const WANTED: &'static str = "a list of the right kind";
    fn from_config(value: &Value) -> Option<Self> {
        value.as_array()?.iter().map(T::from_config).collect()
    }
}

//! Reads the tree of a configuration file key by key: every mistake is noted and none ends the reading.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::time::Duration;

use dewar_protocol::Secret;
use serde_json::{Map, Value};

use super::ConfigError;

/// What stands for a secret in the effective configuration.
const HIDDEN: &str = "…";

/// A configuration file as a tree, with what has been read from it so far. Keys are dotted paths, null counts as absent.
pub(super) struct Reader {
    given: Value,
    effective: Map<String, Value>,
    known: BTreeSet<&'static str>,
    errors: Vec<ConfigError>,
}

/// What a [`Reader`] has to say at the end.
pub(super) struct Findings {
    /// Every value that was asked for, given or by default; secrets are hidden.
    pub(super) effective: Value,
    /// Keys of the file that nobody asked for, in order.
    pub(super) unread: Vec<String>,
    /// Every mistake, in the order of reading.
    pub(super) errors: Vec<ConfigError>,
}

impl Reader {
    pub(super) fn new(given: Value) -> Self {
        Self { given, effective: Map::new(), known: BTreeSet::new(), errors: Vec::new() }
    }

    pub(super) fn finish(mut self) -> Findings {
        let mut unread = Vec::new();
        collect_unread(&self.given, "", &self.known, &mut unread);
        let known = &self.known;
        let is_section = |path: &String| known.iter().any(|key| key.strip_prefix(path.as_str()).is_some_and(|rest| rest.starts_with('.')));
        let misused: Vec<String> = unread.extract_if(.., |path| is_section(path)).collect();
        for path in misused {
            self.error(&path, "must be a section with keys of its own");
        }
        Findings { effective: Value::Object(self.effective), unread, errors: self.errors }
    }

    pub(super) fn error(&mut self, key: &str, problem: impl Display) {
        self.errors.push(ConfigError { key: key.to_owned(), problem: problem.to_string() });
    }

    /// Whether the file has this key with a value.
    pub(super) fn has(&self, key: &str) -> bool {
        self.lookup(key).is_some()
    }

    /// A text that may be absent.
    pub(super) fn text(&mut self, key: &'static str) -> Option<String> {
        self.text_shown_as(key, str::to_owned)
    }

    /// A text of which the effective configuration shows only what `show` leaves of it.
    pub(super) fn text_shown_as(&mut self, key: &'static str, show: impl Fn(&str) -> String) -> Option<String> {
        let text = self.parse(key, "a text", |value| value.as_str().map(str::to_owned));
        self.note(key, text.as_deref().map(|text| show(text).into()));
        text
    }

    /// A text with a default.
    pub(super) fn text_or(&mut self, key: &'static str, default: &str) -> String {
        let text = self.text(key).unwrap_or_else(|| default.to_owned());
        self.note(key, Some(text.as_str().into()));
        text
    }

    /// A text that must not be absent; empty where it is, with the mistake noted.
    pub(super) fn required_text(&mut self, key: &'static str) -> String {
        if !self.has(key) {
            self.known.insert(key);
            self.error(key, "is missing");
        }
        let text = self.text(key);
        if text.as_deref() == Some("") {
            self.error(key, "must not be empty");
        }
        text.unwrap_or_default()
    }

    /// A text that the effective configuration does not show. A number, as YAML takes an all-digit password for, is accepted.
    pub(super) fn secret(&mut self, key: &'static str) -> Option<Secret<String>> {
        let secret = self.parse(key, "a text", |value| match value {
            Value::String(text) => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
        });
        self.note(key, secret.as_ref().map(|_| Value::from(HIDDEN)));
        secret.map(Secret)
    }

    pub(super) fn flag(&mut self, key: &'static str, default: bool) -> bool {
        let flag = self.parse(key, "true or false", Value::as_bool).unwrap_or(default);
        self.note(key, Some(flag.into()));
        flag
    }

    /// A whole number within bounds.
    pub(super) fn integer(&mut self, key: &'static str, default: u64, bounds: RangeInclusive<u64>) -> u64 {
        let wanted = format!("a whole number from {} to {}", bounds.start(), bounds.end());
        let number = self.parse(key, &wanted, |value| value.as_u64().filter(|number| bounds.contains(number))).unwrap_or(default);
        self.note(key, Some(number.into()));
        number
    }

    /// A number within bounds, with or without a fraction.
    pub(super) fn number(&mut self, key: &'static str, default: f64, bounds: RangeInclusive<f64>) -> f64 {
        let wanted = format!("a number from {} to {}", bounds.start(), bounds.end());
        let number = self.parse(key, &wanted, |value| value.as_f64().filter(|number| bounds.contains(number))).unwrap_or(default);
        self.note(key, Some(number.into()));
        number
    }

    /// Seconds within bounds, with or without a fraction.
    pub(super) fn seconds(&mut self, key: &'static str, default: Duration, bounds: RangeInclusive<f64>) -> Duration {
        Duration::from_secs_f64(self.number(key, default.as_secs_f64(), bounds))
    }

    /// One of a few words.
    pub(super) fn choice<T: Copy>(&mut self, key: &'static str, choices: &[(&'static str, T)], default: (&'static str, T)) -> T {
        let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
        let wanted = format!("one of {}", words.join(", "));
        // YAML takes `off` for a truth value.
        let given = |value: &Value| if *value == Value::Bool(false) { Some("off".to_owned()) } else { value.as_str().map(str::to_owned) };
        let find = |value: &Value| given(value).and_then(|given| choices.iter().find(|(word, _)| *word == given).copied());
        let (word, choice) = self.parse(key, &wanted, find).unwrap_or(default);
        self.note(key, Some(word.into()));
        choice
    }

    /// A list whose elements `parse` turns into values and `show` back into what may be printed.
    pub(super) fn list<T>(
        &mut self,
        key: &'static str,
        wanted: &str,
        parse: impl Fn(&Value) -> Option<T>,
        show: impl Fn(&T) -> String,
    ) -> Vec<T> {
        let list: Vec<T> =
            self.parse(key, &format!("a list, each {wanted}"), |value| value.as_array()?.iter().map(parse).collect()).unwrap_or_default();
        self.note(key, Some(list.iter().map(show).collect()));
        list
    }

    /// A list of texts, where it is given instead of the default.
    pub(super) fn texts(&mut self, key: &'static str, default: &[&str]) -> Vec<String> {
        let parse = |value: &Value| value.as_array()?.iter().map(|text| text.as_str().map(str::to_owned)).collect();
        let texts: Option<Vec<String>> = self.parse(key, "a list of texts", parse);
        let texts = texts.unwrap_or_else(|| default.iter().map(|text| (*text).to_owned()).collect());
        self.note(key, Some(texts.clone().into()));
        texts
    }

    /// Takes a key, with all that is below it, as known though nothing here needs it; says whether the file has it.
    pub(super) fn skip(&mut self, key: &'static str) -> bool {
        self.known.insert(key);
        self.has(key)
    }

    /// Whether a key that nobody here needs is at least what it should be, where it is given.
    pub(super) fn expect(&mut self, key: &'static str, wanted: &str, fits: impl FnOnce(&Value) -> bool) {
        self.parse(key, wanted, |value| fits(value).then_some(()));
    }

    /// Adds what else there is to say to the mistakes that were noted about a key.
    pub(super) fn explain(&mut self, key: &str, more: &str) {
        for error in self.errors.iter_mut().filter(|error| error.key == key) {
            error.problem = format!("{}: {more}", error.problem);
        }
    }

    /// Keys that were asked for so far.
    #[cfg(test)]
    pub(super) fn known(&self) -> &BTreeSet<&'static str> {
        &self.known
    }

    fn parse<T>(&mut self, key: &'static str, wanted: &str, parse: impl FnOnce(&Value) -> Option<T>) -> Option<T> {
        self.known.insert(key);
        let parsed = parse(self.lookup(key)?);
        if parsed.is_none() {
            self.error(key, format_args!("must be {wanted}"));
        }
        parsed
    }

    fn lookup(&self, key: &str) -> Option<&Value> {
        key.split('.').try_fold(&self.given, |value, name| value.get(name)).filter(|value| !value.is_null())
    }

    /// What the effective configuration is to show.
    pub(super) fn note(&mut self, key: &str, value: Option<Value>) {
        let Some(value) = value else { return };
        let (sections, name) = key.rsplit_once('.').map_or((None, key), |(sections, name)| (Some(sections), name));
        let mut section = &mut self.effective;
        for name in sections.into_iter().flat_map(|sections| sections.split('.')) {
            let below = section.entry(name).or_insert_with(|| Value::Object(Map::new()));
            // A key is either a section or a value for everybody who reads it.
            let Value::Object(below) = below else { return };
            section = below;
        }
        section.insert(name.to_owned(), value);
    }
}

/// Notes the paths of values that nobody asked for.
fn collect_unread(value: &Value, path: &str, known: &BTreeSet<&'static str>, unread: &mut Vec<String>) {
    let Value::Object(section) = value else {
        if !value.is_null() {
            unread.push(path.to_owned());
        }
        return;
    };
    for (name, below) in section {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        if !known.contains(path.as_str()) {
            collect_unread(below, &path, known, unread);
        }
    }
}

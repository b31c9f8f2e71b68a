//! The parameters of an operation.

use dewar_guest::types::Uri;

use crate::Refusal;

pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    pub(crate) fn of(uri: &Uri) -> Query {
        Query(form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()).into_owned().collect())
    }

    pub(crate) fn text(&self, name: &str) -> Result<&str, Refusal> {
        self.0
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, value)| value.as_str())
            .ok_or_else(|| Refusal::Parameter(format!("{name} is missing\n")))
    }

    pub(crate) fn number(&self, name: &str) -> Result<u64, Refusal> {
        self.text(name)?.parse().map_err(|e| Refusal::Parameter(format!("{name}: {e}\n")))
    }

    pub(crate) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(n, _)| n == name).map(|(_, value)| value.as_str())
    }
}

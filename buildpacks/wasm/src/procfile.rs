//! The `Procfile`: a YAML hash of process types and their commands.

use std::collections::BTreeMap;

pub(crate) const NAME: &str = "Procfile";

#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Procfile(pub(crate) BTreeMap<String, String>);

impl Procfile {
    pub(crate) fn parse(text: &str) -> Result<Procfile, String> {
        yaml_hash::parse(text)
            .ok()
            .flatten()
            .map(Procfile)
            .ok_or_else(|| "Invalid Procfile format. Please ensure it is a valid YAML hash".to_owned())
    }

    pub(crate) fn web(&self) -> Option<&str> {
        self.0.get("web").map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_types_have_commands() {
        let procfile = Procfile::parse("web: app.wasm --port 80\nworker: 'app.wasm work: hard'\n").unwrap();
        assert_eq!(procfile.web(), Some("app.wasm --port 80"));
        assert_eq!(procfile.0["worker"], "app.wasm work: hard");
    }

    #[test]
    fn anything_but_a_hash_of_texts_is_refused() {
        for text in ["", "web", "- web: x", "web: [a, b]", "web: x\nweb: y"] {
            assert_eq!(Procfile::parse(text).unwrap_err(), "Invalid Procfile format. Please ensure it is a valid YAML hash", "{text}");
        }
    }
}

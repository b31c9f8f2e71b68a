//! `dewar.toml`: what the app is and how it is called, for those who would rather not write a `Procfile`.
//!
//! ```toml
//! [app]
//! file = "build/app.wasm"       # the .wasm or .wat, relative to the package
//! arguments = ["--verbose"]     # what follows the file's name on the command line
//! world = "http"                # or "command"; by default whichever the component exports, http first
//! ```
//!
//! Each key may be left out. Keys outside of `[app]` are not for this buildpack: the client finds the app's name and routes there.

use dewar_guest::buildpack::World;
use serde::Deserialize;

pub(crate) const NAME: &str = "dewar.toml";

#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct Settings {
    #[serde(default)]
    pub(crate) app: AppSettings,
}

#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AppSettings {
    pub(crate) file: Option<String>,
    pub(crate) arguments: Option<Vec<String>>,
    pub(crate) world: Option<WorldName>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum WorldName {
    Http,
    Command,
}

impl From<WorldName> for World {
    fn from(name: WorldName) -> World {
        match name {
            WorldName::Http => World::Http,
            WorldName::Command => World::Command,
        }
    }
}

impl Settings {
    pub(crate) fn parse(text: &str) -> Result<Settings, String> {
        toml::from_str(text).map_err(|e| format!("{NAME}: {}", e.to_string().trim_end()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_understood_and_may_be_left_out() {
        let settings = Settings::parse("[app]\nfile = \"a.wasm\"\narguments = [\"x\", \"y z\"]\nworld = \"command\"\n").unwrap();
        let expected = AppSettings {
            file: Some("a.wasm".to_owned()),
            arguments: Some(vec!["x".to_owned(), "y z".to_owned()]),
            world: Some(WorldName::Command),
        };
        assert_eq!(settings.app, expected);
        assert_eq!(Settings::parse("").unwrap(), Settings::default());
        assert_eq!(Settings::parse("name = \"shop\"\nroutes = [\"shop.example.com\"]\n").unwrap(), Settings::default());
        assert_eq!(Settings::parse("[app]\n").unwrap(), Settings::default());
    }

    #[test]
    fn mistakes_are_named() {
        for (text, cause) in [("[app]\nflie = \"a\"", "flie"), ("[app]\nworld = \"ftp\"", "ftp"), ("[app", "dewar.toml")] {
            let error = Settings::parse(text).unwrap_err();
            assert!(error.starts_with("dewar.toml: ") && error.contains(cause), "{error}");
        }
    }
}

//! The `Staticfile`: a YAML hash, all keys of which may be left out.
//!
//! | key | default | means |
//! |---|---|---|
//! | `root` | the package | the folder that is served, relative to the package |
//! | `directory` | `hidden` | `visible`: a folder without an `index.html` is listed |
//! | `pushstate` | `disabled` | `enabled`: what isn't there is answered with `/index.html`, for apps that route in the browser |
//! | `gzip` | `on` | `off`: text is not compressed while staging |

use std::fs;
use std::io;
use std::path::{Component, Path};

pub(crate) const NAME: &str = "Staticfile";

/// Passwords for the site. Without a server that asks for them the site would be open to all.
const PASSWORDS: &str = "Staticfile.auth";

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Switch {
    #[default]
    Off,
    On,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Staticfile {
    /// Relative, and below the package.
    pub(crate) root: String,
    pub(crate) listing: Switch,
    pub(crate) fallback: Switch,
    pub(crate) gzip: Switch,
    /// Keys that mean nothing here.
    pub(crate) unknown: Vec<String>,
}

impl Default for Staticfile {
    fn default() -> Staticfile {
        Staticfile { root: String::new(), listing: Switch::Off, fallback: Switch::Off, gzip: Switch::On, unknown: Vec::new() }
    }
}

impl Staticfile {
    /// Of a package; one without the file has the defaults.
    pub(crate) fn read(package: &Path) -> Result<Staticfile, String> {
        if package.join(PASSWORDS).exists() {
            return Err(format!("{PASSWORDS} is there, but passwords are not supported: the site would be open to everybody"));
        }
        let staticfile = match fs::read_to_string(package.join(NAME)) {
            Ok(text) => Staticfile::parse(&text)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Staticfile::default(),
            Err(error) => return Err(format!("cannot read {NAME}: {error}")),
        };
        let root = package.join(&staticfile.root);
        // Each step of the way, so that no link leads out of the package.
        let is_folder = root
            .ancestors()
            .take_while(|path| *path != package)
            .all(|path| fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir()));
        if is_folder { Ok(staticfile) } else { Err(format!("{NAME}: the root {} is not a folder of the package", staticfile.root)) }
    }

    fn parse(text: &str) -> Result<Staticfile, String> {
        let keys = yaml_hash::parse(text).map_err(|_| format!("{NAME} is not a YAML hash of texts"))?.unwrap_or_default();
        let mut staticfile = Staticfile::default();
        for (key, value) in keys {
            match key.as_str() {
                "root" => staticfile.root = folder(&value)?,
                "directory" => staticfile.listing = switch(&key, &value, "visible", "hidden")?,
                "pushstate" => staticfile.fallback = switch(&key, &value, "enabled", "disabled")?,
                "gzip" => staticfile.gzip = switch(&key, &value, "on", "off")?,
                _ => staticfile.unknown.push(key),
            }
        }
        Ok(staticfile)
    }

    /// How the file server is started.
    pub(crate) fn command(&self) -> String {
        let mut command = "file-server /app/public --index /app/index".to_owned();
        if self.listing == Switch::On {
            command += " --listing";
        }
        if self.fallback == Switch::On {
            command += " --fallback";
        }
        command
    }
}

fn switch(key: &str, value: &str, on: &str, off: &str) -> Result<Switch, String> {
    match value {
        _ if value == on || value == "true" => Ok(Switch::On),
        _ if value == off || value == "false" => Ok(Switch::Off),
        _ => Err(format!("{NAME}: {key} is {on} or {off}, not {value}")),
    }
}

fn folder(value: &str) -> Result<String, String> {
    let path = Path::new(value);
    let is_below = path.components().all(|component| matches!(component, Component::Normal(_) | Component::CurDir));
    if !is_below {
        return Err(format!("{NAME}: the root {value} leads out of the package"));
    }
    Ok(path.components().filter(|component| *component != Component::CurDir).collect::<std::path::PathBuf>().to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_understood() {
        let staticfile = Staticfile::parse("root: ./dist/site\ndirectory: visible\npushstate: enabled\ngzip: off\nssi: enabled\n").unwrap();
        assert_eq!(
            staticfile,
            Staticfile {
                root: "dist/site".to_owned(),
                listing: Switch::On,
                fallback: Switch::On,
                gzip: Switch::Off,
                unknown: vec!["ssi".to_owned()]
            }
        );
        assert_eq!(staticfile.command(), "file-server /app/public --index /app/index --listing --fallback");
    }

    #[test]
    fn an_empty_file_has_the_defaults() {
        for text in ["", "\n", "# nothing to say\n", "---\n"] {
            assert_eq!(Staticfile::parse(text).unwrap(), Staticfile::default(), "{text:?}");
        }
    }

    #[test]
    fn mistakes_are_named() {
        for (text, error) in [
            ("- a\n", "Staticfile is not a YAML hash of texts"),
            ("root: [a]\n", "Staticfile is not a YAML hash of texts"),
            ("root: ../x\n", "Staticfile: the root ../x leads out of the package"),
            ("root: /etc\n", "Staticfile: the root /etc leads out of the package"),
            ("directory: yes please\n", "Staticfile: directory is visible or hidden, not yes please"),
        ] {
            assert_eq!(Staticfile::parse(text).unwrap_err(), error);
        }
    }

    #[test]
    fn the_root_is_a_folder_of_the_package_and_no_link() {
        let package = tempfile::tempdir().unwrap();
        let path = package.path();
        assert_eq!(Staticfile::read(path).unwrap(), Staticfile::default());
        fs::write(path.join(NAME), "root: site\n").unwrap();
        assert_eq!(Staticfile::read(path).unwrap_err(), "Staticfile: the root site is not a folder of the package");
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink("/etc", path.join("site")).unwrap();
            assert!(Staticfile::read(path).is_err());
            fs::remove_file(path.join("site")).unwrap();
        }
        fs::create_dir(path.join("site")).unwrap();
        assert_eq!(Staticfile::read(path).unwrap().root, "site");
        fs::write(path.join(PASSWORDS), "bob:x").unwrap();
        assert!(Staticfile::read(path).unwrap_err().starts_with("Staticfile.auth is there"));
    }
}

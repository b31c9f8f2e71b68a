//! The command line.

use std::path::PathBuf;

/// What becomes of a folder without an `index.html`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Folders {
    Hidden,
    Listed,
}

/// What becomes of a path that is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Missing {
    NotFound,
    /// Answered with the site's `/index.html`.
    Fallback,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    /// The folder whose files are served.
    pub(crate) root: PathBuf,
    /// The buildpack's index of entity tags.
    pub(crate) index: Option<PathBuf>,
    pub(crate) folders: Folders,
    pub(crate) missing: Missing,
}

impl Settings {
    /// # Errors
    /// When there is no folder among the arguments, or something unknown.
    pub(crate) fn from_arguments(arguments: impl Iterator<Item = String>) -> Result<Settings, String> {
        let mut settings = Settings { root: PathBuf::new(), index: None, folders: Folders::Hidden, missing: Missing::NotFound };
        let mut arguments = arguments.peekable();
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--listing" => settings.folders = Folders::Listed,
                "--fallback" => settings.missing = Missing::Fallback,
                "--index" => settings.index = Some(arguments.next().ok_or("--index needs a file")?.into()),
                option if option.starts_with('-') => return Err(format!("{option} is no option of the file server")),
                folder if settings.root.as_os_str().is_empty() => settings.root = folder.into(),
                more => return Err(format!("{more}: one folder is served")),
            }
        }
        if settings.root.as_os_str().is_empty() { Err("no folder to serve".to_owned()) } else { Ok(settings) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Settings, String> {
        Settings::from_arguments(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn a_command_line_is_understood() {
        let settings = parse("/app/public --index /app/index --listing --fallback").unwrap();
        assert_eq!(settings.root, PathBuf::from("/app/public"));
        assert_eq!(settings.index, Some(PathBuf::from("/app/index")));
        assert_eq!((settings.folders, settings.missing), (Folders::Listed, Missing::Fallback));
        assert_eq!(parse("/srv").unwrap().folders, Folders::Hidden);
    }

    #[test]
    fn mistakes_are_named() {
        assert_eq!(parse("").unwrap_err(), "no folder to serve");
        assert_eq!(parse("/srv --lsiting").unwrap_err(), "--lsiting is no option of the file server");
        assert_eq!(parse("/srv --index").unwrap_err(), "--index needs a file");
        assert_eq!(parse("/srv /etc").unwrap_err(), "/etc: one folder is served");
    }
}

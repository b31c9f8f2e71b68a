//! What is in a package.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// A folder's files and folders, all the way down, by paths relative to it with slashes between names, sorted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Package {
    pub root: PathBuf,
    pub files: Vec<PackageFile>,
    pub folders: Vec<String>,
    /// Links, which are never followed, and other things that aren't files.
    pub left_out: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PackageFile {
    pub path: String,
    /// In bytes.
    pub size: u64,
}

impl Package {
    /// # Errors
    /// When a folder cannot be read, or a name in it is not UTF-8.
    pub fn list(root: &Path) -> Result<Package, String> {
        let mut package = Package { root: root.to_owned(), ..Package::default() };
        let mut waiting = vec![String::new()];
        while let Some(folder) = waiting.pop() {
            let unreadable = |e: io::Error| format!("cannot read the folder /{folder} of the package: {e}");
            for entry in fs::read_dir(root.join(&folder)).map_err(unreadable)? {
                let entry = entry.map_err(unreadable)?;
                let name = entry.file_name().into_string().map_err(|name| format!("the name {} is not UTF-8", name.display()))?;
                let path = if folder.is_empty() { name } else { format!("{folder}/{name}") };
                // Of the entry itself, not of what a link points to.
                let metadata = fs::symlink_metadata(root.join(&path)).map_err(unreadable)?;
                if metadata.is_dir() {
                    package.folders.push(path.clone());
                    waiting.push(path);
                } else if metadata.is_file() {
                    package.files.push(PackageFile { path, size: metadata.len() });
                } else {
                    package.left_out.push(path);
                }
            }
        }
        package.files.sort();
        package.folders.sort();
        package.left_out.sort();
        Ok(package)
    }

    /// Opens one of the files.
    ///
    /// # Errors
    /// When it cannot be read; the message names it.
    pub fn open(&self, path: &str) -> Result<File, String> {
        File::open(self.root.join(path)).map_err(|e| format!("cannot read {path}: {e}"))
    }

    /// Makes the folder that a file is to be in, below `to`, and the file; what is there already is replaced.
    ///
    /// # Errors
    /// When one of them cannot be made; the message names the file.
    pub fn create(to: &Path, path: &str) -> Result<File, String> {
        let target = to.join(path);
        let folder = target.parent().unwrap_or(to);
        fs::create_dir_all(folder).and_then(|()| File::create(&target)).map_err(|e| format!("cannot write {path}: {e}"))
    }

    /// Copies one of the files to the same path below `to`.
    ///
    /// # Errors
    /// When it cannot be read or written; the message names it.
    pub fn copy(&self, path: &str, to: &Path) -> Result<(), String> {
        let mut from = self.open(path)?;
        let mut target = Package::create(to, path)?;
        io::copy(&mut from, &mut target).map(drop).map_err(|e| format!("cannot copy {path}: {e}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_listed_and_links_are_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        fs::create_dir_all(root.join("a/empty")).unwrap();
        fs::write(root.join("a/two.txt"), "22").unwrap();
        fs::write(root.join("one.txt"), "1").unwrap();
        #[cfg(unix)]
        std::os::unix::fs::symlink("/etc", root.join("link")).unwrap();

        let package = Package::list(root).unwrap();
        assert_eq!(
            package.files,
            [PackageFile { path: "a/two.txt".to_owned(), size: 2 }, PackageFile { path: "one.txt".to_owned(), size: 1 }]
        );
        assert_eq!(package.folders, ["a", "a/empty"]);
        #[cfg(unix)]
        assert_eq!(package.left_out, ["link"]);

        let target = tempfile::tempdir().unwrap();
        package.copy("a/two.txt", target.path()).unwrap();
        assert_eq!(fs::read_to_string(target.path().join("a/two.txt")).unwrap(), "22");
        let error = package.copy("nothing.txt", target.path()).unwrap_err();
        assert!(error.starts_with("cannot read nothing.txt: "), "{error}");
    }
}

//! The entity tags of a site's files, as the static buildpack writes them: a line `TAG SIZE PATH` for each, the tag being a hash of the content.
//!
//! A tag from a file's time would not do: droplets carry none.

use std::fmt::Write as _;
use std::path::Path;

/// All lines of an index. A site's worth of them is read in one go, as quickly as anything smaller.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Index(String);

impl Index {
    /// Reads the index of a site; without one there are no tags.
    ///
    /// # Errors
    /// When there is a file and it cannot be read.
    pub fn read(path: Option<&Path>) -> std::io::Result<Index> {
        path.map_or(Ok(Index::default()), |path| std::fs::read_to_string(path).map(Index))
    }

    /// Adds a file. A path with a line break in it is left out: it would be taken for two.
    pub fn add(&mut self, path: &str, size: u64, tag: &str) {
        if !path.contains('\n') {
            // Writing to a string cannot fail.
            let _ = writeln!(self.0, "{tag} {size} {path}");
        }
    }

    /// The tag of a file, in quotes. None when it is not in the index, or has changed its size since.
    pub fn tag(&self, path: &str, size: u64) -> Option<String> {
        self.0.lines().find_map(|line| {
            let (tag, rest) = line.split_once(' ')?;
            let (listed_size, listed) = rest.split_once(' ')?;
            (listed == path && listed_size.parse() == Ok(size)).then(|| format!("\"{tag}\""))
        })
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_found_by_path_and_size() {
        let mut index = Index::default();
        index.add("index.html", 5, "aa");
        index.add("a name with spaces.txt", 7, "bb");
        index.add("two\nlines", 1, "cc");
        assert_eq!(index.tag("index.html", 5), Some("\"aa\"".to_owned()));
        assert_eq!(index.tag("a name with spaces.txt", 7), Some("\"bb\"".to_owned()));
        assert_eq!(index.tag("index.html", 6), None);
        assert_eq!(index.tag("ndex.html", 5), None);
        assert_eq!(index.tag("lines", 1), None);
    }
}

//! From the path of a request to a path below the site's folder, or to nothing.

use percent_encoding::percent_decode_str;

/// A path that cannot lead out of the site: its segments are plain names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RequestPath {
    segments: Vec<String>,
    /// Whether it ended in a slash, and so names a folder.
    pub(crate) names_folder: bool,
}

/// Why a path is not looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unserved {
    /// Not a path that any browser sends.
    Malformed,
    /// A dotfile: as good as not there.
    Hidden,
}

impl RequestPath {
    /// Decodes each segment once, after the split: an encoded slash stays part of no name and is malformed.
    ///
    /// # Errors
    /// When the path must not be looked up.
    pub(crate) fn parse(raw: &str) -> Result<RequestPath, Unserved> {
        let mut segments = Vec::new();
        for segment in raw.split('/').filter(|segment| !segment.is_empty()) {
            if !is_well_encoded(segment) {
                return Err(Unserved::Malformed);
            }
            let name = percent_decode_str(segment).decode_utf8().map_err(|_| Unserved::Malformed)?;
            if name == "." || name == ".." || name.contains(['/', '\\', '\0']) {
                return Err(Unserved::Malformed);
            }
            if name.starts_with('.') && !(segments.is_empty() && name == ".well-known") {
                return Err(Unserved::Hidden);
            }
            segments.push(name.into_owned());
        }
        Ok(RequestPath { segments, names_folder: raw.ends_with('/') || raw.is_empty() })
    }

    /// Relative to the site's folder, with slashes between names; empty for the folder itself.
    pub(crate) fn relative(&self) -> String {
        self.segments.join("/")
    }
}

/// Whether each percent sign begins an escape.
fn is_well_encoded(segment: &str) -> bool {
    let mut rest = segment;
    while let Some(at) = rest.find('%') {
        let escape = rest.as_bytes().get(at + 1..at + 3);
        if !escape.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit)) {
            return false;
        }
        rest = &rest[at + 3..];
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_become_plain_names() {
        for (raw, relative, names_folder) in [
            ("/", "", true),
            ("/index.html", "index.html", false),
            ("/docs/", "docs", true),
            ("//docs///a.txt", "docs/a.txt", false),
            ("/caf%C3%A9%20au%20lait.html", "café au lait.html", false),
            ("/100%25.txt", "100%.txt", false),
            ("/%2525.txt", "%25.txt", false),
            ("/.well-known/security.txt", ".well-known/security.txt", false),
            ("/a..b/...c", "", false),
        ] {
            let parsed = RequestPath::parse(raw);
            if raw.contains("...") {
                assert_eq!(parsed, Err(Unserved::Hidden), "{raw}");
                continue;
            }
            let parsed = parsed.unwrap_or_else(|e| panic!("{raw}: {e:?}"));
            assert_eq!((parsed.relative().as_str(), parsed.names_folder), (relative, names_folder), "{raw}");
        }
    }

    #[test]
    fn nothing_leads_out_of_the_site() {
        for raw in [
            "/..",
            "/../etc/passwd",
            "/a/../../b",
            "/%2e%2e/etc/passwd",
            "/%2E./x",
            "/a/%2e",
            "/./a",
            "/a%2f..%2fb",
            "/a%2Fb",
            "/..%5cwindows",
            "/a\\b",
            "/a%00.html",
            "/%ff",
            "/%",
            "/%2",
            "/%zz",
            "/%c3%28",
        ] {
            assert_eq!(RequestPath::parse(raw), Err(Unserved::Malformed), "{raw}");
        }
    }

    #[test]
    fn dotfiles_are_hidden() {
        for raw in ["/.git/config", "/.env", "/a/.htaccess", "/%2egit/config", "/a/.well-known/x"] {
            assert_eq!(RequestPath::parse(raw), Err(Unserved::Hidden), "{raw}");
        }
    }
}

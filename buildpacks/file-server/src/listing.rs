//! The page that lists a folder.

use std::fs;
use std::io;
use std::path::Path;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// What stands for itself in a relative link.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// How many entries a page has at most; the rest is counted.
const ENTRIES_MAX: usize = 10_000;

/// Folders first, dotfiles left out, names escaped.
pub(crate) fn page(folder: &Path, relative: &str) -> io::Result<String> {
    let mut entries = Vec::new();
    let mut left_out = 0_usize;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let Some(name) = entry.file_name().to_str().map(str::to_owned).filter(|name| !name.starts_with('.')) else { continue };
        let kind = entry.file_type()?;
        if entries.len() == ENTRIES_MAX {
            left_out += 1;
        } else if kind.is_dir() || kind.is_file() {
            entries.push((!kind.is_dir(), name));
        }
    }
    entries.sort();

    let title = escape(&format!("/{relative}"));
    let mut page =
        format!("<!doctype html>\n<html><head><meta charset=\"utf-8\"><title>{title}</title></head>\n<body><h1>{title}</h1>\n<ul>\n");
    if !relative.is_empty() {
        page += "<li><a href=\"../\">../</a></li>\n";
    }
    for (is_file, name) in entries {
        let slash = if is_file { "" } else { "/" };
        page += &format!("<li><a href=\"./{}{slash}\">{}{slash}</a></li>\n", utf8_percent_encode(&name, PLAIN), escape(&name));
    }
    page += "</ul>\n";
    if left_out > 0 {
        page += &format!("<p>and {left_out} more</p>\n");
    }
    Ok(page + "</body></html>\n")
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_escaped_and_dotfiles_left_out() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["<script>.txt", "a b&c.txt", ".env"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        fs::create_dir(folder.path().join("sub")).unwrap();
        let page = page(folder.path(), "x\"y").unwrap();
        assert!(page.contains("<a href=\"./%3Cscript%3E.txt\">&lt;script&gt;.txt</a>"), "{page}");
        assert!(page.contains("<a href=\"./a%20b%26c.txt\">a b&amp;c.txt</a>"), "{page}");
        assert!(page.contains("<a href=\"./sub/\">sub/</a>"), "{page}");
        assert!(page.contains("<title>/x&quot;y</title>"), "{page}");
        assert!(!page.contains(".env") && !page.contains("<script>"), "{page}");
    }
}

//! Content types by file name.

/// For `content-type`. Text is said to be UTF-8, for that is what nearly all of it is.
pub fn of(path: &str) -> String {
    let guess = mime_guess::from_path(path).first_or_octet_stream();
    let is_text = guess.type_() == "text" || matches!(guess.essence_str(), "application/javascript" | "application/json" | "image/svg+xml");
    if is_text && guess.get_param("charset").is_none() { format!("{guess}; charset=utf-8") } else { guess.to_string() }
}

/// Whether gzip makes it smaller: text does shrink, and what is compressed already does not.
pub fn is_compressible(path: &str) -> bool {
    let guess = mime_guess::from_path(path).first_or_octet_stream();
    let subtype = guess.subtype().as_str();
    guess.type_() == "text"
        || matches!(subtype, "javascript" | "json" | "xml" | "wasm" | "rtf" | "x-sh")
        || guess.suffix().is_some_and(|suffix| matches!(suffix.as_str(), "xml" | "json"))
        || matches!(guess.essence_str(), "image/x-icon" | "image/bmp" | "font/ttf" | "font/otf")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_follow_names() {
        for (path, media_type) in [
            ("index.html", "text/html; charset=utf-8"),
            ("a/b.css", "text/css; charset=utf-8"),
            ("app.js", "text/javascript; charset=utf-8"),
            ("app.mjs", "application/javascript; charset=utf-8"),
            ("data.json", "application/json; charset=utf-8"),
            ("logo.svg", "image/svg+xml; charset=utf-8"),
            ("photo.JPG", "image/jpeg"),
            ("app.wasm", "application/wasm"),
            ("f.woff2", "font/woff2"),
            ("no-extension", "application/octet-stream"),
            ("strange.qqq", "application/octet-stream"),
        ] {
            assert_eq!(of(path), media_type, "{path}");
        }
    }

    #[test]
    fn text_is_compressible_and_pictures_are_not() {
        for path in ["a.html", "a.css", "a.js", "a.json", "a.svg", "feed.rss", "a.wasm", "a.webmanifest", "a.txt", "a.ttf"] {
            assert!(is_compressible(path), "{path}");
        }
        for path in ["a.png", "a.jpg", "a.gz", "a.woff2", "a.mp4", "a.zip", "a"] {
            assert!(!is_compressible(path), "{path}");
        }
    }
}

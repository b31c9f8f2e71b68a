use tempfile::TempDir;

use super::*;

struct Fixture {
    folder: TempDir,
    settings: Settings,
}

/// A site with an index page, a page of its own for what isn't there, and a compressed script.
fn fixture() -> Fixture {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("public");
    for (path, content) in [
        ("index.html", "<h1>home</h1>"),
        ("404.html", "<h1>lost</h1>"),
        ("digits.txt", "0123456789"),
        ("empty.txt", ""),
        ("app.js", "let answer = 42;"),
        ("app.js.gz", "compressed"),
        ("docs/index.html", "docs"),
        ("bare/file.txt", "x"),
        (".env", "SECRET=1"),
    ] {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    let mut index = Index::default();
    index.add("digits.txt", 10, "d1");
    index.add("app.js", 16, "j1");
    index.add("app.js.gz", 10, "z1");
    let index_path = folder.path().join("index");
    fs::write(&index_path, index.as_str()).unwrap();
    let settings = Settings { root, index: Some(index_path), folders: Folders::Hidden, missing: Missing::NotFound };
    Fixture { folder, settings }
}

impl Fixture {
    fn get(&self, path: &str, headers: &[(header::HeaderName, &str)]) -> (u16, HeaderMap, String) {
        self.request(Method::GET, path, headers)
    }

    fn request(&self, method: Method, path: &str, headers: &[(header::HeaderName, &str)]) -> (u16, HeaderMap, String) {
        let headers = headers.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect();
        let response = answer(&self.settings, &method, &path.parse().unwrap(), &headers).unwrap();
        let (head, body) = response.into_parts();
        let mut text = Vec::new();
        body.write_to(&mut text).unwrap();
        (head.status.as_u16(), head.headers, String::from_utf8(text).unwrap())
    }
}

#[test]
fn files_and_index_pages_are_served() {
    let site = fixture();
    let (status, headers, text) = site.get("/", &[]);
    assert_eq!((status, text.as_str()), (200, "<h1>home</h1>"));
    assert_eq!(headers[header::CONTENT_TYPE], "text/html; charset=utf-8");
    assert_eq!(headers[header::CONTENT_LENGTH], "13");
    assert!(headers.contains_key(header::LAST_MODIFIED));
    assert_eq!(site.get("/docs/", &[]).2, "docs");
    let (status, headers, text) = site.get("/empty.txt", &[]);
    assert_eq!((status, &headers[header::CONTENT_LENGTH], text.as_str()), (200, &HeaderValue::from_static("0"), ""));
}

#[test]
fn a_folder_is_redirected_to_its_slash_on_the_same_host() {
    let site = fixture();
    for (path, location) in [("/docs", "/docs/"), ("/docs?a=b", "/docs/?a=b"), ("//docs", "/docs/")] {
        let (status, headers, _) = site.get(path, &[]);
        assert_eq!((status, headers[header::LOCATION].to_str().unwrap()), (301, location), "{path}");
    }
}

#[test]
fn what_is_not_there_is_the_page_for_it() {
    let site = fixture();
    for path in ["/nothing", "/digits.txt/", "/digits.txt/x", "/bare/", "/.env", "/docs/nothing.html"] {
        let (status, headers, text) = site.get(path, &[]);
        assert_eq!((status, text.as_str()), (404, "<h1>lost</h1>"), "{path}");
        assert_eq!(headers[header::CONTENT_TYPE], "text/html; charset=utf-8");
    }
    fs::remove_file(site.settings.root.join("404.html")).unwrap();
    assert_eq!(site.get("/nothing", &[]).0, 404);
}

#[test]
fn nothing_outside_of_the_site_is_served() {
    let site = fixture();
    fs::write(site.folder.path().join("secret"), "secret").unwrap();
    for path in ["/../secret", "/%2e%2e/secret", "/docs/..%2f..%2fsecret"] {
        assert_eq!(site.get(path, &[]).0, 400, "{path}");
    }
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(site.folder.path().join("secret"), site.settings.root.join("link")).unwrap();
        assert_eq!(site.get("/link", &[]).0, 404);
    }
}

#[test]
fn only_get_and_head_are_allowed() {
    let site = fixture();
    for method in [Method::POST, Method::PUT, Method::DELETE, Method::OPTIONS] {
        let (status, headers, _) = site.request(method, "/", &[]);
        assert_eq!((status, headers[header::ALLOW].to_str().unwrap()), (405, "GET, HEAD"));
    }
}

#[test]
fn tags_spare_the_body() {
    let site = fixture();
    let (_, headers, _) = site.get("/digits.txt", &[]);
    assert_eq!(headers[header::ETAG], "\"d1\"");
    let (status, headers, text) = site.get("/digits.txt", &[(header::IF_NONE_MATCH, "\"d1\"")]);
    assert_eq!((status, text.as_str()), (304, ""));
    assert_eq!(headers[header::ETAG], "\"d1\"");
    assert!(!headers.contains_key(header::CONTENT_LENGTH));
    assert_eq!(site.get("/digits.txt", &[(header::IF_MATCH, "\"other\"")]).0, 412);
}

#[test]
fn one_range_is_served() {
    let site = fixture();
    let (status, headers, text) = site.get("/digits.txt", &[(header::RANGE, "bytes=2-4")]);
    assert_eq!((status, text.as_str()), (206, "234"));
    assert_eq!(headers[header::CONTENT_RANGE], "bytes 2-4/10");
    assert_eq!(headers[header::CONTENT_LENGTH], "3");
    assert_eq!(site.get("/digits.txt", &[(header::RANGE, "bytes=-2")]).2, "89");

    let (status, headers, text) = site.get("/digits.txt", &[(header::RANGE, "bytes=10-")]);
    assert_eq!((status, text.as_str()), (416, ""));
    assert_eq!(headers[header::CONTENT_RANGE], "bytes */10");

    assert_eq!(site.get("/digits.txt", &[(header::RANGE, "bytes=0-1,4-5")]).0, 200);
    assert_eq!(site.get("/digits.txt", &[(header::RANGE, "bytes=2-4"), (header::IF_RANGE, "\"d1\"")]).0, 206);
    assert_eq!(site.get("/digits.txt", &[(header::RANGE, "bytes=2-4"), (header::IF_RANGE, "\"old\"")]).0, 200);
}

#[test]
fn a_compressed_sibling_is_sent_to_those_who_take_it() {
    let site = fixture();
    let gzip = (header::ACCEPT_ENCODING, "br, gzip");
    let (_, headers, text) = site.get("/app.js", std::slice::from_ref(&gzip));
    assert_eq!(text, "compressed");
    assert_eq!(headers[header::CONTENT_ENCODING], "gzip");
    assert_eq!(headers[header::CONTENT_TYPE], "text/javascript; charset=utf-8");
    assert_eq!(
        (&headers[header::ETAG], &headers[header::VARY]),
        (&HeaderValue::from_static("\"z1\""), &HeaderValue::from_static("accept-encoding"))
    );

    let (_, headers, text) = site.get("/app.js", &[]);
    assert_eq!(text, "let answer = 42;");
    assert!(!headers.contains_key(header::CONTENT_ENCODING));
    assert_eq!(
        (&headers[header::ETAG], &headers[header::VARY]),
        (&HeaderValue::from_static("\"j1\""), &HeaderValue::from_static("accept-encoding"))
    );

    let (status, headers, text) = site.get("/app.js", &[gzip, (header::RANGE, "bytes=0-2")]);
    assert_eq!((status, text.as_str()), (206, "let"));
    assert!(!headers.contains_key(header::CONTENT_ENCODING));
}

#[test]
fn folders_are_listed_and_paths_fall_back_where_told_to() {
    let mut site = fixture();
    site.settings.folders = Folders::Listed;
    let (status, _, text) = site.get("/bare/", &[]);
    assert_eq!(status, 200);
    assert!(text.contains("file.txt"), "{text}");

    site.settings.missing = Missing::Fallback;
    let (status, _, text) = site.get("/some/route", &[]);
    assert_eq!((status, text.as_str()), (200, "<h1>home</h1>"));
    assert_eq!(site.get("/.env", &[]).0, 404);
}

use std::fs;
use std::io::{Cursor, Write as _};
use std::path::Path;
use std::time::Duration;

use dewar_protocol::{AdminBuildpack, Secret, StagingProperties};
use tokio_util::sync::CancellationToken;

use super::{AdminBuildpacks, Candidate, Origin, Selection, select};
use crate::test_server::{Answer, Server};
use crate::transfer::{TransferConfig, Transfers};

const WASM: &[u8] = b"\0asm\x0d\0\x01\0";

fn transfers() -> Transfers {
    Transfers::new(TransferConfig { pause: Duration::from_millis(1), ..TransferConfig::default() }).unwrap()
}

fn zip(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for (name, content) in files {
        zip.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(content).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

/// Serves `/wasm`, `/zip`, and things that are no buildpacks.
async fn server() -> Server {
    Server::start(|request| match request.target.split('?').next().unwrap() {
        "/wasm" => Answer::ok(WASM),
        "/zip" => Answer::ok(zip(&[("README", b"about"), ("bin/pack.wasm", WASM)])),
        "/two" => Answer::ok(zip(&[("a.wasm", WASM), ("b.wasm", WASM)])),
        "/none" => Answer::ok(zip(&[("bin/detect", b"#!/bin/sh")])),
        "/evil" => Answer::ok(zip(&[("../pack.wasm", WASM)])),
        "/text" => Answer::ok("#!/bin/sh"),
        _ => Answer::status(404, ""),
    })
    .await
}

fn wanted(server: &Server, keys_and_paths: &[(&str, &str)]) -> Vec<AdminBuildpack> {
    keys_and_paths.iter().map(|(key, path)| AdminBuildpack { key: (*key).to_owned(), url: Secret(server.url(path)) }).collect()
}

async fn provide(buildpacks: &AdminBuildpacks, wanted: &[AdminBuildpack]) -> Result<Vec<Candidate>, String> {
    buildpacks.provide(wanted, &transfers(), &CancellationToken::new()).await.map_err(|error| error.to_string())
}

fn names(candidates: &[Candidate]) -> Vec<&str> {
    candidates.iter().map(|candidate| candidate.origin.name()).collect()
}

/// What is in the directory, without what is not complete yet.
fn on_disk(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = entries.filter(|name| name != ".partial").collect();
    names.sort();
    assert_eq!(fs::read_dir(dir.join(".partial")).unwrap().count(), 0, "nothing is left half-done");
    names
}

#[tokio::test]
async fn the_operators_buildpacks_are_fetched_once_and_come_in_their_order() {
    let (dir, server) = (tempfile::tempdir().unwrap(), server().await);
    let wanted = wanted(&server, &[("z_1", "/zip"), ("a_1", "/wasm")]);
    for _ in 0..2 {
        let buildpacks = AdminBuildpacks::open(dir.path().to_owned()).unwrap();
        let _in_use = buildpacks.reserve(&wanted);
        let candidates = provide(&buildpacks, &wanted).await.unwrap();
        assert_eq!(names(&candidates), ["z_1", "a_1"]);
        for candidate in &candidates {
            assert_eq!(candidate.wasm().unwrap(), WASM);
            assert_eq!(candidate.digest, sha256(WASM));
        }
        assert_eq!(on_disk(dir.path()), ["a_1", "z_1"]);
    }
    assert_eq!(server.requests().len(), 2);
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::{Digest as _, Sha256};
    crate::digest::hex(&Sha256::digest(bytes))
}

#[tokio::test]
async fn what_nobody_uses_is_removed_and_what_somebody_uses_is_not() {
    let (dir, server) = (tempfile::tempdir().unwrap(), server().await);
    let buildpacks = AdminBuildpacks::open(dir.path().to_owned()).unwrap();
    let (first, second) = (wanted(&server, &[("one", "/wasm"), ("both", "/wasm")]), wanted(&server, &[("both", "/wasm"), ("two", "/zip")]));
    let first_in_use = buildpacks.reserve(&first);
    provide(&buildpacks, &first).await.unwrap();
    let second_in_use = buildpacks.reserve(&second);
    provide(&buildpacks, &second).await.unwrap();
    assert_eq!(on_disk(dir.path()), ["both", "one", "two"], "the first staging is still under way");
    drop(first_in_use);
    provide(&buildpacks, &second).await.unwrap();
    assert_eq!(on_disk(dir.path()), ["both", "two"]);
    drop(second_in_use);
    provide(&buildpacks, &[]).await.unwrap();
    assert!(on_disk(dir.path()).is_empty());
}

#[tokio::test]
async fn a_buildpack_that_cannot_be_had_fails_after_three_attempts() {
    let (dir, server) = (tempfile::tempdir().unwrap(), server().await);
    let buildpacks = AdminBuildpacks::open(dir.path().to_owned()).unwrap();
    let error = provide(&buildpacks, &wanted(&server, &[("gone", "/gone?token=secret")])).await.unwrap_err();
    assert_eq!(error, format!("buildpack gone: Error downloading: HTTP status: 404 ({}?…)", server.url("/gone")));
    assert_eq!(server.requests().len(), 3);
    for (path, expected) in [
        ("/two", "its archive must hold one *.wasm, and holds 2"),
        ("/none", "its archive must hold one *.wasm, and holds 0"),
        ("/evil", "failed to take entry \"../pack.wasm\": its path leads out of the tree"),
        ("/text", "neither a wasm component nor an archive with one in it"),
    ] {
        let error = provide(&buildpacks, &wanted(&server, &[("bad", path)])).await.unwrap_err();
        assert_eq!(error, format!("buildpack bad: {expected}"));
        assert!(on_disk(dir.path()).is_empty());
    }
}

#[tokio::test]
async fn keys_are_names_and_urls_are_urls() {
    let (dir, server) = (tempfile::tempdir().unwrap(), server().await);
    let buildpacks = AdminBuildpacks::open(dir.path().join("admin")).unwrap();
    for key in ["", ".", "..", "../x", "a/b", ".partial", "a\0", "ä", &"k".repeat(201)] {
        let error = provide(&buildpacks, &wanted(&server, &[(key, "/wasm")])).await.unwrap_err();
        assert!(error.ends_with("not to be used as the name of a directory"), "{key:?}: {error}");
    }
    let mut wanted = wanted(&server, &[("good", "/wasm"), ("bad", "/wasm")]);
    wanted[1].url = Secret("no url".to_owned());
    let _in_use = buildpacks.reserve(&wanted);
    assert_eq!(names(&provide(&buildpacks, &wanted).await.unwrap()), ["good"], "as the original did");
}

#[tokio::test]
async fn an_interrupted_pass_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(|_| Answer::Stall { announced: 1000, body: b"some".to_vec() }).await;
    let buildpacks = AdminBuildpacks::open(dir.path().to_owned()).unwrap();
    let stop = CancellationToken::new();
    let (wanted, transfers) = (wanted(&server, &[("slow", "/wasm")]), transfers());
    let (outcome, ()) = tokio::join!(buildpacks.provide(&wanted, &transfers, &stop), async {
        while fs::read_dir(dir.path().join(".partial")).unwrap().count() == 0 {
            tokio::task::yield_now().await;
        }
        stop.cancel();
    });
    assert_eq!(outcome.unwrap_err().to_string(), "staging was stopped");
    assert!(on_disk(dir.path()).is_empty());
}

fn admin(key: &str) -> Candidate {
    Candidate { origin: Origin::Admin(key.to_owned()), digest: "d".to_owned(), source: super::Source::Memory(WASM) }
}

async fn choose(buildpack: Option<&str>, git_url: Option<&str>, key: Option<&str>) -> Result<Selection, String> {
    let text = |text: Option<&str>| text.map(str::to_owned);
    let properties = StagingProperties {
        buildpack: text(buildpack),
        buildpack_git_url: text(git_url),
        buildpack_key: text(key),
        ..StagingProperties::default()
    };
    let folder = tempfile::tempdir().unwrap();
    let selection = select(&properties, vec![admin("one"), admin("two")], &transfers(), folder.path(), &CancellationToken::new()).await;
    if let Ok(Selection::Given(candidate)) = &selection {
        assert!(candidate.wasm().unwrap().starts_with(b"\0asm"));
    }
    selection.map_err(|error| error.to_string())
}

fn given(selection: &Selection) -> &str {
    match selection {
        Selection::Given(candidate) => candidate.origin.name(),
        Selection::Detect(candidates) => panic!("detection among {:?}", names(candidates)),
    }
}

#[tokio::test]
async fn what_is_asked_for_is_chosen() {
    let server = server().await;
    let Selection::Detect(all) = choose(None, None, None).await.unwrap() else { panic!("nothing was asked for") };
    assert_eq!(names(&all), ["one", "two", "wasm", "static"]);
    assert!(matches!(choose(Some(" "), Some(""), Some("")).await.unwrap(), Selection::Detect(_)), "empty is not asked for");
    assert_eq!(given(&choose(Some("static"), None, Some("one")).await.unwrap()), "static");
    assert_eq!(given(&choose(Some("two"), None, None).await.unwrap()), "two");
    assert_eq!(given(&choose(None, Some("wasm"), None).await.unwrap()), "wasm");
    assert_eq!(given(&choose(None, None, Some("two")).await.unwrap()), "two");
    for path in ["/wasm", "/zip"] {
        let uri = server.url(&format!("{path}?token=secret"));
        assert_eq!(given(&choose(Some(&uri), Some("ignored"), None).await.unwrap()), format!("{}?…", server.url(path)));
    }
}

#[tokio::test]
async fn what_cannot_be_chosen_is_an_error_that_helps() {
    let server = server().await;
    assert_eq!(
        choose(Some("ruby"), None, None).await.unwrap_err(),
        "buildpack ruby: there is none of this name; known are one, two, wasm, static"
    );
    assert_eq!(choose(None, None, Some("wasm")).await.unwrap_err(), "buildpack wasm: there is none of this name; known are one, two");
    for git in ["https://up:secret@example.net/ruby.git", "https://example.net/ruby.git#v1", "git://example.net/x", "git@example.net:x"] {
        let error = choose(Some(git), None, None).await.unwrap_err();
        assert!(error.contains("buildpacks here are wasm components, and this is a git repository"), "{error}");
        assert!(!error.contains("secret"), "{error}");
    }
    for (url, shown) in [
        ("ftp://up:secret@example.net/ruby.zip?secret", "ftp://example.net/ruby.zip?…"),
        ("https://up:secret@example.net:99999/ruby.zip", "<<uri parse error>>"),
        ("up:secret@example.net/ruby.zip", "up:…"),
    ] {
        let error = choose(Some(url), None, None).await.unwrap_err();
        assert_eq!(error, format!("buildpack {shown}: there is none of this name; known are one, two, wasm, static"));
    }
    let error = choose(Some(&server.url("/text")), None, None).await.unwrap_err();
    assert!(error.ends_with("neither a wasm component nor an archive with one in it"), "{error}");
    let error = choose(Some(&server.url("/gone")), None, None).await.unwrap_err();
    assert!(error.contains("HTTP status: 404"), "{error}");
}

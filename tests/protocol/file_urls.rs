//! Signed URLs of files.

use dewar_protocol::{FILE_URL_SECONDS, FileUrlError, FileUrls, FilesOf, InstanceId, STAGING_LOG, Secret, TaskId};
use hmac::{Hmac, KeyInit, Mac};
use proptest::prelude::*;
use proptest::sample::Index;
use sha2::Sha512;

const ID: &str = "3c9a7e5f1b2d4860a1c3e5f708192a3b";
const THEN: i64 = 1_381_932_290;
const HMAC: &str =
    "5753e53d704be89ca388a77937131a1569ee50f27b570e54809fd83d1ed6b57dfa22f4bdd23f5e835b503d31f2798c3ce245d47460077f1dce39c4c83feb575a";

fn urls() -> FileUrls {
    FileUrls::new("http://8e1c.apps.example.net".to_owned(), Secret("00112233445566778899aabbccddeeff".to_owned()))
}

fn instance() -> FilesOf {
    FilesOf::Instance(InstanceId::from(ID))
}

/// Path and query of a URL that `urls` made.
fn parts(url: &Secret<String>) -> (String, String) {
    let rest = url.expose().strip_prefix("http://8e1c.apps.example.net").expect("our base");
    let (path, query) = rest.split_once('?').expect("a query");
    (path.to_owned(), query.to_owned())
}

#[test]
fn the_vectors_of_the_protocol() {
    let mac = Hmac::<Sha512>::new_from_slice(b"key").unwrap().chain_update(b"value").finalize().into_bytes();
    let hex: String = mac.iter().map(|byte| format!("{byte:02x}")).collect();
    let known =
        "86951dc765bef95f9474669cd18df7705d99ae47ea3e76a2ca4c22f71656f42ea66e3acdc898c93f475009fa599d0bb83bd5365f36a9cb92c570708f8de5fae8";
    assert_eq!(hex, known);
    let signed = urls().sign(&instance(), Some("/logs/a b.log"), THEN);
    let expected = format!("http://8e1c.apps.example.net/instance_paths/{ID}?hmac={HMAC}&path=%2Flogs%2Fa+b.log&timestamp={THEN}");
    assert_eq!(signed.expose(), &expected, "§10.2");
    assert!(!format!("{signed:?} {:?}", urls()).contains("0011"), "neither URL nor key is printed");
}

#[test]
fn paths_of_urls() {
    let task = FilesOf::StagingTask(TaskId::from("b5d3/ü"));
    assert_eq!(task.url_path(), "/staging_tasks/b5d3%2F%C3%BC/file_path");
    assert_eq!(instance().url_path(), format!("/instance_paths/{ID}"));
    for of in [task, instance()] {
        assert_eq!(FilesOf::parse(&of.url_path()), Some(of));
    }
    let none = ["/", "", "/instance_paths/", "/instance_paths/a/b", "/staging_tasks//file_path", "/staging_tasks/a", "/instance_paths/%FF"];
    assert_eq!(none.map(FilesOf::parse), [const { None }; 7]);
    let (_, query) = parts(&urls().sign(&instance(), Some(STAGING_LOG), THEN));
    assert!(query.contains("&path=%2Ftmp%2Fstaged%2Flogs%2Fstaging_task.log&"), "{query}");
}

#[test]
fn a_url_opens_what_it_was_made_for_however_its_parameters_are_ordered_or_joined() {
    for file in [Some("/logs/a b+c%d&e=f.log"), Some("/ü/*-._~"), Some(""), None] {
        let (path, query) = parts(&urls().sign(&instance(), file, THEN));
        let opened = Ok(file.map(str::to_owned));
        assert_eq!(urls().verify(&path, &query, THEN), opened, "{query}");
        let reversed: Vec<&str> = query.split('&').rev().collect();
        assert_eq!(urls().verify(&path, &reversed.join("&"), THEN), opened, "{query}");
        assert_eq!(urls().verify(&path, &format!("tail&{query}&tail_offset=0"), THEN), opened, "{query}");
        assert_eq!(urls().verify(&path, &query.replace("%2F", "%2f"), THEN), opened, "{query}");
    }
}

#[test]
fn a_url_is_good_for_an_hour_to_the_second() {
    let (path, query) = parts(&urls().sign(&instance(), None, THEN));
    let at = |now| urls().verify(&path, &query, now);
    assert_eq!((at(THEN), at(THEN + FILE_URL_SECONDS)), (Ok(None), Ok(None)));
    assert_eq!(at(THEN + FILE_URL_SECONDS + 1), Err(FileUrlError::Expired));
    assert_eq!((at(THEN - 5), at(i64::MIN)), (Ok(None), Ok(None)), "a clock that runs behind");
}

#[test]
fn what_was_changed_opens_nothing() {
    let (path, query) = parts(&urls().sign(&instance(), Some("/logs"), THEN));
    let bad = |path: &str, query: &str| urls().verify(path, query, THEN);
    let cases = [
        (bad("/instance_paths/other", &query), FileUrlError::BadSignature),
        (bad(&path, &query.replace("logs", "app")), FileUrlError::BadSignature),
        (bad(&path, &query.replace("path=%2Flogs", "path")), FileUrlError::BadSignature),
        (bad(&path, &query.replace(&THEN.to_string(), &(THEN + 1).to_string())), FileUrlError::BadSignature),
        (bad(&path, &query.replacen("hmac=", "hmac=00", 1)), FileUrlError::BadSignature),
        (
            bad(&path, &query.to_uppercase().replace("HMAC", "hmac").replace("PATH", "path").replace("TIMESTAMP", "timestamp")),
            FileUrlError::BadSignature,
        ),
        (bad(&path, &format!("{query}&path=%2Fapp")), FileUrlError::BadSignature),
        (bad(&path, &format!("{query}&timestamp={THEN}")), FileUrlError::BadSignature),
        (bad(&path, "path=%2Flogs&timestamp=1"), FileUrlError::BadSignature),
        (bad(&path, "hmac=&path&timestamp=1"), FileUrlError::BadSignature),
        (bad(&path, "hmac&path&timestamp=1"), FileUrlError::BadSignature),
        (bad(&path, "hmac=00&timestamp=1"), FileUrlError::Missing("path")),
        (bad(&path, ""), FileUrlError::Missing("path")),
        (bad(&path, "hmac=00&path=x"), FileUrlError::Missing("timestamp")),
        (bad(&path, "hmac=00&path=x&timestamp=soon"), FileUrlError::Invalid("timestamp")),
        (bad(&path, "hmac=00&path=x&timestamp"), FileUrlError::Invalid("timestamp")),
    ];
    for (number, (found, expected)) in cases.into_iter().enumerate() {
        assert_eq!(found, Err(expected), "case {number}");
    }
    let other = FileUrls::new(String::new(), Secret("another key".to_owned()));
    assert_eq!(other.verify(&path, &query, THEN), Err(FileUrlError::BadSignature));
    assert_eq!(FileUrlError::Missing("path").to_string(), "path is missing");
    assert_eq!(FileUrlError::BadSignature.to_string(), "Invalid HMAC");
}

proptest! {
    /// No change of a single character makes another file of a URL's, nor does any text in its place open one.
    #[test]
    fn no_other_url_opens_another_file(at in any::<Index>(), byte in 0x20..0x7f_u8, query in "\\PC{0,80}") {
        let url = urls().sign(&instance(), Some("/logs/stdout.log"), THEN);
        let mut changed = url.expose().clone().into_bytes();
        let at = at.index(changed.len());
        changed[at] = byte;
        let changed = Secret(String::from_utf8(changed).unwrap());
        if changed.expose().starts_with("http://8e1c.apps.example.net") && changed.expose().contains('?') {
            let (path, query) = parts(&changed);
            let opened = urls().verify(&path, &query, THEN);
            prop_assert!(opened.is_err() || opened == Ok(Some("/logs/stdout.log".to_owned())), "{changed:?}");
        }
        prop_assert!(urls().verify("/instance_paths/x", &query, THEN).is_err());
    }
}

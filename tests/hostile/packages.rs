//! Packages that lead elsewhere, or blow up.

use std::io::Write as _;
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use tar::EntryType;

use crate::attack::{Attack, assert_fits, attack};
use crate::fixture::sandboxes;
use crate::world::{World, zip};

/// A package that is refused with these words after `Error staging: app package: failed to `.
fn refused(name: &'static str, held_by: &'static str, package: fn() -> Vec<u8>, words: &'static str) -> Attack {
    attack(name, held_by, move || async move {
        let world = World::with(sandboxes().clone(), Duration::from_secs(20)).await;
        let package = tokio::task::spawn_blocking(package).await.unwrap();
        world.serve("/package", package);
        let (error, _) = world.failed(&world.message()).await;
        let why = error.message.strip_prefix("Error staging: app package: failed to ").unwrap_or_else(|| panic!("{}", error.message));
        assert_fits(words, why, name);
        assert_eq!(world.posted("/droplet").len(), 0, "no droplet was made of it");
    })
}

const NAMES: &str = "names are taken apart and put together again, without `..`, from the root of the tree";
const KINDS: &str = "files, directories and links are taken, nothing else";
const READING: &str = "what an archive says of itself is not believed";

pub(crate) fn attacks() -> Vec<Attack> {
    vec![
        refused("packages::no_archive", READING, || b"not a zip".repeat(100), "recognise an archive"),
        refused(
            "packages::names_that_lead_up",
            NAMES,
            || zip(&[("../evil", b"x")]),
            "take entry \"../evil\": its path leads out of the tree",
        ),
        refused(
            "packages::names_that_lead_up_midway",
            NAMES,
            || tar(&[entry("a/../../evil", EntryType::Regular, b"x")]),
            "take entry …leads out of the tree",
        ),
        refused("packages::absolute_names", NAMES, || zip(&[("/etc/evil", b"x")]), "take entry \"/etc/evil\": its path is absolute"),
        refused("packages::names_of_another_system", NAMES, || zip(&[("..\\evil", b"x")]), "take entry …its name contains a backslash"),
        refused("packages::a_name_with_a_nul", NAMES, || zip(&[("a\0b", b"x")]), "take entry |read "),
        refused(
            "packages::a_name_that_is_no_text",
            NAMES,
            || tar(&[entry_of(b"\xff\xfe", EntryType::Regular, b"x", &[])]),
            "take entry …its name is not UTF-8",
        ),
        refused("packages::a_name_of_a_thousand_bytes", NAMES, || zip(&[("n".repeat(1000).as_str(), b"x")]), "take entry …longer than"),
        refused(
            "packages::a_thousand_directories_deep",
            NAMES,
            || zip(&[(("d/".repeat(1000) + "f").as_str(), b"x")]),
            "take entry …deeper than|take entry …longer than",
        ),
        refused(
            "packages::the_same_name_twice",
            READING,
            || tar(&[entry("a", EntryType::Regular, b"1"), entry("a", EntryType::Regular, b"2")]),
            "take entry \"a\": it appears twice",
        ),
        refused(
            "packages::a_link_that_leads_out",
            KINDS,
            || tar(&[link("a", EntryType::Symlink, "../../etc/passwd")]),
            "take entry \"a\": it is a link that may lead out",
        ),
        refused(
            "packages::a_link_to_an_absolute_path",
            KINDS,
            || tar(&[link("a", EntryType::Symlink, "/etc/passwd")]),
            "take entry \"a\": it is a link that may lead out",
        ),
        refused(
            "packages::a_file_through_a_link",
            "nothing is written through a link, not even one that leads inside",
            || tar(&[link("d", EntryType::Symlink, "e"), entry("d/x", EntryType::Regular, b"x")]),
            "take entry \"d\": what should be its directory is a file or a link",
        ),
        refused(
            "packages::a_hard_link",
            KINDS,
            || tar(&[link("a", EntryType::Link, "/etc/passwd")]),
            "take entry \"a\": it is a hard link",
        ),
        refused("packages::a_device", KINDS, || tar(&[entry("a", EntryType::Block, b"")]), "take entry \"a\": it is a device"),
        refused("packages::a_pipe", KINDS, || tar(&[entry("a", EntryType::Fifo, b"")]), "take entry \"a\": it is a pipe"),
        refused("packages::a_sparse_file_of_a_tebibyte", KINDS, sparse, "take entry |read "),
        refused(
            "packages::a_zip_bomb",
            "an archive unpacks to so many times its size",
            || zip(&[("zeros", &vec![0; 64 << 20])]),
            "unpack more than 100 times",
        ),
        refused(
            "packages::a_bomb_within_gzip",
            "the same",
            || gzip(&tar(&[entry("zeros", EntryType::Regular, &vec![0; 64 << 20])])),
            "unpack more than 100 times",
        ),
        refused(
            "packages::gzip_within_gzip",
            "one coding is taken off, and the rest must be an archive",
            || gzip(&gzip(&tar(&[]))),
            "read |recognise",
        ),
        refused(
            "packages::more_files_than_allowed",
            "files and directories are counted",
            || {
                let names: Vec<String> = (0..1001).map(|number| number.to_string()).collect();
                zip(&names.iter().map(|name| (name.as_str(), &b""[..])).collect::<Vec<_>>())
            },
            "take more than 1000 files and directories",
        ),
        refused(
            "packages::a_million_directories",
            "the same; an archive of empty ones is small",
            || tar(&(0..20_000).map(|number| entry(&format!("{number}/"), EntryType::Directory, b"")).collect::<Vec<_>>()),
            "take more than 1000 files and directories",
        ),
        refused(
            "packages::headers_without_end",
            "headers that describe an entry are held in memory up to a limit",
            || gzip(&tar(&[entry("././@LongLink", EntryType::GNULongName, &vec![b'a'; 4 << 20]), entry("a", EntryType::Regular, b"")])),
            "read the archive: its headers are larger",
        ),
        refused(
            "packages::a_size_that_lies",
            READING,
            || {
                let mut header = tar::Header::new_gnu();
                header.set_path("a").unwrap();
                header.set_entry_type(EntryType::Regular);
                header.set_mode(0o644);
                header.set_size(1 << 40);
                header.set_cksum();
                header.as_bytes().to_vec()
            },
            "read |take ",
        ),
        refused(
            "packages::cut_in_the_middle",
            READING,
            || {
                let whole = zip(&[("a", &noise()), ("b", &noise())]);
                whole[..whole.len() / 2].to_vec()
            },
            "read ",
        ),
        refused(
            "packages::a_list_of_entries_that_lies",
            READING,
            || {
                let mut archive = zip(&[("a", b"x")]);
                // In the record at the end: how many entries, and how long their list is.
                let end = archive.windows(4).rposition(|bytes| bytes == b"PK\x05\x06").unwrap();
                archive[end + 8..end + 16].fill(0xff);
                archive
            },
            "read |take ",
        ),
        refused(
            "packages::a_wrong_checksum",
            READING,
            || {
                let mut archive = zip(&[("a", &noise())]);
                archive[500] ^= 0x55;
                archive
            },
            "read ",
        ),
    ]
}

/// What does not get smaller.
fn noise() -> Vec<u8> {
    use sha2::Digest as _;
    (0..500_u32).flat_map(|number| sha2::Sha256::digest(number.to_le_bytes())).collect()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(bytes).unwrap();
    gzip.finish().unwrap()
}

fn tar(entries: &[Vec<u8>]) -> Vec<u8> {
    let mut archive = entries.concat();
    archive.extend([0; 1024]);
    archive
}

fn entry(name: &str, kind: EntryType, content: &[u8]) -> Vec<u8> {
    entry_of(name.as_bytes(), kind, content, &[])
}

fn link(name: &str, kind: EntryType, target: &str) -> Vec<u8> {
    entry_of(name.as_bytes(), kind, b"", target.as_bytes())
}

/// Names go into the header as they are, which the library that reads them would not write.
fn entry_of(name: &[u8], kind: EntryType, content: &[u8], target: &[u8]) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name);
    header.as_gnu_mut().unwrap().linkname[..target.len()].copy_from_slice(target);
    header.set_entry_type(kind);
    header.set_mode(0o755);
    header.set_size(content.len() as u64);
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend_from_slice(content);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn sparse() -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.set_path("x").unwrap();
    header.set_entry_type(EntryType::GNUSparse);
    header.set_size(0);
    header.as_gnu_mut().unwrap().set_real_size(1 << 40);
    header.set_cksum();
    [&header.as_bytes()[..], &[0; 1024]].concat()
}

use std::fs;
use std::io::{Cursor, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use dewar_protocol::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use proptest::prelude::*;
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

use super::unpack;
use crate::digest::hex;
use crate::tree::{Tree, TreeLimits};

const ROOMY: TreeLimits = TreeLimits { bytes: Bytes(1 << 30), entries: 1000 };

/// An entry of an archive: name, mode with type, content or target.
pub(super) type Entry<'a> = (&'a [u8], u32, &'a [u8]);

pub(super) const FILE: u32 = 0o100_644;
pub(super) const PROGRAM: u32 = 0o104_755;
pub(super) const LINK: u32 = 0o120_777;

pub(super) fn zip(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, mode, content) in entries {
        let name = std::str::from_utf8(name).unwrap();
        let options = SimpleFileOptions::default().unix_permissions(*mode);
        if *mode == LINK {
            zip.add_symlink(name, std::str::from_utf8(content).unwrap(), options).unwrap();
        } else {
            zip.start_file(name, options).unwrap();
            zip.write_all(content).unwrap();
        }
    }
    zip.finish().unwrap().into_inner()
}

/// Names go into the header as they are, which the library that reads them would not write.
fn tar_entry(name: &[u8], kind: tar::EntryType, mode: u32, content: &[u8]) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name);
    header.set_entry_type(kind);
    header.set_mode(mode & 0o7777);
    header.set_mtime(1);
    let linked = matches!(kind, tar::EntryType::Symlink | tar::EntryType::Link);
    header.set_size(if linked { 0 } else { content.len() as u64 });
    if linked {
        header.as_gnu_mut().unwrap().linkname[..content.len()].copy_from_slice(content);
    }
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    if !linked {
        bytes.extend_from_slice(content);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    }
    bytes
}

pub(super) fn tar(entries: &[Entry<'_>]) -> Vec<u8> {
    let kind = |mode| if mode == LINK { tar::EntryType::Symlink } else { tar::EntryType::Regular };
    let mut bytes: Vec<u8> = entries.iter().flat_map(|(name, mode, content)| tar_entry(name, kind(*mode), *mode, content)).collect();
    bytes.extend([0; 1024]);
    bytes
}

pub(super) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(bytes).unwrap();
    gzip.finish().unwrap()
}

pub(super) fn try_unpack(archive: &[u8], into: &Path, limits: TreeLimits) -> Result<Tree, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("archive");
    fs::write(&path, archive).unwrap();
    unpack(&path, into, limits, &CancellationToken::new()).map_err(|error| error.to_string())
}

fn refusal_within(archive: &[u8], limits: TreeLimits) -> String {
    let outside = tempfile::tempdir().unwrap();
    let into = outside.path().join("into");
    fs::create_dir(&into).unwrap();
    let error = try_unpack(archive, &into, limits).unwrap_err();
    let beside: Vec<_> = fs::read_dir(outside.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(beside, ["into"], "nothing may be written outside");
    error
}

fn refusal(archive: &[u8]) -> String {
    refusal_within(archive, ROOMY)
}

fn digest(tree: &Tree) -> String {
    let mut hash = Sha256::new();
    tree.hash_into(&mut hash);
    hex(&hash.finalize())
}

#[test]
fn the_same_files_come_out_of_every_kind_of_archive() {
    let entries: &[Entry<'_>] = &[
        (b"./app/run.sh", PROGRAM, b"#!/bin/sh"),
        (b"app/data/a.txt", FILE, b"a"),
        (b"app//data/./b.txt", FILE, b""),
        ("app/grüße".as_bytes(), FILE, b"hallo"),
        (b"app/data/link", LINK, b"../run.sh"),
    ];
    let mut digests = Vec::new();
    for archive in [zip(entries), tar(entries), gzip(&tar(entries))] {
        let into = tempfile::tempdir().unwrap();
        let tree = try_unpack(&archive, into.path(), ROOMY).unwrap();
        let paths: Vec<&str> = tree.nodes.keys().map(String::as_str).collect();
        assert_eq!(paths, ["app", "app/data", "app/data/a.txt", "app/data/b.txt", "app/data/link", "app/grüße", "app/run.sh"]);
        assert_eq!(tree.bytes, 9 + 1 + 5);
        assert_eq!(fs::read(into.path().join("app/grüße")).unwrap(), "hallo".as_bytes());
        assert_eq!(fs::read_link(into.path().join("app/data/link")).unwrap(), Path::new("../run.sh"));
        let mode = fs::metadata(into.path().join("app/run.sh")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7100, 0o100, "executable, but not as somebody else");
        digests.push(digest(&tree));
    }
    assert_eq!(digests[0], digests[1]);
    assert_eq!(digests[1], digests[2]);
}

#[test]
fn trees_that_differ_have_different_digests() {
    let variants: [&[Entry<'_>]; 8] = [
        &[(b"a", FILE, b"1")],
        &[(b"a", FILE, b"2")],
        &[(b"b", FILE, b"1")],
        &[(b"a", PROGRAM, b"1")],
        &[(b"a", LINK, b"1")],
        &[(b"a", FILE, b"1"), (b"b", FILE, b"")],
        &[(b"a/b", FILE, b"")],
        &[],
    ];
    let digest = |entries| digest(&try_unpack(&tar(entries), tempfile::tempdir().unwrap().path(), ROOMY).unwrap());
    let digests: std::collections::BTreeSet<String> = variants[..7].iter().map(|entries| digest(entries)).collect();
    assert_eq!(digests.len(), 7);
    assert!(try_unpack(&zip(variants[7]), tempfile::tempdir().unwrap().path(), ROOMY).unwrap().nodes.is_empty(), "an empty zip is one");
}

#[test]
fn names_that_lead_elsewhere_are_refused_by_name() {
    for (name, why) in [
        (&b"../evil"[..], "its path leads out of the tree"),
        (b"a/../../evil", "its path leads out of the tree"),
        (b"a/..", "its path leads out of the tree"),
        (b"/tmp/evil", "its path is absolute"),
        (b"..\\evil", "its name contains a backslash"),
        (b"C:\\evil", "its name contains a backslash"),
    ] {
        let shown = format!("{:?}", std::str::from_utf8(name).unwrap());
        for archive in [zip(&[(name, FILE, b"x")]), tar(&[(name, FILE, b"x")])] {
            assert_eq!(refusal(&archive), format!("take entry {shown}: {why}"));
        }
    }
    assert_eq!(refusal(&tar(&[(b"\xff\xfe", FILE, b"")])), "take entry \"\u{fffd}\u{fffd}\": its name is not UTF-8");
}

#[test]
fn links_stay_inside_or_are_refused() {
    let escaping: [&[u8]; 6] = [b"/etc/passwd", b"..", b"../x", b"a/../../x", b"./../x", b""];
    for target in escaping {
        for archive in [zip(&[(b"link", LINK, target)]), tar(&[(b"link", LINK, target)])] {
            if !target.is_empty() || archive.starts_with(b"PK") {
                assert_eq!(refusal(&archive), "take entry \"link\": it is a link that may lead out of the tree");
            }
        }
    }
    // Through `here`, `d/e/here/..` would be outside, though it looks as if it were `d/e`.
    let through = tar(&[(b"d/e/here", LINK, b"../.."), (b"d/e/out", LINK, b"here/../x")]);
    assert_eq!(refusal(&through), "take entry \"d/e/out\": it is a link that may lead out of the tree");
}

#[test]
fn nothing_is_written_through_a_link_or_over_a_file() {
    let through = "what should be its directory is a file or a link";
    for (entries, expected) in [
        (&[(&b"d"[..], LINK, &b"e"[..]), (b"d/x", FILE, b"")][..], format!("take entry \"d\": {through}")),
        (&[(b"f", FILE, b""), (b"f/x", FILE, b"")], format!("take entry \"f\": {through}")),
        (&[(b"l", LINK, b"t"), (b"./l", FILE, b"")], "take entry \"./l\": it appears twice".to_owned()),
        (&[(b"d/x", FILE, b""), (b"d", FILE, b"")], "take entry \"d\": it appears twice".to_owned()),
    ] {
        assert_eq!(refusal(&tar(entries)), expected);
        assert_eq!(refusal(&zip(entries)), expected);
    }
    let mut twice = tar_entry(b"a", tar::EntryType::Regular, FILE, b"1");
    twice.extend(tar_entry(b"a", tar::EntryType::Regular, FILE, b"2"));
    assert_eq!(refusal(&twice), "take entry \"a\": it appears twice");
}

#[test]
fn only_files_directories_and_symbolic_links_are_taken() {
    use tar::EntryType;
    for (kind, name) in
        [(EntryType::Fifo, "pipe"), (EntryType::Char, "device"), (EntryType::Block, "device"), (EntryType::Link, "hard link")]
    {
        let error = refusal(&tar_entry(b"x", kind, 0o644, b""));
        assert!(error.starts_with(&format!("take entry \"x\": it is a {name}, ")), "{error}");
    }
    let mut sparse = tar::Header::new_gnu();
    sparse.set_path("x").unwrap();
    sparse.set_entry_type(EntryType::GNUSparse);
    sparse.set_size(0);
    sparse.as_gnu_mut().unwrap().set_real_size(1 << 40);
    sparse.set_cksum();
    let error = refusal(&[&sparse.as_bytes()[..], &[0; 1024]].concat());
    assert!(error.starts_with("take entry \"x\": it is a sparse file, ") || error.starts_with("read the archive: "), "{error}");
    let mut fifo = zip(&[(b"x", FILE, b"")]);
    // The upper half of the external attributes, in the list at the end, is the mode.
    let at = fifo.windows(4).rposition(|bytes| bytes == b"PK\x01\x02").unwrap() + 40;
    fifo[at..at + 2].copy_from_slice(&0o010_644_u16.to_le_bytes());
    let error = refusal(&fifo);
    assert!(error.starts_with("take entry \"x\": it is a device, pipe or socket"), "{error}");
}

#[test]
fn what_is_no_archive_is_said_to_be_none() {
    for bytes in [&b""[..], b"hello", b"\0asm\x0d\0\x01\0", &[0; 4096]] {
        assert_eq!(refusal(bytes), "recognise an archive: neither zip nor tar nor tar.gz");
    }
    for bytes in [&b"PK\x03\x04 and then nonsense"[..], &gzip(b"no tar"), b"\x1f\x8b but not gzip"] {
        let error = refusal(bytes);
        assert!(error.starts_with("read "), "{error}");
    }
}

#[test]
fn an_archive_that_was_cut_is_refused() {
    // What cannot be compressed, so that most of the archive is content.
    let content: Vec<u8> = (0..4000_u32).flat_map(|number| Sha256::digest(number.to_le_bytes())).collect();
    let entries: &[Entry<'_>] = &[(b"a", FILE, &content), (b"b", FILE, &content)];
    for whole in [zip(entries), tar(entries), gzip(&tar(entries))] {
        let error = refusal(&whole[..whole.len() * 3 / 4]);
        assert!(error.starts_with("read "), "{error}");
    }
    let mut bad = zip(entries);
    bad[1000] ^= 0x55;
    let error = refusal(&bad);
    assert!(error.starts_with("read \"a\": "), "{error}");
}

#[test]
fn a_bomb_stops_early() {
    let zeros = vec![0; 64 << 20];
    for archive in [zip(&[(b"zeros", FILE, &zeros)]), gzip(&tar(&[(b"zeros", FILE, &zeros)]))] {
        let into = tempfile::tempdir().unwrap();
        let error = try_unpack(&archive, into.path(), ROOMY).unwrap_err();
        assert!(error.ends_with("this looks like a bomb"), "{error}");
        let written = fs::metadata(into.path().join("zeros")).unwrap().len();
        let allowed = super::INFLATION_FREE + super::INFLATION * archive.len() as u64;
        assert!(written <= allowed && allowed < zeros.len() as u64, "{written} bytes of at most {allowed} were written");
    }
}

#[test]
fn bytes_and_entries_are_bounded() {
    let limits = TreeLimits { bytes: Bytes(10), entries: 3 };
    let fits: &[Entry<'_>] = &[(b"d/a", FILE, b"01234"), (b"d/b", FILE, b"56789")];
    try_unpack(&tar(fits), tempfile::tempdir().unwrap().path(), limits).unwrap();
    let one_more = [fits, &[(b"d/c", FILE, b"")]].concat();
    let one_byte_more = [(fits[0]), (b"d/b", FILE, b"567890")];
    for pack in [zip, tar] {
        assert_eq!(refusal_within(&pack(&one_more), limits), "take more than 3 files and directories");
        assert_eq!(refusal_within(&pack(&one_byte_more), limits), "take more than 10 bytes of files");
    }
    let many: Vec<u8> =
        (0..10).flat_map(|number| tar_entry(format!("{number}/").as_bytes(), tar::EntryType::Directory, 0o755, b"")).collect();
    assert_eq!(refusal_within(&many, limits), "take more than 3 files and directories");
}

/// An empty file of this name.
fn append(archive: &mut tar::Builder<Vec<u8>>, name: &str) {
    let mut header = tar::Header::new_gnu();
    header.set_size(0);
    header.set_mode(FILE & 0o7777);
    archive.append_data(&mut header, name, &b""[..]).unwrap();
}

#[test]
fn all_paths_together_are_bounded() {
    // Each file brings 63 directories, whose paths have 1.5 KiB on average.
    let path = |file: u32| (0..63).map(|depth| format!("{file:0>43}.{depth:0>2}/")).collect::<String>() + "f";
    let mut archive = tar::Builder::new(Vec::new());
    (0..400).for_each(|file| append(&mut archive, &path(file)));
    let limits = TreeLimits { entries: 200_000, ..ROOMY };
    let error = refusal_within(&gzip(&archive.into_inner().unwrap()), limits);
    assert_eq!(error, "take more than 33554432 bytes of paths");
}

#[test]
fn long_names_are_bounded_and_cost_no_memory() {
    let deep = "d/".repeat(64) + "f";
    let long = format!("{}/f", "n".repeat(256));
    let endless = "dir/".repeat(1000);
    for (name, why) in [
        (&deep, "it is deeper than 64 directories"),
        (&long, "its path is longer than 3072 bytes, or a name in it longer than 255"),
        (&endless, "its path is longer than 3072 bytes, or a name in it longer than 255"),
    ] {
        let mut archive = tar::Builder::new(Vec::new());
        append(&mut archive, name.trim_end_matches('/'));
        let error = refusal(&archive.into_inner().unwrap());
        assert!(error.ends_with(why), "{error}");
    }
    for kind in [tar::EntryType::GNULongName, tar::EntryType::GNULongLink, tar::EntryType::XHeader] {
        let mut archive = tar_entry(b"first", tar::EntryType::Regular, FILE, b"1");
        archive.extend(tar_entry(b"././@LongLink", kind, 0o644, &vec![b'a'; 4 << 20]));
        archive.extend(tar_entry(b"a", tar::EntryType::Regular, FILE, b""));
        assert_eq!(refusal(&gzip(&archive)), "read the archive: its headers are larger than any archive needs");
    }
}

#[test]
fn cancelling_ends_it() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("archive"), tar(&[(b"a", FILE, b"1")])).unwrap();
    fs::create_dir(folder.path().join("into")).unwrap();
    let stop = CancellationToken::new();
    stop.cancel();
    let error = unpack(&folder.path().join("archive"), &folder.path().join("into"), ROOMY, &stop).unwrap_err();
    assert_eq!(error.to_string(), "go on: cancelled");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases / 2, ..ProptestConfig::default() })]

    /// Whatever an archive says, nothing panics and nothing is written beside the directory, and all links lead inside.
    #[test]
    fn hostile_archives_stay_inside(
        entries in prop::collection::vec(("(\\.\\./|[ab]/|\\./|/|\\\\){0,4}(a|b|\\.\\.|)", 0..3_u8, "(\\.\\./|[ab]/|/){0,4}(a|b|\\.\\.|)"), 0..8),
        damage in prop::option::of((any::<prop::sample::Index>(), any::<u8>())),
    ) {
        let mut archive: Vec<u8> = Vec::new();
        for (name, kind, text) in &entries {
            let kind = [tar::EntryType::Regular, tar::EntryType::Symlink, tar::EntryType::Directory][usize::from(*kind)];
            let content = if kind == tar::EntryType::Directory { &[] } else { text.as_bytes() };
            archive.extend(tar_entry(name.as_bytes(), kind, 0o755, content));
        }
        if let (Some((place, byte)), false) = (damage, archive.is_empty()) {
            let place = place.index(archive.len());
            archive[place] ^= byte;
        }
        let outside = tempfile::tempdir().unwrap();
        let into = outside.path().join("into");
        fs::create_dir(&into).unwrap();
        // Both outcomes are right, as long as what follows holds.
        let unpacked = try_unpack(&archive, &into, ROOMY).is_ok();
        prop_assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
        let root = into.canonicalize().unwrap();
        for entry in walkdir::WalkDir::new(&into).into_iter().filter(|_| unpacked) {
            if let Ok(real) = entry.unwrap().path().canonicalize() {
                prop_assert!(real.starts_with(&root), "{} leads out", real.display());
            }
        }
    }
}

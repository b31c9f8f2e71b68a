//! Archives that were well-formed before somebody damaged them: whatever is in them, unpacking ends soon, within its limits, and
//! inside of its directory.

use std::fs;
use std::time::{Duration, Instant};

use dewar_protocol::Bytes;
use proptest::prelude::*;
use proptest::sample::Index;

use super::tests::{FILE, LINK, PROGRAM, gzip, tar, try_unpack, zip};
use crate::tree::TreeLimits;

const LIMITS: TreeLimits = TreeLimits { bytes: Bytes(100_000), entries: 12 };

/// An unpacking of a few entries takes milliseconds; a busy machine may add much, an endless loop everything.
const SOON: Duration = Duration::from_secs(10);

/// Numbers that are tried where a header may have one.
const NUMBERS: [u32; 6] = [0, 1, 0x7fff_ffff, 0xffff_ffff, 0xffff, 0x8000_0000];

#[derive(Debug, Clone)]
enum Damage {
    Byte(Index, u8),
    Number(Index, u32),
    Cut(Index, usize),
    Double(Index, usize),
    Swap(Index, Index),
    End(Index),
}

fn damage() -> impl Strategy<Value = Damage> {
    let place = || any::<Index>();
    prop_oneof![
        4 => (place(), any::<u8>()).prop_map(|(at, byte)| Damage::Byte(at, byte)),
        3 => (place(), prop::sample::select(NUMBERS.to_vec())).prop_map(|(at, number)| Damage::Number(at, number)),
        1 => (place(), 1..600_usize).prop_map(|(at, length)| Damage::Cut(at, length)),
        1 => (place(), 1..600_usize).prop_map(|(at, length)| Damage::Double(at, length)),
        1 => (place(), place()).prop_map(|(one, other)| Damage::Swap(one, other)),
        1 => place().prop_map(Damage::End),
    ]
}

impl Damage {
    fn strike(&self, archive: &mut Vec<u8>) {
        if archive.is_empty() {
            return;
        }
        let length = archive.len();
        let place = |at: &Index| at.index(length);
        match self {
            Self::Byte(at, byte) => archive[place(at)] = *byte,
            Self::Number(at, number) => {
                let at = place(at);
                let room = (length - at).min(4);
                archive[at..at + room].copy_from_slice(&number.to_le_bytes()[..room]);
            }
            Self::Cut(at, some) => {
                let at = place(at);
                archive.drain(at..(at + some).min(length));
            }
            Self::Double(at, some) => {
                let at = place(at);
                let copy = archive[at..(at + some).min(length)].to_vec();
                drop(archive.splice(at..at, copy));
            }
            Self::Swap(one, other) => {
                // Blocks of a tar archive, which may be headers.
                let (one, other) = (place(one) / 512 * 512, place(other) / 512 * 512);
                let room = (length - one.max(other)).min(512);
                for offset in 0..room {
                    archive.swap(one + offset, other + offset);
                }
            }
            Self::End(at) => archive.truncate(place(at)),
        }
    }
}

/// Gives each header of a tar archive the checksum that it should have, so that damage gets past it.
fn mend_checksums(archive: &mut [u8]) {
    for block in archive.chunks_exact_mut(512).filter(|block| &block[257..262] == b"ustar") {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().copied().map(u32::from).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
}

proptest! {
    #[test]
    fn a_damaged_archive_does_no_harm(
        entries in prop::collection::vec(("[ab]{1,2}(/[ab]{1,2}){0,2}", 0..3_u8, 0..60_000_usize), 1..6),
        kind in 0..3_u8,
        damages in prop::collection::vec(damage(), 1..5),
    ) {
        let contents: Vec<Vec<u8>> = entries.iter().map(|(_, _, length)| vec![b'x'; *length]).collect();
        let mut names = std::collections::BTreeSet::new();
        let entries: Vec<(&[u8], u32, &[u8])> = entries
            .iter()
            .zip(&contents)
            .filter(|((name, _, _), _)| names.insert(name.clone()))
            .map(|((name, kind, _), content)| match kind {
                0 => (name.as_bytes(), LINK, &b"a/b"[..]),
                1 => (name.as_bytes(), PROGRAM, &**content),
                _ => (name.as_bytes(), FILE, &**content),
            })
            .collect();
        let mut archive = if kind == 0 { zip(&entries) } else { tar(&entries) };
        damages.iter().for_each(|damage| damage.strike(&mut archive));
        if kind != 0 {
            mend_checksums(&mut archive);
        }
        if kind == 2 {
            archive = gzip(&archive);
        }
        let outside = tempfile::tempdir().unwrap();
        let into = outside.path().join("into");
        fs::create_dir(&into).unwrap();
        let began = Instant::now();
        let unpacked = try_unpack(&archive, &into, LIMITS);
        prop_assert!(began.elapsed() < SOON, "took {:?}", began.elapsed());
        prop_assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1, "something was written outside");
        let (mut bytes, mut count) = (0, 0);
        let root = into.canonicalize().unwrap();
        for entry in walkdir::WalkDir::new(&into).min_depth(1) {
            let entry = entry.unwrap();
            let metadata = entry.path().symlink_metadata().unwrap();
            count += 1;
            bytes += if metadata.is_file() { metadata.len() } else { 0 };
            prop_assert!(metadata.is_file() || metadata.is_dir() || metadata.is_symlink());
            if let Ok(real) = entry.path().canonicalize() {
                prop_assert!(real.starts_with(&root), "{} leads out", real.display());
            }
        }
        // One entry may be there already when its successor is refused.
        prop_assert!(bytes <= LIMITS.bytes.0 && count <= LIMITS.entries + 1, "{count} entries, {bytes} bytes");
        if let Ok(tree) = unpacked {
            prop_assert_eq!((tree.nodes.len() as u64, tree.bytes), (count, bytes), "what is told is what is there");
        }
    }
}

//! How many entries a zip archive says it has, read before room is made for them.
//!
//! The library makes room for as many as the end of the archive says. Up to 65 535 that is harmless; more stand in a record of the
//! zip64 extension, for which it looks in several places. So there is one place for it here, where writers put it: right before its
//! locator, which is right before the end record.

use std::io::{self, Read, Seek, SeekFrom};

use crate::tree::TreeError;

use super::{UnpackError, broken};

const END: &[u8] = b"PK\x05\x06";
const LOCATOR: &[u8] = b"PK\x06\x07";
const LOCATOR_SIZE: usize = 20;
const END64: &[u8] = b"PK\x06\x06";
const END64_SIZE: usize = 56;

/// Bytes from the first place where the library looks for an end record to the end of the archive: itself, and its comment.
const TAIL: usize = 26 + (64 << 10);

/// Refuses an archive of which any end record claims more entries than there may be.
pub(super) fn check(archive: &mut (impl Read + Seek), entries: u64) -> Result<(), UnpackError> {
    let size = archive.seek(SeekFrom::End(0)).map_err(broken)?;
    let start = size.saturating_sub((TAIL + LOCATOR_SIZE + END64_SIZE) as u64);
    archive.seek(SeekFrom::Start(start)).map_err(broken)?;
    let mut tail = Vec::new();
    archive.take(size - start).read_to_end(&mut tail).map_err(broken)?;
    let ends = tail.windows(END.len()).enumerate().filter(|(_, bytes)| *bytes == END).map(|(at, _)| at);
    for end in ends {
        let Some(locator) = end.checked_sub(LOCATOR_SIZE).filter(|at| tail[*at..].starts_with(LOCATOR)) else { continue };
        let misplaced = || broken(io::Error::other("its zip64 record is not right before the end"));
        let at = locator.checked_sub(END64_SIZE).ok_or_else(misplaced)?;
        let record = &tail[at..locator];
        let is_only_one = record.starts_with(END64) && !tail[at + 1..locator + 3].windows(END64.len()).any(|bytes| bytes == END64);
        if !is_only_one || number(&tail[locator + 8..]) != start + at as u64 {
            return Err(misplaced());
        }
        if number(&record[24..]).max(number(&record[32..])) > entries {
            return Err(TreeError::TooManyEntries { limit: entries }.into());
        }
    }
    Ok(())
}

/// Of the first eight bytes.
fn number(bytes: &[u8]) -> u64 {
    bytes.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::super::tests::{FILE, try_unpack, zip};
    use super::*;
    use crate::tree::TreeLimits;

    const LIMITS: TreeLimits = TreeLimits { bytes: dewar_protocol::Bytes(1 << 20), entries: 1000 };

    /// An archive of one file, that has a record of zip64 which says there are so many, and is so far from where it should be.
    fn zip64(entries: u64, gap: usize) -> Vec<u8> {
        let mut bytes = zip(&[(b"a", FILE, b"1")]);
        let mut end = bytes.split_off(bytes.len() - 22);
        let directory = u64::from(u32::from_le_bytes(*end[16..].first_chunk().unwrap()));
        let (length, at) = (bytes.len() as u64 - directory, bytes.len() as u64);
        end[8..12].fill(0xff);
        let record = [END64, &44_u64.to_le_bytes(), &[45, 0, 45, 0], &[0; 8]].concat();
        let numbers = [entries, entries, length, directory].map(u64::to_le_bytes).concat();
        let locator = [LOCATOR, &[0; 4], &at.to_le_bytes(), &[1, 0, 0, 0]].concat();
        [bytes, record, numbers, vec![0; gap], locator, end].concat()
    }

    #[test]
    fn an_archive_that_claims_too_many_entries_is_refused_before_there_is_room_for_them() {
        let into = tempfile::tempdir().unwrap();
        assert!(try_unpack(&zip64(1, 0), into.path(), LIMITS).unwrap().nodes.contains_key("a"));
        for claimed in [1001, 45_000_000, u64::MAX] {
            let error = try_unpack(&zip64(claimed, 0), into.path(), LIMITS).unwrap_err();
            assert_eq!(error, "take more than 1000 files and directories");
        }
        let error = try_unpack(&zip64(1, 1), into.path(), LIMITS).unwrap_err();
        assert_eq!(error, "read the archive: its zip64 record is not right before the end");
    }

    #[test]
    fn what_is_too_short_for_a_record_is_none() {
        for bytes in [&b""[..], b"PK\x05\x06", b"PK\x06\x07PK\x05\x06", &[LOCATOR, &[0; 16], END].concat()] {
            let checked = check(&mut Cursor::new(bytes), 1);
            assert_eq!(checked.is_err(), bytes.len() > 20, "{bytes:?}");
        }
    }
}

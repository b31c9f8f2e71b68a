//! What a directory looks like: one line an entry, the name in 35 columns, a blank, the size in 10.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, Dir, FileType, statat};
use rustix::io::Errno;

/// Entries that are looked at; a directory with more is shown in part, and [`CUT`] ends it.
const ENTRIES: usize = 10_000;

/// The last line of a directory that is shown in part.
const CUT: &str = "[cut]";

/// What is shown how. The two servers differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    /// Hidden entries are left out, there is no line end after the last.
    V1,
    /// As [`Style::V1`], and of the entries only those that an instance's root was known for.
    V1Root,
    /// Everything, each with a line end.
    V2,
}

/// Lists a directory, sorted by name. Links are shown as they are.
///
/// # Errors
/// When it cannot be read; `NotFound` when it was removed since it was opened.
pub(super) fn listing(directory: &OwnedFd, style: Style) -> io::Result<String> {
    let mut names = Vec::new();
    let mut cut = false;
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." || !shows(style, name.to_bytes()) {
            continue;
        }
        if names.len() == ENTRIES {
            cut = true;
            break;
        }
        names.push(name.to_owned());
    }
    if names.is_empty() && rustix::fs::fstat(directory)?.st_nlink == 0 {
        return Err(io::ErrorKind::NotFound.into());
    }
    names.sort_unstable();
    let mut lines = Vec::with_capacity(names.len());
    for name in names {
        let stat = match statat(directory, &name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            // Gone since a moment ago.
            Err(Errno::NOENT) => continue,
            Err(error) => return Err(error.into()),
        };
        let name = name.to_string_lossy();
        lines.push(match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => format!("{:<35} {:>10}", format!("{name}/"), "-"),
            _ => format!("{name:<35} {:>10}", size(u64::try_from(stat.st_size).unwrap_or(0))),
        });
    }
    lines.extend(cut.then(|| CUT.to_owned()));
    let text = lines.join("\n");
    Ok(if style == Style::V2 && !text.is_empty() { text + "\n" } else { text })
}

fn shows(style: Style, name: &[u8]) -> bool {
    match style {
        Style::V1 => !name.starts_with(b"."),
        Style::V1Root => matches!(name, b"app" | b"logs" | b"tomcat"),
        Style::V2 => true,
    }
}

/// `182B`, `9.8K`, `1.0G`.
fn size(bytes: u64) -> String {
    let units = [(40, 'T'), (30, 'G'), (20, 'M'), (10, 'K')];
    match units.into_iter().find(|(power, _)| bytes >> power > 0) {
        // Exact to more digits than are shown.
        #[expect(clippy::cast_precision_loss, reason = "one decimal is shown")]
        Some((power, unit)) => format!("{:.1}{unit}", bytes as f64 / (1_u64 << power) as f64),
        None => format!("{bytes}B"),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn sizes_have_a_unit_and_from_a_kibibyte_on_a_decimal() {
        let sizes = [0, 1023, 1024, 10_000, (1 << 20) - 1, 1 << 20, 3 << 29, 1 << 40, u64::MAX].map(size);
        assert_eq!(sizes, ["0B", "1023B", "1.0K", "9.8K", "1024.0K", "1.0M", "1.5G", "1.0T", "16777216.0T"]);
    }

    #[test]
    fn entries_are_sorted_and_padded_and_links_are_themselves() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["logs", "app", ".ssh"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        fs::write(dir.path().join("staging_info.yml"), "x".repeat(182)).unwrap();
        fs::write(dir.path().join(".hidden"), "x".repeat(10_000)).unwrap();
        std::os::unix::fs::symlink("app", dir.path().join("zlink")).unwrap();
        let open = || OwnedFd::from(fs::File::open(dir.path()).unwrap());
        let v2 = [
            ".hidden                                   9.8K",
            ".ssh/                                        -",
            "app/                                         -",
            "logs/                                        -",
            "staging_info.yml                          182B",
            "zlink                                       3B",
        ];
        assert_eq!(listing(&open(), Style::V2).unwrap(), v2.join("\n") + "\n");
        assert_eq!(listing(&open(), Style::V1).unwrap(), v2[2..].join("\n"));
        assert_eq!(listing(&open(), Style::V1Root).unwrap(), v2[2..4].join("\n"));
    }

    #[test]
    fn an_empty_directory_is_empty_and_a_removed_one_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("inner");
        fs::create_dir(&inner).unwrap();
        let opened = OwnedFd::from(fs::File::open(&inner).unwrap());
        assert_eq!(listing(&opened, Style::V2).unwrap(), "");
        fs::remove_dir(&inner).unwrap();
        assert_eq!(listing(&opened, Style::V2).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_huge_directory_is_shown_in_part() {
        let dir = tempfile::tempdir().unwrap();
        for number in 0..ENTRIES + 5 {
            fs::write(dir.path().join(number.to_string()), "").unwrap();
        }
        let text = listing(&OwnedFd::from(fs::File::open(dir.path()).unwrap()), Style::V2).unwrap();
        assert_eq!((text.lines().count(), text.lines().last()), (ENTRIES + 1, Some(CUT)));
    }
}

//! The `range` header (RFC 9110, section 14).

/// What of a file is to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// All of it: no range was asked for, or one that a server may pass over.
    Whole,
    /// From the first to the last byte, both included.
    Bytes { first: u64, last: u64 },
    /// A range that lies wholly beyond the end.
    Unsatisfiable,
}

/// Understands one range of bytes. Several at once, other units and malformed ones are passed over, as the RFC has it.
pub(crate) fn part_of(header: &str, length: u64) -> Part {
    let Some(range) = header.strip_prefix("bytes=").map(str::trim) else { return Part::Whole };
    let Some((first, last)) = range.split_once('-') else { return Part::Whole };
    match (number(first), number(last)) {
        (Some(first), None) if last.is_empty() => within(first, u64::MAX, length),
        (Some(first), Some(last)) if first <= last => within(first, last, length),
        (None, Some(suffix)) if first.is_empty() => match suffix.min(length) {
            0 => Part::Unsatisfiable,
            suffix => Part::Bytes { first: length - suffix, last: length - 1 },
        },
        _ => Part::Whole,
    }
}

fn within(first: u64, last: u64, length: u64) -> Part {
    if first >= length { Part::Unsatisfiable } else { Part::Bytes { first, last: last.min(length - 1) } }
}

/// Digits only: `parse` alone would take a sign too. More than fits is as good as the end.
fn number(text: &str) -> Option<u64> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_range_is_understood() {
        for (header, part) in [
            ("bytes=0-0", Part::Bytes { first: 0, last: 0 }),
            ("bytes=0-9", Part::Bytes { first: 0, last: 9 }),
            ("bytes=5-", Part::Bytes { first: 5, last: 9 }),
            ("bytes=5-99", Part::Bytes { first: 5, last: 9 }),
            ("bytes=-3", Part::Bytes { first: 7, last: 9 }),
            ("bytes=-99", Part::Bytes { first: 0, last: 9 }),
            ("bytes=9-99999999999999999999999", Part::Bytes { first: 9, last: 9 }),
            ("bytes=10-", Part::Unsatisfiable),
            ("bytes=99999999999999999999999-", Part::Unsatisfiable),
            ("bytes=-0", Part::Unsatisfiable),
        ] {
            assert_eq!(part_of(header, 10), part, "{header}");
        }
    }

    #[test]
    fn what_is_not_one_range_of_bytes_is_passed_over() {
        for header in
            ["", "bytes", "bytes=", "bytes=-", "bytes=a-b", "bytes=5-4", "bytes=0-1,3-4", "lines=0-1", "bytes=+1-2", "bytes=0-1-2"]
        {
            assert_eq!(part_of(header, 10), Part::Whole, "{header}");
        }
    }

    #[test]
    fn an_empty_file_has_no_ranges() {
        assert_eq!(part_of("bytes=0-", 0), Part::Unsatisfiable);
        assert_eq!(part_of("bytes=-1", 0), Part::Unsatisfiable);
    }
}

//! Which part of a file a request wants, and whether it wants it at all: conditions and ranges of HTTP.
//!
//! Files have no entity tags, only a date, so of the conditions those with a date count. A range of several parts is not split up:
//! the whole is sent, as HTTP allows.

use std::ops::Range;
use std::time::{Duration, SystemTime};

use hyper::HeaderMap;
use hyper::header::{HeaderName, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE, RANGE};

/// What to send of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Part {
    Whole,
    /// These bytes, at least one.
    Bytes(Range<u64>),
    /// None, for the range lies beyond the file.
    Unsatisfiable,
    /// None, for the client has it already.
    NotModified,
    /// None, for the file is another one than the client thinks.
    PreconditionFailed,
}

/// What a request with these headers wants of a file.
pub(super) fn part(headers: &HeaderMap, size: u64, modified: SystemTime) -> Part {
    let date = |name: &HeaderName| headers.get(name).and_then(|value| httpdate::parse_http_date(value.to_str().ok()?).ok());
    let modified = whole_seconds(modified);
    let is_any = |name: &HeaderName| headers.get(name).is_some_and(|value| value.as_bytes() == b"*");
    if headers.contains_key(IF_MATCH) {
        if !is_any(&IF_MATCH) {
            return Part::PreconditionFailed;
        }
    } else if date(&IF_UNMODIFIED_SINCE).is_some_and(|date| modified > date) {
        return Part::PreconditionFailed;
    }
    if headers.contains_key(IF_NONE_MATCH) {
        if is_any(&IF_NONE_MATCH) {
            return Part::NotModified;
        }
    } else if date(&IF_MODIFIED_SINCE).is_some_and(|date| modified <= date) {
        return Part::NotModified;
    }
    let applies = !headers.contains_key(IF_RANGE) || date(&IF_RANGE) == Some(modified);
    match headers.get(RANGE).and_then(|value| value.to_str().ok()).filter(|_| applies) {
        Some(range) => byte_range(range, size),
        None => Part::Whole,
    }
}

/// `bytes=5-10`, `bytes=5-`, `bytes=-5`. What is no such range counts as none.
fn byte_range(text: &str, size: u64) -> Part {
    let Some((first, last)) = text.strip_prefix("bytes=").and_then(|range| range.trim().split_once('-')) else { return Part::Whole };
    let number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse::<u64>().unwrap_or(u64::MAX));
    let bytes = match (first, last) {
        ("", "") => return Part::Whole,
        ("", length) => number(length).map(|length| size.saturating_sub(length)..size),
        (first, "") => number(first).map(|first| first..size),
        (first, last) => match (number(first), number(last)) {
            (Some(first), Some(last)) if first <= last => Some(first..last.saturating_add(1).min(size)),
            _ => None,
        },
    };
    match bytes {
        Some(bytes) if bytes.start < bytes.end => Part::Bytes(bytes),
        // An empty file has no bytes that could be missing.
        Some(_) if size > 0 => Part::Unsatisfiable,
        _ => Part::Whole,
    }
}

/// The last second that a date of HTTP can name, in the year 9999. A guest may set a later one.
const LAST_SECOND: u64 = 253_402_300_799;

/// Dates of HTTP have no fractions, and four digits for the year.
pub(super) fn whole_seconds(time: SystemTime) -> SystemTime {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs().min(LAST_SECOND))
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    const THEN: &str = "Wed, 16 Oct 2013 14:03:22 GMT";
    const LATER: &str = "Wed, 16 Oct 2013 14:03:23 GMT";

    fn wanted(headers: &[(HeaderName, &'static str)], size: u64) -> Part {
        let modified = httpdate::parse_http_date(THEN).unwrap() + Duration::from_millis(700);
        let headers = headers.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))).collect();
        part(&headers, size, modified)
    }

    #[test]
    fn ranges() {
        let range = |text| wanted(&[(RANGE, text)], 1000);
        assert_eq!(range("bytes=5-10"), Part::Bytes(5..11));
        assert_eq!(
            (range("bytes=990-"), range("bytes=-10"), range("bytes=990-5000")),
            (Part::Bytes(990..1000), Part::Bytes(990..1000), Part::Bytes(990..1000))
        );
        assert_eq!((range("bytes=-5000"), range("bytes=0-99999999999999999999")), (Part::Bytes(0..1000), Part::Bytes(0..1000)));
        assert_eq!(
            (range("bytes=1000-"), range("bytes=2000-3000"), range("bytes=-0")),
            (Part::Unsatisfiable, Part::Unsatisfiable, Part::Unsatisfiable)
        );
        for none in ["lines=1-2", "bytes=", "bytes=-", "bytes=7-5", "bytes=a-b", "bytes=1-2,4-5", "bytes=+1-2", "5-10"] {
            assert_eq!(range(none), Part::Whole, "{none}");
        }
        assert_eq!(wanted(&[(RANGE, "bytes=0-")], 0), Part::Whole, "an empty file");
    }

    #[test]
    fn conditions() {
        let with = |name, value| wanted(&[(name, value)], 10);
        assert_eq!((with(IF_MODIFIED_SINCE, THEN), with(IF_MODIFIED_SINCE, LATER)), (Part::NotModified, Part::NotModified));
        assert_eq!(with(IF_MODIFIED_SINCE, "Wed, 16 Oct 2013 14:03:21 GMT"), Part::Whole);
        assert_eq!(with(IF_MODIFIED_SINCE, "yesterday"), Part::Whole);
        assert_eq!(with(IF_UNMODIFIED_SINCE, THEN), Part::Whole);
        assert_eq!(with(IF_UNMODIFIED_SINCE, "Wed, 16 Oct 2013 14:03:21 GMT"), Part::PreconditionFailed);
        assert_eq!((with(IF_MATCH, "*"), with(IF_MATCH, "\"x\"")), (Part::Whole, Part::PreconditionFailed));
        assert_eq!((with(IF_NONE_MATCH, "*"), with(IF_NONE_MATCH, "\"x\"")), (Part::NotModified, Part::Whole));
        assert_eq!(wanted(&[(IF_NONE_MATCH, "\"x\""), (IF_MODIFIED_SINCE, LATER)], 10), Part::Whole, "the date does not count then");
        let partly = |date| wanted(&[(RANGE, "bytes=0-4"), (IF_RANGE, date)], 10);
        assert_eq!((partly(THEN), partly(LATER), partly("\"tag\"")), (Part::Bytes(0..5), Part::Whole, Part::Whole));
    }

    #[test]
    fn every_time_of_a_file_is_a_date() {
        let date = |seconds| httpdate::fmt_http_date(whole_seconds(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)));
        assert_eq!(date(1_381_932_202), THEN);
        for late in [LAST_SECOND, LAST_SECOND + 1, 1 << 60] {
            assert_eq!(date(late), "Fri, 31 Dec 9999 23:59:59 GMT");
        }
        assert_eq!(
            httpdate::fmt_http_date(whole_seconds(SystemTime::UNIX_EPOCH - Duration::from_secs(1))),
            "Thu, 01 Jan 1970 00:00:00 GMT"
        );
    }

    proptest! {
        #[test]
        fn no_range_reaches_beyond_the_file(text in "bytes=[-0-9, ]{0,24}|\\PC{0,20}", size in 0..2000_u64) {
            if let Part::Bytes(range) = byte_range(&text, size) {
                prop_assert!(range.start < range.end && range.end <= size);
            }
        }
    }
}

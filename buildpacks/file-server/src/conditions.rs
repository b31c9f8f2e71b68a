//! `if-none-match`, `if-modified-since`, `if-match`, `if-unmodified-since` and `if-range` (RFC 9110, section 13).

use std::time::{Duration, SystemTime};

use dewar_guest::types::{HeaderMap, HeaderName, header};

/// What the conditions are compared with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Validators {
    /// A strong entity tag, in its quotes.
    pub(crate) tag: Option<String>,
    /// In whole seconds, as a header can tell it.
    pub(crate) modified: Option<SystemTime>,
}

impl Validators {
    /// A file's time counts when it is one: an archive without times leaves all of them at the beginning of 1970.
    pub(crate) fn new(tag: Option<String>, modified: Option<SystemTime>) -> Validators {
        let seconds = modified
            .and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok())
            .map(|age| age.as_secs())
            .filter(|seconds| *seconds > 0);
        Validators { tag, modified: seconds.map(|seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)) }
    }
}

/// What the conditions of a request come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Proceed,
    NotModified,
    PreconditionFailed,
}

/// In the order that the RFC prescribes.
pub(crate) fn judge(headers: &HeaderMap, validators: &Validators) -> Verdict {
    let tag = validators.tag.as_deref();
    if let Some(wanted) = text(headers, &header::IF_MATCH) {
        if !lists(&wanted, tag, Comparison::Strong) {
            return Verdict::PreconditionFailed;
        }
    } else if let (Some(since), Some(modified)) = (date(headers, &header::IF_UNMODIFIED_SINCE), validators.modified)
        && modified > since
    {
        return Verdict::PreconditionFailed;
    }
    if let Some(known) = text(headers, &header::IF_NONE_MATCH) {
        return if lists(&known, tag, Comparison::Weak) { Verdict::NotModified } else { Verdict::Proceed };
    }
    match (date(headers, &header::IF_MODIFIED_SINCE), validators.modified) {
        (Some(since), Some(modified)) if modified <= since => Verdict::NotModified,
        _ => Verdict::Proceed,
    }
}

/// Whether a range still fits what the client has. Without the header it does.
pub(crate) fn range_applies(headers: &HeaderMap, validators: &Validators) -> bool {
    let Some(condition) = text(headers, &header::IF_RANGE) else { return true };
    if condition.starts_with('"') {
        return validators.tag.as_deref() == Some(condition.as_str());
    }
    httpdate::parse_http_date(&condition).is_ok_and(|date| validators.modified == Some(date))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Comparison {
    Strong,
    Weak,
}

/// Whether a list of entity tags has this one. Our tags have no commas in them.
fn lists(list: &str, tag: Option<&str>, comparison: Comparison) -> bool {
    if list.trim() == "*" {
        return true;
    }
    list.split(',').map(str::trim).any(|entry| match (entry.strip_prefix("W/"), comparison) {
        (Some(_), Comparison::Strong) => false,
        (Some(weak), Comparison::Weak) => Some(weak) == tag,
        (None, _) => Some(entry) == tag,
    })
}

/// All values of a header that may come in several lines.
fn text(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    let values: Vec<_> = headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).collect();
    (!values.is_empty()).then(|| values.join(","))
}

fn date(headers: &HeaderMap, name: &HeaderName) -> Option<SystemTime> {
    httpdate::parse_http_date(headers.get(name)?.to_str().ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TAG: &str = "\"abc\"";
    const TIME: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    const BEFORE: &str = "Sun, 06 Nov 1994 08:49:36 GMT";
    const AFTER: &str = "Sun, 06 Nov 1994 08:49:38 GMT";

    fn validators() -> Validators {
        Validators::new(Some(TAG.to_owned()), httpdate::parse_http_date(TIME).ok().map(|time| time + Duration::from_millis(700)))
    }

    fn headers(list: &[(HeaderName, &str)]) -> HeaderMap {
        list.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect()
    }

    #[test]
    fn conditions_are_judged_in_order() {
        use header::{IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_UNMODIFIED_SINCE};
        for (list, verdict) in [
            (vec![], Verdict::Proceed),
            (vec![(IF_NONE_MATCH, TAG)], Verdict::NotModified),
            (vec![(IF_NONE_MATCH, "W/\"abc\"")], Verdict::NotModified),
            (vec![(IF_NONE_MATCH, "\"x\", \"abc\"")], Verdict::NotModified),
            (vec![(IF_NONE_MATCH, "\"x\""), (IF_NONE_MATCH, TAG)], Verdict::NotModified),
            (vec![(IF_NONE_MATCH, "*")], Verdict::NotModified),
            (vec![(IF_NONE_MATCH, "\"x\"")], Verdict::Proceed),
            (vec![(IF_NONE_MATCH, "abc")], Verdict::Proceed),
            (vec![(IF_MODIFIED_SINCE, TIME)], Verdict::NotModified),
            (vec![(IF_MODIFIED_SINCE, AFTER)], Verdict::NotModified),
            (vec![(IF_MODIFIED_SINCE, BEFORE)], Verdict::Proceed),
            (vec![(IF_MODIFIED_SINCE, "yesterday")], Verdict::Proceed),
            // The tag outranks the time.
            (vec![(IF_NONE_MATCH, "\"x\""), (IF_MODIFIED_SINCE, AFTER)], Verdict::Proceed),
            (vec![(IF_MATCH, TAG)], Verdict::Proceed),
            (vec![(IF_MATCH, "W/\"abc\"")], Verdict::PreconditionFailed),
            (vec![(IF_MATCH, "\"x\""), (IF_NONE_MATCH, TAG)], Verdict::PreconditionFailed),
            (vec![(IF_UNMODIFIED_SINCE, BEFORE)], Verdict::PreconditionFailed),
            (vec![(IF_UNMODIFIED_SINCE, TIME)], Verdict::Proceed),
        ] {
            assert_eq!(judge(&headers(&list), &validators()), verdict, "{list:?}");
        }
    }

    #[test]
    fn a_file_without_validators_is_never_unmodified() {
        let unknown = Validators::new(None, Some(SystemTime::UNIX_EPOCH));
        assert_eq!(unknown, Validators::default());
        for list in [[(header::IF_NONE_MATCH, TAG)], [(header::IF_MODIFIED_SINCE, AFTER)]] {
            assert_eq!(judge(&headers(&list), &unknown), Verdict::Proceed, "{list:?}");
        }
    }

    #[test]
    fn a_range_applies_to_what_the_client_has() {
        for (condition, applies) in [(TAG, true), ("\"x\"", false), ("W/\"abc\"", false), (TIME, true), (AFTER, false), ("x", false)] {
            assert_eq!(range_applies(&headers(&[(header::IF_RANGE, condition)]), &validators()), applies, "{condition}");
        }
        assert!(range_applies(&HeaderMap::new(), &validators()));
    }
}

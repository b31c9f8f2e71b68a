//! What may be a subject: tokens between dots, none empty; in a subscription `*` stands for one token and a final `>` for one or more.

/// Deepest subscription with wildcards, in tokens. nats-server knows no such bound; here it bounds the recursion over the index.
pub(super) const MAX_WILDCARD_TOKENS: usize = 128;

/// The tokens of a subject.
pub(super) fn tokens(subject: &[u8]) -> impl Iterator<Item = &[u8]> {
    subject.split(|byte| *byte == b'.')
}

/// Whether no token is empty. A message to another subject reaches nobody.
pub(super) fn is_well_formed(subject: &[u8]) -> bool {
    let mut after_dot = true;
    for byte in subject {
        let dot = *byte == b'.';
        if dot && after_dot {
            return false;
        }
        after_dot = dot;
    }
    !after_dot
}

/// Whether a token is a wildcard.
pub(super) fn has_wildcard(subject: &[u8]) -> bool {
    tokens(subject).any(|token| matches!(token, b"*" | b">"))
}

/// Whether it can be subscribed to.
pub(super) fn is_valid_subscription(subject: &[u8]) -> bool {
    if !is_well_formed(subject) {
        return false;
    }
    if !has_wildcard(subject) {
        return true;
    }
    let count = tokens(subject).count();
    count <= MAX_WILDCARD_TOKENS && tokens(subject).enumerate().all(|(position, token)| token != b">" || position + 1 == count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_subscribed_to() {
        for good in ["a", "a.b.c", "*", ">", "a.*", "a.>", "*.*.>", "a.b*c", "a>b", "ab>.c", "a.**", "_INBOX.x.*", "\u{e4}.\u{1f980}"] {
            assert!(is_valid_subscription(good.as_bytes()), "{good}");
        }
        for bad in ["", ".", "a.", ".a", "a..b", ">.a", "a.>.b", "..", ">.>", "*."] {
            assert!(!is_valid_subscription(bad.as_bytes()), "{bad}");
        }
        assert!(is_valid_subscription(&b"a".repeat(4000)));
        let deep = |tokens: usize| vec!["*"; tokens].join(".").into_bytes();
        assert!(is_valid_subscription(&deep(MAX_WILDCARD_TOKENS)));
        assert!(!is_valid_subscription(&deep(MAX_WILDCARD_TOKENS + 1)));
    }

    #[test]
    fn wildcards_are_whole_tokens() {
        for wild in ["*", ">", "a.*.b", "a.>"] {
            assert!(has_wildcard(wild.as_bytes()), "{wild}");
        }
        for literal in ["a", "a*", "a.>b", "*a.b"] {
            assert!(!has_wildcard(literal.as_bytes()), "{literal}");
        }
    }
}

//! What a shell does to a text inside double quotes, as far as it needs no other program.

/// Whether a shell would export a variable of this name.
pub(super) fn is_name(text: &str) -> bool {
    name_length(text) == text.len() && !text.is_empty()
}

/// Puts variables in the place of `$NAME` and `${NAME}`, nothing for one that is not set. A backslash takes the meaning from a
/// `$`, a back-quote and a backslash. Everything else stays: command substitution, arithmetic, `${NAME:-default}`, `$1`.
pub(super) fn expand<'a>(text: &str, value_of: impl Fn(&str) -> Option<&'a str>) -> String {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(['$', '\\']) {
        expanded.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(escaped) = rest.strip_prefix('\\') {
            let (kept, read) = if escaped.starts_with(['$', '`', '\\']) { (&escaped[..1], 2) } else { ("\\", 1) };
            expanded.push_str(kept);
            rest = &rest[read..];
        } else if let Some((name, after)) = reference(rest) {
            expanded.push_str(value_of(name).unwrap_or_default());
            rest = after;
        } else {
            expanded.push('$');
            rest = &rest[1..];
        }
    }
    expanded.push_str(rest);
    expanded
}

/// The variable that a text starting with `$` refers to, and what follows.
fn reference(text: &str) -> Option<(&str, &str)> {
    let text = text.strip_prefix('$')?;
    if let Some(braced) = text.strip_prefix('{') {
        let (name, after) = braced.split_once('}')?;
        return is_name(name).then_some((name, after));
    }
    let length = name_length(text);
    (length > 0).then(|| text.split_at(length))
}

/// How many bytes at the start of a text are a variable's name.
fn name_length(text: &str) -> usize {
    if text.starts_with(|first: char| first.is_ascii_digit()) {
        return 0;
    }
    text.find(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_').unwrap_or(text.len())
}

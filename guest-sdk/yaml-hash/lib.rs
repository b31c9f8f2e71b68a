//! A YAML hash of texts: all that a `Procfile` or a `Staticfile` is.

use std::collections::BTreeMap;

use granit_parser::{Event, Parser, ScalarStyle};

/// What a text is when it isn't a hash of texts. There is nothing to tell about it that its author could not see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAHash;

/// Understands one document: a hash, each key of which is a text that is there once, and each value a text. None when there is nothing but white space and
/// comments.
///
/// # Errors
/// When it is anything else.
pub fn parse(text: &str) -> Result<Option<BTreeMap<String, String>>, NotAHash> {
    let mut events = Parser::new_from_str(text).map(|event| event.map(|(event, _span)| event).map_err(|_| NotAHash));
    let mut hash = None;
    loop {
        match events.next().ok_or(NotAHash)?? {
            Event::StreamStart | Event::DocumentEnd | Event::Comment(..) => {}
            Event::DocumentStart(..) if hash.is_none() => {}
            Event::MappingStart(..) if hash.is_none() => hash = Some(entries(&mut events)?),
            // What an empty document after a marker is.
            Event::Scalar(text, style, ..) if hash.is_none() && is_null(&text, style) => {}
            Event::StreamEnd => return Ok(hash),
            _ => return Err(NotAHash),
        }
    }
}

fn entries<'a>(events: &mut impl Iterator<Item = Result<Event<'a>, NotAHash>>) -> Result<BTreeMap<String, String>, NotAHash> {
    let mut entries = BTreeMap::new();
    let mut key = None;
    loop {
        match events.next().ok_or(NotAHash)?? {
            Event::Comment(..) => {}
            Event::Scalar(text, style, ..) if is_null(&text, style) => return Err(NotAHash),
            Event::Scalar(text, ..) => match key.take() {
                None => key = Some(text.into_owned()),
                Some(key) => {
                    if entries.insert(key, text.into_owned()).is_some() {
                        return Err(NotAHash);
                    }
                }
            },
            Event::MappingEnd if key.is_none() => return Ok(entries),
            _ => return Err(NotAHash),
        }
    }
}

/// A value that is left out is null too; in quotes it is a text like others.
fn is_null(text: &str, style: ScalarStyle) -> bool {
    style == ScalarStyle::Plain && matches!(text, "" | "~" | "null")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_of_texts_are_understood() {
        let text =
            "# types\nweb: app.wasm --port 80 # the one\nworker: 'app.wasm work: hard'\nempty: ''\n\"quoted key\": x\nlong: >\n  a\n  b\n";
        let hash = parse(text).unwrap().unwrap();
        let entries: Vec<_> = hash.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        assert_eq!(
            entries,
            [("empty", ""), ("long", "a b\n"), ("quoted key", "x"), ("web", "app.wasm --port 80"), ("worker", "app.wasm work: hard")]
        );
        assert_eq!(parse("{web: x}").unwrap().unwrap()["web"], "x");
        assert_eq!(parse("---\nweb: x\n...\n").unwrap().unwrap()["web"], "x");
    }

    #[test]
    fn nothing_is_nothing() {
        for text in ["", "\n", "# nothing to say\n", "---\n"] {
            assert_eq!(parse(text), Ok(None), "{text:?}");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "web",
            "- web: x",
            "web: [a, b]",
            "web:\n  command: x",
            "web: x\nweb: y",
            "{web: x",
            "web: x: y",
            "[a]: b",
            "web: *a",
            "a: b\n---\nc: d",
            "a: 'b",
            "web:",
            "web: ~",
            "null: x",
        ] {
            assert_eq!(parse(text), Err(NotAHash), "{text}");
        }
    }
}

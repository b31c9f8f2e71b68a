//! Golden JSON: every message, in both directions, next to the section of the protocol document that it comes from.
//!
//! Numbers of sections are those of the DEA protocol and behaviour specification that Dewar was written from. A text here is what
//! peers send or expect to the letter: changing one means that some peer of these last ten years is no longer understood.

mod agent;
mod component;
mod file_urls;
mod logs;
mod mutations;
mod router;
mod snapshot;
mod staging;
mod start;

use std::fmt::Debug;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The message is this text, key for key and in this order, and the text is this message; keys that nobody knows are ignored.
#[track_caller]
fn golden<T: Serialize + DeserializeOwned + PartialEq + Debug>(section: &str, text: &str, message: &T) {
    assert_eq!(serde_json::to_string(message).expect("messages are plain data"), without_blanks(text), "{section}: out");
    understood(section, text, message);
}

/// The text is this message, though we would write it otherwise; keys that nobody knows are ignored.
#[track_caller]
fn understood<T: DeserializeOwned + PartialEq + Debug>(section: &str, text: &str, message: &T) {
    assert_eq!(&decode::<T>(text).unwrap_or_else(|error| panic!("{section}: {error}")), message, "{section}: in");
    let body = text.trim_start().strip_prefix('{').unwrap_or_else(|| panic!("{section}: no object"));
    let comma = if body.trim_start().starts_with('}') { "" } else { "," };
    let more = format!(r#"{{"from_the_future":{{"a":[1,null]}}{comma}{body}"#);
    assert_eq!(&decode::<T>(&more).unwrap_or_else(|error| panic!("{section}: {error}")), message, "{section}: with an unknown key");
}

/// Each text is refused, and the refusal says where and why: `field: cause`.
#[track_caller]
fn refused<T: DeserializeOwned + Debug>(section: &str, cases: &[(&str, &str)]) {
    for (text, complaint) in cases {
        match decode::<T>(text) {
            Ok(message) => panic!("{section}: {text} was taken for {message:?}"),
            Err(error) => assert!(error.starts_with(complaint), "{section}: {text}\n   said: {error}\n wanted: {complaint}"),
        }
    }
}

fn decode<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    serde_path_to_error::deserialize(&mut deserializer).map_err(|error| error.to_string())
}

/// A text as a machine would have written it.
fn without_blanks(text: &str) -> String {
    let (mut in_string, mut escaped) = (false, false);
    text.chars()
        .filter(|letter| {
            let keep = in_string || !letter.is_whitespace();
            in_string ^= *letter == '"' && !escaped;
            escaped = *letter == '\\' && !escaped;
            keep
        })
        .collect()
}

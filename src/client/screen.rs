//! Where a command writes: lines for people with colours and a spinner, or one JSON object a line for programs.
//!
//! Results go to standard output, progress and remarks to standard error. Once nobody reads standard output any more, nothing more
//! is written, and [`Screen::is_open`] tells.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use dewar_protocol::{LogLine, LogSource, LogStream};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use crate::app_name::AppName;

/// What to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputFormat {
    /// Lines for people.
    Human,
    /// One JSON object a line.
    Json,
}

/// The two standard streams of this process.
#[derive(Debug)]
pub struct Screen {
    format: OutputFormat,
    out_is_terminal: bool,
    open: bool,
    /// The beginning of a character whose end has not come yet.
    undecoded: Vec<u8>,
    spinner: Option<ProgressBar>,
}

/// Colours that are readable on dark and light ground, for telling instances apart.
const PALETTE: [AnsiColor; 6] =
    [AnsiColor::Cyan, AnsiColor::Green, AnsiColor::Magenta, AnsiColor::Blue, AnsiColor::Yellow, AnsiColor::BrightCyan];

impl Screen {
    /// A screen that writes in this format.
    #[must_use]
    pub fn new(format: OutputFormat) -> Self {
        Self { format, out_is_terminal: io::stdout().is_terminal(), open: true, undecoded: Vec::new(), spinner: None }
    }

    /// The format.
    #[must_use]
    pub fn format(&self) -> OutputFormat {
        self.format
    }

    /// Whether somebody still reads standard output.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.open
    }

    /// A line for people. Its styles are taken out where the stream cannot show them.
    pub fn line(&mut self, text: &str) {
        let write = || writeln!(anstream::stdout().lock(), "{text}");
        let written = match &self.spinner {
            Some(spinner) => spinner.suspend(write),
            None => write(),
        };
        self.open &= written.is_ok();
    }

    /// A remark that is no result.
    pub fn remark(&mut self, text: &str) {
        let write = || writeln!(anstream::stderr().lock(), "{text}");
        let written = match &self.spinner {
            Some(spinner) => spinner.suspend(write),
            None => write(),
        };
        // Nobody to tell that nobody can be told.
        drop(written);
    }

    /// One JSON object.
    pub fn object<T: Serialize>(&mut self, value: &T) {
        let written = serde_json::to_string(value).map_err(io::Error::from).and_then(|text| writeln!(io::stdout().lock(), "{text}"));
        self.open &= written.is_ok();
    }

    /// Bytes of a guest's file: as they are, save at a terminal, which gets them as text that cannot play tricks on it.
    pub fn bytes(&mut self, bytes: &[u8]) {
        let mut out = io::stdout().lock();
        let written = if self.out_is_terminal {
            self.undecoded.extend_from_slice(bytes);
            let text = decoded(&mut self.undecoded);
            let lines: Vec<_> = text.split('\n').map(escape_controls).collect();
            out.write_all(lines.join("\n").as_bytes())
        } else {
            out.write_all(bytes)
        };
        self.open &= written.and_then(|()| out.flush()).is_ok();
    }

    /// Says what is going on, with a spinner; only people at a terminal see it.
    pub fn busy(&mut self, text: &str) {
        if self.format == OutputFormat::Json || !io::stderr().is_terminal() {
            return;
        }
        let spinner = self.spinner.get_or_insert_with(|| {
            let style =
                ProgressStyle::with_template("{spinner:.cyan} {msg} {elapsed:.dim}").unwrap_or_else(|_| ProgressStyle::default_spinner());
            let spinner = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()).with_style(style);
            spinner.enable_steady_tick(Duration::from_millis(100));
            spinner
        });
        spinner.set_message(text.to_owned());
    }

    /// Nothing is going on any more.
    pub fn idle(&mut self) {
        if let Some(spinner) = self.spinner.take() {
            spinner.finish_and_clear();
        }
    }

    /// An app's line, prefixed with who wrote it; as JSON, the line as it is on the bus.
    pub fn log_line(&mut self, app: &AppName, line: &LogLine) {
        if self.format == OutputFormat::Json {
            return self.object(line);
        }
        let who = match (line.source, line.index) {
            (LogSource::Stg, _) | (_, None) => app.to_string(),
            (LogSource::App | LogSource::Dea, Some(index)) => format!("{app}/{index}"),
        };
        let style = Style::new().fg_color(Some(colour_of(&who).into()));
        let text = self.harmless(&line.text);
        let text = match (line.source, line.stream) {
            (LogSource::Dea, _) => format!("{}{text}{}", Style::new().dimmed().render(), Style::new().dimmed().render_reset()),
            (LogSource::App, LogStream::Err) => format!("{}{text}{}", RED.render(), RED.render_reset()),
            (LogSource::App, LogStream::Out) | (LogSource::Stg, _) => text.into_owned(),
        };
        let prefixed = format!("{}{who} |{} {text}", style.render(), style.render_reset());
        self.line(&prefixed);
    }

    /// Text from a guest, such that it cannot play tricks on a terminal.
    #[must_use]
    pub fn harmless<'a>(&self, text: &'a str) -> Cow<'a, str> {
        if self.out_is_terminal { escape_controls(text) } else { Cow::Borrowed(text) }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.idle();
    }
}

/// For what went wrong.
pub const RED: Style = Style::new().fg_color(Some(anstyle::Color::Ansi(AnsiColor::Red)));
/// For what went well.
pub const GREEN: Style = Style::new().fg_color(Some(anstyle::Color::Ansi(AnsiColor::Green)));
/// For names.
pub const BOLD: Style = Style::new().bold();
/// For what matters less.
pub const DIM: Style = Style::new().dimmed();

/// Text in a style.
#[must_use]
pub fn styled(style: Style, text: &str) -> String {
    format!("{}{text}{}", style.render(), style.render_reset())
}

/// The same instance has the same colour in every command.
fn colour_of(who: &str) -> AnsiColor {
    let sum = who.bytes().fold(0_usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
    PALETTE[sum % PALETTE.len()]
}

/// Takes all text out, but for the beginning of a character at the end.
fn decoded(bytes: &mut Vec<u8>) -> String {
    let whole = match std::str::from_utf8(bytes) {
        Err(error) if error.error_len().is_none() => error.valid_up_to(),
        _ => bytes.len(),
    };
    let rest = bytes.split_off(whole);
    String::from_utf8_lossy(&std::mem::replace(bytes, rest)).into_owned()
}

/// Control characters (save tab) and those that turn the direction of text become visible as `\u{…}`.
#[must_use]
pub fn escape_controls(text: &str) -> Cow<'_, str> {
    let tricky = |c: char| (c.is_control() && c != '\t') || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    if !text.contains(tricky) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if tricky(c) {
            write!(escaped, "{}", c.escape_unicode()).expect("a string takes any text");
        } else {
            escaped.push(c);
        }
    }
    Cow::Owned(escaped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guests_cannot_steer_a_terminal() {
        assert_eq!(escape_controls("plain\täöü ✓"), "plain\täöü ✓");
        assert_eq!(escape_controls("\u{1b}]0;title\u{7}x\r\u{9b}2J"), "\\u{1b}]0;title\\u{7}x\\u{d}\\u{9b}2J");
        assert_eq!(escape_controls("abc\u{202e}txt"), "abc\\u{202e}txt");
    }

    #[test]
    fn a_character_may_come_in_two_pieces() {
        let mut bytes = "äö".as_bytes()[..3].to_vec();
        assert_eq!((decoded(&mut bytes).as_str(), bytes.len()), ("ä", 1));
        bytes.extend_from_slice(&"ö".as_bytes()[1..]);
        bytes.extend_from_slice(b"\xff!");
        assert_eq!((decoded(&mut bytes).as_str(), bytes.len()), ("ö\u{fffd}!", 0));
    }

    #[test]
    fn an_instance_keeps_its_colour() {
        assert_eq!(colour_of("hello/0"), colour_of("hello/0"));
        let colours: Vec<_> = (0..6).map(|index| colour_of(&format!("hello/{index}"))).collect();
        assert!(colours.windows(2).all(|pair| pair[0] != pair[1]), "neighbours differ: {colours:?}");
    }
}

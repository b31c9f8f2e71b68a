//! The last lines of one app.

use std::collections::VecDeque;
use std::time::Instant;

use dewar_protocol::LogLine;

/// Lines kept.
const LINES: usize = 1000;
/// Bytes of text kept.
const BYTES: usize = 128 << 10;

/// The last lines of one app: at most [`LINES`], of at most [`BYTES`] together; the oldest go first.
#[derive(Debug)]
pub(super) struct Ring {
    lines: VecDeque<LogLine>,
    bytes: usize,
    last_written: Instant,
}

impl Default for Ring {
    fn default() -> Self {
        Self { lines: VecDeque::new(), bytes: 0, last_written: Instant::now() }
    }
}

impl Ring {
    pub(super) fn push(&mut self, line: LogLine) {
        self.bytes += line.text.len();
        self.lines.push_back(line);
        while self.lines.len() > LINES || self.bytes > BYTES {
            let Some(oldest) = self.lines.pop_front() else { break };
            self.bytes -= oldest.text.len();
        }
        self.last_written = Instant::now();
    }

    /// The last `count` lines, oldest first.
    pub(super) fn tail(&self, count: usize) -> impl Iterator<Item = &LogLine> {
        self.lines.iter().skip(self.lines.len().saturating_sub(count))
    }

    pub(super) fn last_written(&self) -> Instant {
        self.last_written
    }
}

#[cfg(test)]
mod tests {
    use dewar_protocol::{AppId, LogSource, LogStream, UnixSeconds};

    use super::*;

    fn line(text: String) -> LogLine {
        let (app_id, timestamp) = (AppId::from("app"), UnixSeconds(0.0));
        LogLine { app_id, source: LogSource::App, index: Some(0), stream: LogStream::Out, timestamp, text }
    }

    #[test]
    fn keeps_the_newest_lines() {
        let mut ring = Ring::default();
        for number in 0..LINES + 5 {
            ring.push(line(number.to_string()));
        }
        let texts: Vec<&str> = ring.tail(2).map(|line| line.text.as_str()).collect();
        assert_eq!(texts, [(LINES + 3).to_string(), (LINES + 4).to_string()]);
        assert_eq!(ring.tail(usize::MAX).count(), LINES);
        assert_eq!(ring.tail(0).count(), 0);
    }

    #[test]
    fn keeps_no_more_bytes_than_it_may() {
        let mut ring = Ring::default();
        for _ in 0..20 {
            ring.push(line("x".repeat(BYTES / 10)));
        }
        assert!(ring.tail(usize::MAX).map(|line| line.text.len()).sum::<usize>() <= BYTES);
        assert_eq!(ring.tail(usize::MAX).count(), 10);
    }
}

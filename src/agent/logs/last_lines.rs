//! The last lines that one instance wrote: what its developer sees first of a crash.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use dewar_protocol::LogStream;
use dewar_sandbox::{Output, OutputSink};

/// Lines kept; the oldest go first.
const LINES: usize = 10;
/// Bytes of text kept of all of them; the oldest go first, and a single line is cut.
const BYTES: usize = 2 << 10;
const CUT: &str = " [cut]";

/// The last lines of one instance.
#[derive(Debug, Default)]
pub(crate) struct LastLines(Mutex<VecDeque<String>>);

impl LastLines {
    /// An output that remembers what goes through it.
    pub(crate) fn of(self: &Arc<Self>, output: OutputSink) -> OutputSink {
        Arc::new(Remembered { lines: Arc::clone(self), output })
    }

    fn push(&self, text: &str) {
        let line =
            if text.len() <= BYTES { text.to_owned() } else { format!("{}{CUT}", &text[..text.floor_char_boundary(BYTES - CUT.len())]) };
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.push_back(line);
        while lines.len() > LINES || lines.iter().map(String::len).sum::<usize>() > BYTES {
            lines.pop_front();
        }
    }

    /// The lines, oldest first; none are left.
    pub(crate) fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner)).into()
    }
}

struct Remembered {
    lines: Arc<LastLines>,
    output: OutputSink,
}

impl Output for Remembered {
    fn line(&self, stream: LogStream, text: &str) {
        self.lines.push(text);
        self.output.line(stream, text);
    }

    fn core_dump(&self, dump: &[u8]) {
        self.output.core_dump(dump);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Nowhere;

    impl Output for Nowhere {
        fn line(&self, _: LogStream, _: &str) {}
    }

    #[test]
    fn few_and_short_lines_are_kept() {
        let lines = Arc::new(LastLines::default());
        let output = lines.of(Arc::new(Nowhere));
        for number in 0..LINES + 3 {
            output.line(LogStream::Out, &number.to_string());
        }
        let kept = lines.take();
        assert_eq!((kept.len(), kept[0].as_str(), kept[LINES - 1].as_str()), (LINES, "3", "12"));
        assert_eq!(lines.take(), Vec::<String>::new());
        output.line(LogStream::Err, "before");
        output.line(LogStream::Err, &"ü".repeat(BYTES));
        let kept = lines.take();
        assert_eq!(kept.len(), 1);
        assert!(kept[0].len() <= BYTES && kept[0].ends_with("ü [cut]"));
    }
}

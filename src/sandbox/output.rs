//! Standard output and standard error of guests, as lines.
//!
//! A guest is never made to wait for its own log. What it writes is cut into lines of at most [`LINE_BYTES`] and handed on at
//! once; what comes faster than [`BYTES_PER_SECOND`] or [`LINES_PER_SECOND`] is dropped, and a line says how many were.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use dewar_protocol::LogStream;
use tokio::io::AsyncWrite;
use wasmtime_wasi::async_trait;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamResult};

/// Where lines go, and what else a guest leaves to its developer.
pub trait Output: Send + Sync + 'static {
    /// One line, without its line end. Called from guest context, so it must not block. Lines come already cut and rate-limited.
    fn line(&self, stream: LogStream, text: &str);

    /// What a store of an instance held when its guest trapped, its memory with all secrets included, as [WebAssembly's tool
    /// conventions](https://github.com/WebAssembly/tool-conventions/blob/main/Coredump.md) have it: at most 128 MiB of memory, and one
    /// a minute. Comes before the instance's [`crate::Exit`], on a thread where it may block. Nobody has to keep it.
    fn core_dump(&self, _dump: &[u8]) {}
}

/// A shared [`Output`].
pub type OutputSink = Arc<dyn Output>;

/// Longest line in bytes; a longer one ends in ` [cut]`.
const LINE_BYTES: usize = 8 << 10;
const CUT: &str = " [cut]";
/// What an instance may write for as long as it likes; at once it may write [`BURST`] times as much.
const BYTES_PER_SECOND: f64 = 512.0 * 1024.0;
const LINES_PER_SECOND: f64 = 1_000.0;
const BURST: f64 = 4.0;
/// Bytes that a guest may write in one call.
const PERMIT: usize = 64 << 10;

/// The log of one instance: its sink and how much it may still take.
pub(crate) struct Log {
    sink: OutputSink,
    allowance: Mutex<Allowance>,
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log").field("allowance", &self.allowance).finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Allowance {
    bytes: f64,
    lines: f64,
    since: Instant,
    dropped: u64,
}

impl Log {
    pub(crate) fn new(sink: OutputSink) -> Arc<Self> {
        let full = Allowance { bytes: BYTES_PER_SECOND * BURST, lines: LINES_PER_SECOND * BURST, since: Instant::now(), dropped: 0 };
        Arc::new(Self { sink, allowance: Mutex::new(full) })
    }

    /// Hands a line on, or counts it as dropped.
    pub(crate) fn line(&self, stream: LogStream, text: &str) {
        let admitted = self.allowance.lock().unwrap_or_else(PoisonError::into_inner).admit(text.len(), Instant::now());
        let Some(dropped) = admitted else { return };
        if dropped > 0 {
            self.sink.line(LogStream::Err, &lost(dropped));
        }
        self.sink.line(stream, text);
    }

    /// Hands a core dump on.
    pub(crate) fn core_dump(&self, dump: &[u8]) {
        self.sink.core_dump(dump);
    }

    /// Several lines.
    pub(crate) fn text(&self, stream: LogStream, text: &str) {
        for line in text.lines() {
            self.line(stream, line);
        }
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        let dropped = self.allowance.get_mut().unwrap_or_else(PoisonError::into_inner).dropped;
        // Where the sink itself panicked, asking it once more would end the process.
        if dropped > 0 && !std::thread::panicking() {
            self.sink.line(LogStream::Err, &lost(dropped));
        }
    }
}

fn lost(lines: u64) -> String {
    format!("[{lines} lines lost: more than {LINES_PER_SECOND} lines or {} KiB a second]", BYTES_PER_SECOND / 1024.0)
}

impl Allowance {
    /// Pays for a line. Gives how many were dropped before it, or nothing when this one is dropped too.
    fn admit(&mut self, bytes: usize, now: Instant) -> Option<u64> {
        let passed = now.saturating_duration_since(self.since).min(Duration::from_secs(3600)).as_secs_f64();
        self.since = now;
        self.bytes = (self.bytes + passed * BYTES_PER_SECOND).min(BYTES_PER_SECOND * BURST);
        self.lines = (self.lines + passed * LINES_PER_SECOND).min(LINES_PER_SECOND * BURST);
        if self.lines < 1.0 || self.bytes < bytes as f64 {
            self.dropped += 1;
            return None;
        }
        self.lines -= 1.0;
        self.bytes -= bytes as f64;
        Some(std::mem::take(&mut self.dropped))
    }
}

/// One store's standard output or standard error. What is left of a line when the store is dropped is a line too.
#[derive(Clone)]
pub(crate) struct Lines(Arc<Mutex<Splitter>>);

struct Splitter {
    log: Arc<Log>,
    stream: LogStream,
    partial: Vec<u8>,
    /// The rest of this line is not wanted.
    cut: bool,
}

impl Lines {
    pub(crate) fn new(log: Arc<Log>, stream: LogStream) -> Self {
        Self(Arc::new(Mutex::new(Splitter { log, stream, partial: Vec::new(), cut: false })))
    }

    fn feed(&self, data: &[u8]) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).feed(data);
    }
}

impl Splitter {
    fn feed(&mut self, data: &[u8]) {
        for piece in data.split_inclusive(|byte| *byte == b'\n') {
            let (text, ends) = piece.strip_suffix(b"\n").map_or((piece, false), |text| (text, true));
            if !self.cut {
                let room = LINE_BYTES - self.partial.len();
                self.partial.extend_from_slice(&text[..text.len().min(room)]);
                self.cut = text.len() > room;
            }
            if ends {
                self.end_line();
            }
        }
    }

    fn end_line(&mut self) {
        if self.cut {
            // Nothing half: neither of a character nor of the mark.
            self.partial.truncate(LINE_BYTES - CUT.len());
            let whole = self.partial.utf8_chunks().last().map_or(0, |chunk| chunk.invalid().len());
            self.partial.truncate(self.partial.len() - whole);
            self.partial.extend_from_slice(CUT.as_bytes());
        } else if self.partial.last() == Some(&b'\r') {
            self.partial.pop();
        }
        self.log.line(self.stream, &String::from_utf8_lossy(&self.partial));
        self.partial.clear();
        self.cut = false;
    }
}

impl Drop for Splitter {
    fn drop(&mut self) {
        // As above.
        if !self.partial.is_empty() && !std::thread::panicking() {
            self.end_line();
        }
    }
}

impl IsTerminal for Lines {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Lines {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

#[async_trait]
impl OutputStream for Lines {
    fn write(&mut self, data: Bytes) -> StreamResult<()> {
        self.feed(&data);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(PERMIT)
    }
}

#[async_trait]
impl Pollable for Lines {
    async fn ready(&mut self) {}
}

impl AsyncWrite for Lines {
    fn poll_write(self: Pin<&mut Self>, _cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.feed(data);
        Poll::Ready(Ok(data.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// An app's log, kept for looking into.
    #[derive(Default)]
    pub(crate) struct Kept(pub(crate) Mutex<Vec<String>>);

    impl Output for Kept {
        fn line(&self, _stream: LogStream, text: &str) {
            self.0.lock().unwrap().push(text.to_owned());
        }
    }

    fn lines_of(writes: &[&[u8]]) -> Vec<String> {
        let kept = Arc::new(Kept::default());
        let lines = Lines::new(Log::new(kept.clone()), LogStream::Out);
        for data in writes {
            lines.feed(data);
        }
        drop(lines);
        std::mem::take(&mut *kept.0.lock().unwrap())
    }

    #[test]
    fn lines_come_whole_however_they_are_written() {
        assert_eq!(lines_of(&[b"a", b"b\nc\r\n\n", b"rest"]), ["ab", "c", "", "rest"]);
        assert_eq!(lines_of(&[b"bad \xff byte\n", b"\xe2\x82", b"\xac whole\n"]), ["bad \u{fffd} byte", "\u{20ac} whole"]);
        // What a terminal would obey is for whoever has one to escape.
        assert_eq!(lines_of(&[b"\x1b[2J\0nul\rover\n"]), ["\u{1b}[2J\0nul\rover"]);
        assert!(lines_of(&[b""]).is_empty());
    }

    #[test]
    fn a_long_line_is_cut_between_characters_and_says_so() {
        let fits = "x".repeat(LINE_BYTES);
        assert_eq!(lines_of(&[fits.as_bytes(), b"\n"]), [fits.as_str()]);
        let long = "é".repeat(LINE_BYTES);
        let lines = lines_of(&[long.as_bytes(), b" more", b"\nnext\n"]);
        assert_eq!(lines.len(), 2);
        assert!(lines[0].ends_with("é [cut]") && lines[0].len() <= LINE_BYTES, "{:?}", &lines[0][LINE_BYTES - 20..]);
        assert_eq!(lines[1], "next");
    }

    #[test]
    fn what_comes_too_fast_is_dropped_counted_and_told() {
        let burst: usize = 4_000;
        assert!((LINES_PER_SECOND * BURST - 4_000.0).abs() < 1.0);
        let written = 10 * burst;
        let lines = lines_of(&["line\n".repeat(written).as_bytes()]);
        let told: usize = lines.iter().filter_map(|line| line.strip_prefix('[')?.split(' ').next()?.parse::<usize>().ok()).sum();
        let passed = lines.iter().filter(|line| *line == "line").count();
        assert!(told > 0 && passed >= burst);
        assert_eq!(told + passed, written);
    }

    #[test]
    fn the_allowance_comes_back_with_time() {
        let start = Instant::now();
        let mut allowance = Allowance { bytes: 10.0, lines: 1.0, since: start, dropped: 0 };
        assert_eq!(allowance.admit(11, start), None);
        assert_eq!(allowance.admit(10, start), Some(1));
        assert_eq!(allowance.admit(0, start), None);
        assert_eq!(allowance.admit(1, start + Duration::from_secs(1)), Some(1));
    }
}

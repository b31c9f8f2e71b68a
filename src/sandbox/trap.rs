//! How a guest ended, in words for its developer.

use wasmtime::{Error, WasmBacktrace};
use wasmtime_wasi::I32Exit;

/// Longest description: names in a backtrace are of the guest's choosing.
const MAX_TEXT: usize = 8 << 10;

/// The status that the guest passed to `exit`, when that is what ended it.
pub(crate) fn exit_status(error: &Error) -> Option<i32> {
    error.downcast_ref::<I32Exit>().map(|exit| exit.0)
}

/// Cause and wasm backtrace, the innermost function first, one a line.
pub(crate) fn describe(error: &Error) -> String {
    let mut text = error.root_cause().to_string();
    if let Some(backtrace) = error.downcast_ref::<WasmBacktrace>() {
        // The first line is wasmtime's title.
        for line in backtrace.to_string().lines().skip(1) {
            text.push('\n');
            text.push_str(line);
        }
    }
    if text.len() > MAX_TEXT {
        text.truncate(text.floor_char_boundary(MAX_TEXT));
        text.push_str(" [cut]");
    }
    text
}

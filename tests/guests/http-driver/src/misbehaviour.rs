//! What an app should not do.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use dewar_guest::types::header;
use dewar_guest::{Body, Response};

use crate::{Answer, Refusal, spin_until, text, write_filler};

thread_local! {
    static KEPT: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

pub(crate) fn spin(time: Duration) {
    spin_until(Instant::now().checked_add(time));
}

pub(crate) fn trap() -> ! {
    #[cfg(target_arch = "wasm32")]
    core::arch::wasm32::unreachable();
    #[cfg(not(target_arch = "wasm32"))]
    std::process::abort()
}

/// Endless, and nothing an optimizer could make a loop of.
#[inline(never)]
pub(crate) fn descend(depth: u64) -> u64 {
    let frame = std::hint::black_box([depth; 64]);
    if std::hint::black_box(true) { frame[63] + descend(depth + 1) } else { 0 }
}

/// Keeps so many bytes more, every page of them touched.
pub(crate) fn grow(bytes: u64) -> Answer {
    let refused = || Refusal::Host("OutOfMemory".to_owned(), format!("no {bytes} bytes more"));
    let length = usize::try_from(bytes).map_err(|_| refused())?;
    let mut block = Vec::new();
    block.try_reserve_exact(length).map_err(|_| refused())?;
    block.resize(length, 1);
    let kept = KEPT.with_borrow_mut(|kept| {
        kept.push(block);
        kept.iter().map(Vec::len).sum::<usize>()
    });
    text(&kept.to_string())
}

pub(crate) fn hog() -> ! {
    let mut blocks = Vec::new();
    loop {
        blocks.push(vec![1_u8; 1024 * 1024]);
        std::hint::black_box(&blocks);
    }
}

pub(crate) fn cut(bytes: u64) -> Answer {
    let mut response = Response::new(Body::stream(move |output| {
        write_filler(output, bytes)?;
        output.flush()?;
        trap()
    }));
    response.headers_mut().insert(header::CONTENT_LENGTH, (bytes + 1).into());
    Ok(response)
}

//! Does what its arguments say, one after the other; they are listed in ../README.md.

mod listener;

use std::io::Write;
use std::time::{Duration, Instant};

use wstd::runtime::block_on;

fn main() {
    for order in std::env::args().skip(1) {
        carry_out(&order);
    }
}

fn carry_out(order: &str) {
    match order.split_once(':').unwrap_or((order, "")) {
        ("print", text) => println!("{text}"),
        ("warn", text) => eprintln!("{text}"),
        ("env", name) => println!("{}", std::env::var(name).unwrap_or_else(|e| e.to_string())),
        ("arguments", _) => std::env::args().for_each(|argument| println!("{argument}")),
        ("sleep", ms) => std::thread::sleep(Duration::from_millis(number(ms))),
        ("spin", "") => spin(None),
        ("spin", ms) => spin(Some(Instant::now() + Duration::from_millis(number(ms)))),
        ("exit", status) => dewar_guest::exit(u8::try_from(number(status)).unwrap_or(u8::MAX)),
        ("panic", text) => panic!("{text}"),
        ("trap", _) => trap(),
        ("grow", bytes) => grow(number(bytes)),
        ("hog", _) => hog(),
        ("flood", lines) => (0..number(lines)).for_each(|_| println!("{}", "x".repeat(100))),
        ("long-line", bytes) => long_line(number(bytes)),
        ("write", file) => write(file),
        ("read", path) => match std::fs::read_to_string(path) {
            Ok(text) => println!("{text}"),
            Err(error) => println!("{:?}: {error}", error.kind()),
        },
        ("connect", to) => block_on(listener::connect(to)),
        ("bind", to) => block_on(listener::bind(to)),
        ("serve", _) => block_on(listener::serve()),
        ("echo", _) => block_on(listener::echo()),
        (other, _) => panic!("{other}: no such order"),
    }
}

fn number(text: &str) -> u64 {
    text.parse().unwrap_or_else(|e| panic!("{text}: {e}"))
}

fn spin(end: Option<Instant>) {
    while end.is_none_or(|end| Instant::now() < end) {
        std::hint::spin_loop();
    }
}

fn trap() -> ! {
    #[cfg(target_arch = "wasm32")]
    core::arch::wasm32::unreachable();
    #[cfg(not(target_arch = "wasm32"))]
    std::process::abort()
}

fn grow(bytes: u64) {
    let mut block = Vec::new();
    match block.try_reserve_exact(usize::try_from(bytes).unwrap_or(usize::MAX)) {
        Ok(()) => {
            block.resize(block.capacity(), 1_u8);
            println!("grown to {}", std::hint::black_box(&block).len());
            // Kept to the end of the process, as an app keeps what it uses.
            std::mem::forget(block);
        }
        Err(_) => println!("refused at {bytes}"),
    }
}

fn hog() -> ! {
    let mut blocks = Vec::new();
    loop {
        blocks.push(vec![1_u8; 1024 * 1024]);
        std::hint::black_box(&blocks);
    }
}

fn long_line(bytes: u64) {
    let chunk = [b'x'; 4096];
    let mut output = std::io::stdout();
    let mut left = usize::try_from(bytes).unwrap_or(usize::MAX);
    while left > 0 {
        let length = left.min(chunk.len());
        if output.write_all(&chunk[..length]).is_err() {
            return;
        }
        left -= length;
    }
    println!();
}

fn write(file: &str) {
    let (path, bytes) = file.split_once('=').unwrap_or_else(|| panic!("{file}: no PATH=BYTES"));
    let bytes = vec![b'x'; usize::try_from(number(bytes)).unwrap_or(usize::MAX)];
    match std::fs::write(path, &bytes) {
        Ok(()) => println!("wrote {}", bytes.len()),
        Err(error) => println!("{:?}: {error}", error.kind()),
    }
}

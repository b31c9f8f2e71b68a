//! Crashes in the ways that an app can. The names of the functions are found again in the backtrace of the crash.

use dewar_guest::Request;

#[dewar_guest::http]
fn handle(request: Request) -> &'static str {
    match request.uri().path() {
        "/panic" => panic!("asked to panic"),
        "/deep" => check_basket(std::hint::black_box(&[])),
        "/exit" => dewar_guest::exit(3),
        "/oom" => eat_memory(),
        "/loop" => loop {
            std::hint::spin_loop();
        },
        _ => "alive: try /panic, /deep, /exit, /oom or /loop\n",
    }
}

#[inline(never)]
fn check_basket(items: &[u32]) -> &'static str {
    if average_price(items) > 100 { "dear\n" } else { "cheap\n" }
}

#[inline(never)]
fn average_price(items: &[u32]) -> u32 {
    divide(items.iter().sum(), u32::try_from(items.len()).unwrap_or(u32::MAX))
}

#[inline(never)]
fn divide(sum: u32, count: u32) -> u32 {
    sum / count
}

fn eat_memory() -> ! {
    let mut meals = Vec::new();
    loop {
        meals.push(vec![1_u8; 1024 * 1024]);
        std::hint::black_box(&meals);
    }
}

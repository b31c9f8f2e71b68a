//! Guests that compute, or wait, for ever.

use std::time::Duration;

use crate::attack::{Attack, built, command, driver, made, raw};
use crate::text;

/// A limit on time that a test can wait for, and that a good request keeps on a busy machine.
pub(crate) const SOON: Duration = Duration::from_secs(1);

/// How one ends that computes when its time is up. On a busy machine it may not get to tell where it was.
const LATE: &str = "still computing when its time was up|no answer within |start-up code still waits";

pub(crate) fn attacks() -> Vec<Attack> {
    vec![
        driver("cpu::spin_in_two_requests", "the deadline of the answer, kept by epochs: a trap with a backtrace, 504")
            .http(|limits| limits.response_timeout = SOON)
            .asks_at_once(2, "/spin", "504")
            .serves_on(),
        driver("cpu::spin_in_every_request", "the third failure in a row is a crash")
            .http(|limits| limits.response_timeout = SOON)
            .asks_at_once(20, "/spin", "504|503|none")
            .dies(LATE),
        raw("cpu::spin_after_the_answer", "the deadline of the whole exchange, which keeps its turn until then")
            .http(|limits| limits.total_timeout = SOON)
            .asks("/answer/spin-afterwards", "200 answered|none")
            .asks("/", "200")
            .serves_on(),
        built("cpu::spin_at_start", "the deadline of start-up code", "tests/http-spin-at-start")
            .http(|limits| limits.startup_timeout = SOON)
            .does_not_start(LATE),
        driver("cpu::wait_at_start", "the deadline of start-up code, also for waiting")
            .env("DRIVER_START", "sleep:3600000")
            .http(|limits| limits.startup_timeout = SOON)
            .does_not_start("start-up code still waits"),
        built("cpu::trap_at_start", "a trap is an end with a backtrace", "tests/http-trap-at-start")
            .does_not_start("wasm trap: wasm `unreachable` instruction executed"),
        command("cpu::spin_in_a_command", "epochs: it yields to others, and can be killed", &["spin"]).until_killed(),
        command("cpu::sleep_in_a_command", "waiting is dropped when it is killed", &["sleep:3600000"]).until_killed(),
        made("cpu::bulk_memory_operations", "the longest of them are as long as memory, and epochs stand between them", || {
            text::command(
                r#"(memory 900)
                   (func (export "run") (result i32)
                     (loop $again
                       (memory.fill (i32.const 0) (i32.const 1) (i32.const 58982400))
                       (memory.copy (i32.const 0) (i32.const 4096) (i32.const 58900000))
                       (br $again))
                     (i32.const 0))"#,
            )
        })
        .until_killed(),
        made("cpu::calls_through_tables_for_ever", "epochs at the start of every function", || {
            text::command(
                r#"(type $next (func))
                   (table 2 funcref)
                   (elem (i32.const 0) $step $step)
                   (func $step (nop))
                   (func (export "run") (result i32)
                     (loop $again
                       (call_indirect (type $next) (i32.const 1))
                       (br $again))
                     (i32.const 0))"#,
            )
        })
        .until_killed(),
        driver("cpu::recursion_without_end", "the limit of the wasm stack: a trap, 500").asks("/overflow", "500").serves_on(),
        raw("cpu::recursion_through_host_calls", "the same limit, the host's own stack being another").asks("/descend", "500").serves_on(),
        driver("cpu::never_answer", "the deadline of the answer, also for waiting")
            .http(|limits| limits.response_timeout = SOON)
            .asks_at_once(2, "/never", "504")
            .serves_on(),
        raw("cpu::sleep_until_the_end_of_time", "durations that overflow are long, not short, and the deadline counts")
            .http(|limits| limits.response_timeout = SOON)
            .asks("/wait?ns=18446744073709551615", "504")
            .asks("/wait-until?ns=18446744073709551615", "504")
            .serves_on(),
    ]
}

//! Guests that write to their log.

use crate::attack::{Attack, command, driver, raw};
use crate::cpu::SOON;

pub(crate) fn attacks() -> Vec<Attack> {
    vec![
        driver("log::a_flood_of_lines", "so many lines a second; the rest is dropped and counted, and nobody waits for it")
            .asks("/flood?lines=200000&bytes=100", "200 logged")
            .serves_on(),
        driver("log::a_flood_of_empty_lines", "lines are counted, not only their bytes")
            .asks("/flood?lines=200000&bytes=0", "200 logged")
            .serves_on(),
        driver("log::a_flood_from_all_stores_at_once", "the allowance is the instance's, not the store's")
            .asks_at_once(8, "/flood?lines=50000&bytes=50", "200 logged")
            .asks_at_once(4, "/flood?lines=50000&bytes=50&stream=stderr", "200 logged")
            .serves_on(),
        command("log::a_flood_from_a_command", "the same allowance", &["flood:300000"]).dies("app instance exited"),
        driver("log::huge_lines", "a line is cut after 8 KiB").asks("/flood?lines=20&bytes=5000000", "200 logged").serves_on(),
        raw("log::a_line_without_end", "what is kept of a line that has not ended is as long as a line may be")
            .http(|limits| limits.response_timeout = SOON)
            .asks("/write/no-line-end", "504")
            .serves_on(),
        raw("log::zeroes_without_end", "the same; bytes that the host makes are charged like the guest's own")
            .http(|limits| limits.response_timeout = SOON)
            .asks("/write/zeroes", "504")
            .serves_on(),
        raw("log::writes_of_nothing", "the deadline of the answer: a host call is not a way round it")
            .http(|limits| limits.response_timeout = SOON)
            .asks("/write/nothing", "504")
            .serves_on(),
        driver("log::control_characters", "a line is text without line ends; who shows it escapes it")
            .asks_each(
                &["/log?text=%1b%5b2J%1b%5d0;owned%07", "/log?text=%00%00", "/log?text=a%0dforged", "/partial?text=%c2%85%e2%80%a8"],
                "200 logged",
            )
            .serves_on(),
    ]
}

//! Guests that want more memory than there is.

use dewar_protocol::Bytes;

use crate::attack::{Attack, command, driver, made, raw};
use crate::text;

pub(crate) fn attacks() -> Vec<Attack> {
    vec![
        driver(
            "memory::hog_in_a_request",
            "one budget for all stores of the instance: a refused growth, and what comes of it in the guest",
        )
        .quota(|quota| quota.memory = Bytes(16 << 20))
        .asks("/hog", "500")
        .serves_on(),
        driver("memory::hog_in_every_request", "the third failure in a row is a crash, described with the numbers")
            .quota(|quota| quota.memory = Bytes(16 << 20))
            .asks_at_once(6, "/hog", "500|503|none")
            .dies("out of memory (used …of 16 MiB, wanted "),
        driver("memory::hog_at_start", "the same budget from the first page on")
            .env("DRIVER_START", "hog")
            .does_not_start("out of memory (used …of 64 MiB, wanted "),
        command("memory::hog_in_a_command", "the same budget", &["hog"]).dies("out of memory (used …of 64 MiB, wanted "),
        driver("memory::almost_all_of_an_address_space", "growths beyond the whole quota are refused at once")
            .asks("/grow?bytes=4000000000", "422 OutOfMemory")
            .serves_on(),
        driver("memory::grow_in_all_stores_at_once", "the budget is one, and is charged before memory is given")
            .quota(|quota| quota.memory = Bytes(32 << 20))
            .asks_at_once(8, "/grow?bytes=8000000", "200|422 OutOfMemory|500|503")
            .serves_on(),
        driver("memory::many_stores", "requests wait for the memory of a store; nobody gets more than the quota")
            .quota(|quota| quota.memory = Bytes(4 << 20))
            .asks_at_once(40, "/sleep?ms=50", "200 slept")
            .serves_on(),
        made("memory::four_gibibytes_to_begin_with", "initial sizes are growths from nothing", || {
            text::command(r#"(memory 65536) (func (export "run") (result i32) (i32.const 0))"#)
        })
        .does_not_start("out of memory (used …of 64 MiB, wanted 4096 MiB more)"),
        made("memory::grow_at_start", "start functions have the same budget", || {
            text::command(
                r#"(memory 0)
                   (func $start
                     (loop $again (br_if $again (i32.ne (memory.grow (i32.const 1)) (i32.const -1))))
                     unreachable)
                   (start $start)
                   (func (export "run") (result i32) (i32.const 0))"#,
            )
        })
        .does_not_start("out of memory (used 6…of 64 MiB, wanted "),
        made("memory::table_of_ten_million", "elements of tables are memory, and a table has at most 20,000 of them", || {
            text::command(r#"(table 10000000 funcref) (func (export "run") (result i32) (i32.const 0))"#)
        })
        .never_runs("compile component: …table|out of memory"),
        made("memory::tables_that_grow", "elements are charged to the budget; what is refused is −1", || {
            text::command(
                r#"(table $table 0 funcref)
                   (func (export "run") (result i32)
                     (loop $again
                       (br_if $again (i32.ne (table.grow $table (ref.null func) (i32.const 1000)) (i32.const -1))))
                     (i32.const 0))"#,
            )
        })
        .dies("app instance exited"),
        made("memory::many_memories", "memories of a module are counted", || {
            text::command(&format!(r#"{} (func (export "run") (result i32) (i32.const 0))"#, "(memory 1)".repeat(60)))
        })
        .never_runs("compile component: …memories|out of memory|…memories"),
        raw("memory::a_gibibyte_of_randomness", "random bytes have a limit a call; more is a trap")
            .asks("/random?bytes=1073741824", "500")
            .serves_on(),
        raw("memory::poll_a_giant_list", "what the host copies for one call has a limit").asks("/poll?count=8000000", "500").serves_on(),
        raw("memory::write_too_much_at_once", "the same limit, and a stream takes no more than it permits")
            .asks_each(&["/write/without-permit?bytes=20000000", "/write/without-permit?bytes=1000000"], "500|200")
            .serves_on(),
        raw("memory::read_too_much_at_once", "the host reads no more at once than a fixed amount, whatever is asked for")
            .asks("/fs/read-at?path=a&bytes=18446744073709551615&offset=0", "200")
            .asks("/fs/read-at?path=a&bytes=1073741824&offset=9223372036854775808", "200")
            .serves_on(),
    ]
}

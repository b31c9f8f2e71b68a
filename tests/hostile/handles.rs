//! Guests that take handles and keep them.

use crate::attack::{Attack, driver, raw};

const HELD_BY: &str = "a store's table of resources has so many places; one more is a trap";

pub(crate) fn attacks() -> Vec<Attack> {
    let kinds = [
        ("handles::fields", "fields"),
        ("handles::requests_never_sent", "requests"),
        ("handles::responses_never_sent", "responses"),
        ("handles::request_options", "options"),
        ("handles::pollables", "pollables"),
        ("handles::directories", "directories"),
        ("handles::listings", "entries"),
        ("handles::standard_streams", "streams"),
        ("handles::networks", "networks"),
    ];
    let hoards = kinds.into_iter().map(|(name, kind)| {
        raw(name, HELD_BY).quota(|quota| quota.open_files = 16).asks(&format!("/hoard/{kind}?count=100000"), "500").serves_on()
    });
    let others = [
        raw("handles::sockets", "a guest without a rule for the network gets no socket at all, or none beyond the table")
            .quota(|quota| quota.open_files = 16)
            .asks_each(&["/hoard/tcp-sockets?count=100000", "/hoard/udp-sockets?count=100000"], "500|200 0 ")
            .serves_on(),
        driver("handles::one_file_opened_without_end", "descriptors are resources like all others")
            .quota(|quota| quota.open_files = 16)
            .asks("/fs/write?path=/tmp/a&bytes=1", "200")
            .asks("/fs/open-many?path=/tmp/a&count=100000", "500|200")
            .serves_on(),
        raw("handles::in_all_stores_at_once", "what is taken goes with its store")
            .quota(|quota| quota.open_files = 32)
            // On a busy machine one may have its answer before the next one comes; it is to have a store of its own all the same.
            .http(|limits| limits.requests_per_store = 1)
            .asks_at_once(8, "/hoard/entries?count=100", "200 100")
            .serves_on(),
        raw("handles::poll_the_same_a_hundred_thousand_times", "a list costs its length and no more")
            .asks("/poll?count=100000", "200 100000|500")
            .serves_on(),
        raw("handles::poll_nothing", "an empty list is a trap, and not for ever").asks("/poll?count=0", "500").serves_on(),
    ];
    hoards.chain(others).collect()
}

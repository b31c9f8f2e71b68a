//! Guests whose answers are none.

use dewar_protocol::Bytes;

use crate::attack::{Attack, built, driver, raw};
use crate::cpu::SOON;

/// A request by hand, for what no client library would let through.
fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: app\r\nconnection: close\r\n\r\n")
}

pub(crate) fn attacks() -> Vec<Attack> {
    vec![
        raw("answers::two_to_one_request", "a handle is gone once it was used; the second is a trap")
            .asks("/answer/twice", "200 once|none")
            .serves_on(),
        built("answers::none", "who returns without an answer has failed, 500", "tests/no-answer")
            .asks("/", "500")
            .asks("/", "500")
            .until_killed(),
        raw("answers::a_body_that_is_never_finished", "a body that was not finished is cut, and the client sees that")
            .asks("/answer/unfinished", "none")
            .serves_on(),
        raw("answers::a_body_without_end", "a body has a limit, and then the connection ends")
            .http(|limits| limits.response_body = Bytes(1 << 20))
            .asks("/answer/endless", "none")
            .serves_on(),
        driver("answers::a_body_that_takes_for_ever", "the deadline of the whole exchange")
            .http(|limits| limits.total_timeout = 2 * SOON)
            .asks("/stream?chunks=100000&bytes=1&pause_ms=20", "none")
            .serves_on(),
        raw("answers::an_exit_midway", "exit is the end of the instance, and of the answer")
            .asks("/answer/exit-midway", "none|200")
            .dies("app instance exited"),
        driver("answers::a_trap_midway", "a body that a trap ended is cut, not completed").asks("/cut?bytes=1000", "none").serves_on(),
        driver("answers::less_than_announced", "the connection ends, and nothing can be taken for the rest")
            .does(nothing_after_less)
            .serves_on(),
        driver("answers::more_than_announced", "what was announced counts: the rest is not sent")
            .wires(get("/header?name=content-length&value=1"), "HTTP/1.1 500|HTTP/1.1 200")
            .serves_on(),
        driver("answers::two_lengths", "one length or none")
            .asks("/header?name=content-length&value=1&name=content-length&value=2", "500|none|422|400")
            .asks_each(
                &[
                    "/header?name=content-length&value=%2B6",
                    "/header?name=content-length&value=6,6",
                    "/header?name=content-length&value=0x6",
                ],
                "500|none|422|400",
            )
            .serves_on(),
        raw("answers::fields_of_the_connection", "a guest cannot set them at all")
            .asks_each(
                &[
                    "/answer/field?name=transfer-encoding&value=chunked",
                    "/answer/field?name=connection&value=upgrade",
                    "/answer/field?name=upgrade&value=h2c",
                    "/answer/field?name=keep-alive&value=1",
                ],
                "200 refused",
            )
            .serves_on(),
        raw("answers::another_head_in_a_field", "names and values are checked when they are set")
            .asks_each(
                &[
                    "/answer/field?name=x&value=a%0d%0aset-cookie:%20b",
                    "/answer/field?name=x&value=a%0ab",
                    "/answer/field?name=x%0d%0ay&value=a",
                    "/answer/field?name=x%20y&value=a",
                    "/answer/field?name=x&value=%00",
                    "/answer/field?name=&value=a",
                ],
                "200 refused: …InvalidSyntax",
            )
            .serves_on(),
        raw("answers::ten_thousand_fields", "a head has so many bytes, as a guest holds it")
            .asks("/answer/fields?count=10000&bytes=10", "200 refused after|500")
            .serves_on(),
        raw("answers::a_field_of_a_megabyte", "the same limit")
            .asks("/answer/fields?count=1&bytes=1000000", "200 refused after|500")
            .serves_on(),
        driver("answers::informational_statuses", "they are ours to send, 500")
            .asks_each(&["/status?code=100&text=x", "/status?code=101&text=x"], "500")
            .serves_on(),
        raw("answers::statuses_that_are_none", "the host takes no status below 100 or above 999")
            .asks_each(
                &["/answer/status?code=0", "/answer/status?code=99", "/answer/status?code=1000", "/answer/status?code=65535"],
                "200 refused",
            )
            .asks("/answer/status?code=999", "999")
            .serves_on(),
        raw("answers::trailers_that_pass_for_a_head", "nobody asked for trailers, and none are sent")
            .wires(get("/answer/trailers?name=x-late&value=smuggled"), "HTTP/1.1 200 OK\r\n")
            .does(no_trailers)
            .asks("/answer/trailers?name=transfer-encoding&value=chunked", "200 refused")
            .serves_on(),
        driver("answers::a_body_where_none_may_be", "204, 304 and HEAD have no body, whatever the guest writes")
            .wires(get("/status?code=204&text=HTTP/1.1%20200%20OK"), "HTTP/1.1 204 No Content\r\n")
            .does(no_body_after_204)
            .serves_on(),
    ]
}

async fn nothing_after_less(app: std::sync::Arc<crate::fixture::Instance>) {
    let requests = b"GET /short?bytes=10 HTTP/1.1\r\nhost: a\r\n\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n";
    let answer = crate::attack::wire(&app, requests).await;
    assert!(answer.matches("HTTP/1.1").count() <= 1 && !answer.contains("http-driver"), "{answer}");
}

async fn no_trailers(app: std::sync::Arc<crate::fixture::Instance>) {
    let answer = crate::attack::wire(&app, get("/answer/trailers?name=x-late&value=smuggled").as_bytes()).await;
    assert!(answer.contains("begun") && !answer.contains("smuggled"), "{answer}");
}

async fn no_body_after_204(app: std::sync::Arc<crate::fixture::Instance>) {
    let answer = crate::attack::wire(&app, get("/status?code=204&text=HTTP/1.1%20200%20OK").as_bytes()).await;
    assert!(answer.ends_with("\r\n\r\n") && !answer.contains("200 OK"), "{answer}");
}

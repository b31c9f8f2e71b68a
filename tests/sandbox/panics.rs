//! A panic in our own code while it serves a guest costs that instance and nothing else. It is provoked in the sink of its log, which
//! is called with the guest's call on the stack.

use bytes::Bytes;
use libtest_mimic::Trial;

use crate::fixture::{BREAK, Instance, Plan, test};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        test("panics::one_in_a_request_ends_its_instance", request),
        test("panics::one_after_the_answer_ends_its_instance", dropped),
        test("panics::one_in_a_command_ends_it", command),
    ]
}

const BROKEN: &str = "the sandbox failed: the sink is broken";

async fn expect_broken(broken: &Instance, neighbour: &Instance) {
    let exit = broken.exit().await;
    assert_eq!((exit.status, exit.description.as_str()), (-1, BROKEN));
    assert_eq!(neighbour.ok("/").await, "http-driver");
    assert_eq!(Plan::of("tests/http-driver").await.start().await.ok("/").await, "http-driver");
}

async fn request() {
    let (broken, neighbour) = (Plan::of("tests/http-driver").await.start().await, Plan::of("tests/http-driver").await.start().await);
    assert_eq!(broken.ok("/").await, "http-driver");
    let answer = broken.try_send("GET", &format!("/log?text={BREAK}"), Bytes::new()).await;
    assert!(answer.is_err(), "{answer:?}");
    expect_broken(&broken, &neighbour).await;
}

async fn dropped() {
    let (broken, neighbour) = (Plan::of("tests/http-driver").await.start().await, Plan::of("tests/http-driver").await.start().await);
    // What is not yet a line becomes one when the store is dropped.
    assert_eq!(broken.ok(&format!("/partial?text={BREAK}")).await, "logged");
    broken.sandbox.kill();
    expect_broken(&broken, &neighbour).await;
}

async fn command() {
    let neighbour = Plan::of("tests/http-driver").await.start().await;
    let broken = Plan::of("tests/command-driver").await.args(&[&format!("print:{BREAK}")]).start().await;
    expect_broken(&broken, &neighbour).await;
}

//! `wasi:http` droplets.

use libtest_mimic::Trial;

use crate::fixture::{Plan, test};

pub fn trials() -> Vec<Trial> {
    vec![test("http::hello_answers", hello_answers)]
}

async fn hello_answers() {
    let app = Plan::of("examples/hello").await.start().await;
    let answer = app.get("/").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    println!("{} {:?}", answer.text(), app.sandbox.usage());
}

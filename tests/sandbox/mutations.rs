//! Requests with arbitrary faults in them, on an instance's own port: the answers are well-formed, no more of them than there are requests
//! (and one to say what is wrong), and the instance serves whoever comes next.

use libtest_mimic::Trial;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::fixture::{PATIENCE, Plan, test};
use crate::{faults, strict};

pub(crate) fn trials() -> Vec<Trial> {
    vec![test("wire::faulty_requests_get_no_more_answers_than_there_are_requests", faulty_requests)]
}

async fn faulty_requests() {
    let app = Plan::of("tests/http-driver").await.start().await;
    let mut runner = TestRunner::default();
    // A request costs an instance more than a function call: a quarter of the cases that other properties get.
    for _ in 0..runner.config().cases / 4 {
        let bytes = faults::requests().new_tree(&mut runner).unwrap().current();
        let mut stream = TcpStream::connect(app.address).await.unwrap();
        // The instance may have closed before it has all of it.
        let _ = stream.write_all(&bytes).await;
        let _ = stream.shutdown().await;
        let mut heard = Vec::new();
        // A reset is an end as well.
        let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut heard)).await.expect("the end of the connection");
        let shown = String::from_utf8_lossy(&bytes);
        let answers = strict::responses(&heard).unwrap_or_else(|why| panic!("{shown:?} was answered with {why}"));
        let requests = strict::requests(&bytes).len();
        assert!(
            answers <= requests + 1,
            "{answers} answers to the {requests} requests in {shown:?}: {:?}",
            String::from_utf8_lossy(&heard)
        );
        assert_eq!(app.ok("/").await, "http-driver", "after {shown:?}");
    }
}

use std::sync::atomic::AtomicUsize;
use std::time::Instant;

use dewar_protocol::DropletSha1;
use serde_json::json;

use super::*;
use crate::test_server::{Answer, Request, Server, nobody};

const SHA1: &str = "2fd4e1c67a2d28fced849ee1bb76e7391b93eb12";

fn reply(app: &str) -> Box<StagingReply> {
    Box::new(StagingReply {
        task_id: "t1".into(),
        task_streaming_log_url: None,
        detected_buildpack: Some("Ruby".to_owned()),
        buildpack_key: None,
        droplet_sha1: Some(DropletSha1::parse(SHA1).unwrap()),
        detected_start_command: None,
        procfile: None,
        app_id: Some(app.into()),
        error: None,
        error_info: None,
    })
}

/// A controller at this address, and what the driver is told.
fn at(url: &str) -> (Controller, mpsc::Receiver<Input>) {
    let config = ControllerConfig { url: Secret(Url::parse(url).unwrap()), tls: ClientTls::new(None, None).unwrap() };
    let (reports, reported) = mpsc::channel(MAX_REPORTS * 2);
    (Controller::new(&config, client(&config.tls).unwrap(), "dea-1".into(), reports, TaskTracker::new()), reported)
}

/// Answers one request after the other; the last answer stays.
async fn answering(answers: Vec<Answer>) -> Server {
    let asked = AtomicUsize::new(0);
    Server::start(move |_| answers[asked.fetch_add(1, Ordering::Relaxed).min(answers.len() - 1)].clone()).await
}

/// The requests that a report leads to; the driver is told once, at the end.
async fn reported(server: &Server, app: &str) -> Vec<Request> {
    let (controller, mut driver) = at(&format!("http://me:hunter2@{}", server.address));
    controller.report(TaskKey(7), reply(app));
    assert_eq!(driver.recv().await, Some(Input::Staging(TaskKey(7), StagingEvent::Reported)));
    controller.tasks.close();
    controller.tasks.wait().await;
    assert!(driver.try_recv().is_err(), "the driver is told once");
    server.requests()
}

#[tokio::test]
async fn the_end_of_a_staging_is_posted_with_credentials() {
    let server = answering(vec![Answer::ok("")]).await;
    let [request] = &reported(&server, "shop").await[..] else { panic!("one request") };
    assert_eq!((request.method.as_str(), request.target.as_str()), ("POST", "/internal/dea/staging/shop/completed"));
    assert_eq!(request.header("authorization"), Some("Basic bWU6aHVudGVyMg=="));
    assert_eq!(request.header("content-type"), Some("application/json"));
    let body: Value = serde_json::from_slice(&request.body).unwrap();
    let expected = json!({
        "task_id": "t1", "detected_buildpack": "Ruby", "buildpack_key": null, "droplet_sha1": SHA1, "detected_start_command": null,
        "procfile": null, "app_id": "shop", "dea_id": "dea-1",
    });
    assert_eq!(body, expected);
}

#[tokio::test]
async fn what_may_mend_itself_is_tried_three_times_and_the_rest_once() {
    for (answers, attempts) in [
        (vec![Answer::status(500, ""), Answer::status(404, ""), Answer::ok("")], 3),
        (vec![Answer::status(503, "")], 3),
        (vec![Answer::status(404, "")], 3),
        (vec![Answer::Close], 3),
        (vec![Answer::Close, Answer::ok("")], 2),
        (vec![Answer::status(400, "")], 1),
        (vec![Answer::status(202, "")], 1),
        (vec![Answer::redirect("/elsewhere".to_owned())], 1),
    ] {
        let shown = format!("{answers:?}");
        let server = answering(answers).await;
        assert_eq!(reported(&server, "shop").await.len(), attempts, "{shown}");
    }
}

#[tokio::test]
async fn a_controller_that_is_gone_does_not_keep_the_task() {
    let (nobody, _kept) = nobody();
    let (controller, mut driver) = at(&format!("http://{nobody}"));
    let began = Instant::now();
    controller.report(TaskKey(1), reply("shop"));
    assert!(driver.recv().await.is_some());
    assert!(began.elapsed() < TOTAL_TIMEOUT);
}

#[tokio::test]
async fn an_app_id_leads_nowhere_else() {
    for (app, target) in
        [("a/../../x?y#z", "/base/internal/dea/staging/a%2F..%2F..%2Fx%3Fy%23z/completed"), ("", "/base/internal/dea/staging//completed")]
    {
        let server = answering(vec![Answer::ok("")]).await;
        let (controller, mut driver) = at(&server.url("/base/"));
        controller.report(TaskKey(1), reply(app));
        driver.recv().await.unwrap();
        assert_eq!(server.requests()[0].target, target);
    }
}

#[tokio::test]
async fn reports_beyond_all_measure_are_given_up_and_told_to_be() {
    let server = Server::start(|_| Answer::Hang).await;
    let (controller, mut driver) = at(&server.url(""));
    for number in 0..=MAX_REPORTS {
        controller.report(TaskKey(number as u64), reply("shop"));
    }
    let given_up = Input::Staging(TaskKey(MAX_REPORTS as u64), StagingEvent::Reported);
    assert_eq!(driver.recv().await, Some(given_up));
    assert!(driver.try_recv().is_err(), "the others wait for their answers");
}

#[tokio::test]
async fn the_operators_buildpacks_are_asked_for() {
    let server = answering(vec![Answer::ok(r#"[{"url":"http://up:secret@cc/b.zip","key":"k1"},{"key":"k2","url":"x"}]"#)]).await;
    let (controller, _) = at(&format!("http://me:hunter2@{}", server.address));
    let list = controller.buildpacks().await.unwrap();
    assert_eq!(list.iter().map(|buildpack| buildpack.key.as_str()).collect::<Vec<_>>(), ["k1", "k2"]);
    let [request] = &server.requests()[..] else { panic!("one request") };
    assert_eq!((request.method.as_str(), request.target.as_str()), ("GET", "/internal/buildpacks"));
    assert_eq!(request.header("authorization"), Some("Basic bWU6aHVudGVyMg=="));
}

#[tokio::test]
async fn a_list_of_buildpacks_that_is_none_is_an_error() {
    for (answer, expected) in [
        (Answer::status(404, "[]"), "HTTP status 404 Not Found"),
        (Answer::redirect("/".to_owned()), "HTTP status 302 Found"),
        (Answer::ok("no json"), "not a list of buildpacks"),
        (Answer::ok(r#"{"key":"k1"}"#), "not a list of buildpacks"),
        (Answer::ok(vec![b' '; MAX_LIST + 1]), "more than 1048576 bytes"),
    ] {
        let server = answering(vec![answer]).await;
        let (controller, _) = at(&server.url(""));
        assert_eq!(controller.buildpacks().await.unwrap_err().to_string(), expected);
    }
    let server = answering(vec![Answer::Cut { announced: 100, body: b"[".to_vec() }]).await;
    assert!(matches!(at(&server.url("")).0.buildpacks().await, Err(NoList::Transport(_))));
}

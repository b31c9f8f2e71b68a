use std::collections::BTreeMap;

use dewar_protocol::{ErrorInfo, Mib, StagingFailure};

use super::*;
use crate::testing::{at, sha1, staging_message};

fn task(key: u64, app: &str) -> StagingTask {
    StagingTask {
        key: TaskKey(key),
        message: Arc::new(staging_message(app, "task")),
        requester: Requester::Bus(None),
        reserved: Reservation { memory: Mib(300), disk: Mib(500) },
        deadline: at(100 + key).mono,
        state: TaskState::SettingUp,
        start: StartWhen::Over,
    }
}

fn droplet() -> Box<StagedDroplet> {
    Box::new(StagedDroplet {
        sha1: sha1('b'),
        detected_buildpack: Some("wasm".to_owned()),
        buildpack_key: Some("key".to_owned()),
        start_command: Some("serve".to_owned()),
        process_types: BTreeMap::from([("web".to_owned(), "serve".to_owned())]),
    })
}

/// Errors of the replies that an event leads to, `-` where a reply has none.
fn replies(task: &mut StagingTask, event: StagingEvent) -> (Option<String>, Option<String>) {
    let error = |error: Option<String>| error.unwrap_or_else(|| "-".to_owned());
    let step = task.handle(event);
    (step.setup.map(|reply| error(reply.error)), step.reply.map(|reply| error(reply.error)))
}

#[test]
fn two_replies_in_order() {
    let (ok, failed) = (|| Some("-".to_owned()), |why: &str| Some(why.to_owned()));
    let finished = || StagingEvent::Finished(Ok(droplet()));
    let broken = || StagingEvent::Finished(Err(StagingError { message: "no".to_owned(), info: None }));

    let mut fine = task(1, "shop");
    assert_eq!(replies(&mut fine, StagingEvent::SetUp), (ok(), None));
    assert_eq!(replies(&mut fine, StagingEvent::SetUp), (None, None), "once only");
    assert_eq!(replies(&mut fine, finished()), (None, ok()));
    let mut unstaged = task(2, "shop");
    replies(&mut unstaged, StagingEvent::SetUp);
    assert_eq!(replies(&mut unstaged, broken()), (None, failed("no")));
    let mut not_set_up = task(3, "shop");
    assert_eq!(replies(&mut not_set_up, StagingEvent::SetupFailed("no bits".to_owned())), (failed("no bits"), failed("no bits")));
    let mut hasty = task(4, "shop");
    assert_eq!(replies(&mut hasty, finished()), (ok(), ok()), "the first reply is never left out");
}

#[test]
fn the_second_reply_says_what_was_staged() {
    let mut task = task(1, "shop");
    let step = task.handle(StagingEvent::Finished(Ok(droplet())));
    assert_eq!((step.is_over, step.start), (true, Some(sha1('b'))));
    let expected = StagingReply {
        task_id: "task".into(),
        task_streaming_log_url: None,
        detected_buildpack: Some("wasm".to_owned()),
        buildpack_key: Some("key".to_owned()),
        droplet_sha1: Some(sha1('b')),
        detected_start_command: Some("serve".to_owned()),
        procfile: Some(BTreeMap::from([("web".to_owned(), "serve".to_owned())])),
        app_id: Some("shop".into()),
        error: None,
        error_info: None,
    };
    assert_eq!(*step.reply.unwrap(), expected);
}

#[test]
fn the_second_reply_says_why_nothing_was_staged() {
    let mut task = task(1, "shop");
    let info = ErrorInfo { kind: StagingFailure::NoAppDetectedError, message: "what is it?".to_owned() };
    let error = StagingError { message: "Script exited with status 1".to_owned(), info: Some(info.clone()) };
    let step = task.handle(StagingEvent::Finished(Err(error)));
    assert_eq!((step.is_over, step.start), (true, None));
    let reply = step.reply.unwrap();
    assert_eq!(reply.error_info, Some(info));
    assert_eq!(reply.droplet_sha1, None);
    assert_eq!(reply.app_id, Some("shop".into()));
}

#[test]
fn tasks_are_found_by_app_and_by_deadline_and_their_reservations_summed() {
    let mut tasks = StagingTasks::default();
    for (key, app) in [(1, "shop"), (2, "blog"), (3, "shop")] {
        tasks.insert(task(key, app));
    }
    assert_eq!(tasks.of_app(&"shop".into()), [TaskKey(1), TaskKey(3)]);
    assert_eq!(tasks.reserved(), Reservation { memory: Mib(900), disk: Mib(1500) });
    assert_eq!(tasks.deadlines().due(at(101).mono), Some(TaskKey(1)));
    assert!(tasks.remove(TaskKey(1)).is_some());
    assert!(tasks.remove(TaskKey(1)).is_none());
    assert_eq!(tasks.deadlines().due(at(101).mono), None);
    assert_eq!(tasks.of_app(&"shop".into()), [TaskKey(3)]);
    tasks.remove(TaskKey(2));
    tasks.remove(TaskKey(3));
    assert_eq!((tasks.reserved(), tasks.len(), tasks.deadlines().next()), (Reservation::default(), 0, None));
}

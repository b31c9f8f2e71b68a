//! Staging requests and what becomes of them.

use dewar_protocol::{Mib, StagingMessage};
use expect_test::expect;

use super::*;
use crate::testing::staging_message;
use crate::{StagedDroplet, StagingError};

fn stage(message: StagingMessage) -> Input {
    asked(Request::Stage(Box::new(message)))
}

fn set_up(key: u64) -> Input {
    Input::Staging(TaskKey(key), StagingEvent::SetUp)
}

pub(super) fn finished(key: u64) -> Input {
    let droplet = StagedDroplet {
        sha1: sha1('b'),
        detected_buildpack: None,
        buildpack_key: None,
        start_command: None,
        process_types: BTreeMap::new(),
    };
    Input::Staging(TaskKey(key), StagingEvent::Finished(Ok(Box::new(droplet))))
}

pub(super) fn failed(key: u64) -> Input {
    let error = StagingError { message: "Script exited with status 1".to_owned(), info: None };
    Input::Staging(TaskKey(key), StagingEvent::Finished(Err(error)))
}

#[test]
fn stage_and_start() {
    let mut scene = Scene::new(config());
    let start = StartMessage { sha1: None, droplet_uri: None, ..start_message("shop", 0) };
    scene.check(
        stage(StagingMessage { start_message: Some(start), ..staging_message("shop", "t1") }),
        expect![[r#"
        log of shop Out: Got staging request for app with id shop
        start staging 1 of shop with 300M and 500M
    "#]],
    );
    scene.check(
        request(Request::LocateStager),
        expect![[r#"
        staging.advertise memory 700M disk 3500M
    "#]],
    );
    scene.check(
        set_up(1),
        expect![[r#"
        to asker: setup of t1: ok
    "#]],
    );
    scene.check(
        finished(1),
        expect![[r#"
        to asker: staging of t1: ok, b
        log of shop/0 Out: Starting app instance (index 0) with guid shop
        shop/0 (2) BORN → STARTING
        fetch droplet b… from nowhere
    "#]],
    );
    scene.check(finished(1), expect![[""]]);
    scene.check(
        request(Request::LocateStager),
        expect![[r#"
        staging.advertise memory 900M disk 3800M
    "#]],
    );
}

#[test]
fn a_failed_staging_starts_nothing() {
    let mut scene = Scene::new(config());
    scene.take(stage(StagingMessage { start_message: Some(start_message("shop", 0)), ..staging_message("shop", "t1") }));
    scene.take(set_up(1));
    scene.check(
        failed(1),
        expect![[r#"
        to asker: staging of t1: Script exited with status 1, no droplet
    "#]],
    );
    scene.take(stage(staging_message("shop", "t2")));
    scene.check(
        Input::Staging(TaskKey(2), StagingEvent::SetupFailed("no bits".to_owned())),
        expect![[r#"
        to asker: setup of t2: no bits
        to asker: staging of t2: no bits, no droplet
    "#]],
    );
}

#[test]
fn admission() {
    let mut scene = Scene::new(config());
    let wants =
        |memory, disk| StagingMessage { memory_limit: Some(Mib(memory)), disk_limit: Some(Mib(disk)), ..staging_message("shop", "t") };
    scene.check(
        stage(wants(1001, 4001)),
        expect![[r#"
        log of shop Out: Got staging request for app with id shop
        to asker: staging of t: Not enough disk resources available, no droplet
    "#]],
    );
    scene.check(
        stage(wants(1001, 4000)),
        expect![[r#"
        log of shop Out: Got staging request for app with id shop
        to asker: staging of t: Not enough memory resources available, no droplet
    "#]],
    );
    scene.check(
        stage(wants(-5, i64::MIN)),
        expect![[r#"
        log of shop Out: Got staging request for app with id shop
        start staging 3 of shop with 300M and 500M
    "#]],
    );
    let mut big = start_message("shop", 0);
    (big.limits.mem, big.limits.disk) = (Mib(400), Mib(100));
    scene.check(
        stage(StagingMessage { start_message: Some(big), ..staging_message("shop", "t") }),
        expect![[r#"
        log of shop Out: Got staging request for app with id shop
        start staging 4 of shop with 400M and 500M
    "#]],
    );
    let mut start = start_message("shop", 0);
    (start.limits.mem, start.limits.disk) = (Mib(400), Mib(800));
    Scene::new(config()).check(
        stage(StagingMessage { start_message: Some(start), ..wants(350, 600) }),
        expect![[r#"
        log of shop Out: Got staging request for app with id shop
        start staging 1 of shop with 350M and 600M
    "#]],
    );
}

#[test]
fn setup_that_is_bound_to_fail_is_not_begun() {
    let mut scene = Scene::new(config());
    scene.check(
        stage(StagingMessage { stack: Some("windows".to_owned()), ..staging_message("shop", "t") }),
        expect![[r#"
        log of shop Out: Got staging request for app with id shop
        to asker: setup of t: Error staging: Stack windows does not exist
        to asker: staging of t: Error staging: Stack windows does not exist, no droplet
    "#]],
    );
    let rule = dewar_protocol::EgressRule {
        protocol: "sctp".to_owned(),
        destination: "10.0.0.1".to_owned(),
        ports: None,
        icmp_type: None,
        code: None,
        log: None,
    };
    scene.check(
        stage(StagingMessage { egress_network_rules: vec![rule], ..staging_message("shop", "t") }),
        expect![[r#"
        log of shop Out: Got staging request for app with id shop
        to asker: setup of t: Invalid protocol in egress rule: sctp
        to asker: staging of t: Invalid protocol in egress rule: sctp, no droplet
    "#]],
    );
    scene.check(
        request(Request::LocateStager),
        expect![[r#"
        staging.advertise memory 1000M disk 4000M
    "#]],
    );
}

#[test]
fn stopping() {
    let mut scene = Scene::new(config());
    for (app, task) in [("shop", "t1"), ("shop", "t2"), ("blog", "t3")] {
        scene.take(stage(staging_message(app, task)));
    }
    scene.take(set_up(2));
    scene.check(request(Request::StopStaging(serde_json::from_str(r#"{"app_id":"nobody"}"#).unwrap())), expect![[""]]);
    scene.check(
        request(Request::StopStaging(serde_json::from_str(r#"{"app_id":"shop"}"#).unwrap())),
        expect![[r#"
        cancel staging 1
        to asker: staging of t1: Error staging: task stopped, no droplet
        cancel staging 2
        to asker: staging of t2: Error staging: task stopped, no droplet
    "#]],
    );
    for late in [set_up(1), finished(1), failed(2)] {
        scene.check(late, expect![[""]]);
    }
    scene.check(stop(r#"{"droplet":"blog","version":"v1"}"#), expect![[""]]);
    scene.check(
        stop(r#"{"droplet":"blog"}"#),
        expect![[r#"
        cancel staging 3
        to asker: staging of t3: Error staging: task stopped, no droplet
    "#]],
    );
}

#[test]
fn a_task_that_does_not_end_is_ended() {
    let mut scene = Scene::new(config());
    scene.take(stage(staging_message("shop", "t1")));
    assert_eq!(scene.wake_until(45 * 60 - 1), []);
    expect![[r#"
        cancel staging 1
        to asker: staging of t1: Staging in container timed out, no droplet
    "#]]
    .assert_eq(&shown(&scene.wake_until(45 * 60)));
}

#[test]
fn an_agent_that_does_not_stage_says_so() {
    let mut config = config();
    config.staging.enabled = false;
    Scene::new(config).check(
        stage(staging_message("shop", "t1")),
        expect![[r#"
        refused staging.<id>.start: this agent does not stage
    "#]],
    );
}

#[test]
fn nobody_to_answer_is_no_reason_not_to_stage() {
    let mut scene = Scene::new(config());
    scene.take(request(Request::Stage(Box::new(staging_message("shop", "t1")))));
    scene.check(set_up(1), expect![[""]]);
    scene.check(finished(1), expect![[""]]);
    scene.check(
        request(Request::LocateStager),
        expect![[r#"
        staging.advertise memory 1000M disk 4000M
    "#]],
    );
}

fn by_http(message: StagingMessage) -> Input {
    asked(Request::StageByHttp(Box::new(message)))
}

fn with_start(task: &str) -> StagingMessage {
    let start = StartMessage { sha1: None, droplet_uri: None, ..start_message("shop", 0) };
    StagingMessage { start_message: Some(start), ..staging_message("shop", task) }
}

fn reported(key: u64) -> Input {
    Input::Staging(TaskKey(key), StagingEvent::Reported)
}

fn stored(key: u64) -> Input {
    Input::Staging(TaskKey(key), StagingEvent::Stored(sha1('b')))
}

#[test]
fn over_http_the_task_lasts_until_the_controller_was_told() {
    let mut scene = Scene::new(config());
    scene.check(
        by_http(with_start("t1")),
        expect![[r#"
        to asker: accepted
        log of shop Out: Got staging request for app with id shop
        start staging 1 of shop with 300M and 500M
    "#]],
    );
    scene.check(set_up(1), expect![[""]]);
    scene.check(stored(1), expect![[""]]);
    scene.check(
        finished(1),
        expect![[r#"
        report 1: staging of t1: ok, b
    "#]],
    );
    scene.check(finished(1), expect![[""]]);
    scene.check(
        request(Request::LocateStager),
        expect![[r#"
        staging.advertise memory 700M disk 3500M
    "#]],
    );
    scene.check(
        reported(1),
        expect![[r#"
        log of shop/0 Out: Starting app instance (index 0) with guid shop
        shop/0 (2) BORN → STARTING
        fetch droplet b… from nowhere
    "#]],
    );
    scene.check(reported(1), expect![[""]]);
    scene.check(
        request(Request::LocateStager),
        expect![[r#"
        staging.advertise memory 900M disk 3800M
    "#]],
    );
}

#[test]
fn over_http_every_end_is_reported_once() {
    let mut scene = Scene::new(config());
    let setup_failed = Input::Staging(TaskKey(1), StagingEvent::SetupFailed("no bits".to_owned()));
    scene.take(by_http(with_start("t1")));
    scene.check(
        setup_failed,
        expect![[r#"
        report 1: staging of t1: no bits, no droplet
    "#]],
    );
    scene.check(reported(1), expect![[""]]);
    scene.check(
        by_http(StagingMessage { memory_limit: Some(Mib(1001)), ..staging_message("shop", "t2") }),
        expect![[r#"
        to asker: accepted
        log of shop Out: Got staging request for app with id shop
        report 2: staging of t2: Not enough memory resources available, no droplet
    "#]],
    );
    scene.check(reported(2), expect![[""]]);
    scene.take(by_http(with_start("t3")));
    let stop = || request(Request::StopStaging(serde_json::from_str(r#"{"app_id":"shop"}"#).unwrap()));
    let stopped = scene.take(stop());
    expect![[r#"
        cancel staging 3
        report 3: staging of t3: Error staging: task stopped, no droplet
    "#]]
    .assert_eq(&shown(&stopped));
    let Some(Effect::ReportStaging { reply, .. }) = stopped.last() else { panic!("{stopped:?}") };
    assert_eq!(reply.app_id, Some("shop".into()), "the report's path has it");
    scene.check(reported(3), expect![[""]]);
    // The report is under way, and there is no other; only the start that would follow is given up.
    scene.take(by_http(with_start("t4")));
    scene.take(finished(4));
    scene.check(stop(), expect![[""]]);
    scene.check(reported(4), expect![[""]]);
    assert_eq!(scene.cell.tasks.len(), 0);
}

#[test]
fn over_http_an_app_is_started_whose_controller_is_slow_to_hear_of_its_droplet() {
    let mut scene = Scene::new(config());
    scene.take(by_http(with_start("t1")));
    scene.take(finished(1));
    assert_eq!(scene.wake_until(45 * 60 - 1), []);
    expect![[r#"
        log of shop/0 Out: Starting app instance (index 0) with guid shop
        shop/0 (2) BORN → STARTING
        fetch droplet b… from nowhere
    "#]]
    .assert_eq(&shown(&scene.wake_until(45 * 60)));
    scene.check(reported(1), expect![[""]]);
    assert_eq!(scene.cell.tasks.len(), 0);
}

#[test]
fn over_http_an_agent_that_takes_no_work_says_so() {
    let mut scene = Scene::new(config());
    scene.check(
        asked(Request::StartInstanceByHttp(Box::new(start_message("shop", 0)))),
        expect![[r#"
        to asker: accepted
        log of shop/0 Out: Starting app instance (index 0) with guid shop
        shop/0 (1) BORN → STARTING
        fetch droplet a… from http://cc/droplet
    "#]],
    );
    scene.run(start_message("blog", 0));
    scene.take(Input::Signal(Signal::Evacuate));
    for request in
        [Request::StartInstanceByHttp(Box::new(start_message("shop", 1))), Request::StageByHttp(Box::new(staging_message("shop", "t1")))]
    {
        assert!(shown(&scene.take(asked(request))).ends_with("to asker: unavailable: this agent is being evacuated\n"));
    }
    scene.take(Input::Signal(Signal::Shutdown));
    scene.check(
        asked(Request::StartInstanceByHttp(Box::new(start_message("shop", 1)))),
        expect![[r#"
        refused /v1/apps: this agent is shutting down
        to asker: unavailable: this agent is shutting down
    "#]],
    );
    scene.check(
        by_http(staging_message("shop", "t1")),
        expect![[r#"
        refused /v1/stage: this agent is shutting down
        to asker: unavailable: this agent is shutting down
    "#]],
    );
    let mut config = config();
    config.staging.enabled = false;
    Scene::new(config).check(
        by_http(staging_message("shop", "t1")),
        expect![[r#"
        to asker: unavailable: this agent does not stage
        refused staging.<id>.start: this agent does not stage
    "#]],
    );
}

#[test]
fn a_start_before_the_upload_does_not_wait_for_it() {
    let mut config = config();
    config.staging.start_before_upload = true;
    let mut scene = Scene::new(config);
    scene.take(stage(with_start("t1")));
    scene.take(set_up(1));
    scene.check(
        stored(1),
        expect![[r#"
        log of shop/0 Out: Starting app instance (index 0) with guid shop
        shop/0 (2) BORN → STARTING
        fetch droplet b… from nowhere
    "#]],
    );
    scene.check(stored(1), expect![[""]]);
    scene.check(
        finished(1),
        expect![[r#"
        to asker: staging of t1: ok, b
    "#]],
    );
    scene.take(stage(with_start("t2")));
    scene.take(set_up(3));
    scene.take(stored(3));
    // What runs already is not ended by an upload that fails.
    scene.check(
        failed(3),
        expect![[r#"
        to asker: staging of t2: Script exited with status 1, no droplet
    "#]],
    );
    // Without a droplet there is nothing to start.
    scene.take(stage(with_start("t3")));
    scene.take(set_up(5));
    scene.check(
        failed(5),
        expect![[r#"
        to asker: staging of t3: Script exited with status 1, no droplet
    "#]],
    );
    assert_eq!(scene.cell.registry.len(), 2);
}

#[test]
fn the_larger_of_what_the_operator_sets_and_the_message_wants_is_reserved_until_the_end() {
    let mut config = config();
    config.capacity = crate::Capacity { memory: Mib(8000), disk: Mib(8000) };
    (config.staging.memory, config.staging.disk) = (Mib(1024), Mib(2048));
    let mut scene = Scene::new(config);
    let left = |scene: &mut Scene| shown(&scene.take(request(Request::Locate)));
    scene.take(stage(staging_message("small", "t1")));
    assert_eq!(left(&mut scene), "dea.advertise memory 6976M disk 5952M apps none\n");
    scene.take(stage(StagingMessage { memory_limit: Some(Mib(1536)), ..staging_message("large", "t2") }));
    assert_eq!(left(&mut scene), "dea.advertise memory 5440M disk 3904M apps none\n");
    scene.take(finished(1));
    scene.take(failed(2));
    assert_eq!(left(&mut scene), "dea.advertise memory 8000M disk 8000M apps none\n");
}

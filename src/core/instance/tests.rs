use proptest::prelude::*;

use super::*;
use crate::testing::{at, config, start_message};

fn born(uris: &[&str]) -> Instance {
    let mut start = start_message("shop", 0);
    start.uris = uris.iter().map(|uri| (*uri).to_owned()).collect();
    Instance::new(InstanceKey(1), Arc::new(start), InstanceId::from("id"), "private".to_owned(), at(0).wall)
}

#[test]
fn the_table_is_that_of_the_protocol() {
    use InstanceState::{Born, Crashed, Evacuating, Resuming, Running, Starting, Stopped, Stopping};
    let legal = [
        (Born, vec![Starting, Stopped, Crashed, Resuming, Evacuating]),
        (Starting, vec![Running, Stopping, Crashed, Evacuating]),
        (Running, vec![Stopping, Crashed, Evacuating]),
        (Stopping, vec![Stopped]),
        (Stopped, vec![]),
        (Crashed, vec![]),
        (Resuming, vec![Running, Stopping, Crashed, Evacuating]),
        (Evacuating, vec![Stopping, Crashed]),
    ];
    for (from, allowed) in &legal {
        for (to, _) in &legal {
            assert_eq!(allows(*from, *to), allowed.contains(to), "{from} → {to}");
        }
    }
}

#[test]
fn what_each_state_means() {
    use InstanceState::{Born, Crashed, Evacuating, Resuming, Running, Starting, Stopped, Stopping};
    let rows = [
        // state, memory, disk, heartbeat
        (Born, true, true, false),
        (Starting, true, true, true),
        (Running, true, true, true),
        (Stopping, true, true, false),
        (Stopped, false, false, false),
        (Crashed, false, true, true),
        (Resuming, true, true, true),
        (Evacuating, true, true, true),
    ];
    for (state, memory, disk, heartbeat) in rows {
        let means = (reserves_memory(state), reserves_disk(state), is_heartbeated(state));
        assert_eq!(means, (memory, disk, heartbeat), "{state}");
    }
}

#[test]
fn a_refused_instance_holds_nothing_but_a_crashed_one_its_disk() {
    let mut refused = born(&["a"]);
    refused.handle(at(0), Event::Refuse(Resource::Disk), &config());
    assert_eq!(refused.state(), InstanceState::Crashed);
    assert_eq!(refused.reservation(), Reservation::default());
    let mut crashed = born(&["a"]);
    crashed.handle(at(0), Event::Begin, &config());
    assert_eq!(crashed.reservation(), Reservation { memory: Mib(100), disk: Mib(200) });
    crashed.handle(at(0), Event::Fail("no such droplet".to_owned()), &config());
    assert_eq!(crashed.reservation(), Reservation { memory: Mib(0), disk: Mib(200) });
}

#[test]
fn usage_is_measured_between_samples_while_there_is_something_to_measure() {
    let sample = |cpu_ms, memory| Sample {
        cpu: Duration::from_millis(cpu_ms),
        memory: dewar_protocol::Bytes(memory),
        disk: dewar_protocol::Bytes(7),
    };
    let mut instance = born(&["a"]);
    instance.handle(at(0), Event::Begin, &config());
    instance.measure(at(1).mono, sample(1000, 10));
    assert_eq!((instance.usage().cpu(), instance.usage().last().memory.0), (0.0, 10), "one sample is no rate");
    instance.measure(at(11).mono, sample(6000, 20));
    assert_eq!((instance.usage().cpu(), instance.usage().last().memory.0), (0.5, 20));
    instance.measure(at(11).mono, sample(9000, 30));
    assert_eq!((instance.usage().cpu(), instance.usage().last().memory.0), (0.5, 20), "no time has passed");
    instance.measure(at(12).mono, sample(5000, 40));
    assert_eq!((instance.usage().cpu(), instance.usage().last().memory.0), (0.0, 40), "a clock that goes back is no rate");
    instance.handle(at(13), Event::Fail(String::new()), &config());
    instance.measure(at(14).mono, sample(7000, 50));
    assert_eq!(instance.usage().last(), Sample::default(), "what has ended uses nothing");

    let mut instance = born(&["a"]);
    for event in [Event::Begin, Event::DropletReady, Event::Launched { port: Some(1), state_file: false }, Event::Ready, Event::Stop] {
        instance.handle(at(0), event, &config());
    }
    instance.measure(at(1).mono, sample(1000, 10));
    assert_eq!(instance.usage().last().memory.0, 10, "what is stopping is there until it has ended");
    instance.handle(at(2), Event::Exited(Exit { status: 0, description: String::new() }), &config());
    instance.measure(at(3).mono, sample(2000, 20));
    assert_eq!(instance.usage().last(), Sample::default());
}

/// The machine once more, as a table of names: where an event leads and what it makes the agent do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Model {
    Born,
    Fetching,
    Making,
    Checking,
    Running,
    Stopping,
    Stopped,
    /// Crashed, its sandbox yet to end.
    Dying,
    Crashed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Input {
    Begin,
    Refuse,
    DropletReady,
    Fail,
    LaunchedWithPort,
    LaunchedWithoutPort,
    Ready,
    Exited,
    Evacuate,
    Stop,
    /// The deadline, when it has come.
    Deadline,
    /// The deadline, too early.
    Early,
}

/// What the model says of one that is evacuated: the same, under another name, and being healthy is no transition any more.
fn told_of_evacuee(of_others: &str) -> String {
    let again = of_others.ends_with("→EVACUATING");
    if again {
        return String::new();
    }
    of_others.replace("STARTING→RUNNING", "reachable").replace("STARTING→", "EVACUATING→").replace("RUNNING→", "EVACUATING→")
}

fn model(state: Model, input: Input) -> (Model, &'static str) {
    use Model::{Born, Checking, Crashed, Dying, Fetching, Making, Running, Stopped, Stopping};
    match (state, input) {
        (Born, Input::Begin) => (Fetching, "BORN→STARTING want-droplet"),
        (Born, Input::Refuse) => (Crashed, "BORN→CRASHED"),
        (Born, Input::Stop) => (Stopped, "BORN→STOPPED"),
        (Fetching, Input::DropletReady) => (Making, "start"),
        (Fetching, Input::Fail | Input::Deadline) => (Crashed, "STARTING→CRASHED"),
        (Fetching, Input::Stop) => (Stopped, "STARTING→STOPPING STOPPING→STOPPED"),
        (Making, Input::LaunchedWithPort) => (Checking, ""),
        (Making, Input::LaunchedWithoutPort) | (Checking, Input::Ready) => (Running, "STARTING→RUNNING"),
        (Making | Checking, Input::Exited) => (Crashed, "STARTING→CRASHED"),
        (Making, Input::Stop) => (Stopping, "STARTING→STOPPING kill"),
        (Making, Input::Deadline) => (Dying, "STARTING→CRASHED kill"),
        (Checking, Input::Stop) => (Stopping, "STARTING→STOPPING stop"),
        (Checking, Input::Deadline) => (Dying, "unhealthy STARTING→CRASHED kill"),
        (Running, Input::Exited) => (Crashed, "RUNNING→CRASHED"),
        (Running, Input::Stop) => (Stopping, "RUNNING→STOPPING stop"),
        (Fetching | Making | Checking, Input::Evacuate) => (state, "STARTING→EVACUATING"),
        (Running, Input::Evacuate) => (state, "RUNNING→EVACUATING"),
        (Stopping, Input::Exited) => (Stopped, "STOPPING→STOPPED"),
        (Stopping, Input::Stop) => (Stopping, "stop"),
        (Stopping, Input::Deadline) => (Stopping, "kill"),
        (Dying, Input::Exited) => (Crashed, ""),
        (Dying, Input::Deadline) => (Dying, "kill"),
        (Crashed, Input::Deadline) => (Crashed, "reap"),
        _ => (state, ""),
    }
}

fn told(deeds: &[Deed]) -> String {
    let names = deeds.iter().map(|deed| match deed {
        Deed::Entered { from, to, why: _ } => format!("{from}→{to}"),
        Deed::WantDroplet => "want-droplet".to_owned(),
        Deed::StartSandbox => "start".to_owned(),
        Deed::Moved { from } => format!("moved from {from}"),
        Deed::StopSandbox => "stop".to_owned(),
        Deed::KillSandbox => "kill".to_owned(),
        Deed::Reachable => "reachable".to_owned(),
        Deed::Unhealthy => "unhealthy".to_owned(),
        Deed::Reap => "reap".to_owned(),
    });
    names.collect::<Vec<_>>().join(" ")
}

fn any_input() -> impl Strategy<Value = Input> {
    // The way forward is likelier than the many ways out of it.
    prop_oneof![
        3 => Just(Input::Begin),
        1 => Just(Input::Refuse),
        3 => Just(Input::DropletReady),
        1 => Just(Input::Fail),
        3 => Just(Input::LaunchedWithPort),
        1 => Just(Input::LaunchedWithoutPort),
        3 => Just(Input::Ready),
        1 => Just(Input::Exited),
        1 => Just(Input::Evacuate),
        1 => Just(Input::Stop),
        1 => Just(Input::Deadline),
        2 => Just(Input::Early),
    ]
}

proptest! {
    #[test]
    fn does_what_the_model_does(inputs in proptest::collection::vec((any_input(), 0u64..5), 0..24)) {
        let config = config();
        let (mut instance, mut state, mut seconds, mut evacuee) = (born(&["a"]), Model::Born, 0, false);
        for (input, pause) in inputs {
            seconds += pause;
            let deadline = instance.deadline().map(|deadline| deadline.0.as_secs());
            match (input, deadline) {
                (Input::Deadline, Some(deadline)) => seconds = deadline.max(seconds),
                (Input::Deadline, None) | (Input::Early, _) if deadline.is_some_and(|deadline| deadline <= seconds) => continue,
                _ => {}
            }
            let event = match input {
                Input::Begin => Event::Begin,
                Input::Refuse => Event::Refuse(Resource::Memory),
                Input::DropletReady => Event::DropletReady,
                Input::Fail => Event::Fail("why".to_owned()),
                Input::LaunchedWithPort => Event::Launched { port: Some(61_001), state_file: false },
                Input::LaunchedWithoutPort => Event::Launched { port: None, state_file: false },
                Input::Ready => Event::Ready,
                Input::Exited => Event::Exited(Exit { status: 1, description: "trap".to_owned() }),
                Input::Evacuate => Event::Evacuate,
                Input::Stop => Event::Stop,
                Input::Deadline | Input::Early => Event::Deadline,
            };
            let deeds = instance.handle(at(seconds), event, &config);
            let (next, expected) = model(state, input);
            let expected = if evacuee { told_of_evacuee(expected) } else { expected.to_owned() };
            prop_assert_eq!(told(&deeds), expected, "{:?} on {:?}", input, state);
            state = next;
            evacuee |= input == Input::Evacuate && matches!(state, Model::Fetching | Model::Making | Model::Checking | Model::Running);
            prop_assert_eq!(instance.is_routed(), state == Model::Running);
            let name = instance.state();
            let kept = matches!(state, Model::Fetching | Model::Making | Model::Checking | Model::Running);
            prop_assert_eq!(name == InstanceState::Evacuating, evacuee && kept);
            let alive = matches!(state, Model::Making | Model::Checking | Model::Running | Model::Stopping | Model::Dying);
            prop_assert_eq!(instance.has_sandbox(), alive);
            let waits = !matches!(state, Model::Born | Model::Running | Model::Stopped);
            prop_assert_eq!(instance.deadline().is_some(), waits);
        }
    }
}

#[test]
fn deadlines() {
    let config = config();
    let mut instance = born(&["a"]);
    let deadline = |instance: &Instance| instance.deadline().map(|deadline| deadline.0.as_secs());
    instance.handle(at(1), Event::Begin, &config);
    assert_eq!(deadline(&instance), Some(901), "preparation");
    instance.handle(at(2), Event::DropletReady, &config);
    assert_eq!(deadline(&instance), Some(901), "the droplet is part of it");
    instance.handle(at(3), Event::Launched { port: Some(1), state_file: false }, &config);
    assert_eq!(deadline(&instance), Some(63), "the agent's health check time-out");
    instance.handle(at(4), Event::Stop, &config);
    assert_eq!(deadline(&instance), Some(64), "force");
    instance.handle(at(10), Event::Stop, &config);
    assert_eq!(deadline(&instance), Some(64), "asking again does not put it off");
    instance.handle(at(64), Event::Deadline, &config);
    assert_eq!(deadline(&instance), Some(74), "and again");

    let mut start = start_message("shop", 0);
    start.health_check_timeout = Some(180);
    let mut patient = Instance::new(InstanceKey(1), Arc::new(start), InstanceId::from("id"), String::new(), at(0).wall);
    patient.handle(at(0), Event::Begin, &config);
    patient.handle(at(0), Event::DropletReady, &config);
    patient.handle(at(5), Event::Launched { port: Some(1), state_file: false }, &config);
    assert_eq!(deadline(&patient), Some(185), "the message's health check time-out");
    patient.handle(at(185), Event::Deadline, &config);
    assert_eq!(deadline(&patient), Some(195), "killed again, for the reaper has to wait");
    patient.handle(at(186), Event::Exited(Exit { status: 255, description: String::new() }), &config);
    assert_eq!(deadline(&patient), Some(185 + 3600), "reaped after the crash lifetime");
    patient.supersede(at(200).mono);
    assert_eq!(deadline(&patient), Some(200), "or soon after a newer crash");
    patient.supersede(at(300).mono);
    assert_eq!(deadline(&patient), Some(200));
}

#[test]
fn nothing_to_check_is_healthy_at_once() {
    for (uris, port, running) in [(&["a"][..], Some(1), false), (&["a"][..], None, true), (&[][..], Some(1), true), (&[][..], None, true)] {
        let mut instance = born(uris);
        for event in [Event::Begin, Event::DropletReady, Event::Launched { port, state_file: false }] {
            instance.handle(at(0), event, &config());
        }
        assert_eq!(instance.state() == InstanceState::Running, running, "{uris:?} {port:?}");
    }
}

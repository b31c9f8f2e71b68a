//! Core dumps of guests that trap, where they are switched on.

use std::path::Path;
use std::sync::OnceLock;

use dewar_protocol::{Bytes as Size, LogStream};
use dewar_sandbox::{SandboxConfig, Sandboxes};
use libtest_mimic::Trial;

use crate::fixture::{Plan, config, eventually, test};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        test("core_dumps::a_command_that_traps_leaves_its_memory", command),
        test("core_dumps::a_request_that_traps_leaves_one_and_no_more_for_a_while", request),
        test("core_dumps::start_up_code_that_traps_leaves_one", start_up),
        test("core_dumps::too_much_memory_is_no_dump_and_told", too_much),
        test("core_dumps::a_status_or_the_end_of_memory_allowed_is_told_as_ever", as_ever),
        test("core_dumps::without_the_switch_there_are_none", off),
    ]
}

/// Where guests' traps are kept. The native code is that of all other tests.
fn dumping() -> &'static Sandboxes {
    static SANDBOXES: OnceLock<Sandboxes> = OnceLock::new();
    SANDBOXES.get_or_init(|| {
        let state_dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("sandbox");
        Sandboxes::new(SandboxConfig { core_dumps: true, ..config(state_dir) }).unwrap()
    })
}

fn has(dump: &[u8], text: &str) -> bool {
    dump.windows(text.len()).any(|window| window == text.as_bytes())
}

/// A module of the format's sections, of this name and with this text in a memory.
fn assert_is_dump(dump: &[u8], text: &str) {
    assert_eq!(&dump[..8], b"\0asm\x01\0\0\0");
    // The first section's payload: its name, a process, and what that is called.
    assert!(dump[..64].windows(10).any(|window| window == b"\x04core\0\x03app"), "{:?}", &dump[..64]);
    for section in ["corestack", "coremodules", "coreinstances", text] {
        assert!(has(dump, section), "{section} is missing");
    }
}

async fn command() {
    let command =
        Plan::within(dumping(), "tests/command-driver").await.args(&["env:COLOUR", "trap"]).env("COLOUR", "ultramarine").start().await;
    let exit = command.exit().await;
    assert!(exit.description.starts_with("wasm trap: wasm `unreachable` instruction executed\n"), "{}", exit.description);
    let dumps = command.lines.core_dumps();
    assert_eq!(dumps.len(), 1, "it is there before the exit is told");
    assert_is_dump(&dumps[0], "ultramarine");
}

async fn request() {
    let app = Plan::within(dumping(), "tests/http-driver").await.env("COLOUR", "ultramarine").start().await;
    assert_eq!(app.ok("/env?name=COLOUR").await.trim(), "ultramarine");
    let traps = async || drop(app.try_send("GET", "/trap", "".into()).await);
    traps().await;
    eventually("a core dump", || app.lines.core_dumps().len() == 1).await;
    assert_is_dump(&app.lines.core_dumps()[0], "http-driver");
    assert_eq!(app.ok("/").await, "http-driver", "the instance goes on");
    for _ in 0..3 {
        traps().await;
    }
    assert!(app.exit().await.description.starts_with("wasm trap: wasm `unreachable`"));
    assert_eq!(app.lines.core_dumps().len(), 1, "a client has no means to make it dump without end");
}

async fn start_up() {
    for guest in ["tests/trap-at-start", "tests/http-trap-at-start"] {
        let (exit, lines) = Plan::within(dumping(), guest).await.try_start().await.err().expect("it traps");
        assert!(exit.description.starts_with("wasm trap: wasm `unreachable`"), "{guest}: {}", exit.description);
        assert_eq!(lines.core_dumps().len(), 1, "{guest}");
    }
}

async fn too_much() {
    let large = |quota: &mut dewar_sandbox::Quota| quota.memory = Size(256 << 20);
    let plan = Plan::within(dumping(), "tests/command-driver").await.args(&["grow:140000000", "trap"]).quota(large);
    let command = plan.start().await;
    assert!(command.exit().await.description.starts_with("wasm trap"));
    assert_eq!(command.lines.core_dumps(), Vec::<Vec<u8>>::new());
    let told = command.lines.of(LogStream::Err);
    assert!(told[0].starts_with("[no core dump: ") && told[0].ends_with("of memory, and it may be 128 MiB]"), "{told:?}");
}

async fn as_ever() {
    let command = Plan::within(dumping(), "tests/command-driver").await.args(&["exit:3"]).start().await;
    assert_eq!((command.exit().await.status, command.lines.core_dumps().len()), (3, 0));
    let small = |quota: &mut dewar_sandbox::Quota| quota.memory = Size(8 << 20);
    let command = Plan::within(dumping(), "tests/command-driver").await.args(&["hog"]).quota(small).start().await;
    let exit = command.exit().await;
    assert!(exit.description.starts_with("out of memory (used ") && exit.description.contains("of 8 MiB"), "{}", exit.description);
    assert_eq!(command.lines.core_dumps().len(), 1, "what took it all is what its developer looks for");
}

async fn off() {
    let command = Plan::of("tests/command-driver").await.args(&["trap"]).start().await;
    command.exit().await;
    assert_eq!((command.lines.core_dumps().len(), command.lines.all().as_str()), (0, ""));
}

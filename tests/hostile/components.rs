//! Components that are to break the compiler, or what reads them.

use std::sync::OnceLock;
use std::time::Duration;

use dewar_protocol::Bytes;
use dewar_sandbox::{CompileLimits, ProgramError, SandboxConfig, Sandboxes};

use crate::attack::{Attack, assert_fits, attack};
use crate::fixture::{config, guest};
use crate::text;

/// Largest component.
const COMPONENT: usize = 8 << 20;

/// The same engine as all others, with little for the compiler, so that bombs go off soon. Native code is not worth keeping.
pub(crate) fn sandboxes() -> &'static Sandboxes {
    static SANDBOXES: OnceLock<Sandboxes> = OnceLock::new();
    SANDBOXES.get_or_init(|| {
        let limits = CompileLimits {
            memory: Bytes(768 << 20),
            cpu: Duration::from_secs(5),
            wall: Duration::from_secs(25),
            component: Bytes(COMPONENT as u64),
            ..CompileLimits::default()
        };
        let state_dir = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("hostile");
        Sandboxes::new(SandboxConfig { compile_limits: limits, artifact_bytes: Bytes(1), ..config(state_dir) }).unwrap()
    })
}

async fn compile(component: &[u8]) -> Result<(), ProgramError> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), component).unwrap();
    sandboxes().program(file.path()).await.map(drop)
}

/// A component that is refused with these words.
fn refused(name: &'static str, held_by: &'static str, component: fn() -> Vec<u8>, words: &'static str) -> Attack {
    attack(name, held_by, move || async move {
        let error = compile(&tokio::task::spawn_blocking(component).await.unwrap()).await.expect_err("it compiles");
        assert_fits(words, &error.to_string(), name);
    })
}

/// A component that may compile, if it does so within the limits.
fn bounded(name: &'static str, held_by: &'static str, component: fn() -> Vec<u8>) -> Attack {
    attack(name, held_by, move || async move {
        let outcome = compile(&tokio::task::spawn_blocking(component).await.unwrap()).await;
        // Not the compiler's own failure, which would be a crash.
        assert!(!matches!(outcome, Err(ProgramError::Compiler(_))), "{outcome:?}");
    })
}

const INVALID: &str = "compile component: ";
/// It may be read, and is of no use then.
const UNUSABLE: &str = "compile component: |find a world to run";
const COSTLY: &str = "compile component: it takes more than ";
const CHILD: &str = "compiling is a child process with limits on memory, CPU and time";
const COUNTED: &str = "what a module may have of everything is counted when it is read";
const OFF: &str = "the engine has it switched off";

pub(crate) fn attacks() -> Vec<Attack> {
    vec![
        attack("components::truncated_anywhere", "reading is memory-safe and its errors are the component's", || damaged(truncations)),
        attack("components::flipped_bits_anywhere", "the same; what still validates is as harmless as any other", || damaged(flips)),
        refused(
            "components::larger_than_allowed",
            "a size is looked at before a byte is read",
            || vec![0; COMPONENT + 1],
            "accept a component of ",
        ),
        refused("components::garbage", "what is no component is said to be none", || b"this is no wasm".repeat(1000), INVALID),
        refused(
            "components::a_size_that_lies",
            "sections are as long as the file",
            || vec![0, b'a', b's', b'm', 13, 0, 1, 0, 1, 0xff, 0xff, 0xff, 0xff, 0x0f],
            INVALID,
        ),
        refused("components::components_in_components", COUNTED, nested, UNUSABLE),
        refused("components::instances_of_instances", CHILD, instances, COSTLY),
        refused("components::types_of_types", COUNTED, types, INVALID),
        refused("components::a_hundred_thousand_imports", CHILD, || many("(import \"a\" \"NUMBER\" (func))", 100_000), UNUSABLE),
        refused("components::a_hundred_thousand_exports", CHILD, || many("(export \"NUMBER\" (memory 0))", 100_000), UNUSABLE),
        refused(
            "components::a_name_of_a_megabyte",
            COUNTED,
            || module(&format!("(memory 1) (export \"{}\" (memory 0))", "n".repeat(1 << 20))),
            INVALID,
        ),
        refused("components::a_million_locals", COUNTED, || module(&format!("(func (local {}))", "i64 ".repeat(50_001))), INVALID),
        bounded("components::twenty_functions_with_all_locals", CHILD, || {
            module(&format!("(func (local {}))", "v128 ".repeat(50_000)).repeat(20))
        }),
        bounded("components::a_hundred_thousand_functions", CHILD, || module(&"(func)".repeat(100_000))),
        bounded("components::one_function_of_megabytes", CHILD, || {
            module(&format!("(func (param i32) (result i32) local.get 0 {})", "local.get 0 i32.mul local.get 0 i32.add ".repeat(500_000)))
        }),
        bounded("components::blocks_in_blocks", CHILD, || {
            module(&format!("(func {} {})", "block ".repeat(300_000), "end ".repeat(300_000)))
        }),
        bounded("components::a_table_of_branches", CHILD, || {
            let table = format!("i32.const 0 br_table {} ", "0 ".repeat(60_000));
            module(&format!("(func block {} end)", format!("block {table} end ").repeat(40)))
        }),
        bounded("components::megabytes_of_data", CHILD, || {
            module(&format!("(memory 200) (data (i32.const 0) \"{}\")", "\\00".repeat(6 << 20)))
        }),
        refused("components::more_memory_than_addresses", COUNTED, || module("(memory 65537)"), INVALID),
        refused("components::wide_memories", OFF, || module("(memory i64 1)"), INVALID),
        refused("components::shared_memories", OFF, || module("(memory 1 2 shared)"), INVALID),
        refused(
            "components::garbage_collected_structures",
            OFF,
            || module("(type (struct (field i32))) (func (drop (struct.new_default 0)))"),
            INVALID,
        ),
        refused("components::exceptions", OFF, || module("(tag) (func (throw 0))"), INVALID),
        refused("components::continuations", OFF, || module("(type $f (func)) (type (cont $f))"), INVALID),
        refused(
            "components::interfaces_that_nobody_grants",
            "every import is granted by name or the component is refused",
            || text::assemble(r#"(component (import "example:secrets/vault@1.0.0" (instance (export "open" (func)))))"#),
            "link component: example:secrets/vault@1.0.0 is not granted|find a world to run",
        ),
        attack("components::bombs_by_the_dozen", "two compilers at a time, however many ask", || async {
            let bombs = (0..6).map(|number| async move {
                let bomb = tokio::task::spawn_blocking(move || branching(40 + number)).await.unwrap();
                compile(&bomb).await
            });
            for outcome in futures::future::join_all(bombs).await {
                assert!(!matches!(outcome, Err(ProgramError::Compiler(_))), "{outcome:?}");
            }
        }),
    ]
}

/// A component around a core module with these fields.
fn module(fields: &str) -> Vec<u8> {
    text::assemble(&format!("(component (core module {fields}))"))
}

/// A module with so many of something, each with a number of its own.
fn many(field: &str, count: u32) -> Vec<u8> {
    let fields: String = (0..count).map(|number| field.replace("NUMBER", &number.to_string())).collect();
    let memory = if field.contains("memory") { "(memory 1)" } else { "" };
    module(&format!("{memory} {fields}"))
}

fn branching(times: usize) -> Vec<u8> {
    let table = format!("i32.const 0 br_table {} ", "0 ".repeat(2_000));
    module(&format!("(func block {} end)", format!("block {table} end ").repeat(times)))
}

/// A component in a component, two thousand deep; no text could say that.
fn nested() -> Vec<u8> {
    let mut component = b"\0asm\x0d\0\x01\0".to_vec();
    for _ in 0..2_000 {
        let mut length = component.len();
        let mut outer = b"\0asm\x0d\0\x01\0\x04".to_vec();
        loop {
            let byte = u8::try_from(length & 0x7f).unwrap();
            length >>= 7;
            outer.push(if length == 0 { byte } else { byte | 0x80 });
            if length == 0 {
                break;
            }
        }
        outer.extend(component);
        component = outer;
    }
    component
}

/// Ten instances of a component that has ten instances of a component, seven times over.
fn instances() -> Vec<u8> {
    let mut text = "(component $c0 (core module $m (func)) (core instance (instantiate $m)))".to_owned();
    for level in 1..=7 {
        let inner = "(instance (instantiate $c))".replace("$c", &format!("$c{}", level - 1)).repeat(10);
        text = format!("(component $c{level} {text} {inner})");
    }
    text::assemble(&format!("(component {text} (instance (instantiate $c7)))"))
}

/// A type of twice the size of the type before, sixty times.
fn types() -> Vec<u8> {
    let doubled: String = (1..60).map(|level| format!("(type $t{level} (tuple $t{} $t{}))", level - 1, level - 1)).collect();
    text::assemble(&format!("(component (type $t0 (tuple u64 u64)) {doubled})"))
}

/// Each variant of a real component is refused as a component, or is one; the compiler itself never fails.
async fn damaged(variants: fn(&[u8]) -> Vec<Vec<u8>>) {
    let whole = std::fs::read(guest("tests/no-answer")).unwrap();
    let variants = variants(&whole);
    for batch in variants.chunks(2) {
        for outcome in futures::future::join_all(batch.iter().map(|variant| compile(variant))).await {
            if let Err(error) = outcome {
                assert_fits("compile component: |link component: |find a world to run", &error.to_string(), "a damaged component");
            }
        }
    }
}

fn truncations(whole: &[u8]) -> Vec<Vec<u8>> {
    let step = whole.len() / 20;
    [1, 4, 8, 9, 12].into_iter().chain((1..20).map(|part| part * step)).map(|length| whole[..length].to_vec()).collect()
}

fn flips(whole: &[u8]) -> Vec<Vec<u8>> {
    let step = whole.len() / 30;
    (0..30)
        .map(|part| {
            let mut flipped = whole.to_vec();
            flipped[part * step + part % 7] ^= 1 << (part % 8);
            flipped
        })
        .collect()
}

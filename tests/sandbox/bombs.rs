//! Components built to be slow or huge to compile: each is refused with what it takes too much of, in bounded time, and others
//! compile meanwhile.

use std::time::{Duration, Instant};

use dewar_protocol::Bytes as Size;
use dewar_sandbox::{CompileLimits, ProgramError, SandboxConfig, Sandboxes};
use libtest_mimic::Trial;

use crate::fixture::{config, guest, test};
use crate::programs::counting_compiler;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        test("bombs::each_is_refused_for_what_it_takes", refused),
        test("bombs::what_is_only_strange_compiles", strange),
        test("bombs::a_neighbour_compiles_meanwhile", neighbour),
        test("bombs::one_that_was_refused_is_not_tried_again", remembered),
    ]
}

/// How a bomb is refused that a compiler would have to try.
const COSTLY: &[&str] = &["compile component: it takes more than "];

const I32: u8 = 0x7f;
const END: u8 = 0x0b;

/// Unsigned LEB128.
fn number(mut value: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let low = u8::try_from(value & 0x7f).unwrap();
        value >>= 7;
        if value == 0 {
            bytes.push(low);
            return bytes;
        }
        bytes.push(low | 0x80);
    }
}

fn section(id: u8, content: &[u8]) -> Vec<u8> {
    [&[id][..], &number(content.len()), content].concat()
}

/// A component that holds one core module of functions from `i32` to `i32`, given as locals (all `i32`) and code.
fn component(functions: &[(usize, Vec<u8>)]) -> Vec<u8> {
    let bodies = functions.iter().flat_map(|(locals, code)| {
        let body = [&[1][..], &number(*locals), &[I32], code, &[END]].concat();
        [number(body.len()), body].concat()
    });
    let module = [
        b"\0asm\x01\0\0\0".to_vec(),
        section(1, &[1, 0x60, 1, I32, 1, I32]),
        section(3, &[number(functions.len()), vec![0; functions.len()]].concat()),
        section(5, &[1, 0, 1]),
        section(10, &number(functions.len()).into_iter().chain(bodies).collect::<Vec<u8>>()),
    ]
    .concat();
    [b"\0asm\x0d\0\x01\0".to_vec(), section(1, &module)].concat()
}

/// Every local takes part in a sum that a loop carries on, with a call in between: all of them are alive all the time.
fn many_live_locals(locals: usize, rounds: usize) -> Vec<u8> {
    let mut code = vec![0x03, 0x40];
    for round in 0..rounds {
        for local in (0..locals).step_by(7) {
            code.extend(
                [&[0x20][..], &number(local), &[0x20], &number((local + round + 1) % locals), &[0x6a, 0x21], &number(local)].concat(),
            );
        }
        code.extend([0x20, 0, 0x10, 0, 0x21, 0]);
    }
    code.extend([0x20, 0, 0x0d, 0, END, 0x20, 0]);
    component(&[(locals, code)])
}

/// Blocks in blocks, and at the core of them jump tables that name every one.
fn jump_tables(depth: usize, tables: usize) -> Vec<u8> {
    let mut code = [0x02, 0x40].repeat(depth);
    for _ in 0..tables {
        code.extend([0x02, 0x40, 0x20, 0x00, 0x0e]);
        code.extend(number(depth));
        (1..=depth).for_each(|label| code.extend(number(label)));
        code.extend([0, END]);
    }
    code.extend([END].repeat(depth));
    code.extend([0x20, 0]);
    component(&[(1, code)])
}

/// One function of so many loads and stores, none of which can be left out.
fn long_function(steps: usize) -> Vec<u8> {
    let step = [0x20, 0x00, 0x20, 0x00, 0x28, 0x02, 0x00, 0x36, 0x02, 0x00, 0x20, 0x00, 0x28, 0x02, 0x04, 0x21, 0x00];
    component(&[(1, [step.repeat(steps), vec![0x20, 0]].concat())])
}

fn many_functions(count: usize, steps: usize) -> Vec<u8> {
    let step = [0x20, 0x00, 0x20, 0x00, 0x28, 0x02, 0x00, 0x36, 0x02, 0x00];
    component(&vec![(1, [step.repeat(steps), vec![0x20, 0]].concat()); count])
}

fn deep_nesting(depth: usize) -> Vec<u8> {
    component(&[(1, [[0x02, 0x40].repeat(depth), [END].repeat(depth), vec![0x20, 0]].concat())])
}

fn fresh(change: impl FnOnce(&mut CompileLimits)) -> (Sandboxes, tempfile::TempDir) {
    let state = tempfile::tempdir().unwrap();
    let mut config: SandboxConfig = config(state.path().to_owned());
    change(&mut config.compile_limits);
    (Sandboxes::new(config).unwrap(), state)
}

async fn compile(sandboxes: &Sandboxes, wasm: Vec<u8>) -> ProgramError {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), wasm).unwrap();
    sandboxes.program(file.path()).await.expect_err("nothing that could be run")
}

async fn refused() {
    let bombs: [(&str, Vec<u8>, &[&str]); 6] = [
        ("live locals", many_live_locals(40_000, 60), COSTLY),
        ("jump tables", jump_tables(3_000, 1_000), COSTLY),
        ("long function", long_function(400_000), COSTLY),
        ("functions", many_functions(300_000, 20), COSTLY),
        ("nesting", deep_nesting(3_500_000), &["compile component: ", "function body size"]),
        ("locals", many_live_locals(50_001, 1), &["compile component: ", "too many locals"]),
    ];
    let (sandboxes, _state) = fresh(|limits| {
        limits.memory = Size(512 << 20);
        limits.cpu = Duration::from_secs(2);
        limits.wall = Duration::from_secs(40);
    });
    for (name, wasm, told) in bombs {
        let start = Instant::now();
        let error = compile(&sandboxes, wasm).await.to_string();
        assert!(told.iter().all(|part| error.contains(part)), "{name}: {error}");
        assert!(start.elapsed() < Duration::from_secs(60), "{name}: {:?}", start.elapsed());
    }
}

async fn strange() {
    let (sandboxes, _state) = fresh(|_| {});
    for (name, wasm) in [
        ("nesting", deep_nesting(1_000)),
        ("functions", many_functions(5_000, 1)),
        ("jump tables", jump_tables(100, 10)),
        ("locals", many_live_locals(100, 2)),
    ] {
        let error = compile(&sandboxes, wasm).await;
        assert!(matches!(error, ProgramError::NoWorld { .. }), "{name}: {error}");
    }
}

async fn neighbour() {
    let (sandboxes, _state) = fresh(|limits| limits.cpu = Duration::from_secs(30));
    let hello = guest("examples/hello");
    let mut bomb = std::pin::pin!(compile(&sandboxes, many_live_locals(40_000, 60)));
    // Polled once, it is under way.
    assert!(futures::poll!(&mut bomb).is_pending());
    tokio::select! {
        biased;
        error = &mut bomb => panic!("the neighbour has waited for {error}"),
        neighbour = sandboxes.program(&hello) => drop(neighbour.unwrap()),
    }
}

async fn remembered() {
    let directory = tempfile::tempdir().unwrap();
    let (compiler, runs) = counting_compiler(directory.path());
    let (state, wasm) = (tempfile::tempdir().unwrap(), many_live_locals(40_000, 60));
    let mut config = config(state.path().to_owned());
    config.compiler = compiler;
    config.compile_limits.cpu = Duration::from_secs(1);
    let sandboxes = Sandboxes::new(config).unwrap();
    let errors = [compile(&sandboxes, wasm.clone()).await.to_string(), compile(&sandboxes, wasm).await.to_string()];
    assert_eq!(errors, ["compile component: it takes more than 1s of CPU time"; 2]);
    assert_eq!(std::fs::read_to_string(runs).unwrap(), "run\n");
}

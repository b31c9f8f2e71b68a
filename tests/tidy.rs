//! The rules of the tree that no compiler checks: who may depend on whom, how long things may get, what must not be left lying about.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, also in the functions around it")]

#[path = "tidy/conformance.rs"]
mod conformance;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Which of our crates each crate may name. The roles (agent, router, client) never see each other.
const LAYERS: &[(&str, &[&str])] = &[
    ("protocol", &[]),
    ("core", &["protocol"]),
    ("bus", &["protocol"]),
    ("sandbox", &["protocol"]),
    ("agent", &["protocol", "core", "bus", "sandbox"]),
    ("router", &["protocol", "core", "bus"]),
    ("client", &["protocol", "bus"]),
];

/// Libraries that one crate alone may name, so that replacing or upgrading them stays one crate's affair.
const CONFINED: &[(&str, &str)] =
    &[("wasmtime", "sandbox"), ("wasmtime-wasi", "sandbox"), ("wasmtime-wasi-http", "sandbox"), ("async-nats", "bus")];

const MAX_FILE_LINES: usize = 700;
const MAX_FUNCTION_LINES: usize = 90;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Names in the `[dependencies]` table of a manifest.
fn dependencies(manifest: &str) -> BTreeSet<String> {
    manifest
        .lines()
        .skip_while(|line| line.trim() != "[dependencies]")
        .skip(1)
        .take_while(|line| !line.starts_with('['))
        .filter_map(|line| line.split(['.', '=', ' ']).next())
        .filter(|name| !name.is_empty() && !name.starts_with('#'))
        .map(str::to_owned)
        .collect()
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        for path in entries.map(|entry| entry.unwrap().path()) {
            match path.file_name().and_then(|name| name.to_str()) {
                Some("target") => {}
                _ if path.is_dir() => folders.push(path),
                Some(name) if name.ends_with(".rs") => found.push(path),
                _ => {}
            }
        }
    }
    found.sort();
    found
}

fn product_files() -> Vec<PathBuf> {
    let mut files = rust_files(&root().join("src"));
    files.retain(|path| !path.components().any(|part| part.as_os_str() == "tests") && !path.ends_with("tests.rs"));
    assert!(files.len() > 40, "only {} source files found: is the walk broken?", files.len());
    files
}

/// The part of a file before its own tests.
fn without_tests(text: &str) -> Vec<&str> {
    text.lines().take_while(|line| line.trim() != "#[cfg(test)]").collect()
}

#[test]
fn crates_depend_one_way() {
    for (name, allowed) in LAYERS {
        let manifest = fs::read_to_string(root().join("src").join(name).join("Cargo.toml")).unwrap();
        let named = dependencies(&manifest);
        assert!(!named.is_empty(), "{name}: no dependencies found: is the parser broken?");
        for dependency in named.iter().filter_map(|dependency| dependency.strip_prefix("dewar-")) {
            assert!(allowed.contains(&dependency), "dewar-{name} must not depend on dewar-{dependency}");
        }
        for (library, owner) in CONFINED {
            assert!(name == owner || !named.contains(*library), "dewar-{name} must not name {library}: only dewar-{owner} may");
        }
    }
}

#[test]
fn the_core_is_pure() {
    let manifest = fs::read_to_string(root().join("src/core/Cargo.toml")).unwrap();
    let allowed = BTreeSet::from(["dewar-protocol", "rand", "serde_json", "thiserror"].map(str::to_owned));
    let extra: Vec<_> = dependencies(&manifest).difference(&allowed).cloned().collect();
    assert!(extra.is_empty(), "the core names {extra:?}");
    for path in rust_files(&root().join("src/core")) {
        let text = fs::read_to_string(&path).unwrap();
        for banned in ["std::fs", "std::net::Tcp", "std::env", "std::thread", "Instant::now", "SystemTime::now"] {
            assert!(!text.contains(banned), "{}: {banned} has no place in the core", path.display());
        }
    }
}

#[test]
fn files_fit_a_sitting_and_functions_a_screen() {
    let mut too_long = Vec::new();
    for path in product_files() {
        let text = fs::read_to_string(&path).unwrap();
        let lines = without_tests(&text);
        let name = path.strip_prefix(root()).unwrap().display().to_string();
        if lines.len() > MAX_FILE_LINES {
            too_long.push(format!("{name}: {} lines", lines.len()));
        }
        for (start, length) in functions(&lines) {
            if length > MAX_FUNCTION_LINES {
                too_long.push(format!("{name}:{}: a function of {length} lines", start + 1));
            }
        }
    }
    assert!(too_long.is_empty(), "too long:\n{}", too_long.join("\n"));
}

/// First line and length of each function; relies on rustfmt: the closing brace stands under the line that begins the function.
fn functions(lines: &[&str]) -> Vec<(usize, usize)> {
    let begins = |line: &str| {
        let code = line.trim_start();
        let code = code.strip_prefix("pub(crate) ").or_else(|| code.strip_prefix("pub ")).unwrap_or(code);
        let code = code.strip_prefix("async ").or_else(|| code.strip_prefix("const ")).unwrap_or(code);
        code.starts_with("fn ")
    };
    let mut found = Vec::new();
    for (start, line) in lines.iter().enumerate().filter(|(_, line)| begins(line)) {
        let indent = line.len() - line.trim_start().len();
        let close = format!("{}}}", " ".repeat(indent));
        if let Some(length) = lines[start..].iter().position(|line| *line == close) {
            found.push((start, length + 1));
        }
    }
    found
}

#[test]
fn nothing_is_left_for_later() {
    let mut left = Vec::new();
    for folder in ["src", "benches", "guest-sdk", "buildpacks", "examples", "tests"] {
        for path in rust_files(&root().join(folder)).into_iter().filter(|path| !path.ends_with("tests/tidy.rs")) {
            let text = fs::read_to_string(&path).unwrap();
            for (number, line) in text.lines().enumerate() {
                if ["TODO", "FIXME", "XXX", "todo!(", "unimplemented!("].iter().any(|word| line.contains(word)) {
                    left.push(format!("{}:{}: {}", path.display(), number + 1, line.trim()));
                }
            }
        }
    }
    assert!(left.is_empty(), "left for later:\n{}", left.join("\n"));
}

#[test]
fn every_wire_message_has_a_golden_form() {
    let golden: String = rust_files(&root().join("tests/protocol")).iter().map(|path| fs::read_to_string(path).unwrap()).collect();
    for path in rust_files(&root().join("src/protocol")) {
        let text = fs::read_to_string(&path).unwrap();
        for name in
            text.lines().filter_map(|line| line.strip_prefix("pub struct ")).filter_map(|rest| rest.split([' ', '(', '<', ';']).next())
        {
            // These are units, errors and parts that only occur inside the messages.
            let part = ["Bytes", "UnixSeconds", "Mib", "InvalidDigest", "Secret", "UnknownState", "AppId", "Limits", "PlacementProperties"];
            assert!(part.contains(&name) || golden.contains(name), "{}: {name} has no golden form in tests/protocol", path.display());
        }
    }
}

//! From the file that a developer has to the component that runs.

use std::fmt;
use std::io::Read;

use dewar_guest::buildpack::Package;
use wasi_preview1_component_adapter_provider::{
    WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME as PREVIEW1, WASI_SNAPSHOT_PREVIEW1_COMMAND_ADAPTER as COMMAND_ADAPTER,
    WASI_SNAPSHOT_PREVIEW1_REACTOR_ADAPTER as REACTOR_ADAPTER,
};
use wasmparser::{Encoding, Parser, Payload, Validator, WasmFeatures};
use wit_component::ComponentEncoder;

/// More than any app needs, and what fits into a buildpack's memory along with what is made of it.
const SIZE_MAX: u64 = 64 * 1024 * 1024;

/// What can be called, as the beginnings of the names of exports.
const CALLABLE: [&str; 3] = ["wasi:http/incoming-handler@0.2.", "wasi:http/handler@0.3.", "wasi:cli/run@0."];

/// How many exports an error lists.
const LISTED_MAX: usize = 10;

pub(crate) struct Made {
    pub(crate) component: Vec<u8>,
    pub(crate) origin: Origin,
}

/// What the file was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    Component,
    /// A core module with the description of its world within.
    Described,
    Preview1Command,
    Preview1Reactor,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Origin::Component => "a component",
            Origin::Described => "a core module that describes its world, made a component",
            Origin::Preview1Command => "a command of WASI preview 1, adapted",
            Origin::Preview1Reactor => "a core module that describes its world and uses WASI preview 1, adapted",
        })
    }
}

/// Reads a file of the package and makes it a component that exports something to call. Each error names the file.
pub(crate) fn component_of(file: &str, package: &Package) -> Result<Made, String> {
    let mut bytes = Vec::new();
    let read = package.open(file)?.take(SIZE_MAX + 1).read_to_end(&mut bytes).map_err(|e| format!("cannot read {file}: {e}"))?;
    if read as u64 > SIZE_MAX {
        return Err(format!("{file} is larger than {} MiB", SIZE_MAX / 1024 / 1024));
    }
    convert(file, bytes)
}

fn convert(file: &str, bytes: Vec<u8>) -> Result<Made, String> {
    let binary = if file.ends_with(".wat") { assemble(file, &bytes)? } else { bytes };
    if !binary.starts_with(b"\0asm") {
        return Err(format!("{file} is not WebAssembly: it does not begin with \\0asm"));
    }
    Validator::new_with_features(WasmFeatures::default()).validate_all(&binary).map_err(|e| format!("{file} does not validate: {e}"))?;

    let outline = Outline::of(&binary).map_err(|e| format!("{file} cannot be parsed: {e}"))?;
    let made = match outline.encoding {
        Encoding::Component => Made { component: binary, origin: Origin::Component },
        Encoding::Module => encode(file, &binary, &outline)?,
    };
    let exports = Outline::of(&made.component).map_err(|e| format!("{file} cannot be parsed: {e}"))?.exports;
    if exports.iter().any(|name| CALLABLE.iter().any(|known| name.starts_with(known))) {
        return Ok(made);
    }
    Err(format!(
        "{file} exports nothing that can be called: wasi:http/incoming-handler, wasi:http/handler or wasi:cli/run. It exports {}",
        listed(&exports)
    ))
}

fn assemble(file: &str, text: &[u8]) -> Result<Vec<u8>, String> {
    let text = std::str::from_utf8(text).map_err(|e| format!("{file} is not UTF-8: {e}"))?;
    wat::parse_str(text).map_err(|mut error| {
        error.set_path(file);
        format!("{file} cannot be assembled: {error}")
    })
}

/// What has to be known about a binary before anything is made of it.
struct Outline {
    encoding: Encoding,
    exports: Vec<String>,
    is_described: bool,
    uses_preview1: bool,
}

impl Outline {
    fn of(binary: &[u8]) -> wasmparser::Result<Outline> {
        let mut outline = Outline { encoding: Encoding::Module, exports: Vec::new(), is_described: false, uses_preview1: false };
        let mut depth = 0_u32;
        for payload in Parser::new(0).parse_all(binary) {
            match payload? {
                Payload::Version { encoding, .. } => {
                    if depth == 0 {
                        outline.encoding = encoding;
                    }
                    depth += 1;
                }
                Payload::End(_) => depth = depth.saturating_sub(1),
                // What is nested within a component is its own business.
                _ if depth > 1 => {}
                Payload::ExportSection(section) => {
                    for export in section {
                        outline.exports.push(export?.name.to_owned());
                    }
                }
                Payload::ComponentExportSection(section) => {
                    for export in section {
                        outline.exports.push(export?.name.name.to_owned());
                    }
                }
                Payload::ImportSection(section) => {
                    for import in section.into_imports() {
                        outline.uses_preview1 |= import?.module == PREVIEW1;
                    }
                }
                Payload::CustomSection(section) => outline.is_described |= section.name().starts_with("component-type"),
                _ => {}
            }
        }
        Ok(outline)
    }
}

fn encode(file: &str, module: &[u8], outline: &Outline) -> Result<Made, String> {
    let is_command = outline.exports.iter().any(|name| name == "_start");
    let (adapter, origin) = match (is_command, outline.is_described, outline.uses_preview1) {
        (true, _, _) => (Some(COMMAND_ADAPTER), Origin::Preview1Command),
        (false, true, true) => (Some(REACTOR_ADAPTER), Origin::Preview1Reactor),
        (false, true, false) => (None, Origin::Described),
        (false, false, _) => {
            let problem = "a core module that is neither a command of WASI preview 1 (it has no _start) nor describes a world of its own";
            return Err(format!("{file} is {problem}. It exports {}", listed(&outline.exports)));
        }
    };
    let encode = || {
        let mut encoder = ComponentEncoder::default().validate(true).module(module)?;
        if let Some(adapter) = adapter {
            encoder = encoder.adapter(PREVIEW1, adapter)?;
        }
        encoder.encode()
    };
    let component = encode().map_err(|e| format!("{file} cannot be made a component: {e:#}"))?;
    Ok(Made { component, origin })
}

fn listed(exports: &[String]) -> String {
    match exports.len() {
        0 => "nothing".to_owned(),
        length if length <= LISTED_MAX => exports.join(", "),
        length => format!("{} and {} more", exports[..LISTED_MAX].join(", "), length - LISTED_MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_tests(name: &str) -> Result<Made, String> {
        let text = std::fs::read(format!("{}/../../tests/guests/{name}.wat", env!("CARGO_MANIFEST_DIR"))).unwrap();
        convert(&format!("{name}.wat"), text)
    }

    fn refusal(made: Result<Made, String>) -> String {
        made.err().expect("a refusal")
    }

    #[test]
    fn a_preview1_command_is_adapted() {
        let made = of_tests("p1-hello").unwrap();
        assert_eq!(made.origin, Origin::Preview1Command);
        let outline = Outline::of(&made.component).unwrap();
        assert_eq!(outline.encoding, Encoding::Component);
        assert!(outline.exports.iter().any(|name| name.starts_with("wasi:cli/run@0.2.")), "{:?}", outline.exports);
    }

    #[test]
    fn a_component_stays_as_it_is() {
        let made = of_tests("deep-stack").unwrap();
        assert_eq!(made.origin, Origin::Component);
        let again = convert("app.wasm", made.component.clone()).unwrap();
        assert_eq!(again.component, made.component);
    }

    #[test]
    fn refusals_name_the_file_and_the_cause() {
        for (name, causes) in [
            ("p1-unknown-import", &["p1-unknown-import.wat cannot be made a component", "env"][..]),
            ("core-without-exports", &["core-without-exports.wat is a core module that is neither", "It exports nothing"]),
            ("does-not-validate", &["does-not-validate.wat does not validate", "type mismatch", "offset"]),
            ("no-known-world", &["no-known-world.wat exports nothing that can be called", "example:oracle/answers@1.0.0"]),
        ] {
            let refusal = refusal(of_tests(name));
            for cause in causes {
                assert!(refusal.contains(cause), "{refusal}");
            }
        }
    }

    #[test]
    fn what_is_not_webassembly_is_refused() {
        assert_eq!(refusal(convert("a.wasm", b"#!/bin/sh".to_vec())), "a.wasm is not WebAssembly: it does not begin with \\0asm");
        assert!(refusal(convert("a.wasm", b"\0asm".to_vec())).starts_with("a.wasm does not validate: "));
        assert!(refusal(convert("a.wat", b"\xff".to_vec())).starts_with("a.wat is not UTF-8: "));
        let refusal = refusal(convert("a.wat", b"(module\n  (fnuc))".to_vec()));
        assert!(refusal.starts_with("a.wat cannot be assembled: ") && refusal.contains("a.wat:2"), "{refusal}");
    }

    #[test]
    fn long_lists_are_cut() {
        let exports: Vec<_> = (0..12).map(|n| n.to_string()).collect();
        assert_eq!(listed(&exports), "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more");
    }
}

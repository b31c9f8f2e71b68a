//! Writes `dewar-guest/bindings.rs`, the Rust side of `wit/buildpack.wit`:
//!
//! ```sh
//! cargo run --manifest-path guest-sdk/bindgen/Cargo.toml
//! ```
//!
//! The result is committed, because generating it on every build would cost more time than all of the guests together.

use std::path::Path;

use anyhow::{Context, Result};
use wit_bindgen_core::Files;
use wit_bindgen_core::WorldGenerator;
use wit_bindgen_core::wit_parser::Resolve;

const HEADER: &str = "\
// Generated from wit/buildpack.wit by `cargo run --manifest-path guest-sdk/bindgen/Cargo.toml`: do not edit.
// @generated
";

fn main() -> Result<()> {
    let sdk = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("this program has no parent folder")?;
    let mut resolve = Resolve::default();
    let (package, _) = resolve.push_path(sdk.join("wit"))?;
    let world = resolve.select_world(&[package], Some("buildpack"))?;

    let options = wit_bindgen_rust::Opts {
        format: true,
        pub_export_macro: true,
        export_macro_name: Some("export_buildpack".to_owned()),
        ..Default::default()
    };
    let mut files = Files::default();
    options.build().generate(&mut resolve, world, &mut files)?;

    let (_, bindings) = files.iter().next().context("the generator wrote nothing")?;
    let path = sdk.join("dewar-guest/bindings.rs");
    std::fs::write(&path, [HEADER.as_bytes(), bindings].concat()).with_context(|| format!("cannot write {}", path.display()))
}

//! Finds the built-in buildpacks, which are embedded in the agent.
//!
//! They are components, so another compiler makes them: `guest-sdk/build.sh`. `DEWAR_GUESTS` names another folder than
//! `target/guests` to take them from.

use std::env;
use std::path::PathBuf;

fn main() {
    println!("cargo::rerun-if-env-changed=DEWAR_GUESTS");
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default()).join("../..");
    let guests = env::var_os("DEWAR_GUESTS").map_or_else(|| root.join("target/guests"), PathBuf::from);
    for (name, variable) in [("wasm", "DEWAR_BUILDPACK_WASM"), ("static", "DEWAR_BUILDPACK_STATIC")] {
        let path = guests.join("buildpacks").join(name).with_extension("wasm");
        println!("cargo::rerun-if-changed={}", path.display());
        match path.canonicalize() {
            Ok(path) => println!("cargo::rustc-env={variable}={}", path.display()),
            Err(error) => {
                println!("cargo::error=the built-in buildpack {} is missing ({error}): run guest-sdk/build.sh first", path.display());
            }
        }
    }
}

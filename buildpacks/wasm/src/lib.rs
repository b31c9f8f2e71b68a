//! The wasm buildpack: a component becomes a droplet as it is, a core module of WASI preview 1 is adapted to one, text is assembled first.
//!
//! Which file it is: the one that `dewar.toml` or the `Procfile` names, or else the only `.wasm` or `.wat` at the top of the package. The other files of the
//! package, that one left out, are the app's `/app`.

mod choice;
mod component;
mod procfile;
mod settings;

use std::fs;
use std::path::Path;

use choice::{App, choose};
use dewar_guest::buildpack::{Buildpack, Package, Release};
use procfile::Procfile;
use settings::Settings;

const PACKAGE: &str = "/app";

struct Wasm;

impl Buildpack for Wasm {
    fn detect() -> Result<Option<String>, String> {
        let package = Package::list(Path::new(PACKAGE))?;
        // What is wrong with an app is told when it is compiled, under this name.
        let is_ours = app_of(&package).map_or_else(|_| choice::has_modules(&package), |app| app.is_some());
        Ok(is_ours.then(|| "WebAssembly".to_owned()))
    }

    fn compile() -> Result<(), String> {
        let package = Package::list(Path::new(PACKAGE))?;
        let app = app_of(&package)?.ok_or("the package has no .wasm or .wat file at its top, and nothing that names one")?;
        let made = component::component_of(&app.file, &package)?;
        println!("{}: {}", app.file, made.origin);
        fs::write("/droplet/droplet.wasm", &made.component).map_err(|e| format!("cannot write the component: {e}"))?;
        copy_files(&package, &app.file)
    }

    fn release() -> Result<Release, String> {
        let package = Package::list(Path::new(PACKAGE))?;
        let app = app_of(&package)?.ok_or("the package names no app")?;
        Ok(Release { process_types: app.processes, world: app.world })
    }
}

dewar_guest::buildpack!(Wasm);

fn app_of(package: &Package) -> Result<Option<App>, String> {
    let settings = read(package, settings::NAME)?.map(|text| Settings::parse(&text)).transpose()?;
    let procfile = read(package, procfile::NAME)?.map(|text| Procfile::parse(&text)).transpose()?;
    choose(package, settings.unwrap_or_default(), procfile.unwrap_or_default())
}

/// A file at the top of the package, if it is there.
fn read(package: &Package, name: &str) -> Result<Option<String>, String> {
    if !package.files.iter().any(|file| file.path == name) {
        return Ok(None);
    }
    fs::read_to_string(package.root.join(name)).map(Some).map_err(|e| format!("cannot read {name}: {e}"))
}

fn copy_files(package: &Package, app: &str) -> Result<(), String> {
    let to = Path::new("/droplet/app");
    for folder in &package.folders {
        fs::create_dir_all(to.join(folder)).map_err(|e| format!("cannot make the folder {folder}: {e}"))?;
    }
    for path in &package.left_out {
        println!("{path} is left out: it is no file");
    }
    package.files.iter().filter(|file| file.path != app).try_for_each(|file| package.copy(&file.path, to))
}

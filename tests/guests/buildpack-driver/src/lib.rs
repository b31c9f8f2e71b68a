//! A buildpack that does what the package's file `orders` says; the orders are listed in ../README.md.

mod orders;

use std::fs;
use std::path::Path;

use dewar_guest::buildpack::{Buildpack, Release, World};
use orders::{Order, carry_out};

const ORDERS: &str = "/app/orders";

struct Driver;

impl Buildpack for Driver {
    fn detect() -> Result<Option<String>, String> {
        if !Path::new(ORDERS).exists() {
            return Ok(None);
        }
        let mut name = Some("Driver".to_owned());
        for order in orders_of("detect")? {
            match order.parts() {
                ("name", text) => name = Some(text.to_owned()),
                ("decline", _) => name = None,
                _ => carry_out(&order)?,
            }
        }
        Ok(name)
    }

    fn compile() -> Result<(), String> {
        let mut droplet: fn() -> Result<(), String> = copy_package;
        for order in orders_of("compile")? {
            match order.parts() {
                ("nothing", _) => droplet = || Ok(()),
                ("garbage", _) => droplet = || write("/droplet/droplet.wasm", b"this is no wasm"),
                _ => carry_out(&order)?,
            }
        }
        droplet()
    }

    fn release() -> Result<Release, String> {
        let mut release = Release { process_types: Vec::new(), world: None };
        for order in orders_of("release")? {
            match order.parts() {
                ("process", process) => {
                    let (name, command) = process.split_once(' ').ok_or_else(|| format!("{process}: no NAME COMMAND"))?;
                    release.process_types.push((name.to_owned(), command.to_owned()));
                }
                ("world", "http") => release.world = Some(World::Http),
                ("world", "command") => release.world = Some(World::Command),
                _ => carry_out(&order)?,
            }
        }
        if release.process_types.is_empty() {
            release.process_types.push(("web".to_owned(), "app.wasm".to_owned()));
        }
        Ok(release)
    }
}

dewar_guest::buildpack!(Driver);

fn orders_of(step: &str) -> Result<Vec<Order>, String> {
    let text = fs::read_to_string(ORDERS).map_err(|e| format!("{ORDERS}: {e}"))?;
    let all =
        text.lines().filter(|line| !line.is_empty()).map(|line| line.split_once(": ").ok_or_else(|| format!("{line}: no STEP: ORDER")));
    all.filter_map(|order| order.map(|(s, order)| (s == step).then(|| Order(order.to_owned()))).transpose()).collect()
}

fn copy_package() -> Result<(), String> {
    fs::create_dir_all("/droplet/app").map_err(|e| format!("/droplet/app: {e}"))?;
    for entry in fs::read_dir("/app").map_err(|e| format!("/app: {e}"))? {
        let path = entry.map_err(|e| format!("/app: {e}"))?.path();
        let Some(name) = path.file_name().filter(|_| path.is_file()) else { continue };
        let to = if name == "app.wasm" { Path::new("/droplet/droplet.wasm").to_owned() } else { Path::new("/droplet/app").join(name) };
        fs::copy(&path, &to).map_err(|e| format!("{}: {e}", to.display()))?;
    }
    Ok(())
}

fn write(path: &str, bytes: &[u8]) -> Result<(), String> {
    fs::write(path, bytes).map_err(|e| format!("{path}: {e}"))
}

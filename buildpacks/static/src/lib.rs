//! The static buildpack: a folder with an `index.html` or a `Staticfile` becomes a droplet that serves it. The droplet's component is the file server; the
//! site is at `/app/public`, and `/app/index` has the entity tags of its files.

mod site;
mod staticfile;

use std::fs;
use std::path::Path;

use dewar_guest::buildpack::{Buildpack, Package, Release, World};
use staticfile::Staticfile;

const PACKAGE: &str = "/app";
const FILE_SERVER: &[u8] = include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/guests/buildpacks/file-server.wasm"));

struct Static;

impl Buildpack for Static {
    fn detect() -> Result<Option<String>, String> {
        let is_site = [staticfile::NAME, "index.html"].iter().any(|name| Path::new(PACKAGE).join(name).is_file());
        Ok(is_site.then(|| "Static site".to_owned()))
    }

    fn compile() -> Result<(), String> {
        let staticfile = Staticfile::read(Path::new(PACKAGE))?;
        for key in &staticfile.unknown {
            println!("{}: {key} is not known here and has no effect", staticfile::NAME);
        }
        let package = Package::list(&Path::new(PACKAGE).join(&staticfile.root))?;
        let site = site::write(&package, &staticfile, Path::new("/droplet/app"))?;
        fs::write("/droplet/droplet.wasm", FILE_SERVER).map_err(|e| format!("cannot write the file server: {e}"))?;
        println!("{} files, {} of them compressed as well, {} KiB", site.files, site.compressed, site.bytes.div_ceil(1024));
        Ok(())
    }

    fn release() -> Result<Release, String> {
        let command = Staticfile::read(Path::new(PACKAGE))?.command();
        Ok(Release::web(command).in_world(World::Http))
    }
}

dewar_guest::buildpack!(Static);

//! Writes the files of a site into a droplet: as they are, compressed where that helps, and the index of their entity tags.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use dewar_guest::buildpack::Package;
use flate2::{Compression, GzBuilder};
use sha2::{Digest, Sha256};
use site_index::{Index, media_type};

use crate::staticfile::{self, Staticfile, Switch};

/// Below this a response fits into one packet anyway.
const COMPRESSED_FROM: u64 = 1024;
const CHUNK: usize = 64 * 1024;

/// What describes the package and is no part of the site.
const NOT_PART_OF_A_SITE: [&str; 4] = [staticfile::NAME, "Procfile", "dewar.toml", "manifest.yml"];

/// What was written.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Written {
    pub(crate) files: usize,
    pub(crate) compressed: usize,
    pub(crate) bytes: u64,
}

/// To `public` and `index` below the folder `to`.
pub(crate) fn write(package: &Package, staticfile: &Staticfile, to: &Path) -> Result<Written, String> {
    let public = to.join("public");
    fs::create_dir_all(&public).map_err(|e| format!("cannot write the site: {e}"))?;
    let mut index = Index::default();
    let mut written = Written::default();
    for path in &package.left_out {
        println!("{path} is left out: it is no file");
    }
    for file in package.files.iter().filter(|file| is_served(&file.path)) {
        let tag = copy(package, &file.path, &public)?;
        index.add(&file.path, file.size, &tag);
        written.files += 1;
        written.bytes += file.size;

        let compressed = format!("{}.gz", file.path);
        let is_worth_it = staticfile.gzip == Switch::On && file.size >= COMPRESSED_FROM && media_type::is_compressible(&file.path);
        let is_there = package.files.binary_search_by(|other| other.path.as_str().cmp(&compressed)).is_ok();
        if is_worth_it
            && !is_there
            && let Some((size, tag)) = compress(package, &file.path, &public, &compressed)?
        {
            index.add(&compressed, size, &tag);
            written.compressed += 1;
            written.bytes += size;
        }
    }
    fs::write(to.join("index"), index.as_str()).map_err(|e| format!("cannot write the index of the site: {e}"))?;
    Ok(written)
}

/// The server hides dotfiles, so they need not be in the droplet.
fn is_served(path: &str) -> bool {
    let is_hidden = path.split('/').enumerate().any(|(depth, name)| name.starts_with('.') && !(depth == 0 && name == ".well-known"));
    !is_hidden && !NOT_PART_OF_A_SITE.contains(&path)
}

/// Copies a file and returns its tag.
fn copy(package: &Package, path: &str, public: &Path) -> Result<String, String> {
    let mut from = package.open(path)?;
    let mut hashed = Hashed { file: Package::create(public, path)?, hash: Sha256::new(), size: 0 };
    pour(&mut from, &mut hashed).map_err(|e| format!("cannot copy {path}: {e}"))?;
    Ok(hashed.tag())
}

/// Writes a compressed copy and returns its size and tag; none where it is hardly smaller.
fn compress(package: &Package, path: &str, public: &Path, compressed: &str) -> Result<Option<(u64, String)>, String> {
    let failed = |e: io::Error| format!("cannot compress {path}: {e}");
    let mut from = package.open(path)?;
    let hashed = Hashed { file: Package::create(public, compressed)?, hash: Sha256::new(), size: 0 };
    // No time and no system in the header: the same file gives the same bytes.
    let mut gzip = GzBuilder::new().mtime(0).write(hashed, Compression::best());
    let size = pour(&mut from, &mut gzip).map_err(failed)?;
    let hashed = gzip.finish().map_err(failed)?;
    if hashed.size * 10 > size * 9 {
        fs::remove_file(public.join(compressed)).map_err(failed)?;
        return Ok(None);
    }
    Ok(Some((hashed.size, hashed.tag())))
}

fn pour(from: &mut File, to: &mut dyn Write) -> io::Result<u64> {
    io::copy(&mut io::BufReader::with_capacity(CHUNK, from), to)
}

/// A file of which the hash is taken while it is written.
struct Hashed {
    file: File,
    hash: Sha256,
    size: u64,
}

impl Hashed {
    /// Half of the hash: enough to tell the versions of one file apart, whoever made them.
    fn tag(self) -> String {
        self.hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
    }
}

impl Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = self.file.write(bytes)?;
        self.hash.update(&bytes[..length]);
        self.size += length as u64;
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn package(files: &[(&str, &[u8])]) -> (tempfile::TempDir, Package) {
        let folder = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        let package = Package::list(folder.path()).unwrap();
        (folder, package)
    }

    #[test]
    fn a_site_is_written_with_its_index() {
        let text = "all work and no play\n".repeat(100);
        let (_folder, package) = package(&[
            ("index.html", text.as_bytes()),
            ("small.css", b"a{}"),
            ("picture.png", text.as_bytes()),
            ("ready.js", text.as_bytes()),
            ("ready.js.gz", b"by hand"),
            (".env", b"SECRET"),
            (".git/config", b"x"),
            (".well-known/security.txt", b"x"),
            ("Staticfile", b"root: ."),
            ("docs/Staticfile", b"a file of the site"),
        ]);
        let droplet = tempfile::tempdir().unwrap();
        let written = write(&package, &Staticfile::default(), droplet.path()).unwrap();
        assert_eq!((written.files, written.compressed), (7, 1));

        let public = Package::list(&droplet.path().join("public")).unwrap();
        let paths: Vec<_> = public.files.iter().map(|file| file.path.as_str()).collect();
        assert_eq!(
            paths,
            [
                ".well-known/security.txt",
                "docs/Staticfile",
                "index.html",
                "index.html.gz",
                "picture.png",
                "ready.js",
                "ready.js.gz",
                "small.css"
            ]
        );
        assert_eq!(fs::read(droplet.path().join("public/ready.js.gz")).unwrap(), b"by hand");

        let mut unpacked = String::new();
        flate2::read::GzDecoder::new(File::open(droplet.path().join("public/index.html.gz")).unwrap())
            .read_to_string(&mut unpacked)
            .unwrap();
        assert_eq!(unpacked, text);

        let index = Index::read(Some(&droplet.path().join("index"))).unwrap();
        for file in &public.files {
            assert!(index.tag(&file.path, file.size).is_some(), "{}", file.path);
        }
        // The hash of `x`, so that a change of the algorithm is seen.
        assert_eq!(index.tag(".well-known/security.txt", 1).unwrap(), "\"2d711642b726b04401627ca9fbac32f5\"");
    }

    #[test]
    fn the_same_site_gives_the_same_bytes() {
        let text = "all work and no play\n".repeat(100);
        let (_folder, package) = package(&[("index.html", text.as_bytes())]);
        let droplets = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        for droplet in &droplets {
            write(&package, &Staticfile::default(), droplet.path()).unwrap();
        }
        for path in ["index", "public/index.html.gz"] {
            assert_eq!(fs::read(droplets[0].path().join(path)).unwrap(), fs::read(droplets[1].path().join(path)).unwrap(), "{path}");
        }
    }

    #[test]
    fn nothing_is_compressed_where_told_so() {
        let text = "all work and no play\n".repeat(100);
        let (_folder, package) = package(&[("index.html", text.as_bytes())]);
        let droplet = tempfile::tempdir().unwrap();
        let staticfile = Staticfile { gzip: Switch::Off, ..Staticfile::default() };
        assert_eq!(write(&package, &staticfile, droplet.path()).unwrap(), Written { files: 1, compressed: 0, bytes: 2100 });
    }
}

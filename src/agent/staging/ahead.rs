//! Compiling ahead: while buildpacks look at a package, its component is compiled already.
//!
//! Most buildpacks hand on a component as it is, and then its native code is there, or nearly there, when the droplet is checked.
//! For one that makes something else of it the work was in vain, which nobody waits for.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use dewar_sandbox::{Program, ProgramError, Sandboxes};
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument as _;

use crate::blocking;
use crate::tree::{Node, Tree};

/// How the binary format of components begins: magic, version, layer.
const COMPONENT: [u8; 8] = *b"\0asm\x0d\0\x01\0";

/// Holds the native code, so that who asks for it as long as this lives gets it.
pub(super) type Ahead = AbortOnDropHandle<Result<Program, ProgramError>>;

/// Begins to compile the one component that lies at the root of a package in `app`, if there is just one.
pub(super) async fn begin(sandboxes: &Sandboxes, app: &Path, package: &Tree) -> Option<Ahead> {
    let path = app.join(only_wasm(package)?);
    let candidate = path.clone();
    if !blocking::run(move || is_component(&candidate)).await {
        return None;
    }
    let sandboxes = sandboxes.clone();
    let compiling = async move { sandboxes.program(&path).await };
    Some(AbortOnDropHandle::new(tokio::spawn(compiling.in_current_span())))
}

fn only_wasm(package: &Tree) -> Option<&str> {
    let is_wasm = |(path, node): &(&String, &Node)| {
        !path.contains('/') && Path::new(path).extension().is_some_and(|extension| extension == "wasm") && matches!(node, Node::File { .. })
    };
    let mut found = package.nodes.iter().filter(is_wasm);
    match (found.next(), found.next()) {
        (Some((path, _)), None) => Some(path),
        (Some(_) | None, _) => None,
    }
}

fn is_component(path: &Path) -> bool {
    let mut start = [0; COMPONENT.len()];
    File::open(path).and_then(|mut file| file.read_exact(&mut start)).is_ok_and(|()| start == COMPONENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(files: &[&str]) -> Tree {
        let file = || Node::File { size: 8, executable: false, sha256: [0; 32] };
        let mut tree = Tree { nodes: files.iter().map(|path| ((*path).to_owned(), file())).collect(), ..Tree::default() };
        tree.nodes.insert("dir.wasm".to_owned(), Node::Directory);
        tree.nodes.insert("link.wasm".to_owned(), Node::Link { target: "app.wasm".to_owned() });
        tree
    }

    #[test]
    fn one_component_at_the_root_is_compiled() {
        assert_eq!(only_wasm(&package(&["app.wasm", "lib/other.wasm", "app.wat"])), Some("app.wasm"));
        assert_eq!(only_wasm(&package(&["app.wasm", "b.wasm"])), None);
        assert_eq!(only_wasm(&package(&["lib/other.wasm"])), None);
    }

    #[test]
    fn a_core_module_and_what_only_looks_like_a_component_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let is = |content: &[u8]| {
            std::fs::write(dir.path().join("a.wasm"), content).unwrap();
            is_component(&dir.path().join("a.wasm"))
        };
        assert!(is(b"\0asm\x0d\0\x01\0rest"));
        assert!(!is(b"\0asm\x01\0\0\0"));
        assert!(!is(b"\0asm"));
        assert!(!is_component(&dir.path().join("missing.wasm")));
    }
}

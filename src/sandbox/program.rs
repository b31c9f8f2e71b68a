//! A component that was checked and compiled.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use dewar_protocol::Bytes;
use wasmtime::component::{Component, InstancePre, Linker};
use wasmtime_wasi::p2::bindings::CommandPre;
use wasmtime_wasi_http::handler::ProxyPre;
use wasmtime_wasi_http::{p2, p3};

use crate::guest::Guest;
use crate::sandboxes::Loaded;

/// Which interface of a program is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum World {
    /// `wasi:http/incoming-handler` 0.2 or `wasi:http/handler` 0.3.
    Http,
    /// `wasi:cli/run` 0.2.
    Command,
}

/// A component that was checked and compiled, ready to run. Cheap to clone; native code is shared by all clones.
#[derive(Clone)]
pub struct Program(Arc<Linked>);

struct Linked {
    digest: String,
    worlds: Vec<World>,
    http: Option<Arc<ProxyPre<Guest>>>,
    command: Option<CommandPre<Guest>>,
    /// Others who ask for the component while this program lives share its native code.
    _loaded: Arc<Loaded>,
}

impl Program {
    /// What it exports, never empty, [`World::Http`] first.
    #[must_use]
    pub fn worlds(&self) -> &[World] {
        &self.0.worlds
    }

    /// SHA-256 of the component's bytes in lower-case hex.
    #[must_use]
    pub fn digest(&self) -> &str {
        &self.0.digest
    }

    pub(crate) fn http(&self) -> Option<&Arc<ProxyPre<Guest>>> {
        self.0.http.as_ref()
    }

    pub(crate) fn command(&self) -> Option<&CommandPre<Guest>> {
        self.0.command.as_ref()
    }

    /// Finds the worlds of a component whose imports are all granted.
    pub(crate) fn link(digest: String, compiled: &Compiled, loaded: Arc<Loaded>) -> Result<Self, ProgramError> {
        let pre = &compiled.pre;
        let exports = exports(&compiled.component);
        let has = |interface: &str, version: &str| exports.iter().any(|export| is(export, interface, version));
        let invalid = |error: wasmtime::Error| ProgramError::Invalid(format!("{error:#}"));
        // Where both are there the newer counts.
        let http = if has("wasi:http/handler", "0.3.") {
            Some(ProxyPre::P3(p3::bindings::ServicePre::new(pre.clone()).map_err(invalid)?))
        } else if has("wasi:http/incoming-handler", "0.2.") {
            Some(ProxyPre::P2(p2::bindings::ProxyPre::new(pre.clone()).map_err(invalid)?))
        } else {
            None
        };
        let command = has("wasi:cli/run", "0.2.").then(|| CommandPre::new(pre.clone())).transpose().map_err(invalid)?;
        let worlds: Vec<World> =
            [http.is_some().then_some(World::Http), command.is_some().then_some(World::Command)].into_iter().flatten().collect();
        if worlds.is_empty() {
            let exports = if exports.is_empty() { "nothing".into() } else { exports.join(", ") };
            return Err(ProgramError::NoWorld { exports });
        }
        Ok(Self(Arc::new(Linked { digest, worlds, http: http.map(Arc::new), command, _loaded: loaded })))
    }
}

impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Program").field("digest", &self.0.digest).field("worlds", &self.0.worlds).finish()
    }
}

/// Native code with its imports resolved.
#[derive(Clone)]
pub(crate) struct Compiled {
    pub(crate) component: Component,
    pub(crate) pre: InstancePre<Guest>,
}

impl Compiled {
    /// Resolves a component's imports.
    pub(crate) fn new(linker: &Linker<Guest>, component: Component) -> Result<Self, ProgramError> {
        let pre = linker.instantiate_pre(&component).map_err(|error| {
            let text = format!("{error:#}");
            // The import stands in the first pair of backquotes, what is wrong with it in the rest.
            let import = text.split('`').nth(1).map_or_else(|| text.clone(), str::to_owned);
            ProgramError::ImportNotGranted { import, reason: text }
        })?;
        Ok(Self { component, pre })
    }
}

fn exports(component: &Component) -> Vec<String> {
    component.component_type().exports(component.engine()).map(|(name, _)| name.to_owned()).collect()
}

/// Whether an export is this interface in a version that starts like this.
fn is(export: &str, interface: &str, version: &str) -> bool {
    export.split_once('@').is_some_and(|(name, exported)| name == interface && exported.starts_with(version))
}

/// Why a file is no program.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ProgramError {
    /// The file cannot be read.
    #[error("read component {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: Arc<std::io::Error>,
    },
    /// The file is larger than a component may be.
    #[error("accept a component of {size} bytes: at most {limit} are allowed", size = size.0, limit = limit.0)]
    TooLarge {
        /// Its size.
        size: Bytes,
        /// The limit.
        limit: Bytes,
    },
    /// It does not validate, or is no component.
    #[error("compile component: {0}")]
    Invalid(String),
    /// Compiling takes more of something than it may.
    #[error("compile component: it takes more than {0}")]
    TooCostly(String),
    /// Compiling takes too long.
    #[error("compile component: it takes more than {0:?} on the clock")]
    TooSlow(Duration),
    /// Too many others are to be compiled before it.
    #[error("compile component: {waiting} others wait already")]
    Busy {
        /// How many may wait.
        waiting: usize,
    },
    /// It exports no world that can be run.
    #[error(
        "find a world to run: the component exports {exports}, but neither wasi:http/incoming-handler 0.2, wasi:http/handler 0.3 nor \
         wasi:cli/run 0.2"
    )]
    NoWorld {
        /// What it exports.
        exports: String,
    },
    /// It imports what is not granted.
    #[error("link component: {import} is not granted: {reason}")]
    ImportNotGranted {
        /// What it imports.
        import: String,
        /// What wasmtime says about it.
        reason: String,
    },
    /// It is no buildpack.
    #[error("use component as a buildpack: {0}")]
    NoBuildpack(String),
    /// The compiler could not be run.
    #[error("run the compiler: {0}")]
    Compiler(String),
}

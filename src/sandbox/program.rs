//! A component that was checked and compiled.

use std::path::PathBuf;
use std::time::Duration;

use dewar_protocol::Bytes;

/// Which interface of a program is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum World {
    /// `wasi:http/incoming-handler` 0.2 or `wasi:http/handler` 0.3.
    Http,
    /// `wasi:cli/run` 0.2.
    Command,
}

/// A component that was checked and compiled, ready to run. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Program {
    digest: String,
    worlds: Vec<World>,
}

impl Program {
    /// What it exports, never empty, [`World::Http`] first.
    #[must_use]
    pub fn worlds(&self) -> &[World] {
        &self.worlds
    }

    /// SHA-256 of the component's bytes in lower-case hex.
    #[must_use]
    pub fn digest(&self) -> &str {
        &self.digest
    }
}

/// Why a file is no program.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// The file cannot be read.
    #[error("read component {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
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
    /// Compiling took more than it may.
    #[error("compile component: it takes more than {0}")]
    TooCostly(String),
    /// Compiling took too long.
    #[error("compile component: it takes more than {0:?}")]
    TooSlow(Duration),
    /// It exports no world that can be run.
    #[error(
        "find a world to run: the component exports neither wasi:http/incoming-handler, wasi:http/handler nor wasi:cli/run, but {exports}"
    )]
    NoWorld {
        /// What it exports.
        exports: String,
    },
    /// It imports what is not granted.
    #[error("link component: it imports {import}, which is not granted")]
    ImportNotGranted {
        /// What it imports.
        import: String,
    },
    /// The compiler could not be run, or the artifact not be kept.
    #[error("run the compiler: {0}")]
    Compiler(String),
}

//! What the agent takes from itself before it listens to anybody: the second wall, for the day when a guest breaks out of the first.
//!
//! - **no-new-privs**: nothing that the process executes gains privileges, set-user-id files included.
//! - **Landlock** ([`files`]): of the file system there remain the work directory to write and what the system's own libraries need
//!   to read. Nothing but the agent's own executable can be run. Signals go to its own children only.
//! - **seccomp** ([`system_calls`]): system calls that neither the agent nor wasmtime makes, those above all in which kernels were
//!   broken, fail with `EPERM`.
//!
//! None of it needs root. All of it holds for the calling thread and those that it starts later, so it must come before the
//! runtime; [`AgentConfig::harden`] refuses to come late. Compilers restrict themselves further, see `dewar-sandbox`.

mod files;
mod system_calls;

#[cfg(test)]
mod tests;

use std::fmt;
use std::io;

use rustix::thread::{no_new_privs, set_no_new_privs};
use serde_json::{Value, json};
use tracing::{info, warn};

use self::files::Rules;
use crate::base_dir::BaseDirError;
use crate::config::AgentConfig;

/// What is to become of an agent whose kernel cannot harden it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hardening {
    /// It does not start.
    Required,
    /// It starts with as much as there is, and says what is not in force.
    BestEffort,
    /// Nothing is tried.
    Off,
}

/// What is in force, for `/varz`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InForce {
    no_new_privs: Part,
    landlock: Part,
    seccomp: Part,
}

/// One of the means.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    /// In force; which version where there are several.
    On(Option<String>),
    /// Not in force, and why.
    Off(String),
}

/// Why an agent does not start hardened.
#[derive(Debug, thiserror::Error)]
pub enum HardeningError {
    /// The kernel lacks something, and `hardening` is `required`.
    #[error("`hardening` is `required`, but {0}")]
    Lacking(String),
    /// Threads that run already would stay as they are.
    #[error("{0} threads run already, which would stay unrestricted")]
    Late(usize),
    /// The process cannot be looked at.
    #[error("look at this process")]
    Process(#[source] io::Error),
    /// The work directory cannot be made.
    #[error(transparent)]
    BaseDir(#[from] BaseDirError),
}

impl InForce {
    /// Nothing, for one reason.
    fn nothing(why: &str) -> Self {
        let off = || Part::Off(why.to_owned());
        Self { no_new_privs: off(), landlock: off(), seccomp: off() }
    }

    fn parts(&self) -> [(&'static str, &Part); 3] {
        [("no_new_privs", &self.no_new_privs), ("landlock", &self.landlock), ("seccomp", &self.seccomp)]
    }

    /// What is not in force and why; empty when everything is.
    fn lacking(&self) -> String {
        let lacking = self.parts().into_iter().filter_map(|(name, part)| match part {
            Part::On(_) => None,
            Part::Off(why) => Some(format!("{name} is not in force: {why}")),
        });
        lacking.collect::<Vec<_>>().join("; ")
    }

    /// `{"no_new_privs": true, "landlock": "abi 6", "seccomp": "off: …"}`
    pub(crate) fn to_json(&self) -> Value {
        self.parts().into_iter().map(|(name, part)| (name.to_owned(), part.to_json())).collect::<serde_json::Map<_, _>>().into()
    }
}

impl Default for InForce {
    fn default() -> Self {
        Self::nothing("not tried")
    }
}

impl fmt::Display for InForce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.to_json())
    }
}

impl Part {
    fn of(result: Result<(), impl fmt::Display>) -> Self {
        result.map_or_else(|error| Self::Off(error.to_string()), |()| Self::On(None))
    }

    fn to_json(&self) -> Value {
        match self {
            Self::On(None) => json!(true),
            Self::On(Some(which)) => json!(which),
            Self::Off(why) => json!(format!("off: {why}")),
        }
    }
}

impl AgentConfig {
    /// Restricts this process, for good, to what an agent of this configuration needs. Makes the work directory, and the pid file's
    /// directory entry, because rules can only name what there is.
    ///
    /// # Errors
    /// When `hardening` is `required` and something cannot be put in force, and always when it comes too late.
    pub fn harden(&mut self) -> Result<(), HardeningError> {
        if self.hardening == Hardening::Off {
            self.compile.confined = false;
            self.in_force = InForce::nothing("`hardening` is `off`");
            return Ok(());
        }
        alone()?;
        self.in_force = restrict_thread(Some(&Rules::of(self)?));
        let lacking = self.in_force.lacking();
        match self.hardening {
            _ if lacking.is_empty() => info!(in_force = %self.in_force, "process hardened"),
            Hardening::Required => return Err(HardeningError::Lacking(lacking)),
            Hardening::BestEffort | Hardening::Off => warn!(lacking, "process hardened in part"),
        }
        Ok(())
    }
}

/// Restricts this process as [`AgentConfig::harden`] does, as well as the kernel lets it, but leaves the file system open: for an
/// agent that shares its process with a developer's own tools. What comes out is for [`AgentConfig::in_force`].
///
/// # Errors
/// When it comes too late.
pub fn harden_all_but_files() -> Result<InForce, HardeningError> {
    alone()?;
    Ok(restrict_thread(None))
}

/// Restricts the calling thread and those that it starts from now on; without rules not its files.
fn restrict_thread(rules: Option<&Rules>) -> InForce {
    let no_new_privs = Part::of(set_no_new_privs(true).and_then(|()| no_new_privs()).map(drop));
    // Before seccomp, which could stand in its way on some day.
    let landlock = match rules.map(Rules::enforce) {
        None => Part::Off("this process works on its user's own files".to_owned()),
        Some(Ok(abi)) => Part::On(Some(format!("abi {abi}"))),
        Some(Err(why)) => Part::Off(why.to_string()),
    };
    InForce { no_new_privs, landlock, seccomp: Part::of(system_calls::forbid()) }
}

/// Makes sure that no other thread runs yet.
fn alone() -> Result<(), HardeningError> {
    match std::fs::read_dir("/proc/self/task").map_err(HardeningError::Process)?.count() {
        1 => Ok(()),
        threads => Err(HardeningError::Late(threads - 1)),
    }
}

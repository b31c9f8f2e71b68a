//! A buildpack: turns a package into a droplet, inside the sandbox.

mod package;

pub use package::{Package, PackageFile};

use crate::bindings::exports::dewar::buildpack::lifecycle;

/// What a buildpack does. Each step runs in a fresh instance; what one leaves for the next is in the directories:
/// `/app` (the package, read-only), `/cache` (kept between stagings of the same app), `/droplet` (the result).
/// What it prints is the staging log, and an error is shown to the app's developer as it stands.
pub trait Buildpack {
    /// The name under which the developer shall see this kind of app, or none when this buildpack is not for it.
    ///
    /// # Errors
    /// When the package is for this buildpack but so wrong that no other should be tried.
    fn detect() -> Result<Option<String>, String>;

    /// Writes `/droplet/droplet.wasm`, the component to run, and `/droplet/app/`, the files that it sees as `/app`.
    ///
    /// # Errors
    /// When the package cannot be made into a droplet.
    fn compile() -> Result<(), String>;

    /// How to run what `compile` wrote; `/droplet` is read-only by now.
    ///
    /// # Errors
    /// When the droplet cannot be run.
    fn release() -> Result<Release, String>;
}

/// Which interface of the droplet is to be called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum World {
    /// `wasi:http`: the agent listens and hands over requests.
    Http,
    /// `wasi:cli/run`: runs to its end, or serves by `wasi:sockets` on `$PORT`.
    Command,
}

/// How a droplet is run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Release {
    /// Name and command of each process type; `web` is the one that is started.
    pub process_types: Vec<(String, String)>,
    /// None: whichever the droplet exports, `Http` first.
    pub world: Option<World>,
}

impl Release {
    /// One `web` process, with `command` quoted as a POSIX shell would.
    pub fn web(command: impl Into<String>) -> Release {
        Release { process_types: vec![("web".to_owned(), command.into())], world: None }
    }

    /// The same, called by one world only.
    pub fn in_world(self, world: World) -> Release {
        Release { world: Some(world), ..self }
    }
}

/// What [`buildpack!`](crate::buildpack!) exports.
#[doc(hidden)]
pub struct Exported<B>(std::marker::PhantomData<B>);

impl<B: Buildpack> lifecycle::Guest for Exported<B> {
    fn detect() -> Result<Option<String>, String> {
        B::detect()
    }

    fn compile() -> Result<(), String> {
        B::compile()
    }

    fn release() -> Result<lifecycle::ReleaseInfo, String> {
        let Release { process_types, world } = B::release()?;
        Ok(lifecycle::ReleaseInfo {
            process_types: process_types.into_iter().map(|(name, command)| lifecycle::Process { name, command }).collect(),
            world: world.map(|world| match world {
                World::Http => lifecycle::World::Http,
                World::Command => lifecycle::World::Command,
            }),
        })
    }
}

/// The three steps, named so that a build for the host, which exports nothing, does not take them for unused.
#[doc(hidden)]
pub type Steps = (fn() -> Result<Option<String>, String>, fn() -> Result<(), String>, fn() -> Result<Release, String>);

#[doc(hidden)]
pub const fn steps<B: Buildpack>() -> Steps {
    (B::detect, B::compile, B::release)
}

/// Exports a [`Buildpack`] from a `cdylib`; on a host, where tests run, nothing.
#[macro_export]
macro_rules! buildpack {
    ($buildpack:ty) => {
        #[cfg(target_family = "wasm")]
        const _: () = {
            type Exported = $crate::buildpack::Exported<$buildpack>;
    $crate::bindings::export_buildpack!(Exported with_types_in $crate::bindings);
        };
        #[cfg(not(target_family = "wasm"))]
        const _: $crate::buildpack::Steps = $crate::buildpack::steps::<$buildpack>();
    };
}

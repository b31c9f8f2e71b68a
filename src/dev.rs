//! `dewar dev`: a broker, an agent and a router in this process, and the apps of a developer on them.
//!
//! Apps take the same road as anywhere: the client pushes them over NATS. Each has a loop of its own (`dev/app.rs`) that pushes it,
//! watches its files and brings it back after a crash; all of them print on one screen. With `--json`, each line on standard output is
//! one event: those of a push ([`dewar_client::PushEvent`]) and those of [`DevEvent`].

mod app;
mod platform;
mod restarts;
mod screen;
mod watcher;

use std::collections::BTreeSet;
use std::sync::Arc;

use dewar_agent::InForce;
use dewar_client::{AppName, Manifest, PackageSource, PushOptions, Routes, app_name_of, exit_code};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::args::DevArgs;
use crate::failure::Failure;
use crate::home::home_dir;

use app::DevApp;
use platform::{Platform, Ports};
use screen::{DevEvent, DevScreen};

/// Runs until `stop`, then leaves no process, port or temporary file behind. `in_force` is what this process has taken from itself.
pub(crate) async fn run(args: DevArgs, in_force: InForce, stop: CancellationToken) -> Result<u8, Failure> {
    let pushes = args.paths.iter().map(|path| push_options(path, &args)).collect::<Result<Vec<_>, Failure>>()?;
    refuse_twins(&pushes)?;
    let screen = Arc::new(DevScreen::new(args.output.format()));
    let ports = Ports { router: args.port, broker: args.nats_port };
    let platform = Platform::start(&ports, &args.egress, &home_dir(&args.home)?, in_force).await?;
    screen.show(&DevEvent::Listening { nats: platform.nats_url(), http: platform.http_url(), note: platform.note() });
    let outcome = run_apps(pushes, &args, &platform, &screen, &stop).await;
    screen.show(&DevEvent::Stopping);
    platform.stop().await;
    outcome.map(|()| 0)
}

/// Ends on `stop`, or when no app is left because none could even be staged.
async fn run_apps(
    pushes: Vec<PushOptions>,
    args: &DevArgs,
    platform: &Platform,
    screen: &Arc<DevScreen>,
    stop: &CancellationToken,
) -> Result<(), Failure> {
    let client = platform.client().await?;
    let mut apps = JoinSet::new();
    for options in pushes {
        let watch = if args.once { None } else { Some(watcher::Watcher::start(options.source.clone()).await?) };
        let app = DevApp::new(client.clone(), options, platform.http_port(), Arc::clone(screen), stop.clone());
        apps.spawn(app.run(watch));
    }
    let mut outcome = Ok(());
    while let Some(ended) = apps.join_next().await {
        let ended = ended.unwrap_or_else(|error| Err(Failure::new(exit_code::APP, format!("an app's loop failed: {error}"))));
        outcome = outcome.and(ended);
    }
    outcome
}

fn push_options(path: &std::path::Path, args: &DevArgs) -> Result<PushOptions, Failure> {
    let source = PackageSource::at(path).map_err(dewar_client::ClientError::from)?;
    let manifest = Manifest::of(path).map_err(dewar_client::ClientError::from)?;
    let name = app_name_of(path).map_err(dewar_client::ClientError::from)?.ok_or_else(|| {
        Failure::new(exit_code::USAGE, format!("{} has no name that an app could have", path.display()))
            .hint("name the app in a dewar.toml in it: name = \"my-app\"")
    })?;
    Ok(PushOptions {
        instances: args.sizes.instances,
        memory: args.sizes.memory,
        disk: args.sizes.disk,
        environment: args.env.clone(),
        routes: Routes::from_manifest(&manifest),
        health_check: manifest.health_check,
        ..PushOptions::new(name, source)
    })
}

fn refuse_twins(pushes: &[PushOptions]) -> Result<(), Failure> {
    let mut seen: BTreeSet<&AppName> = BTreeSet::new();
    match pushes.iter().find(|options| !seen.insert(&options.name)) {
        None => Ok(()),
        Some(twin) => Err(Failure::new(exit_code::USAGE, format!("two of the paths are apps named `{}`", twin.name))
            .hint("name one of them in a dewar.toml in it: name = \"other\"")),
    }
}

//! `dewar files`: a directory of an instance, or a file, maybe as it grows.

use std::net::SocketAddr;

use dewar_client::{Client, ClientError, FileChoice, OutputFormat, Screen, Target};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::args::FilesArgs;

/// A directory, for programs.
#[derive(Debug, Serialize)]
struct Directory<'a> {
    path: &'a str,
    instance: u32,
    entries: Vec<dewar_client::DirectoryEntry>,
}

/// Prints until the end, or until `stop`.
pub(crate) async fn show(client: &Client, args: &FilesArgs, stop: &CancellationToken) -> Result<(), ClientError> {
    let router = match &args.router {
        Some(router) => Some(resolve(router).await?),
        None => None,
    };
    let choice = FileChoice { instance: args.instance, path: args.path.clone(), last: args.tail, router };
    let target = client.resolve(&args.name).await?;
    let mut screen = Screen::new(args.output.format());
    let printed = async {
        if args.follow { follow(client, &target, &choice, &mut screen).await } else { print(client, &target, &choice, &mut screen).await }
    };
    // The usual end of following: it is no failure.
    stop.run_until_cancelled(printed).await.unwrap_or(if args.follow { Ok(()) } else { Err(ClientError::Interrupted) })
}

async fn print(client: &Client, target: &Target, choice: &FileChoice, screen: &mut Screen) -> Result<(), ClientError> {
    let mut file = client.open_file(target, choice).await?;
    if screen.format() == OutputFormat::Json {
        if !file.is_directory {
            return Err(ClientError::Usage(format!("`{}` is a file, which is printed as it is; --json is for directories", choice.path)));
        }
        let instance = file.instance;
        screen.object(&Directory { path: &choice.path, instance, entries: file.entries().await? });
        return Ok(());
    }
    while let Some(bytes) = file.next().await? {
        screen.bytes(&bytes);
        if !screen.is_open() {
            break;
        }
    }
    Ok(())
}

async fn follow(client: &Client, target: &Target, choice: &FileChoice, screen: &mut Screen) -> Result<(), ClientError> {
    let mut file = client.open_file(target, choice).await?;
    if file.is_directory {
        return Err(ClientError::Usage(format!("`{}` is a directory, which cannot be followed", choice.path)));
    }
    let offset = if choice.last.is_some() { file.end() } else { 0 };
    let mut follower = client.follow_file(target, choice, &file, offset);
    if choice.last.is_some() {
        while let Some(bytes) = file.next().await? {
            screen.bytes(&bytes);
        }
    }
    drop(file);
    while screen.is_open()
        && let Some(bytes) = follower.next().await?
    {
        screen.bytes(&bytes);
    }
    Ok(())
}

async fn resolve(router: &str) -> Result<SocketAddr, ClientError> {
    let looked_up = tokio::net::lookup_host(router).await;
    let mut addresses =
        looked_up.map_err(|error| ClientError::Usage(format!("`--router {router}` is no HOST:PORT that can be found: {error}")))?;
    addresses.next().ok_or_else(|| ClientError::Usage(format!("`--router {router}` has no address")))
}

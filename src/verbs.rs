//! The client's verbs: from arguments to calls, from outcomes to the screen.

use clap::CommandFactory;
use dewar_bus::{BusAuth, BusConfig, BusTls};
use dewar_client::{
    AdvertiseHost, AfterStaging, Client, ClientError, DIM, Manifest, OutputFormat, PackageSource, PushEvent, PushOptions, Routes, Screen,
    agents_table, app_table, apps_table, styled,
};
use tokio_util::sync::CancellationToken;

use crate::args::{AppArgs, BusArgs, Cli, Command, ListArgs, LogsArgs, OutputArgs, PushArgs, ScaleArgs};
use crate::files;
use crate::home::home_dir;

/// Runs a verb to its end, or until `stop`.
pub(crate) async fn run(command: Command, stop: CancellationToken) -> Result<(), ClientError> {
    match command {
        Command::Push(args) => push(args, stop).await,
        Command::Apps(args) => apps(args).await,
        Command::App(args) => app(args).await,
        Command::Logs(args) => logs(args, stop).await,
        Command::Files(args) => files::show(&connect(&args.bus, None).await?, &args, &stop).await,
        Command::Scale(args) => scale(args, stop).await,
        Command::Start(args) => {
            let (client, mut screen) = open(&args).await?;
            let started = client.start(&args.name, &mut |event| screen.push_event(&event), &stop).await?;
            screen.push_event(&PushEvent::done(&started));
            Ok(())
        }
        Command::Restart(args) => {
            let (client, mut screen) = open(&args).await?;
            let restarted = client.restart(&args.name, &mut |event| screen.push_event(&event), &stop).await?;
            screen.push_event(&PushEvent::done(&restarted));
            Ok(())
        }
        Command::Stop(args) => stop_app(args).await,
        Command::Delete(args) => delete(args).await,
        Command::Agents(args) => agents(args).await,
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "dewar", &mut std::io::stdout());
            Ok(())
        }
        Command::Dev(_) | Command::Agent(_) | Command::Router(_) | Command::Broker(_) | Command::CompileComponent { .. } => {
            unreachable!("main runs the roles itself")
        }
    }
}

async fn push(args: PushArgs, stop: CancellationToken) -> Result<(), ClientError> {
    let source = PackageSource::at(&args.path)?;
    let manifest = Manifest::of(source.path())?;
    let routes = match (args.no_route, args.route) {
        (true, _) => Routes::None,
        (false, hosts) if !hosts.is_empty() => Routes::Hosts(hosts),
        (false, _) => Routes::from_manifest(&manifest),
    };
    let options = PushOptions {
        instances: args.sizes.instances,
        memory: args.sizes.memory,
        disk: args.sizes.disk,
        buildpack: args.buildpack,
        environment: args.env,
        routes,
        start_command: args.command,
        health_check: args.health_check.or(manifest.health_check),
        after_staging: if args.no_start { AfterStaging::Keep } else { AfterStaging::Start },
        ..PushOptions::new(args.name, source)
    };
    let client = connect(&args.bus, args.advertise.advertise_host).await?;
    let mut screen = Screen::new(args.output.format());
    let pushed = client.push(&options, &mut |event| screen.push_event(&event), &stop).await?;
    screen.push_event(&PushEvent::done(&pushed));
    Ok(())
}

async fn scale(args: ScaleArgs, stop: CancellationToken) -> Result<(), ClientError> {
    let client = connect(&args.bus, args.advertise.advertise_host).await?;
    let mut screen = Screen::new(args.output.format());
    let scaled = client.scale(&args.name, args.instances, &mut |event| screen.push_event(&event), &stop).await?;
    screen.push_event(&PushEvent::done(&scaled));
    Ok(())
}

async fn stop_app(args: AppArgs) -> Result<(), ClientError> {
    let (client, mut screen) = open(&args).await?;
    screen.busy(&format!("stopping {}", args.name));
    client.stop(&args.name).await?;
    screen.idle();
    screen.push_event(&PushEvent::Stopped { app: args.name });
    Ok(())
}

async fn delete(args: AppArgs) -> Result<(), ClientError> {
    let (client, mut screen) = open(&args).await?;
    screen.busy(&format!("stopping {}", args.name));
    client.delete(&args.name).await?;
    screen.idle();
    screen.push_event(&PushEvent::Deleted { app: args.name });
    Ok(())
}

async fn apps(args: ListArgs) -> Result<(), ClientError> {
    let apps = connect(&args.bus, None).await?.list_apps().await?;
    let table = if apps.is_empty() { styled(DIM, "no apps on this bus") } else { apps_table(&apps) };
    show(&args.output, &apps, &table);
    Ok(())
}

async fn app(args: AppArgs) -> Result<(), ClientError> {
    let report = connect(&args.bus, None).await?.describe_app(&args.name).await?;
    show(&args.output, &report, &app_table(&report));
    Ok(())
}

async fn agents(args: ListArgs) -> Result<(), ClientError> {
    let agents = connect(&args.bus, None).await?.agents().await?;
    show(&args.output, &agents, &agents_table(&agents));
    Ok(())
}

async fn logs(args: LogsArgs, stop: CancellationToken) -> Result<(), ClientError> {
    let client = connect(&args.bus, None).await?;
    let mut screen = Screen::new(args.output.format());
    let target = client.resolve(&args.name).await?;
    if !args.follow {
        for line in client.past_logs(&target, args.tail).await? {
            screen.log_line(&target.name, &line);
        }
        return Ok(());
    }
    // What is written while the past is collected comes with both.
    let mut follower = client.follow_logs(&target.id, 0).await?;
    let mut past = client.past_logs(&target, args.tail).await?;
    for line in &past {
        screen.log_line(&target.name, line);
    }
    while screen.is_open() {
        // The usual end of following: it is no failure.
        let Some(line) = stop.run_until_cancelled(follower.next()).await else { return Ok(()) };
        match line {
            Some(line) => match past.iter().position(|known| *known == line) {
                Some(at) => drop(past.remove(at)),
                None => screen.log_line(&target.name, &line),
            },
            None => return Ok(()),
        }
    }
    Ok(())
}

async fn open(args: &AppArgs) -> Result<(Client, Screen), ClientError> {
    let client = connect(&args.bus, args.advertise.advertise_host.clone()).await?;
    Ok((client, Screen::new(args.output.format())))
}

async fn connect(args: &BusArgs, advertise: Option<AdvertiseHost>) -> Result<Client, ClientError> {
    let config = BusConfig {
        servers: args.nats.clone(),
        auth: args.creds.clone().map_or(BusAuth::None, BusAuth::CredentialsFile),
        tls: args.ca.clone().map(|ca_file| BusTls { ca_file: Some(ca_file), ..BusTls::default() }),
        name: "dewar client".to_owned(),
        ..BusConfig::default()
    };
    Client::connect(config, &home_dir(&args.home)?, advertise.unwrap_or_default()).await
}

fn show<T: serde::Serialize>(output: &OutputArgs, value: &T, table: &str) {
    let mut screen = Screen::new(output.format());
    match output.format() {
        OutputFormat::Json => screen.object(value),
        OutputFormat::Human => screen.line(table),
    }
}

//! The long-running roles: configuration first, whole and checked; then sockets; then work until a signal.

use std::fmt::Display;
use std::path::Path;

use dewar_agent::{Agent, AgentConfig};
use dewar_bus::broker::{Broker, BrokerAuth, BrokerConfig};
use dewar_client::exit_code;
use dewar_router::{Router, RouterConfig};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use tracing_subscriber::filter::LevelFilter;

use crate::args::{AgentArgs, BrokerArgs, RouterArgs};
use crate::failure::Failure;
use crate::{logging, signals};

/// The exit code for a role that could not start.
const FAILED_START: u8 = 1;

/// Runs an agent until it has ended; yields its exit code.
pub(crate) fn agent(args: &AgentArgs) -> Result<u8, Failure> {
    let Some(file) = &args.config else {
        print(&AgentConfig::annotated_defaults());
        return Ok(0);
    };
    let text = read_config(file)?;
    let (mut config, warnings) = AgentConfig::from_yaml(&text).map_err(|mistakes| bad_config(file, &mistakes))?;
    if args.check_config {
        complain(file, &warnings);
        print(&config.effective_yaml());
        return Ok(0);
    }
    logging::as_configured(&config)?;
    for warning in warnings {
        warn!(file = %file.display(), warning, "configuration");
    }
    // Now that the log is open, and before there are threads.
    config.harden().map_err(|error| Failure::from_chain(FAILED_START, "cannot harden the agent", &error))?;
    signals::run_until_signalled(|stop| async move {
        let leave = signals::Leave::listen()?;
        let started = Agent::start(config, stop).await;
        let agent = started.map_err(|error| Failure::from_chain(FAILED_START, "cannot start the agent", &error))?;
        tokio::spawn(leave.forward(agent.signals()));
        Ok(agent.wait().await)
    })
}

/// Runs a router until a signal comes.
pub(crate) fn router(args: &RouterArgs, log: Option<&str>) -> Result<u8, Failure> {
    let text = read_config(&args.config)?;
    let (config, warnings) = RouterConfig::from_yaml(&text).map_err(|mistakes| bad_config(&args.config, &mistakes))?;
    if args.check_config {
        complain(&args.config, &warnings);
        print(&format!("{} is good\n", args.config.display()));
        return Ok(0);
    }
    logging::to_stderr(log, LevelFilter::INFO, args.log_format)?;
    for warning in warnings {
        warn!(file = %args.config.display(), warning, "configuration");
    }
    signals::run_until_signalled(|stop| async move {
        let bus = config.bus.clone();
        let failed = |error: dewar_router::RouterError| Failure::from_chain(FAILED_START, "cannot run the router", &error);
        let router = Router::bind(config).await.map_err(failed)?;
        info!(http = %router.http_addr(), status = %router.status_addr(), "router listens");
        router.run(bus, stop).await.map_err(failed)?;
        Ok(0)
    })
}

/// Runs the embedded broker until a signal comes.
pub(crate) fn broker(args: &BrokerArgs, log: Option<&str>) -> Result<u8, Failure> {
    logging::to_stderr(log, LevelFilter::INFO, args.log_format)?;
    let auth = match (&args.user, &args.password, &args.token) {
        (Some(user), Some(password), _) => BrokerAuth::UserPassword { user: user.clone(), password: password.clone() },
        (_, _, Some(token)) => BrokerAuth::Token(token.clone()),
        (_, _, None) => BrokerAuth::None,
    };
    let config = BrokerConfig { listen: args.listen, auth, max_payload: args.max_payload, ..BrokerConfig::default() };
    signals::run_until_signalled(|stop: CancellationToken| async move {
        let listen = config.listen;
        let bound = Broker::bind(config).await;
        let broker = bound.map_err(|error| Failure::new(FAILED_START, format!("cannot listen on {listen}: {error}")))?;
        broker.run(stop).await;
        Ok(0)
    })
}

fn read_config(path: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(path).map_err(|error| Failure::new(exit_code::USAGE, format!("cannot read {}: {error}", path.display())))
}

/// Every mistake at once, a line each.
fn bad_config<E: Display>(path: &Path, mistakes: &[E]) -> Failure {
    let lines: Vec<String> = mistakes.iter().map(|mistake| format!("\n  {mistake}")).collect();
    Failure::new(exit_code::USAGE, format!("bad configuration in {}:{}", path.display(), lines.concat()))
}

fn complain(path: &Path, warnings: &[String]) {
    for warning in warnings {
        anstream::eprintln!("warning: {}: {warning}", path.display());
    }
}

fn print(text: &str) {
    anstream::print!("{text}");
}

//! Where the process's own log goes, and how it looks.

use std::fs::File;
use std::io::{self, IsTerminal};
use std::path::Path;

use dewar_agent::AgentConfig;
use dewar_client::exit_code;
use tracing_subscriber::filter::{EnvFilter, LevelFilter, Targets};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt};

use crate::args::LogFormat;
use crate::failure::Failure;

/// To standard error; `filter` as in `--log`, else what this role says by default.
pub(crate) fn to_stderr(filter: Option<&str>, default: LevelFilter, format: LogFormat) -> Result<(), Failure> {
    let filter = match filter {
        Some(text) => EnvFilter::try_new(text).map_err(|error| Failure::new(exit_code::USAGE, format!("--log {text}: {error}")))?,
        None => EnvFilter::default().add_directive(default.into()),
    };
    let colours = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    tracing_subscriber::registry().with(lines(io::stderr, format, colours).with_filter(filter)).init();
    Ok(())
}

/// As an agent's configuration says. Lines are counted by level for its `/varz`, spans are kept where they are to be told.
pub(crate) fn as_configured(agent: &AgentConfig) -> Result<(), Failure> {
    let config = &agent.logging;
    let format = match config.format {
        dewar_agent::LogFormat::Text => LogFormat::Text,
        dewar_agent::LogFormat::Json => LogFormat::Json,
    };
    let layer = match &config.file {
        Some(path) => lines(append_to(path)?, format, false),
        None => lines(io::stdout, format, false),
    };
    let counted = config.counts.clone().with_filter(at_level(config.level)).boxed();
    let spans = agent.otlp.is_some().then(|| agent.spans.layer());
    let layers: Vec<Box<dyn Layer<Registry> + Send + Sync>> =
        [layer.with_filter(at_level(config.level)).boxed(), counted].into_iter().chain(spans).collect();
    tracing_subscriber::registry().with(layers).init();
    Ok(())
}

/// The configured level for what is ours. Libraries tell nothing below INFO: there they print the messages that they read, with all
/// credentials, and a line for each call of a guest.
fn at_level(level: LevelFilter) -> Targets {
    Targets::new().with_default(level.min(LevelFilter::INFO)).with_target("dewar", level)
}

fn lines<W>(writer: W, format: LogFormat, colours: bool) -> Box<dyn Layer<Registry> + Send + Sync>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    match format {
        LogFormat::Text => fmt::layer().with_writer(writer).with_ansi(colours).boxed(),
        LogFormat::Json => fmt::layer().json().with_writer(writer).boxed(),
    }
}

fn append_to(path: &Path) -> Result<File, Failure> {
    let opened = File::options().create(true).append(true).open(path);
    opened.map_err(|error| Failure::new(exit_code::IO, format!("open the log file {}: {error}", path.display())))
}

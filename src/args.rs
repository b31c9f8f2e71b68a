//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::builder::RangedU64ValueParser;
use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use dewar_client::{AdvertiseHost, AppHealthCheck, AppName, DEFAULT_BUS, OutputFormat, parse_size};
use dewar_protocol::{Mib, Secret};

/// Runs apps as WebAssembly sandboxes, driven by the Cloud Foundry DEA protocol over NATS.
///
/// Start with `dewar dev PATH`: it needs nothing else.
#[derive(Debug, Parser)]
#[command(name = "dewar", version, args_override_self = true, after_help = EXIT_CODES)]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
    /// What to log to standard error, such as `info` or `dewar_agent=debug`. An agent goes by its configuration instead.
    #[arg(long, global = true, env = "DEWAR_LOG", value_name = "FILTER", hide_env_values = true)]
    pub(crate) log: Option<String>,
}

const EXIT_CODES: &str = "Exit codes:
  0    success
  1    the app did not do as wished: staging failed, it crashed, there is none of that name
  64   the command line or a configuration file is wrong
  69   the bus, an agent, or room on one is missing
  74   a file or socket could not be used
  75   not now: another command is changing the app, or something took too long
  130  interrupted";

/// Roles first, then the client's verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run apps on this machine, with everything they need in one process, and swap in what you change.
    Dev(DevArgs),
    /// Run the agent: stage and run droplets for whoever asks on the bus.
    Agent(AgentArgs),
    /// Run the HTTP router: forward requests to what agents register on the bus.
    Router(RouterArgs),
    /// Run the embedded NATS broker alone.
    Broker(BrokerArgs),
    /// Stage a package and run it; pushed again, the old version serves until the new one is healthy.
    Push(PushArgs),
    /// List all apps on the bus.
    Apps(ListArgs),
    /// Show an app and its instances.
    App(AppArgs),
    /// Print what an app and its buildpack wrote.
    Logs(LogsArgs),
    /// List a directory of an instance, or print a file.
    Files(FilesArgs),
    /// Change the number of instances of an app.
    Scale(ScaleArgs),
    /// Start a stopped or staged app.
    Start(AppArgs),
    /// Stop an app; it can be started again.
    Stop(AppArgs),
    /// Start a new set of instances, then stop the old ones.
    Restart(AppArgs),
    /// Stop an app and forget it.
    Delete(AppArgs),
    /// List the agents on the bus and what they have to offer.
    Agents(ListArgs),
    /// Print a completion script.
    Completions {
        /// For which shell.
        shell: Shell,
    },
    /// Compiles one component; the agent runs this in a process of its own.
    #[command(hide = true, name = "compile-component")]
    CompileComponent {
        /// Limits, for itself.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        orders: Vec<String>,
    },
}

/// `dev`.
#[derive(Debug, Args)]
pub(crate) struct DevArgs {
    /// Folders or files to push, each one app, named by its dewar.toml or after itself.
    #[arg(value_name = "PATH", default_value = ".")]
    pub(crate) paths: Vec<PathBuf>,
    /// What each app may have.
    #[command(flatten)]
    pub(crate) sizes: SizeArgs,
    /// Environment of the apps; may be repeated.
    #[arg(long, value_name = "NAME=VALUE", value_parser = environment_pair)]
    pub(crate) env: Vec<Secret<String>>,
    /// Where the apps are reached.
    #[arg(long, value_name = "PORT", default_value_t = 8080)]
    pub(crate) port: u16,
    /// Where the embedded broker listens. When it is taken and was not asked for, a free port is used.
    #[arg(long, value_name = "PORT")]
    pub(crate) nats_port: Option<u16>,
    /// Whom the apps may talk to.
    #[command(flatten)]
    pub(crate) egress: EgressArgs,
    /// Do not watch the paths; serve what was there at the start.
    #[arg(long)]
    pub(crate) once: bool,
    /// How to print.
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    /// Where caches are.
    #[command(flatten)]
    pub(crate) home: HomeArgs,
}

/// Whom apps on a developer's own agent may talk to.
#[derive(Debug, Args)]
pub(crate) struct EgressArgs {
    /// Let the apps talk to somebody: "tcp 127.0.0.1 5432", "tcp 0.0.0.0/0 443"; may be repeated. Nobody otherwise.
    #[arg(long, value_name = "PROTOCOL NETWORK [PORTS]")]
    pub(crate) allow_egress: Vec<String>,
    /// PEM file of authorities that the apps trust for https besides those of this machine.
    #[arg(long, value_name = "FILE")]
    pub(crate) egress_ca: Option<PathBuf>,
}

/// `agent`.
#[derive(Debug, Args)]
pub(crate) struct AgentArgs {
    /// YAML file; a DEA's own will do.
    #[arg(long, short, value_name = "FILE", required_unless_present = "print_default_config")]
    pub(crate) config: Option<PathBuf>,
    /// Print the configuration in effect, secrets hidden, and exit.
    #[arg(long)]
    pub(crate) check_config: bool,
    /// Print a configuration file with all keys, their meanings and defaults, and exit.
    #[arg(long, conflicts_with = "config")]
    pub(crate) print_default_config: bool,
}

/// `router`.
#[derive(Debug, Args)]
pub(crate) struct RouterArgs {
    /// YAML file; a gorouter's own will do.
    #[arg(long, short, value_name = "FILE")]
    pub(crate) config: PathBuf,
    /// Only say whether the configuration is good.
    #[arg(long)]
    pub(crate) check_config: bool,
    /// How log lines look.
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub(crate) log_format: LogFormat,
}

/// `broker`.
#[derive(Debug, Args)]
pub(crate) struct BrokerArgs {
    /// Address to listen on; port 0 takes a free one.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:4222")]
    pub(crate) listen: SocketAddr,
    /// User that clients must name.
    #[arg(long, env = "DEWAR_BROKER_USER", requires = "password")]
    pub(crate) user: Option<String>,
    /// Password that clients must show.
    #[arg(long, env = "DEWAR_BROKER_PASSWORD", hide_env_values = true, requires = "user", value_parser = secret)]
    pub(crate) password: Option<Secret<String>>,
    /// Token that clients must show.
    #[arg(long, env = "DEWAR_BROKER_TOKEN", hide_env_values = true, conflicts_with = "user", value_parser = secret)]
    pub(crate) token: Option<Secret<String>>,
    /// Largest message in bytes, up to 32 MiB. Heartbeats of an agent with many instances are large: about 250 bytes for each.
    #[arg(long, value_name = "BYTES", default_value = "1048576", value_parser = RangedU64ValueParser::<usize>::new().range(1..=32 << 20))]
    pub(crate) max_payload: usize,
    /// How log lines look.
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub(crate) log_format: LogFormat,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// `push`. What is not said is as in an earlier push, or the default.
#[derive(Debug, Args)]
pub(crate) struct PushArgs {
    /// Name of the app: 1 to 63 of a-z, 0-9 and -.
    pub(crate) name: AppName,
    /// Folder, or a .wasm, .wat, .zip, .tar or .tar.gz file.
    #[arg(long, short, default_value = ".")]
    pub(crate) path: PathBuf,
    /// What the app may have.
    #[command(flatten)]
    pub(crate) sizes: SizeArgs,
    /// Buildpack: a name, a URL, or a .wasm or .zip file on this machine.
    #[arg(long, short)]
    pub(crate) buildpack: Option<String>,
    /// Environment of the app; may be repeated.
    #[arg(long, value_name = "NAME=VALUE", value_parser = environment_pair)]
    pub(crate) env: Vec<Secret<String>>,
    /// Host name that leads to the app [default: NAME.localhost]; may be repeated.
    #[arg(long, value_name = "HOST")]
    pub(crate) route: Vec<String>,
    /// No host name leads to the app, and it need not listen: for workers.
    #[arg(long, conflicts_with = "route")]
    pub(crate) no_route: bool,
    /// Start command, instead of the one that the buildpack found.
    #[arg(long, short)]
    pub(crate) command: Option<String>,
    /// What an instance has to show before it gets requests: port, http:/PATH (a GET answers 200), or none [default: port].
    #[arg(long, value_name = "CHECK")]
    pub(crate) health_check: Option<AppHealthCheck>,
    /// Only stage; `dewar start` or `dewar restart` starts it.
    #[arg(long)]
    pub(crate) no_start: bool,
    /// The bus.
    #[command(flatten)]
    pub(crate) bus: BusArgs,
    /// How agents reach this machine.
    #[command(flatten)]
    pub(crate) advertise: AdvertiseArgs,
    /// How to print.
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// Verbs without an app.
#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// The bus.
    #[command(flatten)]
    pub(crate) bus: BusArgs,
    /// How to print.
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// Verbs on one app.
#[derive(Debug, Args)]
pub(crate) struct AppArgs {
    /// Name of the app.
    pub(crate) name: AppName,
    /// The bus.
    #[command(flatten)]
    pub(crate) bus: BusArgs,
    /// How agents reach this machine.
    #[command(flatten)]
    pub(crate) advertise: AdvertiseArgs,
    /// How to print.
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// `logs`.
#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// Name of the app.
    pub(crate) name: AppName,
    /// Go on printing what is written.
    #[arg(long, short)]
    pub(crate) follow: bool,
    /// How many lines of the past to print; agents keep some.
    #[arg(long, short = 'n', value_name = "LINES", default_value_t = 200)]
    pub(crate) tail: u32,
    /// The bus.
    #[command(flatten)]
    pub(crate) bus: BusArgs,
    /// How to print.
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// `files`.
#[derive(Debug, Args)]
pub(crate) struct FilesArgs {
    /// Name of the app.
    pub(crate) name: AppName,
    /// File or directory below the instance's own, such as logs/stderr.log.
    #[arg(default_value = "")]
    pub(crate) path: String,
    /// Which instance [default: the first that runs, else the first that has crashed].
    #[arg(long, short, value_name = "INDEX")]
    pub(crate) instance: Option<u32>,
    /// Print only so many bytes at the end of the file.
    #[arg(long, short = 'n', value_name = "BYTES", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) tail: Option<u64>,
    /// Go on printing what is added to the file.
    #[arg(long, short, conflicts_with = "json")]
    pub(crate) follow: bool,
    /// Where the router is, if the host names of file servers do not lead there.
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) router: Option<String>,
    /// The bus.
    #[command(flatten)]
    pub(crate) bus: BusArgs,
    /// How to print.
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// `scale`.
#[derive(Debug, Args)]
pub(crate) struct ScaleArgs {
    /// Name of the app.
    pub(crate) name: AppName,
    /// How many instances.
    #[arg(long, short, value_parser = instance_count)]
    pub(crate) instances: u32,
    /// The bus.
    #[command(flatten)]
    pub(crate) bus: BusArgs,
    /// How agents reach this machine.
    #[command(flatten)]
    pub(crate) advertise: AdvertiseArgs,
    /// How to print.
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// What an app may have.
#[derive(Debug, Args)]
pub(crate) struct SizeArgs {
    /// How many instances [default: 1].
    #[arg(long, short, value_parser = instance_count)]
    pub(crate) instances: Option<u32>,
    /// Memory of each instance, such as 64M or 1G [default: 64M].
    #[arg(long, short, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) memory: Option<Mib>,
    /// Disk of each instance, such as 64M or 1G [default: 64M].
    #[arg(long, short = 'k', value_name = "SIZE", value_parser = parse_size)]
    pub(crate) disk: Option<Mib>,
}

/// Which bus, and which files belong to it.
#[derive(Debug, Args)]
pub(crate) struct BusArgs {
    /// NATS servers, separated by commas; may carry user:password@ or token@.
    #[arg(long, env = "DEWAR_NATS", hide_env_values = true, value_delimiter = ',', value_name = "URL", default_value = DEFAULT_BUS)]
    pub(crate) nats: Vec<String>,
    /// NATS credentials file (.creds).
    #[arg(long, env = "DEWAR_NATS_CREDS", value_name = "FILE")]
    pub(crate) creds: Option<PathBuf>,
    /// Certificate authorities of the NATS servers; makes TLS a must.
    #[arg(long, env = "DEWAR_NATS_CA", value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
    /// Where records are.
    #[command(flatten)]
    pub(crate) home: HomeArgs,
}

/// How agents reach this machine.
#[derive(Debug, Args)]
pub(crate) struct AdvertiseArgs {
    /// Name or address, maybe with a port, under which agents on other machines reach this one to fetch the package. Makes this
    /// command listen on all addresses; without it, only agents on this machine can fetch.
    #[arg(long, value_name = "HOST[:PORT]")]
    pub(crate) advertise_host: Option<AdvertiseHost>,
}

/// Where the client keeps what the bus cannot tell.
#[derive(Debug, Args)]
pub(crate) struct HomeArgs {
    /// Folder of records and caches [default: ~/.dewar].
    #[arg(long, env = "DEWAR_HOME", value_name = "DIR")]
    pub(crate) home: Option<PathBuf>,
}

/// How to print.
#[derive(Debug, Args)]
pub(crate) struct OutputArgs {
    /// Print JSON: one object for a question, one a line for what goes on.
    #[arg(long)]
    pub(crate) json: bool,
}

impl OutputArgs {
    /// As the client knows it.
    pub(crate) fn format(&self) -> OutputFormat {
        if self.json { OutputFormat::Json } else { OutputFormat::Human }
    }
}

/// Most instances of an app that a command line may ask for.
const INSTANCES_MAX: u32 = 1000;

fn instance_count(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(count) if count <= INSTANCES_MAX => Ok(count),
        _ => Err(format!("not a number from 0 to {INSTANCES_MAX}")),
    }
}

fn environment_pair(text: &str) -> Result<Secret<String>, String> {
    match text.split_once('=') {
        Some((name, _)) if !name.is_empty() && !text.contains('\0') => Ok(Secret(text.to_owned())),
        // The text may be a value whose name was forgotten; it is not repeated here.
        _ => Err("not NAME=VALUE".to_owned()),
    }
}

#[expect(clippy::unnecessary_wraps, reason = "the form that clap wants")]
fn secret(text: &str) -> Result<Secret<String>, String> {
    Ok(Secret(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_last_of_two_options_counts_and_lists_add_up() {
        let cli = Cli::try_parse_from(["dewar", "dev", "--port", "1", "--port", "2", "--env", "A=1", "--env", "B=2=3"]).unwrap();
        let Command::Dev(dev) = cli.command else { panic!("{cli:?}") };
        assert_eq!(dev.port, 2);
        assert_eq!(dev.env, [Secret("A=1".to_owned()), Secret("B=2=3".to_owned())]);
        assert_eq!(dev.paths, [PathBuf::from(".")]);
        let allow = ["dewar", "dev", "--allow-egress", "tcp 127.0.0.1 5432", "--allow-egress", "udp 127.0.0.1 53", "--egress-ca", "ca.pem"];
        let Command::Dev(dev) = Cli::try_parse_from(allow).unwrap().command else { panic!("{allow:?}") };
        assert_eq!(dev.egress.allow_egress, ["tcp 127.0.0.1 5432", "udp 127.0.0.1 53"]);
        assert_eq!(dev.egress.egress_ca, Some(PathBuf::from("ca.pem")));
    }

    #[test]
    fn secrets_on_the_command_line_stay_out_of_messages() {
        let error = Cli::try_parse_from(["dewar", "push", "x", "--env", "hunter2"]).unwrap_err().to_string();
        assert!(error.contains("NAME=VALUE"), "{error}");
        let cli = Cli::try_parse_from(["dewar", "broker", "--user", "me", "--password", "hunter2"]).unwrap();
        assert!(!format!("{cli:?}").contains("hunter2"));
    }

    #[test]
    fn nonsense_is_refused() {
        for arguments in [
            &["dewar"][..],
            &["dewar", "push"],
            &["dewar", "push", "No Name"],
            &["dewar", "push", "x", "-m", "64"],
            &["dewar", "push", "x", "--health-check", "http:ready"],
            &["dewar", "push", "x", "-i", "-1"],
            &["dewar", "push", "x", "--route", "h", "--no-route"],
            &["dewar", "scale", "x"],
            &["dewar", "files"],
            &["dewar", "files", "x", "--tail", "0"],
            &["dewar", "files", "x", "logs/stdout.log", "-f", "--json"],
            &["dewar", "broker", "--user", "me"],
            &["dewar", "broker", "--listen", "here"],
            &["dewar", "broker", "--max-payload", "0"],
            &["dewar", "broker", "--max-payload", "33554433"],
            &["dewar", "completions", "tcsh"],
        ] {
            assert!(Cli::try_parse_from(arguments).is_err(), "{arguments:?}");
        }
    }
}

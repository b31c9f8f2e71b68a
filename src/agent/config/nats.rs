//! `nats_servers`, `nats_uri` and `nats.*`: the bus.

use std::io::Read;
use std::path::Path;
use std::time::Duration;

use dewar_bus::{BusAuth, BusConfig, BusTls};
use dewar_protocol::Secret;

use super::check::{DAY, file};
use super::reader::Reader;

/// Bytes of the largest file with an nkey seed; a seed has 58.
const SEED_FILE_BYTES: u64 = 4096;

pub(super) fn bus(reader: &mut Reader, index: u32) -> BusConfig {
    let mut servers = reader.list(
        "nats_servers",
        "the address of a NATS server",
        |server| server.as_str().filter(|server| !server.is_empty()).map(str::to_owned),
        |server| without_credentials(server),
    );
    if let Some(server) = reader.text_shown_as("nats_uri", without_credentials) {
        servers.push(server);
    }
    if servers.is_empty() && !reader.has("nats_servers") {
        reader.error("nats_servers", "is missing, and so is `nats_uri`");
    } else if servers.is_empty() {
        reader.error("nats_servers", "must name at least one server");
    }
    BusConfig {
        servers,
        auth: bus_auth(reader),
        tls: bus_tls(reader),
        name: format!("dewar-agent-{index}"),
        ping_interval: Some(reader.seconds("nats.ping_interval_in_seconds", Duration::from_secs(30), 0.1..=DAY)),
    }
}

fn bus_auth(reader: &mut Reader) -> BusAuth {
    let user = reader.text("nats.user");
    let password = reader.secret("nats.password");
    let token = reader.secret("nats.token");
    let seed_file = file(reader, "nats.nkey_seed_file");
    let credentials_file = file(reader, "nats.credentials_file");
    let ways = [user.is_some(), token.is_some(), seed_file.is_some(), credentials_file.is_some()];
    if ways.into_iter().filter(|given| *given).count() > 1 {
        reader.error("nats", "must have no more than one of `user`, `token`, `nkey_seed_file` and `credentials_file`");
    }
    if user.is_none() && password.is_some() {
        reader.error("nats.password", "needs `nats.user`");
    }
    if let Some(user) = user {
        BusAuth::UserPassword { user, password: password.unwrap_or_default() }
    } else if let Some(token) = token {
        BusAuth::Token(token)
    } else if let Some(path) = seed_file {
        BusAuth::NkeySeed(nkey_seed(reader, &path))
    } else if let Some(path) = credentials_file {
        BusAuth::CredentialsFile(path)
    } else {
        BusAuth::None
    }
}

fn nkey_seed(reader: &mut Reader, path: &Path) -> Secret<String> {
    let mut seed = String::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(SEED_FILE_BYTES).read_to_string(&mut seed));
    if let Err(error) = read {
        reader.error("nats.nkey_seed_file", format_args!("cannot be read: {error}"));
    }
    Secret(seed.trim().to_owned())
}

fn bus_tls(reader: &mut Reader) -> Option<BusTls> {
    let tls =
        BusTls { ca_file: file(reader, "nats.tls.ca"), cert_file: file(reader, "nats.tls.cert"), key_file: file(reader, "nats.tls.key") };
    match (&tls.cert_file, &tls.key_file) {
        (Some(_), None) if !reader.has("nats.tls.key") => reader.error("nats.tls.key", "is missing, though there is `nats.tls.cert`"),
        (None, Some(_)) if !reader.has("nats.tls.cert") => reader.error("nats.tls.cert", "is missing, though there is `nats.tls.key`"),
        _ => {}
    }
    reader.has("nats.tls").then_some(tls)
}

/// A server's address as it may be printed: what stands before the last `@` is gone.
pub(super) fn without_credentials(server: &str) -> String {
    let (scheme, rest) = server.split_once("://").map_or(("", server), |(scheme, rest)| (scheme, rest));
    let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
    if scheme.is_empty() { host.to_owned() } else { format!("{scheme}://{host}") }
}

//! Where routes come from: `nats_servers` (URIs, with `nats` for credentials and TLS) or gorouter's list under `nats`.

use std::io::Read;
use std::path::PathBuf;

use dewar_bus::{BusAuth, BusConfig, BusTls};
use dewar_protocol::Secret;
use serde_json::Value;

use super::section::{Findings, Section};

/// No nkey seed is longer.
const MAX_SEED_FILE_BYTES: u64 = 4096;

pub(super) fn read(root: &mut Section, findings: &mut Findings, index: u32) -> BusConfig {
    let servers: Vec<String> = root.take(findings, "nats_servers").unwrap_or_default();
    let mut bus = BusConfig { servers, name: format!("dewar-router-{index}"), ..BusConfig::default() };
    match root.take::<Value>(findings, "nats") {
        Some(Value::Array(listed)) => read_list(&mut bus, root, listed, findings),
        Some(value) => match root.within("nats", value) {
            Some(section) => read_mapping(&mut bus, section, findings),
            None => findings.error("nats", "is neither a list of servers nor a mapping"),
        },
        None => {}
    }
    if bus.servers.is_empty() {
        findings.error("nats_servers", "is missing, and `nats` lists no server either");
    }
    bus
}

/// gorouter's form: each server with a host, a port and the same user.
fn read_list(bus: &mut BusConfig, root: &Section, listed: Vec<Value>, findings: &mut Findings) {
    let mut accounts = Vec::new();
    for (at, value) in listed.into_iter().enumerate() {
        let name = format!("nats[{at}]");
        let Some(mut server) = root.within(&name, value) else {
            findings.error(name, "is not a mapping");
            continue;
        };
        match server.take::<String>(findings, "host") {
            Some(host) => bus.servers.push(format!("nats://{host}:{}", server.take(findings, "port").unwrap_or(4222_u16))),
            None => findings.error(server.key("host"), "is missing"),
        }
        let user: Option<String> = server.take(findings, "user").filter(|user: &String| !user.is_empty());
        let password: Option<String> = server.take(findings, "pass");
        accounts.extend(user.map(|user| (user, password.unwrap_or_default())));
        server.finish(findings);
    }
    accounts.dedup();
    if accounts.len() > 1 {
        findings.error("nats", "names different users; a connection has one");
    }
    if let Some((user, password)) = accounts.pop() {
        bus.auth = BusAuth::UserPassword { user, password: Secret(password) };
    }
}

/// The agent's form.
fn read_mapping(bus: &mut BusConfig, mut nats: Section, findings: &mut Findings) {
    let password: Option<String> = nats.take(findings, "password");
    let user: Option<String> = nats.take(findings, "user");
    if user.is_none() && password.is_some() {
        findings.error("nats.password", "needs `nats.user`");
    }
    let mut given = Vec::new();
    given.extend(user.map(|user| BusAuth::UserPassword { user, password: Secret(password.unwrap_or_default()) }));
    given.extend(nats.take(findings, "token").map(|token| BusAuth::Token(Secret(token))));
    given.extend(nats.take(findings, "nkey_seed_file").map(|path| nkey_seed(path, findings)));
    given.extend(nats.take(findings, "credentials_file").map(BusAuth::CredentialsFile));
    if given.len() > 1 {
        findings.error("nats", "has more than one of `user`, `token`, `nkey_seed_file` and `credentials_file`");
    }
    bus.auth = given.pop().unwrap_or_default();
    if let Some(value) = nats.take::<Value>(findings, "tls") {
        match nats.within("tls", value) {
            Some(section) => bus.tls = Some(read_tls(section, findings)),
            None => findings.error("nats.tls", "is not a mapping"),
        }
    }
    nats.finish(findings);
}

fn read_tls(mut tls: Section, findings: &mut Findings) -> BusTls {
    let files = BusTls { ca_file: tls.take(findings, "ca"), cert_file: tls.take(findings, "cert"), key_file: tls.take(findings, "key") };
    if files.cert_file.is_some() != files.key_file.is_some() {
        findings.error("nats.tls", "has a `cert` without a `key` or the reverse");
    }
    tls.finish(findings);
    files
}

fn nkey_seed(path: PathBuf, findings: &mut Findings) -> BusAuth {
    let mut seed = String::new();
    let read = std::fs::File::open(&path).and_then(|file| file.take(MAX_SEED_FILE_BYTES).read_to_string(&mut seed));
    if let Err(error) = read {
        findings.error("nats.nkey_seed_file", format!("cannot be read: {}: {error}", path.display()));
    }
    BusAuth::NkeySeed(Secret(seed.trim().to_owned()))
}

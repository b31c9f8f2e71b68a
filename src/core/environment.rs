//! The environment of an app and of a buildpack, composed as the original agent's start script did it.
//!
//! There the variables were `export` statements in a fixed order, run by a shell. Here they are composed without one: what the
//! user set is expanded as the shell would have done inside double quotes, what the agent sets is taken literally. A name that a
//! shell would not have exported is left out.
//!
//! The droplet's root, `/home/vcap` there, is `/` here: the app is at `/app`, where it also starts.

mod database;
mod expansion;

use std::collections::HashMap;
use std::time::Duration;

use dewar_protocol::{InstanceId, Secret, Service, StagingMessage, StartMessage};
use serde_json::{Map, Value, json};

use crate::Wall;

/// What an app's environment says beyond the start message.
#[derive(Debug, Clone, Copy)]
pub struct InstanceFacts<'a> {
    /// The instance's id at its start.
    pub instance_id: &'a InstanceId,
    /// The port it may listen on; without one there are no variables about ports.
    pub port: Option<u16>,
    /// The agent's address.
    pub ip: &'a str,
    /// When the instance entered STARTING.
    pub started_at: Wall,
    /// The same as local time, `YYYY-MM-DD HH:MM:SS ±ZZZZ`.
    pub started_at_text: &'a str,
}

/// The environment of an app, each name once, the user's variables last.
#[must_use]
pub fn running(start: &StartMessage, facts: &InstanceFacts<'_>) -> Vec<(String, String)> {
    let mut environment = Environment::default();
    environment.set("PWD", "/app");
    environment.set("VCAP_APPLICATION", application(start, facts).to_string());
    environment.set("VCAP_SERVICES", services(&start.services).to_string());
    environment.set("MEMORY_LIMIT", format!("{}m", start.limits.mem.0));
    environment.set_database_url(&start.services);
    environment.set("HOME", "/app");
    environment.set("TMPDIR", "/tmp");
    environment.set("VCAP_APP_HOST", "0.0.0.0");
    if let Some(port) = facts.port {
        environment.set("VCAP_APP_PORT", port.to_string());
        environment.set("PORT", port.to_string());
    }
    environment.set("CF_INSTANCE_INDEX", start.index.to_string());
    environment.set("CF_INSTANCE_IP", facts.ip);
    if let Some(port) = facts.port {
        environment.set("CF_INSTANCE_PORT", port.to_string());
        environment.set("CF_INSTANCE_ADDR", format!("{}:{port}", facts.ip));
        environment.set("CF_INSTANCE_PORTS", json!([{ "external": port, "internal": port }]).to_string());
    }
    environment.export_all(&start.env);
    environment.variables
}

/// The environment of a buildpack, each name once, the user's variables last. `time_limit` is what its compile step has.
#[must_use]
pub fn staging(message: &StagingMessage, time_limit: Duration) -> Vec<(String, String)> {
    let start = message.start_message.as_ref();
    let mut environment = Environment::default();
    let application = start.and_then(|start| start.vcap_application.clone()).unwrap_or_default();
    environment.set("VCAP_APPLICATION", Value::Object(application).to_string());
    environment.set("VCAP_SERVICES", services(&message.properties.services).to_string());
    if let Some(memory) = message.memory_limit.or_else(|| start.map(|start| start.limits.mem)) {
        environment.set("MEMORY_LIMIT", format!("{}m", memory.0));
    }
    environment.set_database_url(&message.properties.services);
    environment.set("STAGING_TIMEOUT", format!("{:?}", time_limit.as_secs_f64()));
    environment.export_all(&message.properties.environment);
    environment.variables
}

/// Variables in the order in which they were first set.
#[derive(Default)]
struct Environment {
    variables: Vec<(String, String)>,
    positions: HashMap<String, usize>,
}

impl Environment {
    fn set(&mut self, name: &str, value: impl Into<String>) {
        if let Some(&position) = self.positions.get(name) {
            self.variables[position].1 = value.into();
        } else {
            self.positions.insert(name.to_owned(), self.variables.len());
            self.variables.push((name.to_owned(), value.into()));
        }
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.positions.get(name).map(|&position| self.variables[position].1.as_str())
    }

    /// What the shell made of `export NAME="value"`; a name that it would refuse changes nothing.
    fn export(&mut self, name: &str, value: &str) {
        if expansion::is_name(name) {
            let value = expansion::expand(value, |name| self.get(name));
            self.set(name, value);
        }
    }

    /// Each as `NAME=value`, split at the first `=`; without one the value is empty.
    fn export_all(&mut self, assignments: &[Secret<String>]) {
        for assignment in assignments {
            let (name, value) = assignment.expose().split_once('=').unwrap_or((assignment.expose(), ""));
            self.export(name, value);
        }
    }

    /// Where there are services there is the variable, if need be empty.
    fn set_database_url(&mut self, services: &[Service]) {
        if !services.is_empty() {
            self.set("DATABASE_URL", database::url(services).unwrap_or_default());
        }
    }
}

/// `VCAP_APPLICATION`: what the Cloud Controller says of the app, or what one of 2013 left to the agent, under the facts of this
/// instance.
fn application(start: &StartMessage, facts: &InstanceFacts<'_>) -> Value {
    let mut application = start.vcap_application.clone().unwrap_or_else(|| synthesised(start));
    let whole_seconds = facts.started_at.whole_seconds();
    let overlay = [
        ("application_id", json!(start.app_id)),
        ("instance_id", json!(facts.instance_id)),
        ("instance_index", json!(start.index)),
        ("host", json!("0.0.0.0")),
        ("started_at", json!(facts.started_at_text)),
        ("start", json!(facts.started_at_text)),
        ("started_at_timestamp", json!(whole_seconds)),
        ("state_timestamp", json!(whole_seconds)),
    ];
    application.extend(overlay.map(|(key, value)| (key.to_owned(), value)));
    if let Some(port) = facts.port {
        application.insert("port".to_owned(), json!(port));
    }
    Value::Object(application)
}

fn synthesised(start: &StartMessage) -> Map<String, Value> {
    let keys = [
        ("limits", json!(start.limits)),
        ("application_version", json!(start.version)),
        ("application_name", json!(start.name)),
        ("application_uris", json!(start.uris)),
        ("version", json!(start.version)),
        ("name", json!(start.name)),
        ("uris", json!(start.uris)),
        ("users", Value::Null),
    ];
    keys.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

/// `VCAP_SERVICES`: the services by label, in the order of the message, without what they do not have.
fn services(services: &[Service]) -> Value {
    let mut by_label = Map::new();
    for service in services {
        let fields = [
            ("name", json!(service.name)),
            ("label", json!(service.label)),
            ("tags", json!(service.tags)),
            ("plan", json!(service.plan)),
            ("plan_option", json!(service.plan_option)),
            ("credentials", json!(service.credentials)),
            ("syslog_drain_url", json!(service.syslog_drain_url)),
        ];
        let present = fields.into_iter().filter(|(_, value)| !matches!(value, Value::Null | Value::Bool(false)));
        let service_object = present.map(|(key, value)| (key.to_owned(), value)).collect();
        match by_label.entry(&service.label).or_insert_with(|| json!([])) {
            Value::Array(same_label) => same_label.push(Value::Object(service_object)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_) => {}
        }
    }
    Value::Object(by_label)
}

#[cfg(test)]
mod tests;

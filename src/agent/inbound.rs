//! Subjects and bytes in, requests out: the only place that decodes what comes from the bus.
//!
//! Everything here is hostile. A message that cannot be understood is logged once, by subject, field and cause, and forgotten; its
//! payload never reaches the log, because start and staging messages carry credentials.

use std::fmt;

use dewar_core::Request;
use dewar_protocol::{AdminBuildpack, CellId, LogRequest, RouterStart, subjects};
use serde::de::DeserializeOwned;

use crate::AgentConfig;

/// Bytes of the largest message that is read, NATS' own default; a larger one is malformed.
pub(crate) const MAX_MESSAGE_BYTES: usize = 1 << 20;

/// Arrays and objects of a message that may be open at a time; a deeper one is malformed. A few levels less than the 127 that are
/// read, because a message is saved within a snapshot, which must be read again.
pub(crate) const MAX_NESTING: usize = 100;

/// What a subscription is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Topic {
    /// `dea.<id>.start`.
    Start,
    /// `dea.stop`.
    Stop,
    /// `dea.update`.
    Update,
    /// `dea.find.droplet`.
    FindDroplet,
    /// `dea.status`.
    Status,
    /// `dea.locate`.
    Locate,
    /// `healthmanager.start`.
    HealthManagerStart,
    /// `router.start`, and the replies to `router.greet`.
    RouterStart,
    /// `vcap.component.discover`.
    Discover,
    /// `staging.<id>.start` and `staging`.
    Stage,
    /// `staging.stop`.
    StagingStop,
    /// `staging.locate`.
    StagingLocate,
    /// `buildpacks`.
    Buildpacks,
    /// `dewar.logs`.
    Logs,
}

/// A subscription that an agent keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Interest {
    /// Subject.
    pub(crate) subject: String,
    /// Queue group, where one agent of many is to get each message.
    pub(crate) group: Option<&'static str>,
    /// What comes there.
    pub(crate) topic: Topic,
}

/// A message, understood.
#[derive(Debug, PartialEq)]
pub(crate) enum Inbound {
    /// For the cell.
    Cell(Request),
    /// For the stager, to be fetched ahead.
    Buildpacks(Vec<AdminBuildpack>),
    /// For the log hub.
    Logs(LogRequest),
}

/// Why a message was not understood. Never holds a value from the message.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Malformed {
    /// Dotted path of the field; empty where the message as a whole is meant.
    field: String,
    cause: String,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.field.is_empty() { f.write_str(&self.cause) } else { write!(f, "`{}`: {}", self.field, self.cause) }
    }
}

/// Everything an agent listens to, in the order of precedence: stops before starts, all else after them.
pub(crate) fn interests(config: &AgentConfig, cell: &CellId, greeting_inbox: &str) -> Vec<Interest> {
    let plain = |subject: &str, topic| Interest { subject: subject.to_owned(), group: None, topic };
    let mut interests = vec![plain(subjects::DEA_STOP, Topic::Stop)];
    if config.staging.enabled {
        interests.push(plain(subjects::STAGING_STOP, Topic::StagingStop));
        interests.push(plain(&subjects::directed_staging(cell), Topic::Stage));
    }
    interests.extend([
        plain(&subjects::directed_start(cell), Topic::Start),
        plain(subjects::DEA_UPDATE, Topic::Update),
        plain(subjects::DEA_FIND_DROPLET, Topic::FindDroplet),
        plain(subjects::ROUTER_START, Topic::RouterStart),
        plain(greeting_inbox, Topic::RouterStart),
        plain(subjects::LOGS, Topic::Logs),
    ]);
    if config.compat.legacy_subjects {
        interests.push(plain(subjects::HEALTHMANAGER_START, Topic::HealthManagerStart));
        interests.push(plain(subjects::DEA_STATUS, Topic::Status));
        interests.push(plain(subjects::DEA_LOCATE, Topic::Locate));
    }
    if config.compat.component {
        interests.push(plain(subjects::COMPONENT_DISCOVER, Topic::Discover));
    }
    if config.staging.enabled && config.compat.legacy_subjects {
        interests.push(plain(subjects::STAGING_LOCATE, Topic::StagingLocate));
        interests.push(plain(subjects::BUILDPACKS, Topic::Buildpacks));
        let group = Some(subjects::STAGING_QUEUE_GROUP);
        interests.push(Interest { subject: subjects::STAGING.to_owned(), group, topic: Topic::Stage });
    }
    interests
}

/// What a message asks for. Where no data is needed the payload is not even looked at.
///
/// # Errors
/// When the payload is larger than [`MAX_MESSAGE_BYTES`], deeper than [`MAX_NESTING`], no JSON, or lacks or mistypes a field.
pub(crate) fn decode(topic: Topic, payload: &[u8]) -> Result<Inbound, Malformed> {
    if payload.len() > MAX_MESSAGE_BYTES {
        let cause = format!("{} bytes, more than the {MAX_MESSAGE_BYTES} that are read", payload.len());
        return Err(Malformed { field: String::new(), cause });
    }
    let request = match topic {
        Topic::Logs => return json(payload).map(Inbound::Logs),
        Topic::Buildpacks => return json(payload).map(Inbound::Buildpacks),
        Topic::Start => Request::StartInstance(Box::new(json(payload)?)),
        Topic::Stop => Request::StopInstances(json(payload)?),
        Topic::Update => Request::UpdateApp(json(payload)?),
        Topic::FindDroplet => Request::FindInstances(json(payload)?),
        Topic::Stage => Request::Stage(Box::new(json(payload)?)),
        Topic::StagingStop => Request::StopStaging(json(payload)?),
        Topic::RouterStart => Request::RegisterRoutes(router_start(payload)?),
        Topic::Status => Request::ReportStatus,
        Topic::Locate => Request::Locate,
        Topic::StagingLocate => Request::LocateStager,
        Topic::HealthManagerStart => Request::ReportHeartbeat,
        Topic::Discover => Request::DiscoverComponent,
    };
    Ok(Inbound::Cell(request))
}

/// A router with nothing to say may send nothing.
fn router_start(payload: &[u8]) -> Result<RouterStart, Malformed> {
    if payload.is_empty() { Ok(RouterStart::default()) } else { Ok(json::<Option<RouterStart>>(payload)?.unwrap_or_default()) }
}

/// A message of this type.
///
/// # Errors
/// As [`decode`]; the text shows no value.
pub(crate) fn json<T: DeserializeOwned>(payload: &[u8]) -> Result<T, Malformed> {
    if nesting(payload) > MAX_NESTING {
        return Err(Malformed { field: String::new(), cause: format!("nested deeper than the {MAX_NESTING} levels that are read") });
    }
    own_json(payload)
}

/// How many arrays and objects of a JSON text are open at a time.
fn nesting(text: &[u8]) -> usize {
    let (mut open, mut most, mut in_string, mut escaped) = (0_usize, 0, false, false);
    for byte in text {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = in_string,
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => {
                open += 1;
                most = most.max(open);
            }
            b']' | b'}' if !in_string => open = open.saturating_sub(1),
            _ => {}
        }
    }
    most
}

/// What an agent has written itself, messages within it.
///
/// # Errors
/// As [`json`], but for a nesting up to that of the library.
pub(crate) fn own_json<T: DeserializeOwned>(payload: &[u8]) -> Result<T, Malformed> {
    let mut deserializer = serde_json::Deserializer::from_slice(payload);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        // `?` is what stands for the place where the text is no JSON.
        let field = if matches!(path.as_str(), "." | "?") { String::new() } else { path };
        Malformed { field, cause: without_values(error.inner()) }
    })?;
    deserializer.end().map_err(|error| Malformed { field: String::new(), cause: without_values(&error) })?;
    Ok(value)
}

/// What serde says, without the value it says it about: that value may be a password.
fn without_values(error: &serde_json::Error) -> String {
    use serde_json::error::Category;
    match error.classify() {
        Category::Syntax | Category::Eof | Category::Io => format!("not JSON, at line {} column {}", error.line(), error.column()),
        Category::Data => {
            let text = error.to_string();
            let text = text.rsplit_once(" at line ").map_or(text.as_str(), |(text, _)| text);
            if text.starts_with("missing field ") || text.starts_with("duplicate field ") || text.starts_with("not a digest of ") {
                text.to_owned()
            } else if let Some((_, expected)) = text.rsplit_once(", expected ") {
                format!("not {expected}")
            } else {
                "not valid".to_owned()
            }
        }
    }
}

#[cfg(test)]
mod tests;

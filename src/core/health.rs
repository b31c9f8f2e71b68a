//! What makes an instance healthy, that is, what it has to show between its launch and RUNNING.
//!
//! The first of these that applies:
//!
//! 1. `health_check_type` of the start message: `process` and `none` check nothing, `http` asks for a path.
//! 2. The droplet's `droplet.yaml` names a `state_file`: it has to say RUNNING.
//! 3. There are routes: the port has to take a connection.
//! 4. Nothing.
//!
//! `health_check_type: port` is what Cloud Controllers say of all apps of which nobody said anything, so it decides nothing. Without a
//! port, which is what 1 and 3 need, there is nothing to check.

use std::time::Duration;

use dewar_protocol::StartMessage;

/// A file that tells of a state may take longer than a port: the original gave it five minutes, whatever the start message says.
const STATE_FILE_LIMIT: Duration = Duration::from_secs(300);

/// Bytes of the longest path that is asked for.
const ENDPOINT_BYTES: usize = 2048;

/// What an instance has to show before it is RUNNING.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HealthCheck {
    /// It is healthy as soon as its code runs.
    Nothing,
    /// Its port takes a connection.
    Port,
    /// The file that its droplet names says RUNNING.
    StateFile,
    /// It answers 200 to a `GET` of this path.
    Http(String),
}

impl HealthCheck {
    /// The check of an instance.
    #[must_use]
    pub fn of(start: &StartMessage, has_port: bool, has_state_file: bool) -> Self {
        match start.health_check_type.as_deref() {
            Some("none" | "process") => Self::Nothing,
            Some("http") if has_port => Self::Http(endpoint(start).to_owned()),
            _ if has_state_file => Self::StateFile,
            _ if has_port && !start.uris.is_empty() => Self::Port,
            _ => Self::Nothing,
        }
    }

    /// How long it may take, from launch on; `None` where there is nothing to wait for.
    pub(crate) fn time_limit(&self, start: &StartMessage, default: Duration) -> Option<Duration> {
        match self {
            Self::Nothing => None,
            Self::Port | Self::Http(_) => Some(start.health_check_timeout.map_or(default, |seconds| Duration::from_secs(seconds.into()))),
            Self::StateFile => Some(STATE_FILE_LIMIT),
        }
    }

    /// What an instance has not done in time, for its developer, to be read after which instance it is.
    pub(crate) fn complaint(&self) -> String {
        match self {
            Self::Nothing => "failed to start".to_owned(),
            Self::Port => "failed to start accepting connections".to_owned(),
            Self::StateFile => "failed to say RUNNING in its state file".to_owned(),
            Self::Http(path) => format!("failed to answer 200 to GET {path}"),
        }
    }
}

fn endpoint(start: &StartMessage) -> &str {
    start.health_check_http_endpoint.as_deref().filter(|path| !path.is_empty()).unwrap_or("/")
}

/// Whether the path of an `http` check can be asked for.
///
/// # Errors
/// With the reason why not.
pub(crate) fn check_endpoint(start: &StartMessage) -> Result<(), String> {
    let path = endpoint(start);
    let is_path = path.starts_with('/') && path.len() <= ENDPOINT_BYTES && path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
    if is_path || start.health_check_type.as_deref() != Some("http") {
        Ok(())
    } else {
        Err(format!("the health check's endpoint {:?} is no path", path.chars().take(80).collect::<String>()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::start_message;

    fn with(kind: Option<&str>, endpoint: Option<&str>) -> StartMessage {
        let (health_check_type, health_check_http_endpoint) = (kind.map(str::to_owned), endpoint.map(str::to_owned));
        StartMessage { health_check_type, health_check_http_endpoint, ..start_message("shop", 0) }
    }

    #[test]
    fn the_first_that_applies_is_checked() {
        use HealthCheck::{Http, Nothing, Port, StateFile};
        let http = || Http("/ready".to_owned());
        let rows = [
            // type, then: with routes, with a state file too, without routes, without a port
            (None, [Port, StateFile, Nothing, Nothing]),
            (Some("port"), [Port, StateFile, Nothing, Nothing]),
            (Some("what may come"), [Port, StateFile, Nothing, Nothing]),
            (Some("process"), [Nothing, Nothing, Nothing, Nothing]),
            (Some("none"), [Nothing, Nothing, Nothing, Nothing]),
            (Some("http"), [http(), http(), http(), Nothing]),
        ];
        for (kind, expected) in rows {
            let start = with(kind, Some("/ready"));
            let worker = StartMessage { uris: vec![], ..start.clone() };
            let found = [
                HealthCheck::of(&start, true, false),
                HealthCheck::of(&start, true, true),
                HealthCheck::of(&worker, true, false),
                HealthCheck::of(&start, false, false),
            ];
            assert_eq!(found, expected, "{kind:?}");
        }
        assert_eq!(HealthCheck::of(&with(Some("http"), None), true, false), Http("/".to_owned()));
        assert_eq!(HealthCheck::of(&with(Some("http"), Some("")), true, false), Http("/".to_owned()));
    }

    #[test]
    fn the_message_limits_the_time_before_the_default_does_but_not_that_of_a_state_file() {
        let default = Duration::from_secs(60);
        let mut start = start_message("shop", 0);
        let limits = |start: &StartMessage| {
            [HealthCheck::Nothing, HealthCheck::Port, HealthCheck::Http("/".to_owned()), HealthCheck::StateFile]
                .map(|check| check.time_limit(start, default).map(|limit| limit.as_secs()))
        };
        assert_eq!(limits(&start), [None, Some(60), Some(60), Some(300)]);
        start.health_check_timeout = Some(5);
        assert_eq!(limits(&start), [None, Some(5), Some(5), Some(300)]);
    }

    #[test]
    fn only_a_path_can_be_asked_for() {
        for good in ["/", "/health?deep=1", "/a%20b"] {
            assert_eq!(check_endpoint(&with(Some("http"), Some(good))), Ok(()), "{good}");
        }
        let long = format!("/{}", "x".repeat(ENDPOINT_BYTES));
        for bad in ["health", "http://elsewhere/", "/a b", "/a\r\nX-Evil: 1", "/ä", "/a#b", &long] {
            assert!(check_endpoint(&with(Some("http"), Some(bad))).is_err(), "{bad}");
            assert_eq!(check_endpoint(&with(Some("port"), Some(bad))), Ok(()), "nobody asks for it");
        }
    }
}

//! What `dewar dev` prints, for people and for machines.

use std::sync::{Mutex, PoisonError};

use dewar_client::{AppName, BOLD, DIM, GREEN, OutputFormat, PushEvent, RED, Screen, styled};
use dewar_protocol::{LogLine, LogSource, LogStream};
use serde::Serialize;

/// One thing that happened beside a push. As JSON: an object whose `event` names the variant in snake case, with the fields below.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(crate) enum DevEvent<'a> {
    /// Everything is up; apps come next.
    Listening {
        /// The broker, for other clients.
        nats: String,
        /// The router.
        http: String,
        /// What the user should know.
        note: Option<String>,
    },
    /// A version of the app is healthy and reachable.
    Ready {
        /// The app.
        app: &'a AppName,
        /// Where; none for a worker.
        urls: Vec<String>,
    },
    /// The app's files changed, and it is pushed again.
    Changed {
        /// The app.
        app: &'a AppName,
    },
    /// A push or a restart failed.
    Failed {
        /// The app.
        app: &'a AppName,
        /// Why.
        error: String,
        /// What to do about it.
        hint: Option<String>,
        /// Whether an older version still serves.
        still_serving: bool,
    },
    /// A running instance has crashed.
    Crashed {
        /// The app.
        app: &'a AppName,
        /// Which instance.
        index: u32,
        /// As the agent tells.
        exit_status: i32,
        /// As the agent tells; may have several lines.
        exit_description: &'a str,
        /// When it is started again.
        restart_in_seconds: u64,
    },
    /// Everything ends.
    Stopping,
}

/// One screen for all apps.
pub(crate) struct DevScreen {
    screen: Mutex<Screen>,
}

impl DevScreen {
    /// A screen that prints in this format.
    pub(crate) fn new(format: OutputFormat) -> Self {
        Self { screen: Mutex::new(Screen::new(format)) }
    }

    /// Prints an event.
    pub(crate) fn show(&self, event: &DevEvent<'_>) {
        let mut screen = self.screen.lock().unwrap_or_else(PoisonError::into_inner);
        match screen.format() {
            OutputFormat::Json => screen.object(event),
            OutputFormat::Human => show_to_people(&mut screen, event),
        }
    }

    /// Prints an event of a push. Apps' own lines come from [`DevScreen::log`], which has all of them.
    pub(crate) fn push_event(&self, event: &PushEvent) {
        match event {
            PushEvent::Log { line, .. } if line.source != LogSource::Stg => {}
            event => self.screen.lock().unwrap_or_else(PoisonError::into_inner).push_event(event),
        }
    }

    /// Prints a line of an instance, or of the agent about one. People see of the latter only what went wrong.
    pub(crate) fn log(&self, app: &AppName, line: LogLine) {
        let mut screen = self.screen.lock().unwrap_or_else(PoisonError::into_inner);
        let shown = match (line.source, screen.format()) {
            (LogSource::App, _) | (LogSource::Dea, OutputFormat::Json) => true,
            (LogSource::Dea, OutputFormat::Human) => line.stream == LogStream::Err,
            (LogSource::Stg, _) => false,
        };
        if shown {
            screen.push_event(&PushEvent::Log { app: app.clone(), line });
        }
    }
}

fn show_to_people(screen: &mut Screen, event: &DevEvent<'_>) {
    match event {
        DevEvent::Listening { nats, http, note } => {
            if let Some(note) = note {
                screen.line(&format!("note: {note}"));
            }
            screen.line(&styled(DIM, &format!("bus at {nats}, router at {http}, Ctrl-C ends")));
        }
        DevEvent::Ready { app, urls } => {
            screen.idle();
            for url in urls {
                screen.line(&format!("{} → {}", styled(BOLD, app.as_str()), styled(GREEN, url)));
            }
            if urls.is_empty() {
                screen.line(&format!("{} is running, without a route", styled(BOLD, app.as_str())));
            }
        }
        DevEvent::Changed { app } => screen.line(&styled(DIM, &format!("{app} changed, staging again"))),
        DevEvent::Failed { app, error, hint, still_serving } => {
            screen.idle();
            screen.line(&format!("{} {}", styled(RED, &format!("{app} failed:")), screen.harmless(error)));
            if let Some(hint) = hint {
                screen.line(&format!("hint: {hint}"));
            }
            if *still_serving {
                screen.line(&styled(DIM, &format!("the version before still serves {app}")));
            }
        }
        DevEvent::Crashed { app, index, exit_status, exit_description, restart_in_seconds } => {
            screen.idle();
            screen.line(&styled(RED, &format!("{app}/{index} crashed (exit status {exit_status})")));
            for line in exit_description.lines() {
                screen.line(&format!("  {}", screen.harmless(line)));
            }
            screen.line(&styled(DIM, &format!("starting it again in {restart_in_seconds} s")));
        }
        DevEvent::Stopping => screen.busy("stopping"),
    }
}

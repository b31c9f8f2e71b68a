//! A push on the screen.

use dewar_protocol::CellId;

use crate::app_name::AppName;
use crate::push_event::PushEvent;
use crate::records::Phase;
use crate::screen::{BOLD, DIM, OutputFormat, Screen, styled};

/// How many digits of an agent's id tell it apart for a person.
const AGENT_DIGITS: usize = 8;

impl Screen {
    /// Shows an event of a push, or of any verb that reports.
    pub fn push_event(&mut self, event: &PushEvent) {
        if self.format() == OutputFormat::Json {
            return self.object(event);
        }
        match event {
            PushEvent::Packaged { app, files, bytes } => {
                let noun = if *files == 1 { "file" } else { "files" };
                self.line(&format!("packaged {}: {files} {noun}, {}", styled(BOLD, app.as_str()), kib(*bytes)));
                self.busy(&format!("looking for an agent to stage {app}"));
            }
            PushEvent::Staging { app, agent } => {
                self.line(&styled(DIM, &format!("staging on agent {}", short(agent))));
                self.busy(&format!("staging {app}"));
            }
            PushEvent::Log { app, line } => self.log_line(app, line),
            PushEvent::Staged { app, detected_buildpack, start_command, bytes, .. } => {
                let by = detected_buildpack.as_ref().map(|name| format!(" by {}", self.harmless(name))).unwrap_or_default();
                let command = start_command.as_ref().map(|command| format!(", starts with `{}`", self.harmless(command)));
                self.line(&format!("staged {}{by}: {}{}", styled(BOLD, app.as_str()), kib(*bytes), command.unwrap_or_default()));
                self.busy(&format!("starting {app}"));
            }
            PushEvent::Starting { app, index, agent } => {
                self.line(&styled(DIM, &format!("starting {app}/{index} on agent {}", short(agent))));
                self.busy(&format!("starting {app}"));
            }
            PushEvent::Running { app, index, .. } => self.line(&format!("{app}/{index} is running")),
            PushEvent::Stopping { app, count } => {
                let noun = if *count == 1 { "instance" } else { "instances" };
                self.line(&styled(DIM, &format!("stopping {count} {noun} of {app}")));
                self.busy(&format!("stopping {noun} of {app}"));
            }
            PushEvent::Stopped { app } => self.line(&format!("{app} is stopped")),
            PushEvent::Deleted { app } => self.line(&format!("{app} is deleted")),
            PushEvent::Done { app, instances, uris, phase, .. } => {
                self.idle();
                self.line(&last_words(app, *instances, uris, *phase));
            }
        }
    }
}

fn last_words(app: &AppName, instances: u32, uris: &[String], phase: Phase) -> String {
    let count = if instances == 1 { "1 instance".to_owned() } else { format!("{instances} instances") };
    match phase {
        Phase::Started if uris.is_empty() => format!("{app} runs with {count}, without a route"),
        Phase::Started => format!("{app} runs with {count} at {}", uris.join(", ")),
        Phase::Staged => format!("{app} is staged; start it with: dewar restart {app}"),
        Phase::Stopped => format!("{app} is stopped, and will run with {count}"),
    }
}

fn short(agent: &CellId) -> String {
    agent.as_str().chars().take(AGENT_DIGITS).collect()
}

fn kib(bytes: u64) -> String {
    format!("{} KiB", bytes.div_ceil(1024))
}

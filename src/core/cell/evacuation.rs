//! Leaving without loss: out of placement first, then instances are kept until others run in their place.

use std::time::Duration;

use dewar_protocol::{ExitReason, InstanceState};

use super::Cell;
use crate::config::Evacuation;
use crate::instance::Event;
use crate::lifecycle::{Departure, Phase};
use crate::{Effect, Now, Publication};

/// Pause between two looks at what is left, each with a heartbeat.
const PASS: Duration = Duration::from_secs(5);

impl Cell {
    /// Takes the agent out of placement. Everything else goes on; a second time says it again.
    pub(super) fn drain(&mut self, out: &mut Vec<Effect>) {
        self.presence.stop_advertising();
        out.push(Effect::Publish(Publication::Shutdown(self.farewell())));
    }

    /// A second time changes nothing.
    pub(super) fn evacuate(&mut self, now: Now, out: &mut Vec<Effect>) {
        if self.phase != Phase::Serving {
            return;
        }
        self.drain(out);
        self.presence.stop_heartbeats();
        match self.config.evacuation {
            Evacuation::Deterministic { bail_out } => {
                let bail_out = now.mono + bail_out;
                self.phase = Phase::Evacuating(Departure { next_pass: now.mono, bail_out, silent: false });
                for key in self.registry.keys() {
                    self.step(now, key, Event::Evacuate, out);
                }
                self.on_evacuation_deadline(now, out);
            }
            Evacuation::FixedDelay { delay } => {
                let bail_out = now.mono + delay;
                self.phase = Phase::Evacuating(Departure { next_pass: bail_out, bail_out, silent: true });
                for instance in self.registry.iter() {
                    if matches!(instance.told_state(), InstanceState::Starting | InstanceState::Running) {
                        self.tell_of_end(instance.key, ExitReason::DeaEvacuation, out);
                    }
                }
            }
        }
    }

    /// A pass of the evacuation, when it is time for one: tells of what is left, and shuts down when nothing is or the time is over.
    pub(super) fn on_evacuation_deadline(&mut self, now: Now, out: &mut Vec<Effect>) {
        let Phase::Evacuating(departure) = &mut self.phase else { return };
        if departure.next_pass > now.mono {
            return;
        }
        let bail_out = departure.bail_out;
        departure.next_pass = bail_out.min(now.mono + PASS);
        self.heartbeat(now, out);
        let waits = self.tasks.len() > 0 || self.registry.iter().any(|instance| instance.state() == InstanceState::Evacuating);
        if !waits || bail_out <= now.mono {
            self.shut_down(now, out);
        }
    }
}

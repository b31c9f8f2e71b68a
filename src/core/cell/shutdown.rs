//! The end of a cell: nothing new is taken, everything is stopped, then the process may go.

use super::Cell;
use crate::instance::Event;
use crate::lifecycle::Phase;
use crate::{Effect, Now};

/// Everything was stopped.
const EXIT_CLEAN: u8 = 0;

/// Something had not stopped by the end of the shutdown limit.
const EXIT_FORCED: u8 = 1;

impl Cell {
    /// A second time changes nothing.
    pub(super) fn shut_down(&mut self, now: Now, out: &mut Vec<Effect>) {
        // Whoever was told once that the agent leaves after a fixed time need not be told again.
        let (evacuated, told) = match self.phase {
            Phase::Serving => (false, false),
            Phase::Evacuating(departure) => (true, departure.silent),
            Phase::Stopping { .. } | Phase::Exited => return,
        };
        self.phase = Phase::Stopping { exit_by: now.mono + self.config.shutdown_limit, evacuated };
        if !told {
            self.drain(out);
        }
        out.push(Effect::Unsubscribe);
        self.unregister_files(out);
        self.stop_all_staging(out);
        for key in self.registry.keys() {
            self.step(now, key, Event::Stop, out);
        }
    }

    /// After each input: whether there is nothing left to wait for, or no time left to wait.
    pub(super) fn exit_when_done(&mut self, now: Now, out: &mut Vec<Effect>) {
        let Phase::Stopping { exit_by, .. } = self.phase else { return };
        let code = if self.registry.totals().active == 0 && self.tasks.len() == 0 {
            EXIT_CLEAN
        } else if exit_by <= now.mono {
            out.extend(self.registry.iter().filter(|instance| instance.has_sandbox()).map(|instance| Effect::KillSandbox(instance.key)));
            EXIT_FORCED
        } else {
            return;
        };
        self.phase = Phase::Exited;
        self.save_at_last(now, out);
        out.push(Effect::Exit(code));
    }
}

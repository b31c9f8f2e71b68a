//! The select loop: one task owns the cell. Inputs come in, one at a time; effects go out, in order.
//!
//! The loop never waits for anything but the next input. What is to be done at its time comes before what tasks report, so that
//! heartbeats are on time however much happens; and that before what others ask, so that a flood of requests cannot hide that
//! instances have ended. Requests wait in a bounded queue and, behind it, in the subscriptions'.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use dewar_bus::Bus;
use dewar_core::{BusEvent, Cell, Input, Mono, Now, Request, Signal, Wall};
use dewar_protocol::Snapshot;
use tokio::sync::mpsc;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::effects::{Asker, Effects};

/// How often the use of all sandboxes is measured.
const SAMPLING: Duration = Duration::from_secs(10);

/// Requests that wait for the driver; the forwarders of subscriptions wait when it is full.
pub(crate) const REQUESTS: usize = 1024;

/// Reports that wait for the driver; tasks wait when it is full. None is ever dropped.
pub(crate) const REPORTS: usize = 1024;

/// A request and who wants the answer.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) request: Request,
    pub(crate) asker: Asker,
}

impl Asked {
    /// What the cell is to do, and for whom: nothing for an asker of this process that has given up, since whoever is behind it was told
    /// that nothing would come of it.
    pub(crate) fn into_input(self) -> (Option<Input>, Asker) {
        let Self { request, asker } = self;
        ((!asker.has_left()).then(|| Input::Request(request, asker.token())), asker)
    }
}

/// The owner of a cell.
pub(crate) struct Driver {
    pub(crate) cell: Cell,
    /// What an earlier process has left.
    pub(crate) left: Option<Snapshot>,
    pub(crate) effects: Effects,
    pub(crate) requests: mpsc::Receiver<Asked>,
    pub(crate) reports: mpsc::Receiver<Input>,
    pub(crate) bus: Bus,
    pub(crate) bus_events: mpsc::Receiver<dewar_bus::BusEvent>,
    /// Cancelled when the agent is to shut down.
    pub(crate) stop: CancellationToken,
    /// What else the operator wants.
    pub(crate) signals: mpsc::Receiver<Signal>,
}

impl Driver {
    /// Runs until the cell says that the process is to end, and with which code.
    pub(crate) async fn run(mut self) -> u8 {
        let clock = Clock::start();
        let mut sampling = sampling();
        let mut stopping = false;
        let left = self.left.take();
        for effect in self.cell.resume(clock.now(), left) {
            self.effects.carry_out(effect, &mut Asker::Nobody);
        }
        loop {
            let wake = self.cell.next_wake().and_then(|mono| clock.instant(mono));
            let (inputs, mut asker) = tokio::select! {
                biased;
                () = self.stop.cancelled(), if !stopping => {
                    stopping = true;
                    (one(Input::Signal(Signal::Shutdown)), Asker::Nobody)
                }
                Some(signal) = self.signals.recv() => {
                    info!(?signal, "the operator wants something");
                    (one(Input::Signal(signal)), Asker::Nobody)
                }
                Some(event) = self.bus_events.recv() => (bus_inputs(event, &self.bus), Asker::Nobody),
                () = at(wake) => (one(Input::Wake), Asker::Nobody),
                Some(report) = self.reports.recv() => (one(report), Asker::Nobody),
                _ = sampling.tick() => (one(Input::Usage(self.effects.instances.usage())), Asker::Nobody),
                Some(asked) = self.requests.recv() => {
                    let (input, asker) = asked.into_input();
                    ([input, None], asker)
                }
            };
            for effect in inputs.into_iter().flatten().flat_map(|input| self.cell.handle(clock.now(), input)) {
                if let Some(code) = self.effects.carry_out(effect, &mut asker) {
                    return code;
                }
            }
        }
    }
}

/// Ticks at once, and then every [`SAMPLING`].
fn sampling() -> Interval {
    let mut sampling = interval(SAMPLING);
    sampling.set_missed_tick_behavior(MissedTickBehavior::Delay);
    sampling
}

/// Both clocks, read together.
struct Clock {
    start: Instant,
}

impl Clock {
    fn start() -> Self {
        Self { start: Instant::now() }
    }

    fn now(&self) -> Now {
        // A wall clock before 1970 is as good as one at 1970.
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Now { mono: Mono(self.start.elapsed()), wall: Wall(wall) }
    }

    /// `None` where it lies beyond what the clock can tell, which is as good as never.
    fn instant(&self, mono: Mono) -> Option<Instant> {
        self.start.checked_add(mono.0)
    }
}

fn one(input: Input) -> [Option<Input>; 2] {
    [Some(input), None]
}

/// Returns at that moment, or never.
pub(crate) async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// What the cell learns of the bus, in this order.
fn bus_inputs(event: dewar_bus::BusEvent, bus: &Bus) -> [Option<Input>; 2] {
    let events = match event {
        dewar_bus::BusEvent::Up => [bus.max_payload().map(BusEvent::Limit), Some(BusEvent::Up)],
        dewar_bus::BusEvent::Down => [Some(BusEvent::Down), None],
    };
    events.map(|event| event.map(Input::Bus))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn use_is_measured_at_once_and_every_ten_seconds() {
        let before = Instant::now();
        let mut sampling = sampling();
        let after = Instant::now();
        let first = sampling.tick().await;
        assert!(before <= first && first <= after, "it is due when it is made");
        assert_eq!(sampling.period(), Duration::from_secs(10));
    }
}

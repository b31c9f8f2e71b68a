//! Everything there is to tell, gathered at one moment.

use std::collections::BTreeMap;
use std::time::Duration;

use dewar_bus::{Bus, BusCounters};
use dewar_core::{Answer, Request, Varz};
use dewar_protocol::{CellId, InstanceState, Secret};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};

use super::counters::Counts;
use super::loggregator::{Datagrams, Loggregator};
use super::process::HostNumbers;
use super::{Spans, Telemetry};
use crate::config::MetricsConfig;
use crate::driver::Asked;
use crate::effects::Asker;
use crate::log_counts::LogCounts;
use crate::logs::Logs;
use crate::outbox::Outbox;

/// For the driver to answer. It takes requests in turn, so a busy one answers later; one that does not within this is stuck.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// What does not change while the agent runs.
pub(crate) struct Facts {
    pub(crate) id: CellId,
    pub(crate) index: u32,
    /// Of the status server, as announced.
    pub(crate) host: String,
    pub(crate) credentials: Secret<(String, String)>,
    /// When the process started, as announced.
    pub(crate) start: String,
    pub(crate) started: Instant,
    /// How sandboxes get their memory.
    pub(crate) sandbox_allocation: String,
    /// What the process has taken from itself.
    pub(crate) hardening: Value,
}

/// Where a [`Report`] is gathered from.
pub(crate) struct Sources {
    pub(crate) facts: Facts,
    pub(crate) metrics: MetricsConfig,
    pub(crate) requests: mpsc::Sender<Asked>,
    pub(crate) bus: Bus,
    pub(crate) outbox: Outbox,
    pub(crate) logs: Logs,
    pub(crate) log_counts: LogCounts,
    pub(crate) telemetry: Telemetry,
    pub(crate) spans: Spans,
}

/// Everything there is to tell. Never environment, services, credentials or the URL of a droplet.
pub(crate) struct Report<'a> {
    pub(super) facts: &'a Facts,
    pub(super) metrics: &'a MetricsConfig,
    pub(super) varz: Varz,
    pub(super) uptime: Duration,
    pub(super) host: HostNumbers,
    pub(super) bus_is_up: bool,
    /// Messages dropped before they reached the bus's own queue included.
    pub(super) bus: BusCounters,
    pub(super) log_lines: BTreeMap<&'static str, u64>,
    pub(super) app_log_lines_dropped: u64,
    pub(super) counts: Counts,
    /// `None` where there is no loggregator.
    pub(super) datagrams: Option<Datagrams>,
    pub(super) spans_dropped: u64,
}

impl Sources {
    /// Gathers; `None` when the driver does not answer in time.
    pub(crate) async fn report(&self) -> Option<Report<'_>> {
        let Some(Answer::Varz(varz)) = self.ask(Request::ReportVarz).await else { return None };
        let mut bus = self.bus.counters();
        bus.dropped = bus.dropped.saturating_add(self.outbox.dropped());
        Some(Report {
            facts: &self.facts,
            metrics: &self.metrics,
            varz: *varz,
            uptime: self.facts.started.elapsed(),
            host: HostNumbers::read(),
            bus_is_up: self.bus.is_up(),
            bus,
            log_lines: self.log_counts.by_level(),
            app_log_lines_dropped: self.logs.dropped(),
            counts: self.telemetry.counters.read(),
            datagrams: self.telemetry.loggregator().map(Loggregator::datagrams),
            spans_dropped: self.spans.dropped(),
        })
    }

    /// Whether the driver answers in time. It is asked for what costs it next to nothing.
    pub(crate) async fn is_alive(&self) -> bool {
        matches!(self.ask(Request::ReportStatus).await, Some(Answer::Status(_)))
    }

    async fn ask(&self, request: Request) -> Option<Answer> {
        let (sender, answer) = oneshot::channel();
        let asked = Asked { request, asker: Asker::Here(sender) };
        let answer = timeout(ANSWER_TIMEOUT, async {
            self.requests.send(asked).await.ok()?;
            answer.await.ok()
        });
        answer.await.ok().flatten()
    }
}

impl Report<'_> {
    /// How many instances are in each state; states without any are told, too.
    pub(super) fn by_state(&self) -> [(InstanceState, usize); 8] {
        use InstanceState::{Born, Crashed, Evacuating, Resuming, Running, Starting, Stopped, Stopping};
        [Born, Starting, Running, Stopping, Stopped, Crashed, Resuming, Evacuating]
            .map(|state| (state, self.varz.instances.iter().filter(|instance| instance.state == state).count()))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use dewar_bus::BusConfig;
    use dewar_protocol::{Mib, Status};
    use tokio_util::task::TaskTracker;

    use super::*;
    use crate::config::StagingReplyKeys;
    use crate::outbox::Manners;

    /// As an agent has them, with a driver that the test plays. There is no NATS server.
    pub(crate) async fn sources() -> (Sources, mpsc::Receiver<Asked>) {
        let config = BusConfig { servers: vec!["nats://127.0.0.1:1".to_owned()], ..BusConfig::default() };
        let (bus, _) = Bus::connect(config).await.unwrap();
        let (requests, asked) = mpsc::channel(1);
        let facts = Facts {
            id: CellId("0-cell".to_owned()),
            index: 0,
            host: "127.0.0.1:1".to_owned(),
            credentials: Secret::default(),
            start: "2013-10-16 13:58:01 +0000".to_owned(),
            started: Instant::now(),
            sandbox_allocation: "pooled".to_owned(),
            hardening: Value::Null,
        };
        let manners =
            Manners { split_heartbeats: false, greeting_inbox: String::new(), reply_keys: StagingReplyKeys::Superset, hm9000: None };
        let sources = Sources {
            facts,
            metrics: MetricsConfig { interval: Duration::from_secs(30), max_instances: 1 },
            requests,
            outbox: Outbox::new(bus.clone(), manners).0,
            logs: Logs::start(bus.clone(), None, &TaskTracker::new()).unwrap(),
            bus,
            log_counts: LogCounts::default(),
            telemetry: Telemetry::default(),
            spans: Spans::default(),
        };
        (sources, asked)
    }

    #[tokio::test]
    async fn a_driver_that_is_stuck_is_not_waited_for_for_long() {
        let (sources, _asked) = sources().await;
        let begun = Instant::now();
        // The first waits for its answer, the second for its turn to ask, and neither gets it.
        let (is_alive, report) = tokio::join!(sources.is_alive(), sources.report());
        assert!(!is_alive && report.is_none());
        assert!(begun.elapsed() >= ANSWER_TIMEOUT, "they gave up early");
    }

    #[tokio::test]
    async fn an_agent_that_ends_has_nothing_to_tell() {
        let (sources, asked) = sources().await;
        drop(asked);
        assert!(!sources.is_alive().await && sources.report().await.is_none());
    }

    #[tokio::test]
    async fn a_driver_that_is_busy_for_a_while_is_waited_for() {
        let (sources, mut asked) = sources().await;
        let late = async {
            let Asked { request, asker } = asked.recv().await.unwrap();
            assert_eq!(request, Request::ReportStatus);
            tokio::time::sleep(Duration::from_millis(200)).await;
            let Asker::Here(sender) = asker else { panic!("nobody to answer") };
            let (id, ip, version) = (CellId("0-cell".to_owned()), String::new(), String::new());
            let (max_memory, reserved_memory, used_memory) = (Mib(1), Mib(0), Mib(0));
            let status = Status { id, ip, version, max_memory, reserved_memory, used_memory, num_clients: None };
            sender.send(Answer::Status(status)).unwrap();
        };
        assert!(tokio::join!(sources.is_alive(), late).0);
    }
}

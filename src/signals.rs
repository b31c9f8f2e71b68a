//! The process's runtime, and its signals: TERM, INT and QUIT end it, the first asks, the second insists; USR1 and USR2 make an agent
//! leave without loss.

use std::io;

use dewar_client::exit_code;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::failure::Failure;

/// Runs work on all cores with a token that SIGTERM, SIGINT or SIGQUIT cancels. A second signal ends the process at once.
pub(crate) fn run_until_signalled<T, W>(work: impl FnOnce(CancellationToken) -> W) -> Result<T, Failure>
where
    W: Future<Output = Result<T, Failure>>,
{
    let runtime = Runtime::new().map_err(|error| Failure::new(exit_code::IO, format!("cannot start threads: {error}")))?;
    let stop = CancellationToken::new();
    let outcome = runtime.block_on(async {
        tokio::spawn(End::listen()?.watch(stop.clone()));
        work(stop).await
    });
    // Whatever still blocks a thread, such as a read of a slow disk, is not waited for.
    runtime.shutdown_background();
    outcome
}

/// The signals that end a process.
struct End {
    terminate: Signal,
    interrupt: Signal,
    quit: Signal,
}

impl End {
    fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.quit.recv() => "SIGQUIT",
        }
    }

    async fn watch(mut self, stop: CancellationToken) {
        let first = self.next().await;
        info!(signal = first, "stopping");
        stop.cancel();
        let second = self.next().await;
        info!(signal = second, "ending now");
        std::process::exit(exit_code::INTERRUPTED.into());
    }
}

/// The signals by which an agent leaves without loss. From [`Leave::listen`] on none of them ends the process.
pub(crate) struct Leave {
    drain: Signal,
    evacuate: Signal,
}

impl Leave {
    pub(crate) fn listen() -> io::Result<Self> {
        Ok(Self { drain: signal(SignalKind::user_defined1())?, evacuate: signal(SignalKind::user_defined2())? })
    }

    /// Hands them on until the agent has ended.
    pub(crate) async fn forward(mut self, agent: mpsc::Sender<dewar_agent::Signal>) {
        loop {
            let wanted = tokio::select! {
                _ = self.drain.recv() => dewar_agent::Signal::Drain,
                _ = self.evacuate.recv() => dewar_agent::Signal::Evacuate,
            };
            if agent.send(wanted).await.is_err() {
                return;
            }
        }
    }
}

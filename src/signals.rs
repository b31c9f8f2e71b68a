//! The process's runtime, and the signals that end it: the first asks, the second insists.

use dewar_client::exit_code;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::failure::Failure;

/// Runs work on all cores with a token that SIGTERM or SIGINT cancels. A second signal ends the process at once.
pub(crate) fn run_until_signalled<T, W>(work: impl FnOnce(CancellationToken) -> W) -> Result<T, Failure>
where
    W: Future<Output = Result<T, Failure>>,
{
    let runtime = Runtime::new().map_err(|error| Failure::new(exit_code::IO, format!("cannot start threads: {error}")))?;
    let stop = CancellationToken::new();
    let outcome = runtime.block_on(async {
        let terminate = signal(SignalKind::terminate())?;
        let interrupt = signal(SignalKind::interrupt())?;
        tokio::spawn(watch(terminate, interrupt, stop.clone()));
        work(stop).await
    });
    // Whatever still blocks a thread, such as a read of a slow disk, is not waited for.
    runtime.shutdown_background();
    outcome
}

async fn watch(mut terminate: Signal, mut interrupt: Signal, stop: CancellationToken) {
    let mut next = async || {
        tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        }
    };
    let first = next().await;
    info!(signal = first, "stopping");
    stop.cancel();
    let second = next().await;
    info!(signal = second, "ending now");
    std::process::exit(exit_code::INTERRUPTED.into());
}

//! Runs a `wasi:cli/run` droplet: once, to its end. It may serve meanwhile, by `wasi:sockets` on its own address.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use wasmtime::{Error, Store};
use wasmtime_wasi::p2::bindings::{Command, CommandPre};

use crate::Exit;
use crate::alarm::TRAP_GRACE;
use crate::core_dump::CoreDumps;
use crate::cpu::CpuAccount;
use crate::guest::Guest;
use crate::instance::{Orders, Parts};
use crate::trap;

/// Runs the start-up code; gives what runs the command.
pub(crate) async fn prepare(parts: Parts, pre: &CommandPre<Guest>) -> Result<Pin<Box<dyn Future<Output = Exit> + Send>>, Exit> {
    let Parts { shared, blueprint, core_dumps, cpu, orders, limits, listener } = parts;
    let mut store = blueprint.store(pre.engine()).map_err(|error| Exit::failed(format!("{error:#}")))?;
    store.data_mut().memory().begin_call().map_err(|refused| Exit::failed(refused.to_string()))?;
    store.data().alarm().set(Instant::now() + limits.startup_timeout);
    let pre = pre.clone();
    let starting = cpu.schedule(async move {
        let started = pre.instantiate_async(&mut store).await;
        (store, started)
    });
    let (store, command) = match tokio::time::timeout(limits.startup_timeout + TRAP_GRACE, starting).await {
        Ok((store, Ok(command))) => (store, command),
        Ok((store, Err(error))) => return Err(exit_of(store, error, core_dumps).await),
        Err(_) => return Err(Exit::failed(format!("start-up code still waits after {:?}", limits.startup_timeout))),
    };
    store.data().alarm().clear();
    // Only now may the guest bind the address that the listener kept for it.
    drop(listener);
    Ok(Box::pin(async move {
        // The engine must outlive the store's last call.
        let _shared = shared;
        run(store, command, core_dumps, cpu, orders).await
    }))
}

async fn run(mut store: Store<Guest>, command: Command, core_dumps: Arc<CoreDumps>, cpu: Arc<CpuAccount>, orders: Orders) -> Exit {
    let running = cpu.schedule(async move {
        let outcome = command.wasi_cli_run().call_run(&mut store).await;
        (store, outcome)
    });
    let (store, outcome) = tokio::select! {
        biased;
        () = orders.kill.cancelled() => return Exit::killed(),
        () = orders.stop.cancelled() => return Exit::stopped(),
        outcome = running => outcome,
    };
    match outcome {
        Ok(Ok(())) => Exit::exited(0),
        Ok(Err(())) => Exit::exited(1),
        Err(error) => exit_of(store, error, core_dumps).await,
    }
}

async fn exit_of(mut store: Store<Guest>, error: Error, core_dumps: Arc<CoreDumps>) -> Exit {
    let exit = match (trap::exit_status(&error), store.data_mut().take_refused_memory()) {
        (Some(status), _) => Exit::exited(status),
        (None, Some(refused)) => Exit::failed(format!("{refused}: {}", trap::describe(&error))),
        (None, None) => Exit::failed(trap::describe(&error)),
    };
    if core_dumps.is_due(&error) {
        core_dumps.make(store, Arc::new(error)).await;
    }
    exit
}

//! A guest's store: what it holds, what it is granted, what it may use.

use std::sync::Arc;

use dewar_protocol::{Bytes, LogStream};
use wasmtime::component::{Linker, ResourceTable};
use wasmtime::{Engine, Error, Result, Store, StoreContextMut};
use wasmtime_wasi::filesystem::WasiFilesystemCtxView;
use wasmtime_wasi::sockets::WasiSocketsCtxView;
use wasmtime_wasi::{WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

use crate::alarm::{Alarm, CallDeadlines};
use crate::engine::Calls;
use crate::epoch;
use crate::filesystem::{CountedFiles, CountedFilesystem, HasCountedFiles};
use crate::given::{Given, Handover, HasHandover};
use crate::handles::Handles;
use crate::held;
use crate::ledger::Ledger;
use crate::limits::{Mebibytes, MemoryBudget, Refused, STORE_BYTES, StoreMemory};
use crate::network::{self, HeldSockets, NetworkView, Sockets};
use crate::outbound::{self, Outbound};
use crate::output::{Lines, Log};

/// Bytes that the host may copy for a guest in one call.
const HOSTCALL_BYTES: usize = 8 << 20;
/// Bytes of the head of a request or response as a guest holds it, each field with 72 more than its name and value.
const FIELD_BYTES: usize = 72 << 10;
/// Random bytes that a guest may have in one call.
const RANDOM_BYTES: u64 = 64 << 10;
/// Handles that the components of a store may hold, those of their own making and streams and futures included.
const COMPONENT_HANDLES: usize = 10_000;
/// What a store needs of its resource table beyond the guest's open files: requests, responses, bodies, standard streams.
const OWN_RESOURCES: usize = 128;

/// What a store holds besides the guest's memory.
pub(crate) struct Guest {
    wasi: WasiCtx,
    given: Arc<Given>,
    table: ResourceTable,
    http: WasiHttpCtx,
    outbound: Outbound,
    files: CountedFiles,
    sockets: HeldSockets,
    memory: StoreMemory,
    alarm: Arc<Alarm>,
    calls: CallDeadlines,
}

impl Guest {
    /// When computing becomes a trap.
    pub(crate) fn alarm(&self) -> Arc<Alarm> {
        self.alarm.clone()
    }

    /// When computing becomes a trap for one of several calls.
    pub(crate) fn calls(&mut self) -> &mut CallDeadlines {
        &mut self.calls
    }

    /// The last growth of memory that was refused since the last call.
    pub(crate) fn take_refused_memory(&mut self) -> Option<Refused> {
        self.memory.take_refused()
    }

    /// The memory that the store is charged for.
    pub(crate) fn memory(&mut self) -> &mut StoreMemory {
        &mut self.memory
    }

    /// Charges what the host keeps for the guest's handles by now. What does not fit ends the store: the host has it already.
    pub(crate) fn settle_held(&mut self) -> Result<()> {
        self.sockets.settle(&mut self.table);
        let bytes = held::bytes(&mut self.table);
        let held = Mebibytes(Bytes(bytes));
        self.memory.hold(bytes).map_err(|refused| Error::msg(format!("{refused}: its handles, fields and bodies take {held} of the host")))
    }
}

impl WasiView for Guest {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

impl WasiHttpView for Guest {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView { ctx: &mut self.http, table: &mut self.table, hooks: &mut self.outbound }
    }
}

fn counted_filesystem(guest: &mut Guest) -> CountedFilesystem<'_> {
    CountedFilesystem { inner: WasiFilesystemCtxView { ctx: guest.wasi.filesystem(), table: &mut guest.table }, files: &mut guest.files }
}

fn network_view(guest: &mut Guest) -> NetworkView<'_> {
    let inner = WasiSocketsCtxView { ctx: guest.wasi.sockets(), table: &mut guest.table };
    NetworkView { inner, network: guest.outbound.network(), sockets: &mut guest.sockets }
}

fn handover(guest: &mut Guest) -> Handover<'_> {
    Handover { given: &guest.given, table: &mut guest.table }
}

/// Everything that any guest is granted. WASI 0.3 comes without files and sockets: those of 0.2 are the ones under quota.
pub(crate) fn linker(engine: &Engine, calls: Calls) -> Result<Linker<Guest>> {
    let mut linker = Linker::new(engine);
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut linker)?;
    linker.allow_shadowing(true);
    wasmtime_wasi::p2::bindings::filesystem::types::add_to_linker::<Guest, HasCountedFiles>(&mut linker, counted_filesystem)?;
    network::add_to_linker(&mut linker, network_view)?;
    outbound::handler::add_to_linker(&mut linker)?;
    wasmtime_wasi::p2::bindings::filesystem::preopens::add_to_linker::<Guest, HasHandover>(&mut linker, handover)?;
    wasmtime_wasi::p2::bindings::cli::environment::add_to_linker::<Guest, HasHandover>(&mut linker, handover)?;
    if calls == Calls::Concurrent {
        wasmtime_wasi::p3::cli::add_to_linker(&mut linker)?;
        wasmtime_wasi::p3::bindings::cli::environment::add_to_linker::<Guest, HasHandover>(&mut linker, handover)?;
        wasmtime_wasi::p3::clocks::add_to_linker(&mut linker)?;
        wasmtime_wasi::p3::random::add_to_linker(&mut linker)?;
        wasmtime_wasi_http::p3::add_to_linker(&mut linker)?;
    }
    linker.allow_shadowing(false);
    Ok(linker)
}

/// How to make a store for one instance; all its stores draw on the same quotas.
pub(crate) struct Blueprint {
    pub(crate) given: Arc<Given>,
    pub(crate) sockets: Sockets,
    pub(crate) outbound: Outbound,
    pub(crate) log: Arc<Log>,
    pub(crate) memory: Arc<MemoryBudget>,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) handles: Arc<Handles>,
}

impl Blueprint {
    /// A new store, nothing in it yet.
    pub(crate) fn store(&self, engine: &Engine) -> Result<Store<Guest>> {
        // First of all: what does not fit costs nothing to refuse.
        let memory = StoreMemory::new(self.memory.clone(), STORE_BYTES + self.given.texts())?;
        let mut table = ResourceTable::new();
        table.set_max_capacity(usize::try_from(self.handles.limit())?.saturating_add(OWN_RESOURCES));
        let mut http = WasiHttpCtx::new();
        http.set_field_size_limit(FIELD_BYTES);
        let guest = Guest {
            wasi: self.wasi(),
            given: self.given.clone(),
            table,
            http,
            outbound: self.outbound.clone(),
            sockets: HeldSockets::new(self.handles.clone()),
            files: CountedFiles::new(self.ledger.clone(), self.handles.clone(), self.memory.clone()),
            memory,
            alarm: Arc::default(),
            calls: CallDeadlines::default(),
        };
        let mut store = Store::try_new(engine, guest)?;
        store.limiter(|guest| &mut guest.memory);
        store.set_hostcall_fuel(HOSTCALL_BYTES);
        store.set_max_component_handles(COMPONENT_HANDLES);
        store.set_epoch_deadline(1);
        store.epoch_deadline_callback(|mut store| {
            if is_late(&mut store)? {
                Err(Error::msg("still computing when its time was up"))
            } else {
                store.data_mut().settle_held()?;
                Ok(epoch::at_tick())
            }
        });
        Ok(store)
    }

    fn wasi(&self) -> WasiCtx {
        let mut wasi = WasiCtxBuilder::new();
        wasi.stdout(Lines::new(self.log.clone(), LogStream::Out))
            .stderr(Lines::new(self.log.clone(), LogStream::Err))
            .max_random_size(RANDOM_BYTES);
        self.sockets.grant(&mut wasi);
        wasi.build()
    }
}

/// Whether the time of the call that computes now is up.
fn is_late(store: &mut StoreContextMut<'_, Guest>) -> Result<bool> {
    if store.data().calls.one_is_due() {
        // The last is the one that the host has called.
        let call = store.async_call_stack()?.last();
        if let Some(is_due) = call.and_then(|call| store.data().calls.is_due(call)) {
            return Ok(is_due);
        }
    }
    Ok(store.data().alarm.has_gone())
}

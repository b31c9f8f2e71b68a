//! `wasi:http/outgoing-handler` 0.2, as wasmtime has it but for one thing: a request's options, which the guest gives away with the
//! request, leave the store's table with it. Theirs stay, so that a store that lives long would have no place left.

use wasmtime::component::{Linker, Resource};
use wasmtime::{Result, StoreContextMut};
use wasmtime_wasi_http::p2::bindings::http::outgoing_handler::Host;
use wasmtime_wasi_http::p2::bindings::http::types::{ErrorCode, FutureIncomingResponse, OutgoingRequest, RequestOptions};
use wasmtime_wasi_http::{WasiHttpCtxView, WasiHttpView};

type Answer = Result<Resource<FutureIncomingResponse>, ErrorCode>;

/// Stands before wasmtime's own, so shadowing must be allowed.
pub(crate) fn add_to_linker<T: WasiHttpView + 'static>(linker: &mut Linker<T>) -> Result<()> {
    linker.instance("wasi:http/outgoing-handler@0.2.12")?.func_wrap(
        "handle",
        |mut store: StoreContextMut<'_, T>, (request, options): (Resource<OutgoingRequest>, Option<Resource<RequestOptions>>)| {
            Ok((handle(&mut store.data_mut().http(), request, options)?,))
        },
    )
}

fn handle(view: &mut WasiHttpCtxView<'_>, request: Resource<OutgoingRequest>, options: Option<Resource<RequestOptions>>) -> Result<Answer> {
    let given = options.as_ref().map(Resource::rep);
    let answer = view.handle(request, options);
    if let Some(place) = given {
        view.table.delete(Resource::<RequestOptions>::new_own(place))?;
    }
    answer.map_or_else(|error| error.downcast().map(Err), |future| Ok(Ok(future)))
}

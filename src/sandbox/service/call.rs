//! A call of a WASI 0.3 guest, from a request to the end of its answer.

use futures::FutureExt;
use futures::future::BoxFuture;
use wasmtime::component::{Accessor, GuestTaskId, Resource, TypedFuncCallConcurrent};
use wasmtime::{Error, Store};
use wasmtime_wasi_http::p3::bindings::http::types::ErrorCode;
use wasmtime_wasi_http::{WasiBody, WasiHttpView, p3};

use crate::answer::{Answering, Watched};
use crate::guest::Guest;

/// Answers one request with a store that has no other.
pub(crate) async fn alone(
    store: &mut Store<Guest>,
    guest: &p3::bindings::Service,
    request: http::Request<WasiBody>,
    answering: Answering,
) -> Result<(), Error> {
    let call = async |accessor: &Accessor<Guest>| {
        let call = Call::begin(accessor, guest, request)?;
        give(call.answer(accessor, guest).await?, answering, || ()).await;
        std::future::poll_fn(|cx| accessor.poll_no_interesting_tasks(cx)).await;
        Ok(())
    };
    store.run_concurrent(call).await?
}

type Answer = Result<Resource<p3::Response>, ErrorCode>;

/// A call that has begun.
pub(super) struct Call {
    call: TypedFuncCallConcurrent<Guest, (Resource<p3::Request>,), (Answer,)>,
    /// Whether the guest has got the whole request.
    received: BoxFuture<'static, Result<(), wasmtime_wasi_http::Error>>,
}

impl Call {
    pub(super) fn begin(
        accessor: &Accessor<Guest>,
        guest: &p3::bindings::Service,
        request: http::Request<WasiBody>,
    ) -> Result<Self, Error> {
        accessor.with(|mut store| {
            let http = store.get().http();
            let (request, received) = p3::Request::from_http(http.hooks, request);
            let received = received.boxed();
            let request = http.table.push(request)?;
            let call = guest.wasi_http_handler().func_handle().start_call_concurrent(store, (request,))?;
            Ok(Self { call, received })
        })
    }

    /// What the engine calls it.
    pub(super) fn task(&self) -> GuestTaskId {
        self.call.task()
    }

    /// Waits for the head of the answer; an error within is the guest's own error code.
    pub(super) async fn answer(
        self,
        accessor: &Accessor<Guest>,
        guest: &p3::bindings::Service,
    ) -> Result<Result<http::Response<WasiBody>, String>, Error> {
        let Self { call, received } = self;
        let (answer,) = guest.wasi_http_handler().func_handle().finish_call_concurrent(accessor, call).await?;
        match answer {
            Ok(response) => accessor.with(|mut store| {
                let response = store.get().http().table.delete(response)?;
                response.into_http(store, received).map(Ok)
            }),
            Err(code) => Ok(Err(format!("{code:?}"))),
        }
    }
}

/// Passes an answer on, until nobody reads it any more: the body comes from within the store, which has to be driven so long.
pub(super) async fn give(answer: Result<http::Response<WasiBody>, String>, answering: Answering, at_end: impl FnOnce()) {
    // A client that went away meanwhile needs no answer.
    match answer {
        Ok(response) => {
            let (response, consumed) = Watched::over(response);
            let _ = answering.send(Ok(response));
            // An error only says that nobody reads it any more.
            let _ = consumed.await;
            at_end();
        }
        Err(code) => {
            at_end();
            let _ = answering.send(Err(code));
        }
    }
}

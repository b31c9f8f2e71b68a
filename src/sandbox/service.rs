//! A store of WASI 0.3 at work on several requests.
//!
//! The first request takes a store out of the pool. When it has to wait for something the work gets a task of its own ([`Seat::share`]),
//! and others may join it, up to a limit ([`Service::join`]). When all is done the store goes back to the pool.
//!
//! The guests of a store take turns: while one computes the others wait, and nobody joins. What ends one of them ends all, so a
//! service from which a client goes away, or for which one has waited too long, takes no more requests, and ends as soon as the
//! clients that it still has are served: wasmtime cannot cancel a single call.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};
use wasmtime::Error;
use wasmtime::component::Accessor;
use wasmtime_wasi_http::handler::Proxy;
use wasmtime_wasi_http::{WasiBody, p3};

use crate::alarm::{Alarm, TRAP_GRACE};
use crate::answer::{Answering, Ended};
use crate::epoch;
use crate::guest::Guest;
use crate::http::App;
use crate::limits::{CALL_BYTES, Charge, MemoryBudget};
use crate::pool::Worker;
use crate::scheduled::Scheduled;

use call::{Call, give};

pub(crate) mod call;

/// What those who take part in the work share.
pub(crate) struct Service {
    /// How many requests at a time.
    places: usize,
    /// How many requests at all.
    limit: u32,
    state: Mutex<State>,
    /// For what guests do after their answers.
    alarm: Arc<Alarm>,
    /// The work has ended before its time.
    is_broken: AtomicBool,
    /// A client has waited too long.
    has_failed: AtomicBool,
    /// Nobody may join any more, and there are no clients any more.
    is_abandoned: Notify,
    /// Tells those who wait for a place.
    released: Arc<Notify>,
}

struct State {
    inbox: VecDeque<Request>,
    /// Clients that will hear that there is no answer when it is known why.
    unanswered: Vec<Answering>,
    /// Wakes the work for what is in the inbox.
    waker: Option<Waker>,
    /// How many requests there have been.
    given: u32,
    /// Requests that have a place: those that are expected, those in the inbox and those that the guest has not ended.
    requests: usize,
    /// Clients that wait for something of it.
    clients: usize,
    /// No guest computes, and all that was given has begun.
    is_at_rest: bool,
    /// Nobody may join any more.
    is_closed: bool,
    /// The work has ended.
    is_over: bool,
    /// When the last of the clients will have gone.
    until: Instant,
    /// The memory for all calls but one, which the store itself pays for.
    charges: Vec<Charge>,
}

/// When the head of an answer has to be there, and when its end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadlines {
    pub(crate) head: Instant,
    pub(crate) end: Instant,
}

struct Request {
    request: http::Request<WasiBody>,
    answering: Answering,
    times: Deadlines,
    has_ended: Arc<AtomicBool>,
}

impl Service {
    /// A store's work, and the first place in it.
    pub(crate) fn start(app: &Arc<App>, worker: Worker) -> (Seat, Scheduled<Ended>) {
        let limits = &app.limits;
        let service = Arc::new(Self {
            places: limits.concurrent_requests_per_store,
            limit: limits.requests_per_store.saturating_sub(worker.served),
            alarm: worker.store.data().alarm(),
            is_broken: AtomicBool::new(false),
            has_failed: AtomicBool::new(false),
            is_abandoned: Notify::new(),
            released: app.pool.released(),
            state: Mutex::new(State {
                inbox: VecDeque::new(),
                unanswered: Vec::new(),
                waker: None,
                given: 1,
                requests: 1,
                clients: 1,
                is_at_rest: false,
                is_closed: false,
                is_over: false,
                until: Instant::now() + limits.total_timeout,
                charges: Vec::new(),
            }),
        });
        let work = app.cpu.schedule(service.clone().work(worker));
        (Seat::new(service), work)
    }

    /// A place beside those who are at work already; `None` when there is none, or no memory for another call.
    pub(crate) fn join(self: &Arc<Self>, memory: &Arc<MemoryBudget>) -> Option<Seat> {
        let mut state = self.state();
        if !self.has_place(&state) {
            return None;
        }
        state.charges.push(memory.charge(CALL_BYTES).ok()?);
        state.given += 1;
        state.requests += 1;
        state.clients += 1;
        // One at a time: who computes from the first keeps nobody else waiting.
        state.is_at_rest = false;
        drop(state);
        Some(Seat::new(self.clone()))
    }

    fn has_place(&self, state: &State) -> bool {
        state.is_at_rest && !state.is_closed && state.given < self.limit && state.requests < self.places
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The work, until it ends or nobody wants it any more.
    async fn run(self: Arc<Self>, app: Arc<App>, work: Scheduled<Ended>) {
        let ended = tokio::select! {
            biased;
            ended = work => Some(ended),
            () = self.abandoned() => None,
        };
        app.pool.over(&self);
        // Before the store is dropped, with which bodies end as if they were complete.
        self.is_broken.store(ended.as_ref().is_none_or(|ended| ended.outcome.is_err()), Ordering::Release);
        if let Some(ended) = ended {
            app.ended(ended);
        }
        let mut state = self.state();
        state.is_over = true;
        let unanswered = (std::mem::take(&mut state.inbox), std::mem::take(&mut state.unanswered));
        drop(state);
        drop(unanswered);
    }

    async fn work(self: Arc<Self>, mut worker: Worker) -> Ended {
        let Worker { store, proxy, .. } = &mut worker;
        let outcome = {
            let mut work = pin!(store.run_concurrent(async |accessor: &Accessor<Guest>| self.serve(accessor, proxy).await));
            std::future::poll_fn(|cx| {
                let polled = work.as_mut().poll(cx);
                if polled.is_pending() {
                    self.rest(!epoch::is_slice_over());
                }
                polled.map(Result::flatten)
            })
            .await
        };
        let mut state = self.state();
        state.is_closed = true;
        worker.served += state.given;
        drop(state);
        Ended { worker, outcome }
    }

    /// The guests wait for something, or have been put aside while one computes.
    fn rest(&self, all_wait: bool) {
        let mut state = self.state();
        let was_at_rest = state.is_at_rest;
        state.is_at_rest = all_wait && state.inbox.is_empty();
        let has_place = self.has_place(&state);
        drop(state);
        if has_place && !was_at_rest {
            self.released.notify_one();
        }
    }

    /// Has the guest answer what is in the inbox until there is nothing more to do.
    async fn serve(&self, accessor: &Accessor<Guest>, proxy: &Proxy) -> Result<(), Error> {
        let Proxy::P3(guest) = proxy else { return Err(Error::msg("the droplet is no service of WASI 0.3")) };
        let handle = *guest.wasi_http_handler().func_handle().func();
        let mut calls = FuturesUnordered::new();
        std::future::poll_fn(|cx| {
            loop {
                if let Poll::Ready(Some(ended)) = calls.poll_next_unpin(cx) {
                    if let Err(error) = ended {
                        return Poll::Ready(Err(error));
                    }
                    self.leave();
                } else if let Poll::Ready(request) = self.next(accessor.poll_ready_for_concurrent_call(handle, cx).is_ready(), cx) {
                    calls.push(self.call(accessor, guest, request));
                } else if !calls.is_empty() || accessor.poll_no_interesting_tasks(cx).is_pending() {
                    return Poll::Pending;
                } else if self.close() {
                    return Poll::Ready(Ok(()));
                } else {
                    // Somebody has taken a place, and will wake us.
                    return Poll::Pending;
                }
            }
        })
        .await
    }

    /// The next request, if the guest takes any.
    fn next(&self, guest_is_ready: bool, cx: &Context<'_>) -> Poll<Request> {
        let mut state = self.state();
        if guest_is_ready && let Some(request) = state.inbox.pop_front() {
            return Poll::Ready(request);
        }
        state.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    async fn call(&self, accessor: &Accessor<Guest>, guest: &p3::bindings::Service, request: Request) -> Result<(), Error> {
        let Request { request, answering, times, has_ended } = request;
        let mut answering = Unanswered { service: self, answering: Some(answering) };
        let call = Call::begin(accessor, guest, request)?;
        let task = call.task();
        accessor.with(|mut store| store.get().calls().set(task, times.head.into_std()));
        let answer = {
            let mut answer = pin!(call.answer(accessor, guest));
            // An answer that nobody waits for is not given. The guest goes on until its service ends.
            std::future::poll_fn(|cx| match answer.as_mut().poll(cx) {
                Poll::Ready(answer) => Poll::Ready(Some(answer)),
                Poll::Pending => answering.poll_is_unwanted(cx).map(|()| None),
            })
            .await
        };
        if let Some(answer) = answer {
            accessor.with(|mut store| store.get().calls().set(task, times.end.into_std()));
            let answer = answer?;
            if let Some(answering) = answering.answering.take() {
                give(answer, answering, || has_ended.store(true, Ordering::Release)).await;
            }
        }
        accessor.with(|mut store| {
            let guest = store.get();
            guest.calls().remove(task);
            // What was refused to this request is no excuse for the next.
            guest.take_refused_memory();
            guest.settle_held()
        })
    }

    /// A request has ended.
    fn leave(&self) {
        let mut state = self.state();
        state.requests -= 1;
        let charge = state.charges.pop();
        drop(state);
        drop(charge);
        self.released.notify_one();
    }

    /// Whether there is nothing more to do. Then nobody may join any more.
    fn close(&self) -> bool {
        let mut state = self.state();
        let is_done = state.requests == 0;
        state.is_closed |= is_done;
        is_done
    }

    /// Waits until no client wants anything of it any more.
    async fn abandoned(&self) {
        loop {
            let until = {
                let mut state = self.state();
                if state.clients == 0 && Instant::now() >= state.until + 2 * TRAP_GRACE {
                    // What a guest still does after its answers takes too long.
                    state.is_closed = true;
                }
                if state.clients == 0 && state.is_closed {
                    return;
                }
                // Who is there still goes by its own deadline.
                (state.until + 2 * TRAP_GRACE).max(Instant::now() + TRAP_GRACE)
            };
            tokio::select! {
                () = self.is_abandoned.notified() => {}
                () = sleep_until(until) => {}
            }
        }
    }
}

/// A client that waits for an answer. When the work ends without one, it is told at the very end.
struct Unanswered<'a> {
    service: &'a Service,
    answering: Option<Answering>,
}

impl Unanswered<'_> {
    /// Waits until the client has gone.
    fn poll_is_unwanted(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.answering.as_mut().map_or(Poll::Ready(()), |answering| answering.poll_closed(cx))
    }
}

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        self.service.state().unanswered.extend(self.answering.take());
    }
}

/// A request's place in a service. Dropping it means that its client has gone, unless the guest is done with it.
pub(crate) struct Seat {
    service: Arc<Service>,
    is_given: bool,
    has_ended: Arc<AtomicBool>,
}

impl Seat {
    fn new(service: Arc<Service>) -> Self {
        Self { service, is_given: false, has_ended: Arc::default() }
    }

    /// Hands over the request.
    pub(crate) fn give(mut self, request: http::Request<WasiBody>, answering: Answering, times: Deadlines) -> Self {
        self.is_given = true;
        let request = Request { request, answering, times, has_ended: self.has_ended.clone() };
        let mut state = self.service.state();
        if state.is_over {
            // Dropping the request tells its client that there is no answer.
            drop(state);
            return self;
        }
        state.until = state.until.max(times.end);
        self.service.alarm.set(state.until.into_std());
        state.inbox.push_back(request);
        let waker = state.waker.take();
        drop(state);
        waker.into_iter().for_each(Waker::wake);
        self
    }

    /// Has the work done in a task of its own, and lets others join.
    pub(crate) fn share(&self, app: &Arc<App>, work: Scheduled<Ended>) {
        app.pool.began(self.service.clone());
        app.spawn(self.service.clone().run(app.clone(), work));
    }

    /// Whether the work has ended before its time.
    pub(crate) fn is_broken(&self) -> bool {
        self.service.is_broken.load(Ordering::Acquire)
    }

    /// Notes that the client has waited too long. Whether one of the others had already.
    pub(crate) fn has_failed_before(&self) -> bool {
        self.service.has_failed.swap(true, Ordering::Relaxed)
    }

    /// The client has all that it wanted. The guest may still have something to do.
    pub(crate) fn finish(self) {
        self.has_ended.store(true, Ordering::Release);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut state = self.service.state();
        state.clients -= 1;
        let (mut charge, mut waker) = (None, None);
        if !self.is_given {
            state.requests -= 1;
            (charge, waker) = (state.charges.pop(), state.waker.take());
        } else if !self.has_ended.load(Ordering::Acquire) {
            state.is_closed = true;
        }
        let is_abandoned = state.is_closed && state.clients == 0;
        drop(state);
        drop(charge);
        waker.into_iter().for_each(Waker::wake);
        if is_abandoned {
            self.service.is_abandoned.notify_one();
        }
    }
}

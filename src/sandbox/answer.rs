//! One request on its way through a guest, and the answer on its way back.
//!
//! The work of a guest that has a store to itself belongs to the task of the client's connection, which polls it first until there is
//! the head of an answer, then whenever it polls the body. So a client that goes away takes its guest with it, and one that reads slowly
//! slows it down. What a guest still has to do after its answer is complete, it does in a task of its own. Where requests share a store
//! see [`crate::service`].

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::Response;
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Full};
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::{Instant, Sleep, sleep_until};
use wasmtime_wasi_http::{Error, WasiBody};

use crate::alarm::{Alarm, TRAP_GRACE};
use crate::http::App;
use crate::pool::{Place, Worker};
use crate::scheduled::Scheduled;
use crate::service::{Deadlines, Seat, Service};

/// How a guest's answer gets out of its store; an error is the guest's own error code.
pub(crate) type Answering = oneshot::Sender<Result<Response<WasiBody>, String>>;

/// A guest that has ended its work on a request.
pub(crate) struct Ended {
    pub(crate) worker: Worker,
    pub(crate) outcome: Result<(), wasmtime::Error>,
}

/// How a guest works on a request.
enum Work {
    /// In a store of its own, whenever the client's connection polls it.
    Alone(Scheduled<Ended>, Arc<Alarm>),
    /// In a store that others may come to share. Until it first has to wait it is polled as if it were alone; then it gets a task of
    /// its own, because no client must depend on how fast another reads.
    Shared(Seat, Option<Scheduled<Ended>>),
}

/// A guest at work on a request. Dropping it ends the guest's store, if it is not done and nobody else needs it.
pub(crate) struct Exchange {
    app: Arc<App>,
    /// `None` when there is no more.
    work: Option<Work>,
    start: Instant,
    deadline: Pin<Box<Sleep>>,
    /// The guest trapped: what there is of its answer is not the whole.
    trapped: bool,
    _turn: OwnedSemaphorePermit,
}

/// What there is to say to the client instead of a guest's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoAnswer {
    /// The guest trapped, or ended without an answer, or answered what cannot be sent.
    Failed,
    /// The guest took too long.
    Late,
}

impl Exchange {
    /// Gives a request that came at `start` to a store.
    pub(crate) fn begin(
        app: Arc<App>,
        turn: OwnedSemaphorePermit,
        place: Place,
        request: http::Request<WasiBody>,
        start: Instant,
    ) -> (Self, Head) {
        let (answering, head) = oneshot::channel();
        let deadline = start + app.limits.response_timeout;
        let times = Deadlines { head: deadline, end: start + app.limits.total_timeout };
        let work = match place {
            Place::Seat(seat) => Work::Shared(seat.give(request, answering, times), None),
            Place::Store(worker) if app.pool.shares() => {
                let (seat, work) = Service::start(&app, worker);
                Work::Shared(seat.give(request, answering, times), Some(work))
            }
            Place::Store(mut worker) => {
                let alarm = worker.store.data().alarm();
                alarm.set(deadline.into_std());
                let work = async move {
                    let outcome = worker.call(request, answering).await;
                    Ended { worker, outcome }
                };
                Work::Alone(app.cpu.schedule(work), alarm)
            }
        };
        // A guest that computes at the deadline is to trap first, since a trap says where it was.
        let deadline = Box::pin(sleep_until(deadline + TRAP_GRACE));
        (Self { app, work: Some(work), start, deadline, trapped: false, _turn: turn }, head)
    }

    /// Runs the guest until it answers.
    pub(crate) async fn head(&mut self, mut head: Head) -> Result<Response<WasiBody>, NoAnswer> {
        let answer = std::future::poll_fn(|cx| {
            self.poll_work(cx);
            let answer = Pin::new(&mut head).poll(cx);
            if matches!(answer, Poll::Ready(Err(_))) {
                self.work = None;
            }
            if answer.is_pending() {
                self.share();
            }
            match answer {
                Poll::Ready(Ok(answer)) => Poll::Ready(answer.map_err(|code| {
                    self.app.complain(&format!("the app answered with an error: {code}"));
                    NoAnswer::Failed
                })),
                // The guest has ended without an answer, maybe because its time was up.
                Poll::Ready(Err(_)) if self.start.elapsed() >= self.app.limits.response_timeout => Poll::Ready(Err(NoAnswer::Late)),
                Poll::Ready(Err(_)) => Poll::Ready(Err(NoAnswer::Failed)),
                Poll::Pending => self.deadline.as_mut().poll(cx).map(|()| Err(NoAnswer::Late)),
            }
        })
        .await;
        match answer {
            Err(NoAnswer::Late) => {
                let text = format!("no answer within {:?}", self.app.limits.response_timeout);
                match self.work.take() {
                    None => {}
                    // One that computes makes all those late that are beside it.
                    Some(Work::Shared(seat, _)) if seat.has_failed_before() => self.app.complain(&text),
                    Some(_) => self.app.failed(&text),
                }
            }
            Err(NoAnswer::Failed) => {}
            Ok(_) => {
                let deadline = self.start + self.app.limits.total_timeout;
                if let Some(Work::Alone(_, alarm)) = &self.work {
                    alarm.set(deadline.into_std());
                }
                self.deadline.as_mut().reset(deadline + TRAP_GRACE);
            }
        }
        answer
    }

    fn poll_work(&mut self, cx: &mut Context<'_>) {
        match &mut self.work {
            Some(Work::Alone(work, _) | Work::Shared(_, Some(work))) => {
                if let Poll::Ready(ended) = Pin::new(work).poll(cx) {
                    self.work = None;
                    self.trapped = ended.outcome.is_err();
                    self.app.ended(ended);
                }
            }
            Some(Work::Shared(seat, None)) => self.trapped = seat.is_broken(),
            None => {}
        }
    }

    /// Lets others share the store, if they may.
    fn share(&mut self) {
        if let Some(Work::Shared(seat, work)) = &mut self.work
            && let Some(work) = work.take()
        {
            seat.share(&self.app, work);
        }
    }

    /// Whether the guest has ended before its time. One in a task of its own may do so at any moment.
    fn has_broken(&self) -> bool {
        self.trapped || matches!(&self.work, Some(Work::Shared(seat, _)) if seat.is_broken())
    }

    /// Lets the guest finish on its own what it still has to do.
    fn finish(mut self) {
        self.share();
        match self.work.take() {
            None => {}
            Some(Work::Shared(seat, _)) => seat.finish(),
            alone @ Some(Work::Alone(..)) => {
                self.work = alone;
                let app = self.app.clone();
                app.spawn(async move {
                    std::future::poll_fn(|cx| {
                        self.poll_work(cx);
                        if self.work.is_none() { Poll::Ready(()) } else { self.deadline.as_mut().poll(cx) }
                    })
                    .await;
                });
            }
        }
    }
}

/// Where a guest's answer arrives.
pub(crate) type Head = oneshot::Receiver<Result<Response<WasiBody>, String>>;

/// The body of what we send: our own words or a guest's.
pub(crate) enum Content {
    Own(Full<Bytes>),
    Guest(Box<GuestBody>),
}

impl Body for Content {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match &mut *self {
            Self::Own(body) => Pin::new(body).poll_frame(cx).map_err(|never| match never {}),
            Self::Guest(body) => body.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(body) => body.is_end_stream(),
            Self::Guest(body) => body.inner.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(body) => body.size_hint(),
            Self::Guest(body) => body.inner.as_ref().map_or(SizeHint::with_exact(0), Body::size_hint),
        }
    }
}

/// A guest's body. Polling it runs the guest.
pub(crate) struct GuestBody {
    /// `None` when it has ended.
    inner: Option<WasiBody>,
    exchange: Option<Exchange>,
    sent: u64,
    /// What the guest announced.
    announced: Option<u64>,
    failed: bool,
}

impl GuestBody {
    pub(crate) fn new(inner: WasiBody, exchange: Exchange, announced: Option<u64>) -> Self {
        Self { inner: Some(inner), exchange: Some(exchange), sent: 0, announced, failed: false }
    }

    /// Reads a body that may not be sent to its end, for the guest to come to its own.
    pub(crate) fn discard(mut self) {
        let Some(app) = self.exchange.as_ref().map(|exchange| exchange.app.clone()) else { return };
        app.spawn(async move { while let Some(Ok(_)) = std::future::poll_fn(|cx| self.poll_frame(cx)).await {} });
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let Some(exchange) = &mut self.exchange else { return Poll::Ready(None) };
        exchange.poll_work(cx);
        let Some(inner) = &mut self.inner else { return Poll::Ready(None) };
        let error = match Pin::new(inner).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                self.sent += frame.data_ref().map_or(0, |data| data.len() as u64);
                if self.sent <= exchange.app.limits.response_body.0 {
                    return Poll::Ready(Some(Ok(frame)));
                }
                exchange.app.complain("the answer's body is larger than it may be");
                Error::HttpResponseBodySize(Some(self.sent))
            }
            Poll::Ready(Some(Err(error))) => error,
            // With its store a body ends as if it were complete, and a client would take it for that.
            Poll::Ready(None) if exchange.has_broken() => Error::HttpResponseIncomplete,
            Poll::Ready(None) => {
                self.inner = None;
                // A guest that waited for just this is done now, and its store free for the next request.
                exchange.poll_work(cx);
                return Poll::Ready(None);
            }
            Poll::Pending => {
                exchange.share();
                if exchange.deadline.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
                exchange.app.complain(&format!("the answer is not complete after {:?}", exchange.app.limits.total_timeout));
                Error::HttpResponseTimeout
            }
        };
        self.failed = true;
        Poll::Ready(Some(Err(error)))
    }

    /// Whether the client has got all there is.
    fn is_complete(&self) -> bool {
        !self.failed && (self.inner.is_none() || self.announced == Some(self.sent))
    }
}

impl Drop for GuestBody {
    fn drop(&mut self) {
        let complete = self.is_complete();
        // Whoever watches the body must see it end before the guest is left to itself.
        self.inner = None;
        if let Some(exchange) = self.exchange.take()
            && complete
        {
            exchange.finish();
        }
    }
}

/// A body that tells when it is read no more.
pub(crate) struct Watched {
    inner: WasiBody,
    _consumed: oneshot::Sender<()>,
}

impl Watched {
    pub(crate) fn over(response: Response<WasiBody>) -> (Response<WasiBody>, oneshot::Receiver<()>) {
        let (sender, consumed) = oneshot::channel();
        (response.map(|inner| Self { inner, _consumed: sender }.boxed_unsync()), consumed)
    }
}

impl Body for Watched {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        Pin::new(&mut self.inner).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

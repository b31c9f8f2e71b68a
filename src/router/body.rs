//! Bodies on their way through: neither is ever held, each piece is asked for when the other side has room for it.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use crate::client_io::{Activity, Stall};
use crate::exchange::Exchange;

/// Why a body ended early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    /// The other side broke off, or sent what is no body.
    #[error("failed to read the body")]
    Read(#[source] hyper::Error),
    /// The other side fell silent.
    #[error("nothing came for {0:?}")]
    Stalled(Duration),
}

/// The body of a request, on its way to an instance.
#[derive(Debug)]
pub(crate) enum RequestBody {
    Empty,
    Client { incoming: Incoming, activity: Arc<Activity>, stall: Stall, limit: Duration },
}

impl RequestBody {
    pub(crate) fn new(incoming: Incoming, activity: &Arc<Activity>, limit: Duration) -> Self {
        if incoming.is_end_stream() {
            return Self::Empty;
        }
        activity.body_begins();
        Self::Client { incoming, activity: Arc::clone(activity), stall: Stall::new(limit), limit }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Self::Client { incoming, activity, stall, limit } = &mut *self else { return Poll::Ready(None) };
        let piece = Pin::new(&mut *incoming).poll_frame(cx);
        let frame = in_time(piece, stall, *limit, cx);
        match &frame {
            Poll::Ready(Some(Ok(frame))) => activity.body_moved(frame.data_ref().map_or(0, Bytes::len)),
            Poll::Ready(Some(Err(_))) | Poll::Pending => return frame,
            Poll::Ready(None) => activity.body_ends(),
        }
        // hyper does not ask again once the announced length has come.
        if incoming.is_end_stream() {
            activity.body_ends();
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Client { incoming, .. } => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Client { incoming, .. } => incoming.size_hint(),
        }
    }
}

/// The body of a response, on its way to a client. What has to be settled when the exchange is over rides along and is settled
/// when hyper drops the body: after its last piece, or when the client has gone.
#[derive(Debug)]
pub(crate) struct ResponseBody {
    source: Source,
    exchange: Option<Exchange>,
}

#[derive(Debug)]
enum Source {
    Empty,
    Text(Bytes),
    Instance {
        incoming: Incoming,
        stall: Stall,
        limit: Duration,
        finished: bool,
    },
    /// It has broken off; told once what came before is on its way.
    Broken(Option<BodyError>),
}

impl ResponseBody {
    pub(crate) fn empty(exchange: Option<Exchange>) -> Self {
        Self { source: Source::Empty, exchange }
    }

    pub(crate) fn text(text: Bytes, exchange: Option<Exchange>) -> Self {
        Self { source: Source::Text(text), exchange }
    }

    pub(crate) fn instance(incoming: Incoming, limit: Duration, exchange: Exchange) -> Self {
        Self { source: Source::Instance { incoming, stall: Stall::new(limit), limit, finished: false }, exchange: Some(exchange) }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let frame = match &mut this.source {
            Source::Empty => return Poll::Ready(None),
            Source::Text(text) if text.is_empty() => return Poll::Ready(None),
            Source::Text(text) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(text))))),
            Source::Instance { incoming, stall, limit, finished } => {
                // What has arrived with the head is there at once. For anything else the connection must be carried on.
                let mut piece = Pin::new(&mut *incoming).poll_frame(cx);
                if let (Poll::Pending, Some(exchange)) = (&piece, &mut this.exchange) {
                    exchange.poll_drive(cx);
                    piece = Pin::new(&mut *incoming).poll_frame(cx);
                }
                let frame = in_time(piece, stall, *limit, cx);
                *finished = matches!(&frame, Poll::Ready(None)) || matches!(&frame, Poll::Ready(Some(Ok(frame))) if frame.is_trailers());
                match frame {
                    Poll::Ready(Some(Err(error))) => {
                        // hyper throws away what it has not written when a body fails; asked to come again, it writes that first.
                        this.source = Source::Broken(Some(error));
                        cx.waker().wake_by_ref();
                        return Poll::Pending;
                    }
                    frame => frame,
                }
            }
            Source::Broken(error) => return Poll::Ready(error.take().map(Err)),
        };
        if let (Poll::Ready(Some(Ok(frame))), Some(exchange)) = (&frame, &mut this.exchange) {
            exchange.sent(frame.data_ref().map_or(0, Bytes::len));
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Empty => true,
            Source::Text(text) => text.is_empty(),
            Source::Instance { incoming, .. } => incoming.is_end_stream(),
            Source::Broken(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Empty => SizeHint::with_exact(0),
            Source::Text(text) => SizeHint::with_exact(text.len() as u64),
            Source::Instance { incoming, .. } => incoming.size_hint(),
            Source::Broken(_) => SizeHint::default(),
        }
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        let complete = match &self.source {
            Source::Empty | Source::Text(_) => true,
            // hyper does not ask again once the announced length has come.
            Source::Instance { incoming, finished, .. } => *finished || incoming.is_end_stream(),
            Source::Broken(_) => false,
        };
        if let Some(exchange) = &mut self.exchange
            && complete
        {
            exchange.body_is_complete();
        }
    }
}

/// A piece of a body, or the error that none has come for too long.
fn in_time(
    piece: Poll<Option<Result<Frame<Bytes>, hyper::Error>>>,
    stall: &mut Stall,
    limit: Duration,
    cx: &mut Context<'_>,
) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
    match piece {
        Poll::Ready(frame) => {
            stall.moved();
            Poll::Ready(frame.map(|frame| frame.map_err(BodyError::Read)))
        }
        Poll::Pending => stall.poll(cx).map(|()| Some(Err(BodyError::Stalled(limit)))),
    }
}

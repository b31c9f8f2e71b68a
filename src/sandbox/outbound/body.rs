//! Bodies under limits of size and time.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Sleep, sleep_until};
use wasmtime_wasi_http::{Error, WasiBody};

use super::failure;
use super::pool::{Connection, Turn};

/// Bytes of a body, either way.
const BYTES: usize = 256 << 20;

/// The body of a request, cut off where it becomes too long.
pub(super) fn of_request(body: WasiBody) -> WasiBody {
    let too_long = || Error::HttpRequestBodySize(Some(BYTES as u64));
    Limited::new(body, BYTES).map_err(move |error| failure::of_body(error, too_long())).boxed_unsync()
}

/// What an exchange holds until its response has been read to the end.
pub(super) struct Exchange {
    pub(super) connection: Connection,
    pub(super) turn: Turn,
    pub(super) permit: OwnedSemaphorePermit,
}

/// The body of a response. Read to its end, it gives the connection back; dropped before, it closes it.
pub(super) struct ResponseBody {
    inner: Limited<Incoming>,
    /// For the next frame.
    patience: Duration,
    /// For the last one.
    deadline: Instant,
    timer: Option<Pin<Box<Sleep>>>,
    exchange: Option<Exchange>,
}

impl ResponseBody {
    pub(super) fn new(body: Incoming, patience: Duration, deadline: Instant, exchange: Exchange) -> Result<Self, Error> {
        if body.size_hint().lower() > BYTES as u64 {
            return Err(Error::HttpResponseBodySize(Some(BYTES as u64)));
        }
        let inner = Limited::new(body, BYTES);
        let mut body = Self { inner, patience, deadline, timer: None, exchange: Some(exchange) };
        body.end_where_it_ends();
        Ok(body)
    }

    fn end_where_it_ends(&mut self) {
        if self.inner.is_end_stream() {
            self.end();
        }
    }

    fn end(&mut self) {
        if let Some(Exchange { connection, turn, permit }) = self.exchange.take() {
            drop(permit);
            turn.give_back(connection);
        }
    }

    /// Nothing more can come of it.
    fn fail(&mut self, error: Error) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        self.exchange = None;
        Poll::Ready(Some(Err(error)))
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = &mut *self;
        match Pin::new(&mut this.inner).poll_frame(cx) {
            // Whoever sends a byte now and then does so only for a while.
            Poll::Ready(Some(Ok(_))) if Instant::now() >= this.deadline => this.fail(Error::HttpResponseTimeout),
            Poll::Ready(Some(Ok(frame))) => {
                this.timer = None;
                this.end_where_it_ends();
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                let error = failure::of_body(error, Error::HttpResponseBodySize(Some(BYTES as u64)));
                this.fail(error)
            }
            Poll::Ready(None) => {
                this.end();
                Poll::Ready(None)
            }
            Poll::Pending => {
                let until = this.deadline.min(Instant::now() + this.patience);
                let timer = this.timer.get_or_insert_with(|| Box::pin(sleep_until(until)));
                ready!(timer.as_mut().poll(cx));
                let is_over = Instant::now() >= this.deadline;
                this.fail(if is_over { Error::HttpResponseTimeout } else { Error::ConnectionReadTimeout })
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use futures::stream::{self, StreamExt};
    use http_body_util::StreamBody;

    use super::*;

    #[tokio::test]
    async fn a_request_that_is_too_long_is_cut_off() {
        let part = Bytes::from(vec![0; 1 << 20]);
        let parts = |count: usize| {
            let part = part.clone();
            let frames = stream::iter(0..count).map(move |_| Ok::<_, Error>(Frame::data(part.clone())));
            of_request(StreamBody::new(frames).boxed_unsync())
        };
        let read = |mut body: WasiBody| async move {
            let mut bytes = 0;
            while let Some(frame) = body.frame().await {
                bytes += frame?.data_ref().map_or(0, Bytes::len);
            }
            Ok::<_, Error>(bytes)
        };
        assert_eq!(read(parts(BYTES >> 20)).await.unwrap(), BYTES);
        assert!(matches!(read(parts((BYTES >> 20) + 1)).await, Err(Error::HttpRequestBodySize(Some(_)))));
    }
}

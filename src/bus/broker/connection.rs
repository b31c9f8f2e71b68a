//! One connection: reads and carries out operations in this task, writes in another.

use std::mem;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedReadHalf;
use tokio::sync::watch;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info, warn};

use super::parser::{Limits, Parsed, Violation, parse};
use super::peer::Peer;
use super::server::{Phase, Shared};
use super::session::Session;

/// What is read at once: little for idle clients, more for those that keep filling it.
const READ_BYTES_FIRST: usize = 4 << 10;
const READ_BYTES_MOST: usize = 64 << 10;

/// An empty input buffer larger than this was blown up by a large message and is given back.
const INPUT_BYTES_KEPT: usize = 256 << 10;

/// How long a publisher pauses after a batch when one of its receivers lags.
const CONGESTION_PAUSE: Duration = Duration::from_millis(10);

/// How long a refused client's further bytes are read and thrown away, so that it gets to see why: closing a socket with unread
/// bytes resets it, and the reset would overtake the explanation.
const LINGER: Duration = Duration::from_millis(250);

/// How long the last bytes may take to be written.
const FINAL_WRITE: Duration = Duration::from_secs(1);

/// How a connection ends.
enum End {
    /// The client has gone.
    Closed,
    /// It does not read.
    SlowConsumer,
    /// It has broken a rule.
    Violation(Violation),
    /// The broker stops.
    Stopped,
}

struct Connection {
    shared: Arc<Shared>,
    peer: Arc<Peer>,
    session: Session,
    reader: OwnedReadHalf,
    input: BytesMut,
    /// Bytes that `input` must hold before it can be an operation.
    wanted: usize,
    read_bytes: usize,
    /// Something has arrived since the timer last ran out.
    active: bool,
}

/// Serves a client until it goes, breaks a rule or the broker stops.
pub(super) async fn serve(shared: Arc<Shared>, stream: TcpStream, address: SocketAddr, phase: watch::Receiver<Phase>) {
    let peer = Arc::new(Peer::new(shared.new_client_id(), shared.config.max_pending));
    let (reader, writer) = stream.into_split();
    let mut writing = tokio::spawn({
        let (peer, deadline) = (Arc::clone(&peer), shared.config.write_deadline);
        async move {
            if peer.outbox.write_to(writer, deadline).await.is_err() {
                peer.outbox.break_off();
            }
        }
    });
    let mut connection = Connection {
        session: Session::new(Arc::clone(&shared), Arc::clone(&peer)),
        shared,
        peer,
        reader,
        input: BytesMut::new(),
        wanted: 1,
        read_bytes: READ_BYTES_FIRST,
        active: false,
    };
    let end = connection.converse(address, phase).await;
    connection.session.leave();
    connection.report(&end, address);
    if let End::Violation(violation) = end {
        connection.session.say_error(&violation.to_string());
    }
    connection.session.finish_batch();
    connection.peer.outbox.end();
    // What is still written or thrown away has had its time after this; the writer then ends at once.
    let _ = tokio::join!(timeout(FINAL_WRITE, &mut writing), connection.linger(&end));
    connection.peer.outbox.break_off();
    if !writing.is_finished() {
        // It fails only if the task panicked, which ends the connection as well.
        let _ = writing.await;
    }
}

impl Connection {
    async fn converse(&mut self, address: SocketAddr, mut phase: watch::Receiver<Phase>) -> End {
        self.send_info(address, Phase::Serving);
        let config = &self.shared.config;
        let (ping_interval, patience) = (config.ping_interval, config.auth_timeout);
        let first_tick = if self.session.is_authorized() { ping_interval } else { patience };
        let mut timer = std::pin::pin!(sleep(first_tick));
        let broken = self.peer.outbox.broken().clone();
        loop {
            self.input.reserve(self.read_bytes);
            let spare = self.input.capacity() - self.input.len();
            let outcome = tokio::select! {
                read = self.reader.read_buf(&mut self.input) => match read {
                    Ok(0) | Err(_) => return End::Closed,
                    Ok(read) => self.take_in(read, spare).await,
                },
                () = &mut timer => {
                    timer.as_mut().reset(Instant::now() + ping_interval);
                    self.tick()
                }
                () = broken.cancelled() => return End::SlowConsumer,
                changed = phase.changed() => {
                    let now = *phase.borrow_and_update();
                    if changed.is_err() || now == Phase::Closing {
                        return End::Stopped;
                    }
                    self.send_info(address, now);
                    Ok(())
                }
            };
            if let Err(violation) = outcome {
                return End::Violation(violation);
            }
        }
    }

    /// Carries out what has been read; afterwards lets others have their turn, and laggards catch up.
    async fn take_in(&mut self, read: usize, spare: usize) -> Result<(), Violation> {
        self.active = true;
        let outcome = if self.input.len() < self.wanted { Ok(()) } else { self.carry_out() };
        let congested = self.session.finish_batch();
        if self.input.is_empty() && self.input.capacity() > INPUT_BYTES_KEPT {
            self.input = BytesMut::new();
        }
        if let Some(laggard) = congested {
            // It is enough to have waited for a while: a receiver that stays behind is cut off by its own limits.
            let _ = timeout(CONGESTION_PAUSE, laggard.outbox.relieved()).await;
        } else if read == spare {
            self.read_bytes = (self.read_bytes * 2).min(READ_BYTES_MOST);
            yield_now().await;
        }
        outcome
    }

    fn carry_out(&mut self) -> Result<(), Violation> {
        let config = &self.shared.config;
        let limits = Limits { control_line: config.max_control_line, payload: config.max_payload };
        let mut done = 0;
        loop {
            match parse(&self.input[done..], limits)? {
                Parsed::Op { op, length } => {
                    self.session.handle(op)?;
                    done += length;
                }
                Parsed::Incomplete { at_least } => {
                    self.input.advance(done);
                    self.wanted = at_least;
                    return Ok(());
                }
            }
        }
    }

    /// The timer has run out: the client should have said something.
    fn tick(&mut self) -> Result<(), Violation> {
        if !self.session.is_authorized() {
            return Err(Violation::AuthenticationTimeout);
        }
        if mem::take(&mut self.active) {
            self.session.pings_out = 0;
            return Ok(());
        }
        if self.session.pings_out >= self.shared.config.max_pings_out {
            return Err(Violation::Stale);
        }
        self.session.pings_out += 1;
        self.session.say(b"PING\r\n");
        self.session.finish_batch();
        Ok(())
    }

    fn send_info(&mut self, address: SocketAddr, phase: Phase) {
        if phase == Phase::Serving || self.session.takes_late_info() {
            let info = self.shared.info(self.peer.id, address, phase);
            self.session.say(&info);
            self.session.finish_batch();
        }
    }

    async fn linger(&mut self, end: &End) {
        if matches!(end, End::Violation(_) | End::Stopped) {
            let discard = async {
                let mut sink = [0; 4096];
                while self.reader.read(&mut sink).await.is_ok_and(|read| read > 0) {}
            };
            // Either way there is nothing more to wait for.
            let _ = timeout(LINGER, discard).await;
        }
    }

    fn report(&self, end: &End, address: SocketAddr) {
        let client = self.peer.id;
        match end {
            End::Closed => debug!(client, %address, "client has gone"),
            End::SlowConsumer => warn!(client, %address, "slow consumer cut off"),
            End::Violation(violation) => info!(client, %address, %violation, "client cut off"),
            End::Stopped => debug!(client, %address, "client disconnected because the broker stops"),
        }
    }
}

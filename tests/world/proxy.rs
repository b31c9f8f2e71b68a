//! A TCP proxy that can cut, delay and hold what passes.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What happens to bytes on their way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing.
    None,
    /// They stay where they are; connections look alive.
    Hold,
    /// Each piece comes this much later.
    Delay(Duration),
    /// This many more pass in each direction of each connection, then it is cut.
    CutAfter(usize),
}

pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    fault: watch::Sender<Fault>,
}

impl Proxy {
    pub(crate) async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (fault, watched) = watch::channel(Fault::None);
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let Ok(far) = TcpStream::connect(target).await else { continue };
                let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
                tokio::spawn(pass(near_in, far_out, watched.clone()));
                tokio::spawn(pass(far_in, near_out, watched.clone()));
            }
        });
        Self { address, fault }
    }

    pub(crate) fn set(&self, fault: Fault) {
        self.fault.send_replace(fault);
    }
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut fault: watch::Receiver<Fault>) {
    let mut buffer = [0; 4096];
    let mut left = None;
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        let mut piece = &buffer[..read];
        let now = *fault.borrow_and_update();
        match now {
            Fault::None => left = None,
            Fault::Hold => {
                if fault.wait_for(|fault| *fault != Fault::Hold).await.is_err() {
                    return;
                }
            }
            Fault::Delay(span) => tokio::time::sleep(span).await,
            Fault::CutAfter(bytes) => {
                let budget = left.get_or_insert(bytes);
                piece = &piece[..piece.len().min(*budget)];
                *budget -= piece.len();
            }
        }
        if to.write_all(piece).await.is_err() || left == Some(0) {
            return;
        }
    }
}

//! `wasi:sockets/ip-name-lookup` 0.2: the same names, the same bounds and the same rules as for requests.
//!
//! A look-up is a message itself, so only a guest that may talk to somebody can make one; of the answer it sees the addresses that
//! it may talk to on some port.

use std::net::IpAddr;
use std::sync::Arc;
use std::vec;

use futures::FutureExt;
use wasmtime::Result;
use wasmtime::component::Resource;
use wasmtime_wasi::async_trait;
use wasmtime_wasi::p2::bindings::sockets::ip_name_lookup::{Host, HostResolveAddressStream, ResolveAddressStream};
use wasmtime_wasi::p2::bindings::sockets::network::{ErrorCode, IpAddress};
use wasmtime_wasi::p2::{DynPollable, Network, Pollable, SocketError, subscribe};
use wasmtime_wasi::runtime::{AbortOnDropJoinHandle, spawn};

use super::{InstanceNetwork, LookupError, NetworkView, parse_host};
use crate::egress::Transport;

/// What stands in the resource table for wasmtime's own [`ResolveAddressStream`].
enum Answer {
    Pending(AbortOnDropJoinHandle<Result<Vec<IpAddr>, ErrorCode>>),
    Ready(Result<vec::IntoIter<IpAddr>, ErrorCode>),
}

fn ours(theirs: &Resource<ResolveAddressStream>) -> Resource<Answer> {
    Resource::new_borrow(theirs.rep())
}

impl Host for NetworkView<'_> {
    fn resolve_addresses(&mut self, _network: Resource<Network>, name: String) -> Result<Resource<ResolveAddressStream>, SocketError> {
        let egress = &self.network.egress;
        if !egress.allows_any(Transport::Tcp) && !egress.allows_any(Transport::Udp) {
            return Err(ErrorCode::AccessDenied.into());
        }
        let answer = Answer::Pending(spawn(look_up(self.network.clone(), name)));
        Ok(Resource::new_own(self.inner.table.push(answer)?.rep()))
    }
}

async fn look_up(network: Arc<InstanceNetwork>, name: String) -> Result<Vec<IpAddr>, ErrorCode> {
    let host = parse_host(&name).ok_or(ErrorCode::InvalidArgument)?;
    let found = network.addresses(&host).await.map_err(|error| match error {
        LookupError::Denied => ErrorCode::AccessDenied,
        LookupError::TooMany | LookupError::TimedOut => ErrorCode::TemporaryResolverFailure,
        LookupError::NotFound => ErrorCode::NameUnresolvable,
    })?;
    let allowed: Vec<IpAddr> = found.iter().copied().filter(|address| network.egress.allows_some_port(*address)).collect();
    if allowed.is_empty() { Err(ErrorCode::AccessDenied) } else { Ok(allowed) }
}

impl HostResolveAddressStream for NetworkView<'_> {
    fn resolve_next_address(&mut self, stream: Resource<ResolveAddressStream>) -> Result<Option<IpAddress>, SocketError> {
        let answer = self.inner.table.get_mut(&ours(&stream))?;
        if let Answer::Pending(looking_up) = answer {
            let found = looking_up.now_or_never().ok_or(ErrorCode::WouldBlock)?;
            *answer = Answer::Ready(found.map(Vec::into_iter));
        }
        match answer {
            Answer::Ready(Ok(addresses)) => Ok(addresses.next().map(IpAddress::from)),
            Answer::Ready(Err(code)) => Err((*code).into()),
            Answer::Pending(_) => Err(ErrorCode::WouldBlock.into()),
        }
    }

    fn subscribe(&mut self, stream: Resource<ResolveAddressStream>) -> Result<Resource<DynPollable>> {
        subscribe(self.inner.table, ours(&stream))
    }

    fn drop(&mut self, stream: Resource<ResolveAddressStream>) -> Result<()> {
        self.inner.table.delete(Resource::<Answer>::new_own(stream.rep()))?;
        Ok(())
    }
}

#[async_trait]
impl Pollable for Answer {
    async fn ready(&mut self) {
        if let Self::Pending(looking_up) = self {
            *self = Self::Ready(looking_up.await.map(Vec::into_iter));
        }
    }
}

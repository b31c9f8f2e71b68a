//! `wasi:sockets` 0.2 as a guest has it: wasmtime's, but for what has to be bounded.
//!
//! New sockets count as open files of the instance. Names are looked up under the same bounds and rules as for requests: see
//! [`super::lookup`].

use std::sync::Arc;

use wasmtime::Result;
use wasmtime::component::{HasData, Linker, Resource, ResourceTable};
use wasmtime_wasi::p2::bindings::sockets::network::{self, ErrorCode, IpAddressFamily};
use wasmtime_wasi::p2::bindings::sockets::{ip_name_lookup, tcp_create_socket, udp_create_socket};
use wasmtime_wasi::p2::{Network, SocketError, SocketResult, TcpSocket, UdpSocket};
use wasmtime_wasi::sockets::WasiSocketsCtxView;

use super::InstanceNetwork;
use crate::handles::{Handle, Handles};

/// Names [`NetworkView`] to the linker.
struct HasNetwork;

impl HasData for HasNetwork {
    type Data<'a> = NetworkView<'a>;
}

/// Implements the interfaces for the time of one call.
pub(crate) struct NetworkView<'a> {
    pub(crate) inner: WasiSocketsCtxView<'a>,
    pub(crate) network: Arc<InstanceNetwork>,
    pub(crate) sockets: &'a mut HeldSockets,
}

/// Stands before wasmtime's own, so shadowing must be allowed.
pub(crate) fn add_to_linker<T: Send + 'static>(linker: &mut Linker<T>, view: fn(&mut T) -> NetworkView<'_>) -> Result<()> {
    ip_name_lookup::add_to_linker::<T, HasNetwork>(linker, view)?;
    tcp_create_socket::add_to_linker::<T, HasNetwork>(linker, view)?;
    udp_create_socket::add_to_linker::<T, HasNetwork>(linker, view)
}

/// The handles of a store's sockets. Those of sockets that are gone are given back when somebody looks.
pub(crate) struct HeldSockets {
    handles: Arc<Handles>,
    held: Vec<Handle>,
}

impl HeldSockets {
    pub(crate) fn new(handles: Arc<Handles>) -> Self {
        Self { handles, held: Vec::new() }
    }

    /// Gives back what the store's table holds no socket for.
    pub(crate) fn settle(&mut self, table: &mut ResourceTable) {
        if !self.held.is_empty() {
            let is_socket = |resource: &&mut (dyn std::any::Any + Send)| resource.is::<TcpSocket>() || resource.is::<UdpSocket>();
            self.held.truncate(table.iter_mut().filter(is_socket).count());
        }
    }

    /// Makes room for one more.
    fn admit(&mut self, table: &mut ResourceTable) -> SocketResult<()> {
        self.settle(table);
        self.held.push(self.handles.take().ok_or(ErrorCode::NewSocketLimit)?);
        Ok(())
    }
}

impl tcp_create_socket::Host for NetworkView<'_> {
    fn create_tcp_socket(&mut self, family: IpAddressFamily) -> SocketResult<Resource<TcpSocket>> {
        self.sockets.admit(self.inner.table)?;
        self.inner.create_tcp_socket(family)
    }
}

impl udp_create_socket::Host for NetworkView<'_> {
    async fn create_udp_socket(&mut self, family: IpAddressFamily) -> SocketResult<Resource<UdpSocket>> {
        self.sockets.admit(self.inner.table)?;
        self.inner.create_udp_socket(family).await
    }
}

impl network::Host for NetworkView<'_> {
    fn convert_error_code(&mut self, error: SocketError) -> Result<ErrorCode> {
        self.inner.convert_error_code(error)
    }

    fn network_error_code(&mut self, error: Resource<wasmtime::Error>) -> Result<Option<ErrorCode>> {
        self.inner.network_error_code(error)
    }
}

impl network::HostNetwork for NetworkView<'_> {
    fn drop(&mut self, network: Resource<Network>) -> Result<()> {
        network::HostNetwork::drop(&mut self.inner, network)
    }
}

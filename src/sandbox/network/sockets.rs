//! Sockets of a guest: it may serve on its own address and talk to whom the policy allows.

use std::net::SocketAddr;
use std::sync::Arc;

use wasmtime_wasi::WasiCtxBuilder;
use wasmtime_wasi::sockets::SocketAddrUse;

use super::InstanceNetwork;
use crate::egress::Transport;

/// Which sockets a guest may have.
#[derive(Clone)]
pub(crate) struct Sockets {
    /// Where it may listen.
    pub(crate) serve: Option<SocketAddr>,
    pub(crate) network: Arc<InstanceNetwork>,
}

impl Sockets {
    /// Names are not granted here: see [`super::NetworkView`].
    pub(crate) fn grant(&self, wasi: &mut WasiCtxBuilder) {
        let egress = &self.network.egress;
        let sockets = self.clone();
        wasi.allow_tcp(egress.allows_any(Transport::Tcp) || self.serve.is_some())
            .allow_udp(egress.allows_any(Transport::Udp))
            .socket_addr_check(move |address, purpose| {
                let allowed = sockets.allows(address, purpose);
                Box::pin(std::future::ready(allowed))
            });
    }

    /// Whether the rules allow it and the instance has not had too many; counts it.
    fn allows(&self, address: SocketAddr, purpose: SocketAddrUse) -> bool {
        let InstanceNetwork { egress, allowance, .. } = &*self.network;
        match purpose {
            // Port 0 is what a connection comes from; to listen there is refused below, when the port is known.
            SocketAddrUse::TcpBind => self.is_own(address) || is_implicit(address) && egress.allows_any(Transport::Tcp),
            SocketAddrUse::TcpListen => self.is_own(address),
            SocketAddrUse::TcpAccept => self.serve.is_some(),
            // An attempt counts whether it is allowed or not: trying out the rules is scanning too.
            SocketAddrUse::TcpConnect => allowance.connections.take() && egress.allows(Transport::Tcp, address),
            SocketAddrUse::UdpBind => is_implicit(address) && egress.allows_any(Transport::Udp),
            SocketAddrUse::UdpSend => allowance.datagrams.take() && egress.allows(Transport::Udp, address),
            SocketAddrUse::UdpReceive => egress.allows(Transport::Udp, address),
        }
    }

    fn is_own(&self, address: SocketAddr) -> bool {
        self.serve.is_some_and(|own| {
            address.port() == own.port() && (address.ip().is_unspecified() || address.ip().to_canonical() == own.ip().to_canonical())
        })
    }
}

fn is_implicit(address: SocketAddr) -> bool {
    address.port() == 0 && address.ip().is_unspecified()
}

#[cfg(test)]
mod tests {
    use dewar_protocol::EgressRule;

    use super::*;
    use crate::EgressPolicy;
    use crate::network::{NetworkConfig, Networks};

    fn sockets(serve: Option<&str>, egress: EgressPolicy) -> Sockets {
        let app = Networks::new(&NetworkConfig::default()).unwrap().alone();
        Sockets { serve: serve.map(|address| address.parse().unwrap()), network: InstanceNetwork::new(app, egress) }
    }

    fn check(sockets: &Sockets, purpose: SocketAddrUse, address: &str) -> bool {
        sockets.allows(address.parse().unwrap(), purpose)
    }

    #[test]
    fn a_guest_serves_on_its_own_address_only() {
        let sockets = sockets(Some("10.0.0.5:61001"), EgressPolicy::default());
        for (address, own) in [
            ("10.0.0.5:61001", true),
            ("0.0.0.0:61001", true),
            ("[::]:61001", true),
            ("10.0.0.6:61001", false),
            ("0.0.0.0:61002", false),
            ("0.0.0.0:0", false),
            ("0.0.0.0:80", false),
        ] {
            assert_eq!(check(&sockets, SocketAddrUse::TcpBind, address), own, "bind {address}");
            assert_eq!(check(&sockets, SocketAddrUse::TcpListen, address), own, "listen {address}");
            assert!(!check(&sockets, SocketAddrUse::UdpBind, address), "udp {address}");
            assert!(!check(&sockets, SocketAddrUse::TcpConnect, address), "connect {address}");
        }
        assert!(check(&sockets, SocketAddrUse::TcpAccept, "8.8.8.8:1"));
    }

    #[test]
    fn a_guest_that_may_connect_still_listens_nowhere_else() {
        let rule =
            EgressRule { protocol: "tcp".into(), destination: "8.8.8.8".into(), ports: None, icmp_type: None, code: None, log: None };
        let sockets = sockets(None, EgressPolicy::new(&[rule]).unwrap());
        assert!(check(&sockets, SocketAddrUse::TcpConnect, "8.8.8.8:53"));
        assert!(check(&sockets, SocketAddrUse::TcpBind, "0.0.0.0:0"));
        assert!(!check(&sockets, SocketAddrUse::TcpListen, "0.0.0.0:0"));
        assert!(!check(&sockets, SocketAddrUse::TcpListen, "0.0.0.0:40000"));
        assert!(!check(&sockets, SocketAddrUse::TcpAccept, "8.8.8.8:1"));
        assert!(!check(&sockets, SocketAddrUse::UdpSend, "8.8.8.8:53"));
    }

    #[test]
    fn attempts_and_datagrams_run_out() {
        let rule = |destination: &str| EgressRule {
            protocol: "all".into(),
            destination: destination.into(),
            ports: None,
            icmp_type: None,
            code: None,
            log: None,
        };
        let sockets = sockets(None, EgressPolicy::new(&[rule("8.8.8.8")]).unwrap());
        for purpose in [SocketAddrUse::TcpConnect, SocketAddrUse::UdpSend] {
            let allowed = (0..100_000).take_while(|_| check(&sockets, purpose, "8.8.8.8:53")).count();
            assert!((200..100_000).contains(&allowed), "{allowed} of {purpose:?}");
        }
        assert!(check(&sockets, SocketAddrUse::UdpReceive, "8.8.8.8:53"), "what others send is not the guest's doing");
    }
}

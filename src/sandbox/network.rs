//! The network as guests have it: what all instances of an app share of it, and how much of it one instance may use.

mod allowance;
mod lookup;
mod names;
mod sockets;
mod view;

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::{fmt, io};

use rustls::ClientConfig;

use crate::EgressPolicy;
use crate::outbound::pool::Pool;
use crate::outbound::tls;

pub(crate) use allowance::Allowance;
pub(crate) use names::{LookupError, Names, Resolver, parse_host};
pub(crate) use sockets::Sockets;
pub(crate) use view::{HeldSockets, NetworkView, add_to_linker};

/// Resolves a host name; blocks meanwhile.
pub type Resolve = fn(&str) -> io::Result<Vec<IpAddr>>;

/// How guests reach the network.
#[derive(Clone)]
pub struct NetworkConfig {
    /// PEM file with certificates of authorities that are trusted for `https` besides those that the host trusts.
    pub ca_file: Option<PathBuf>,
    /// How names are resolved.
    pub resolve: Resolve,
}

impl Default for NetworkConfig {
    /// What the host trusts, and how the host resolves names.
    fn default() -> Self {
        Self { ca_file: None, resolve: names::by_the_host }
    }
}

impl fmt::Debug for NetworkConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NetworkConfig").field("ca_file", &self.ca_file).finish_non_exhaustive()
    }
}

/// Why guests cannot have a network.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The operator's file of authorities.
    #[error("read authorities for https from {path}: {problem}")]
    CaFile {
        /// Which.
        path: PathBuf,
        /// Why.
        problem: String,
    },
    /// What the TLS library says.
    #[error("set up TLS")]
    Tls(#[from] rustls::Error),
}

/// The network of a process: what its apps have is kept for as long as some instance of each runs.
pub(crate) struct Networks {
    tls: Arc<ClientConfig>,
    resolver: Resolver,
    apps: Mutex<HashMap<String, Weak<AppNetwork>>>,
}

/// What the instances of one app share: names that were looked up, connections for their requests, TLS sessions.
pub(crate) struct AppNetwork {
    pub(crate) names: Names,
    pub(crate) pool: Arc<Pool>,
    pub(crate) tls: Arc<ClientConfig>,
}

impl Networks {
    pub(crate) fn new(config: &NetworkConfig) -> Result<Self, NetworkError> {
        let tls = tls::client_config(config.ca_file.as_deref())?;
        Ok(Self { tls, resolver: Resolver::new(config.resolve), apps: Mutex::default() })
    }

    /// What the instances of this app share.
    pub(crate) fn of_app(&self, app: &str) -> Arc<AppNetwork> {
        let mut apps = self.apps.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(network) = apps.get(app).and_then(Weak::upgrade) {
            return network;
        }
        apps.retain(|_, network| network.strong_count() > 0);
        let network = self.alone();
        apps.insert(app.to_owned(), Arc::downgrade(&network));
        network
    }

    /// For a guest that shares with nobody.
    pub(crate) fn alone(&self) -> Arc<AppNetwork> {
        let tls = tls::with_sessions_of_its_own(&self.tls);
        Arc::new(AppNetwork { names: Names::new(self.resolver.clone()), pool: Arc::default(), tls })
    }
}

/// The network of one instance: what all its stores draw on.
pub(crate) struct InstanceNetwork {
    pub(crate) app: Arc<AppNetwork>,
    pub(crate) egress: EgressPolicy,
    pub(crate) allowance: Allowance,
}

impl InstanceNetwork {
    pub(crate) fn new(app: Arc<AppNetwork>, egress: EgressPolicy) -> Arc<Self> {
        Arc::new(Self { app, egress, allowance: Allowance::default() })
    }
}

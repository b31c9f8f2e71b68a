//! Files of instances and logs of staging tasks over HTTP.
//!
//! ```text
//! request → signature ([`dewar_protocol::FileUrls`]) → whose files? (the cell) → open below the root (`open.rs`)
//!                                                                                 ├ directory → `listing.rs`
//!                                                                                 └ file → `content.rs`, or `tail.rs` as it grows
//! ```
//!
//! An instance's root is its directory, with `app`, `tmp` and `logs`; a crash's is what is kept of it; a staging task's has the log at
//! the path where the original had it, and nothing else: no message hands out a URL to anything else of a task.

mod content;
mod listing;
mod open;
mod places;
mod range;
mod refusal;
mod server;
mod shares;
mod stall;
mod tail;
mod v1;
mod v2;

#[cfg(test)]
mod tests;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use dewar_core::{FilesConfig, FilesRoute, FilesV1};
use dewar_protocol::{FileUrls, Secret};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::info;

use self::places::Places;
use self::shares::Shares;
use self::v1::OldServer;
use self::v2::FileServer;
use crate::base_dir::Paths;
use crate::config::FilesSettings;
use crate::driver::Asked;

/// Responses at a time about one instance or staging task, of both servers; one more is refused.
const RESPONSES_EACH: usize = 16;

/// File servers whose ports are taken, and nothing more yet.
#[derive(Debug)]
pub(crate) struct FileServers {
    settings: FilesSettings,
    told: FilesConfig,
    v2: TcpListener,
    v1: Option<TcpListener>,
}

/// An address that cannot be had.
#[derive(Debug)]
pub(crate) struct NotBound {
    pub(crate) address: SocketAddr,
    pub(crate) source: io::Error,
}

impl FileServers {
    /// Takes the ports. `fresh_id` draws 32 hex digits.
    ///
    /// # Errors
    /// When one is taken.
    pub(crate) async fn bind(settings: &FilesSettings, ip: IpAddr, mut fresh_id: impl FnMut() -> String) -> Result<Self, NotBound> {
        let (v2, address) = bind(ip, settings.v2_port).await?;
        let (id, key) = (fresh_id(), Secret(fresh_id()));
        let (base, route) = match &settings.domain {
            Some(domain) => {
                // A port is for who reads URLs; routers know host names.
                let host = domain.split_once(':').map_or(domain.as_str(), |(host, _)| host);
                let route = FilesRoute { host_name: format!("{id}.{host}"), port: address.port() };
                (format!("{}://{id}.{domain}", settings.scheme), Some(route))
            }
            None => (format!("http://{address}"), None),
        };
        let (mut v1, mut told_v1) = (None, None);
        if let Some(port) = settings.v1_port {
            let (listener, address) = bind(ip, port).await?;
            let credentials = Secret((fresh_id(), fresh_id()));
            told_v1 = Some(FilesV1 { uri: format!("http://{address}{}", v1::BASE), credentials });
            v1 = Some(listener);
        }
        let told = FilesConfig { urls: FileUrls::new(base, key), route, v1: told_v1 };
        Ok(Self { settings: settings.clone(), told, v2, v1 })
    }

    /// What the cell tells others.
    pub(crate) fn told(&self) -> &FilesConfig {
        &self.told
    }

    /// Serves until `stop` is cancelled.
    pub(crate) fn run(self, paths: Paths, requests: mpsc::Sender<Asked>, tasks: &TaskTracker, stop: &CancellationToken) {
        let (places, responses) = (Places::new(paths, requests), Arc::new(Shares::new(RESPONSES_EACH)));
        if let (Some(listener), Some(told)) = (self.v1, self.told.v1) {
            let server = Arc::new(OldServer::new(told.credentials, places.clone(), Arc::clone(&responses)));
            let respond = move |request| {
                let server = Arc::clone(&server);
                async move { server.respond(request).await }
            };
            tasks.spawn(server::serve(listener, server::LONGEST, respond, tasks.clone(), stop.clone()));
        }
        let server = Arc::new(FileServer::new(self.told.urls, places, responses, self.settings.streaming_timeout));
        let respond = move |request| {
            let server = Arc::clone(&server);
            async move { server.respond(request).await }
        };
        tasks.spawn(server::serve(self.v2, server::LONGEST, respond, tasks.clone(), stop.clone()));
    }
}

async fn bind(ip: IpAddr, port: u16) -> Result<(TcpListener, SocketAddr), NotBound> {
    let address = SocketAddr::new(ip, port);
    let bound = TcpListener::bind(address).await.and_then(|listener| Ok((listener.local_addr()?, listener)));
    let (address, listener) = bound.map_err(|source| NotBound { address, source })?;
    info!(%address, "file server listens");
    Ok((listener, address))
}

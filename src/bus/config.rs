//! From configuration to the options of a connection: addresses, credentials, certificates.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use async_nats::{ConnectOptions, ServerAddr};
use dewar_protocol::Secret;
use percent_encoding::percent_decode_str;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::BusError;

/// A server that does not finish the handshake within this time counts as unreachable.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How often a silent connection is probed, where nobody wants anything else.
const PING_INTERVAL: Duration = Duration::from_secs(30);

/// Which NATS servers to use, and how to identify oneself.
#[derive(Clone, Default)]
pub struct BusConfig {
    /// `nats://host:port` or `tls://host:port`, also without scheme or port (4222). Tried in random order. A user and password
    /// (or a lone token) in the address are used when `auth` is [`BusAuth::None`]; all addresses must then carry the same.
    pub servers: Vec<String>,
    /// Credentials, for all servers.
    pub auth: BusAuth,
    /// Given: TLS is required. A `tls://` address requires it too, and then trusts the system's certificate authorities.
    pub tls: Option<BusTls>,
    /// The name under which the server lists this client.
    pub name: String,
    /// A silent connection is probed this often; after two unanswered probes it counts as lost. `None`: every 30 s.
    pub ping_interval: Option<Duration>,
}

impl fmt::Debug for BusConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let servers: Vec<String> = self.servers.iter().map(|text| without_credentials(text)).collect();
        f.debug_struct("BusConfig")
            .field("servers", &servers)
            .field("auth", &self.auth)
            .field("tls", &self.tls)
            .field("name", &self.name)
            .field("ping_interval", &self.ping_interval)
            .finish()
    }
}

/// Credentials of a client.
#[derive(Debug, Clone, Default)]
pub enum BusAuth {
    /// None, or those in the servers' addresses.
    #[default]
    None,
    /// User and password.
    UserPassword {
        /// User name.
        user: String,
        /// Password.
        password: Secret<String>,
    },
    /// A token shared by all clients.
    Token(Secret<String>),
    /// Seed of an Ed25519 nkey (`SU…`); signs the server's nonce, never leaves the process.
    NkeySeed(Secret<String>),
    /// A `.creds` file with a user JWT and its nkey seed. Read once.
    CredentialsFile(PathBuf),
}

/// Certificates of a TLS connection, PEM files. Read again at every reconnect, so that they can be renewed in place.
#[derive(Debug, Clone, Default)]
pub struct BusTls {
    /// Certificate authorities to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// Client certificate chain; needs `key_file`.
    pub cert_file: Option<PathBuf>,
    /// Private key of the client certificate.
    pub key_file: Option<PathBuf>,
}

/// The servers of a configuration, with the credentials taken out of their addresses.
#[derive(Debug)]
pub(crate) struct Servers {
    pub(crate) addresses: Vec<ServerAddr>,
    /// Credentials that stood in the addresses.
    auth: BusAuth,
}

impl Servers {
    pub(crate) fn parse(texts: &[String]) -> Result<Self, BusError> {
        let mut addresses = Vec::with_capacity(texts.len());
        let mut found: Option<Userinfo> = None;
        for text in texts {
            let (address, userinfo) = parse_server(text)?;
            addresses.push(address);
            match (&found, userinfo) {
                (None, Some(userinfo)) => found = Some(userinfo),
                (Some(earlier), Some(userinfo)) if *earlier != userinfo => return Err(BusError::ConflictingCredentials),
                (_, _) => {}
            }
        }
        if addresses.is_empty() {
            return Err(BusError::NoServers);
        }
        Ok(Self { addresses, auth: found.map_or(BusAuth::None, Userinfo::into_auth) })
    }

    /// The addresses as an operator may see them.
    pub(crate) fn display(&self) -> String {
        let names: Vec<String> =
            self.addresses.iter().map(|address| format!("{}://{}:{}", address.scheme(), address.host(), address.port())).collect();
        names.join(", ")
    }
}

/// Options with everything that a configuration decides; files are read now so that a mistake is an error and not an endless retry.
pub(crate) async fn connect_options(config: &BusConfig, servers: &Servers) -> Result<ConnectOptions, BusError> {
    let mut options = ConnectOptions::new()
        .name(&config.name)
        .retry_on_initial_connect()
        .connection_timeout(CONNECT_TIMEOUT)
        .ping_interval(config.ping_interval.unwrap_or(PING_INTERVAL));
    if let Some(tls) = &config.tls {
        options = with_tls(options.require_tls(true), tls).await?;
    }
    // rustls finds its provider by itself only while exactly one is compiled in, which other crates decide. An error means that
    // somebody has installed one already, which serves as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let auth = match &config.auth {
        BusAuth::None => &servers.auth,
        given => given,
    };
    with_auth(options, auth).await
}

async fn with_auth(options: ConnectOptions, auth: &BusAuth) -> Result<ConnectOptions, BusError> {
    Ok(match auth {
        BusAuth::None => options,
        BusAuth::UserPassword { user, password } => options.user_and_password(user.clone(), password.expose().clone()),
        BusAuth::Token(token) => options.token(token.expose().clone()),
        BusAuth::NkeySeed(seed) => {
            let seed = seed.expose().trim();
            nkeys::KeyPair::from_seed(seed).map_err(|error| BusError::InvalidNkeySeed { reason: error.to_string() })?;
            options.nkey(seed.to_owned())
        }
        BusAuth::CredentialsFile(path) => {
            options.credentials_file(path).await.map_err(|source| BusError::Credentials { path: path.clone(), source })?
        }
    })
}

async fn with_tls(mut options: ConnectOptions, tls: &BusTls) -> Result<ConnectOptions, BusError> {
    if let Some(path) = &tls.ca_file {
        check_pem(path, certificates).await?;
        options = options.add_root_certificates(path.clone());
    }
    match (&tls.cert_file, &tls.key_file) {
        (None, None) => Ok(options),
        (Some(cert), Some(key)) => {
            check_pem(cert, certificates).await?;
            check_pem(key, |pem| PrivateKeyDer::from_pem_slice(pem).map(drop).map_err(io::Error::other)).await?;
            Ok(options.add_client_certificate(cert.clone(), key.clone()))
        }
        (Some(_), None) | (None, Some(_)) => Err(BusError::IncompleteClientCertificate),
    }
}

async fn check_pem(path: &PathBuf, check: impl FnOnce(&[u8]) -> io::Result<()>) -> Result<(), BusError> {
    let checked = tokio::fs::read(path).await.and_then(|pem| check(&pem));
    checked.map_err(|source| BusError::Tls { path: path.clone(), source })
}

fn certificates(pem: &[u8]) -> io::Result<()> {
    let found: Vec<_> = CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(io::Error::other)?;
    if found.is_empty() { Err(io::Error::other("holds no certificate")) } else { Ok(()) }
}

/// User and, unless it is a token, password of an address, percent-decoded.
#[derive(PartialEq, Eq)]
struct Userinfo {
    user: String,
    password: Option<String>,
}

impl Userinfo {
    /// NATS takes a user without password for a token.
    fn into_auth(self) -> BusAuth {
        match self.password {
            Some(password) => BusAuth::UserPassword { user: self.user, password: Secret(password) },
            None => BusAuth::Token(Secret(self.user)),
        }
    }
}

fn parse_server(text: &str) -> Result<(ServerAddr, Option<Userinfo>), BusError> {
    let text = text.trim();
    let invalid = |reason: String| BusError::InvalidServer { server: without_credentials(text), reason };
    let address: ServerAddr = text.parse().map_err(|error: io::Error| invalid(error.to_string()))?;
    if !matches!(address.scheme(), "nats" | "tls") {
        return Err(invalid(format!("scheme `{}` is neither `nats` nor `tls`", address.scheme())));
    }
    if address.host().is_empty() {
        return Err(invalid("names no host".to_owned()));
    }
    let decode = |part: &str| percent_decode_str(part).decode_utf8_lossy().into_owned();
    let userinfo = address.username().map(|user| Userinfo { user: decode(user), password: address.password().map(decode) });
    let mut url = address.into_inner();
    if url.set_username("").and_then(|()| url.set_password(None)).is_err() {
        return Err(invalid("cannot carry credentials".to_owned()));
    }
    let address = ServerAddr::from_url(url).map_err(|error| invalid(error.to_string()))?;
    Ok((address, userinfo))
}

/// An address that may not even parse, without anything that might be a credential: what stands before the last `@` of it.
fn without_credentials(text: &str) -> String {
    let (scheme, rest) = text.split_once("://").map_or((None, text), |(scheme, rest)| (Some(scheme), rest));
    let rest = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
    scheme.map_or_else(|| rest.to_owned(), |scheme| format!("{scheme}://{rest}"))
}

#[cfg(test)]
mod tests;

//! TLS of the agent's own connections: those that its HTTPS API takes, and those that it makes to a Cloud Controller and to HM9000.
//!
//! Certificates and keys are PEM. TLS 1.2 and 1.3, HTTP/1.1 only.

use std::fmt;
use std::sync::Arc;

use dewar_protocol::Secret;
use reqwest::{Certificate, ClientBuilder, Identity};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};

#[cfg(test)]
mod tests;

/// A certificate, with those that lead to an authority, and the private key that belongs to it.
#[derive(Debug, Clone)]
pub(crate) struct KeyPair {
    pub(crate) certificates: Vec<u8>,
    pub(crate) key: Secret<Vec<u8>>,
}

/// Why certificates and keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    #[error("the certificates hold none, or something else")]
    Certificates,
    #[error("the key file holds no private key")]
    Key,
    #[error("the authorities' file holds no certificate, or something else")]
    Authorities,
    #[error("certificate and key cannot be used: {0}")]
    Pair(#[from] rustls::Error),
    #[error("the authorities cannot be used: {0}")]
    Verifier(#[from] VerifierBuilderError),
    #[error("certificate and key cannot be used: {0}")]
    Client(String),
}

/// What a server shows, and whom it lets in.
#[derive(Clone)]
pub struct ServerTls {
    pub(crate) config: Arc<ServerConfig>,
    /// Whether clients must have a certificate.
    pub(crate) mutual: bool,
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerTls").field("mutual", &self.mutual).finish_non_exhaustive()
    }
}

impl ServerTls {
    /// With `authorities` only clients are let in that one of them has signed.
    pub(crate) fn new(own: &KeyPair, authorities: Option<&[u8]>) -> Result<Self, TlsError> {
        let certificates = certificates(&own.certificates).ok_or(TlsError::Certificates)?;
        let key = PrivateKeyDer::from_pem_slice(own.key.expose()).map_err(|_| TlsError::Key)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
        let builder = match authorities {
            None => builder.with_no_client_auth(),
            Some(authorities) => {
                let mut roots = RootCertStore::empty();
                for authority in self::certificates(authorities).ok_or(TlsError::Authorities)? {
                    roots.add(authority).map_err(|_| TlsError::Authorities)?;
                }
                builder.with_client_cert_verifier(WebPkiClientVerifier::builder_with_provider(roots.into(), provider).build()?)
            }
        };
        let mut config = builder.with_single_cert(certificates, key)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { config: Arc::new(config), mutual: authorities.is_some() })
    }
}

/// Whom a client trusts, and what it shows.
#[derive(Clone, Default)]
pub struct ClientTls {
    /// `None`: the authorities that the system trusts.
    authorities: Option<Vec<Certificate>>,
    identity: Option<Identity>,
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientTls").field("identity", &self.identity.is_some()).finish_non_exhaustive()
    }
}

impl ClientTls {
    pub(crate) fn new(own: Option<&KeyPair>, authorities: Option<&[u8]>) -> Result<Self, TlsError> {
        install_provider();
        let authorities = authorities.map(|pem| {
            let found = Certificate::from_pem_bundle(pem).ok().filter(|found| !found.is_empty());
            found.ok_or(TlsError::Authorities)
        });
        let identity = own.map(|own| {
            certificates(&own.certificates).ok_or(TlsError::Certificates)?;
            PrivateKeyDer::from_pem_slice(own.key.expose()).map_err(|_| TlsError::Key)?;
            let both = [&own.certificates[..], b"\n", own.key.expose()].concat();
            Identity::from_pem(&both).map_err(|error| TlsError::Client(crate::transfer::reason(&error)))
        });
        let tls = Self { authorities: authorities.transpose()?, identity: identity.transpose()? };
        // Whether the key belongs to the certificate is found out here.
        let trial = tls.apply(reqwest::Client::builder().tls_certs_only([]));
        trial.build().map_err(|error| TlsError::Client(crate::transfer::reason(&error)))?;
        Ok(tls)
    }

    /// A client that trusts and shows this.
    pub(crate) fn apply(&self, mut builder: ClientBuilder) -> ClientBuilder {
        if let Some(authorities) = &self.authorities {
            builder = builder.tls_certs_only(authorities.clone());
        }
        match &self.identity {
            Some(identity) => builder.identity(identity.clone()),
            None => builder,
        }
    }

    /// Whether the system's authorities are trusted, and not some of the operator's.
    pub(crate) fn trusts_the_system(&self) -> bool {
        self.authorities.is_none()
    }
}

/// Chooses the process's cryptography, if nobody has.
pub(crate) fn install_provider() {
    // Fails when there is one already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// All of them, or `None` where there are none or one is none.
fn certificates(pem: &[u8]) -> Option<Vec<CertificateDer<'static>>> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    found.ok().filter(|found| !found.is_empty())
}

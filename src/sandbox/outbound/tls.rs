//! TLS towards origins: whom it trusts, and what goes wrong.

use std::path::Path;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use tracing::warn;

use crate::network::NetworkError;

/// TLS sessions kept for an app, to be resumed.
const SESSIONS: usize = 64;

/// Trusts what the host trusts and what is in the operator's file. TLS 1.2 and 1.3, HTTP/1.1, no client certificate.
pub(crate) fn client_config(ca_file: Option<&Path>) -> Result<Arc<ClientConfig>, NetworkError> {
    let mut roots = RootCertStore::empty();
    let native = rustls_native_certs::load_native_certs();
    let (trusted, _) = roots.add_parsable_certificates(native.certs);
    if trusted == 0 {
        warn!(errors = ?native.errors, "this host has no certificate authorities: guests can trust only those that are configured");
    }
    if let Some(path) = ca_file {
        add_operators(&mut roots, path).map_err(|problem| NetworkError::CaFile { path: path.to_owned(), problem })?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// The same for another app: an origin must not know one app by the session of another.
pub(crate) fn with_sessions_of_its_own(config: &ClientConfig) -> Arc<ClientConfig> {
    let mut config = config.clone();
    config.resumption = Resumption::in_memory_sessions(SESSIONS);
    Arc::new(config)
}

fn add_operators(roots: &mut RootCertStore, path: &Path) -> Result<(), String> {
    let certificates = CertificateDer::pem_file_iter(path).map_err(|error| error.to_string())?;
    let mut added = 0;
    for certificate in certificates {
        let certificate = certificate.map_err(|error| error.to_string())?;
        roots.add(certificate).map_err(|error| error.to_string())?;
        added += 1;
    }
    if added == 0 { Err("it holds no certificate".to_owned()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_authorities_is_told_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("authorities.pem");
        for (content, problem) in [(None, "No such file"), (Some(""), "no certificate"), (Some("-----BEGIN CERTIFICATE-----\nAA\n"), "")] {
            if let Some(content) = content {
                std::fs::write(&path, content).unwrap();
            }
            let error = client_config(Some(&path)).unwrap_err().to_string();
            assert!(error.contains("authorities.pem: ") && error.contains(problem), "{error}");
        }
    }
}

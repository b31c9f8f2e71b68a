//! `ssl.*`, `cc_url`, `cc.*` and `hm9000.*`: what goes over HTTP(S) instead of the bus.

use std::fs::File;
use std::io::Read as _;

use dewar_protocol::Secret;
use reqwest::Url;

use super::reader::Reader;
use crate::tls::{ClientTls, KeyPair, ServerTls};
use crate::transfer::{parse_http, without_secrets};

/// Bytes of the largest file with certificates or a key; a larger one is refused.
const PEM_BYTES: u64 = 1 << 20;

/// The server that takes work over HTTPS.
#[derive(Debug, Clone)]
pub struct HttpsApiConfig {
    /// Port; 0: any.
    pub port: u16,
    /// What it shows, and whom it lets in.
    pub tls: ServerTls,
    /// Host that is advertised; `None`: nothing is.
    pub advertised_host: Option<String>,
}

/// The Cloud Controller's internal API.
#[derive(Debug, Clone)]
pub struct ControllerConfig {
    /// Its base, with credentials.
    pub url: Secret<Url>,
    /// Whom to trust, and what to show.
    pub tls: ClientTls,
}

/// A health manager that takes heartbeats over HTTPS.
#[derive(Debug, Clone)]
pub struct Hm9000Config {
    /// Its base.
    pub url: Secret<Url>,
    /// Whom to trust, and what to show.
    pub tls: ClientTls,
}

/// `ssl.*` and `service_name`. Without the section there is no server.
pub(super) fn api(reader: &mut Reader) -> Option<HttpsApiConfig> {
    let service_name = reader.text("service_name");
    if !reader.has("ssl") {
        return None;
    }
    if !reader.has("ssl.port") {
        reader.error("ssl.port", "port must be configured");
    }
    let port = u16::try_from(reader.integer("ssl.port", 0, 0..=65_535)).unwrap_or(0);
    let advertise = reader.flag("ssl.advertise", service_name.is_some());
    if advertise && service_name.is_none() {
        reader.error("service_name", "is missing, though `ssl.advertise` is on");
    }
    let mut files = Files { section: "ssl", title: "SSL", missing: Vec::new() };
    let own = files.pair(reader, ["ssl.cert_file", "ssl.key_file"]);
    let authorities = reader.has("ssl.ca_file").then(|| files.read(reader, "ssl.ca_file"));
    if !files.all_there(reader) {
        return None;
    }
    let authorities = match authorities {
        Some(authorities) => Some(authorities?),
        None => None,
    };
    let tls = ServerTls::new(&own?, authorities.as_deref()).map_err(|error| reader.error("ssl", error)).ok()?;
    Some(HttpsApiConfig { port, tls, advertised_host: service_name.filter(|_| advertise) })
}

/// `cc_url` and `cc.*`. Without certificates the system's authorities are trusted, and nothing is shown.
pub(super) fn controller(reader: &mut Reader) -> Option<ControllerConfig> {
    let url = url(reader, "cc_url", &["http", "https"]);
    let mut files = Files { section: "cc", title: "CC", missing: Vec::new() };
    let own = (reader.has("cc.cert_file") || reader.has("cc.key_file")).then(|| files.pair(reader, ["cc.cert_file", "cc.key_file"]));
    let authorities = reader.has("cc.ca_file").then(|| files.read(reader, "cc.ca_file"));
    if !files.all_there(reader) {
        return None;
    }
    let tls = ClientTls::new(own.flatten().as_ref(), authorities.flatten().as_deref());
    let tls = tls.map_err(|error| reader.error("cc", error)).ok()?;
    Some(ControllerConfig { url: url?, tls })
}

/// `hm9000.*`, all of them or none.
pub(super) fn hm9000(reader: &mut Reader) -> Option<Hm9000Config> {
    if !reader.has("hm9000") {
        return None;
    }
    if !reader.has("hm9000.listener_uri") {
        reader.error("hm9000.listener_uri", "is missing");
    }
    let url = url(reader, "hm9000.listener_uri", &["https"]);
    let mut files = Files { section: "hm9000", title: "HM9000", missing: Vec::new() };
    let own = files.pair(reader, ["hm9000.cert_file", "hm9000.key_file"]);
    let authorities = files.read(reader, "hm9000.ca_file");
    if !files.all_there(reader) {
        return None;
    }
    let tls = ClientTls::new(Some(&own?), Some(&authorities?)).map_err(|error| reader.error("hm9000", error)).ok()?;
    Some(Hm9000Config { url: url?, tls })
}

fn url(reader: &mut Reader, key: &'static str, schemes: &[&str]) -> Option<Secret<Url>> {
    let text = reader.text_shown_as(key, without_secrets)?;
    let url = parse_http(&text).filter(|url| schemes.contains(&url.scheme()));
    if url.is_none() {
        reader.error(key, format_args!("must be a URL with {}", schemes.join(" or ")));
    }
    url.map(Secret)
}

/// Reads the files of a section, and notes which are not there: the original told of all of them in one message.
struct Files {
    section: &'static str,
    title: &'static str,
    missing: Vec<String>,
}

impl Files {
    fn pair(&mut self, reader: &mut Reader, [certificates, key]: [&'static str; 2]) -> Option<KeyPair> {
        let certificates = self.read(reader, certificates);
        let key = self.read(reader, key);
        Some(KeyPair { certificates: certificates?, key: Secret(key?) })
    }

    fn read(&mut self, reader: &mut Reader, key: &'static str) -> Option<Vec<u8>> {
        if !reader.has(key) {
            reader.error(key, "is missing");
        }
        let path = reader.text(key)?;
        if !std::path::Path::new(&path).is_file() {
            self.missing.push(path);
            return None;
        }
        let mut content = Vec::new();
        match File::open(&path).and_then(|file| file.take(PEM_BYTES + 1).read_to_end(&mut content)) {
            Ok(bytes) if u64::try_from(bytes).is_ok_and(|bytes| bytes <= PEM_BYTES) => return Some(content),
            Ok(_) => reader.error(key, format_args!("must name a file of certificates or a key, and {path} is too large for that")),
            Err(error) => reader.error(key, format_args!("cannot be read: {path}: {error}")),
        }
        None
    }

    fn all_there(&self, reader: &mut Reader) -> bool {
        if !self.missing.is_empty() {
            let (title, missing) = (self.title, self.missing.join(", "));
            reader.error(self.section, format_args!("Invalid {title} Certs: One or more files not found: {missing}"));
        }
        self.missing.is_empty()
    }
}

#[cfg(test)]
mod tests;

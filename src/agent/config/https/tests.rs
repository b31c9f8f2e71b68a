use std::fs;
use std::path::Path;

use super::super::AgentConfig;
use crate::test_authority::Authority;

/// The least that an agent can be told.
const LEAST: &str = "base_dir: /tmp/agent\nnats_servers: [nats://127.0.0.1:4222]\n";

fn errors(yaml: &str) -> Vec<String> {
    AgentConfig::from_yaml(&format!("{LEAST}{yaml}")).map(|(config, _)| config).unwrap_err().iter().map(ToString::to_string).collect()
}

fn good(yaml: &str) -> AgentConfig {
    let (config, warnings) = AgentConfig::from_yaml(&format!("{LEAST}{yaml}")).unwrap();
    assert_eq!(warnings, Vec::<String>::new());
    config
}

/// `ca.pem`, `cert.pem` and `key.pem`.
fn certificates() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let (certificate, key) = authority.signs();
    for (name, content) in [("ca.pem", authority.pem()), ("cert.pem", certificate), ("key.pem", key)] {
        fs::write(dir.path().join(name), content).unwrap();
    }
    dir
}

fn files(dir: &Path) -> String {
    let dir = dir.display();
    format!("key_file: {dir}/key.pem, cert_file: {dir}/cert.pem, ca_file: {dir}/ca.pem")
}

#[test]
fn without_its_section_each_is_off() {
    let config = good("");
    assert!(config.https_api.is_none() && config.controller.is_none() && config.hm9000.is_none());
}

#[test]
fn the_api_is_advertised_where_it_has_a_name() {
    let dir = certificates();
    let api = |more: &str, ssl: &str| good(&format!("{more}ssl: {{ port: 1234, {}{ssl} }}\n", files(dir.path()))).https_api.unwrap();
    let named = api("service_name: dea.service\n", "");
    assert_eq!((named.port, named.advertised_host.as_deref(), named.tls.mutual), (1234, Some("dea.service"), true));
    assert_eq!(api("", "").advertised_host, None);
    assert_eq!(api("service_name: dea.service\n", ", advertise: false").advertised_host, None);
    let (certificate, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    let open = good(&format!("ssl: {{ port: 1, cert_file: {}, key_file: {} }}\n", certificate.display(), key.display()));
    assert!(!open.https_api.unwrap().tls.mutual, "without authorities whoever comes is let in");
}

#[test]
fn what_is_wrong_with_the_api_is_told_with_its_key() {
    let dir = certificates();
    let files = files(dir.path());
    assert_eq!(errors(&format!("ssl: {{ {files} }}\n")), ["`ssl.port` port must be configured"]);
    assert_eq!(
        errors("ssl: { port: 1, key_file: /missing/key, cert_file: /missing/cert }\n"),
        ["`ssl` Invalid SSL Certs: One or more files not found: /missing/cert, /missing/key"]
    );
    assert_eq!(errors("ssl: { port: 1 }\n"), ["`ssl.cert_file` is missing", "`ssl.key_file` is missing"]);
    assert_eq!(errors("ssl: yes\n").last().unwrap(), "`ssl` must be a section with keys of its own");
    let key = dir.path().join("key.pem");
    let twice = errors(&format!("ssl: {{ port: 1, key_file: {0}, cert_file: {0} }}\n", key.display()));
    assert_eq!(twice, ["`ssl` the certificates hold none, or something else"]);
    assert_eq!(
        errors(&format!("ssl: {{ port: 1, advertise: true, {files} }}\n")),
        ["`service_name` is missing, though `ssl.advertise` is on"]
    );
    let unreported = errors(&format!("ssl: {{ port: 1, {files} }}\nstaging: {{ enabled: true }}\n"));
    assert_eq!(unreported, ["`cc_url` is missing, though there is `ssl` and staging is enabled: nobody could be told how a staging ends"]);
    fs::write(&key, vec![b' '; (1 << 20) + 1]).unwrap();
    let large = errors(&format!("ssl: {{ port: 1, {files} }}\n"));
    assert_eq!(large, [format!("`ssl.key_file` must name a file of certificates or a key, and {} is too large for that", key.display())]);
}

#[test]
fn hm9000_takes_all_its_keys_or_none() {
    let dir = certificates();
    let files = files(dir.path());
    let config = good(&format!("hm9000: {{ listener_uri: 'https://hm.example.net:5335', {files} }}\n"));
    assert_eq!(config.hm9000.unwrap().url.expose().as_str(), "https://hm.example.net:5335/");
    assert_eq!(
        errors("hm9000: { listener_uri: 'https://hm', key_file: /missing/key, cert_file: /missing/cert, ca_file: /missing/ca }\n"),
        ["`hm9000` Invalid HM9000 Certs: One or more files not found: /missing/cert, /missing/key, /missing/ca"]
    );
    assert_eq!(errors(&format!("hm9000: {{ listener_uri: 'http://hm', {files} }}\n")), ["`hm9000.listener_uri` must be a URL with https"]);
    assert_eq!(
        errors("hm9000: { listener_uri: 'https://hm' }\n"),
        ["`hm9000.cert_file` is missing", "`hm9000.key_file` is missing", "`hm9000.ca_file` is missing"]
    );
}

#[test]
fn the_controller_may_have_certificates_of_its_own() {
    let dir = certificates();
    let config = good(&format!("cc_url: https://me:hunter2@cc:9023/\ncc: {{ {} }}\n", files(dir.path())));
    assert!(!config.effective_yaml().contains("hunter2"));
    assert!(!config.controller.unwrap().tls.trusts_the_system());
    assert!(good("cc_url: http://cc\n").controller.unwrap().tls.trusts_the_system());
    assert_eq!(errors("cc_url: cc.example.net\n"), ["`cc_url` must be a URL with http or https"]);
    assert_eq!(errors("cc_url: http://cc\ncc: { cert_file: /etc/hostname }\n"), ["`cc.key_file` is missing"]);
}

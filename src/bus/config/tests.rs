use super::*;

fn servers(texts: &[&str]) -> Result<Servers, BusError> {
    Servers::parse(&texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>())
}

#[test]
fn addresses_with_and_without_their_parts() {
    let table = [
        ("127.0.0.1", "nats://127.0.0.1:4222"),
        ("nats.example:5222", "nats://nats.example:5222"),
        ("nats://[::1]:4223", "nats://::1:4223"),
        ("tls://cf:pw@nats.example", "tls://nats.example:4222"),
        ("nats://cf:p%40ss@10.0.0.1:4222", "nats://10.0.0.1:4222"),
        (" nats://token@10.0.0.1 ", "nats://10.0.0.1:4222"),
    ];
    for (text, shown) in table {
        assert_eq!(servers(&[text]).unwrap().display(), shown);
    }
}

#[test]
fn credentials_in_addresses() {
    let user = servers(&["nats://cf:p%40ss@a", "nats://cf:p%40ss@b", "c"]).unwrap();
    assert_eq!(user.display(), "nats://a:4222, nats://b:4222, nats://c:4222");
    assert!(matches!(&user.auth, BusAuth::UserPassword { user, password } if user == "cf" && password.expose() == "p@ss"));
    let token = servers(&["s3cret@a"]).unwrap();
    assert!(matches!(&token.auth, BusAuth::Token(token) if token.expose() == "s3cret"));
    assert!(matches!(servers(&["cf:pw@a", "cf:other@b"]), Err(BusError::ConflictingCredentials)));
    assert!(matches!(servers(&["a"]).unwrap().auth, BusAuth::None));
}

#[test]
fn wrong_addresses_are_named_without_their_credentials() {
    for text in ["http://cf:hunter2@a", "nats://cf:hunter2@a:99999", "nats://cf:hunter2@", "cf:hunter2@a b", "ws://cf:hun@ter2@a"] {
        let error = servers(&[text]).unwrap_err();
        assert!(matches!(error, BusError::InvalidServer { .. }), "{text}: {error}");
        assert!(!format!("{error} {error:?}").contains("hun"), "{text}: {error}");
    }
    assert!(matches!(servers(&[]), Err(BusError::NoServers)));
}

#[test]
fn nothing_prints_credentials() {
    let config = BusConfig {
        servers: vec!["nats://cf:hunter1@a".to_owned(), "hunter2@b".to_owned()],
        auth: BusAuth::UserPassword { user: "cf".to_owned(), password: Secret("hunter3".to_owned()) },
        ..BusConfig::default()
    };
    let servers = Servers::parse(&config.servers[..1]).unwrap();
    let printed = format!("{config:?} {servers:?} {}", servers.display());
    assert!(!printed.contains("hunter"), "{printed}");
}

#[tokio::test]
async fn files_and_seeds_are_checked_before_connecting() {
    let directory = tempfile::tempdir().unwrap();
    let garbage = directory.path().join("garbage.pem");
    std::fs::write(&garbage, "no certificate").unwrap();
    let missing = directory.path().join("missing.pem");
    let tls = |ca_file: Option<&PathBuf>, cert_file: Option<&PathBuf>| BusTls {
        ca_file: ca_file.cloned(),
        cert_file: cert_file.cloned(),
        key_file: None,
    };
    let check = async |auth: BusAuth, tls: Option<BusTls>| {
        let config = BusConfig { servers: vec!["a".to_owned()], auth, tls, ..BusConfig::default() };
        connect_options(&config, &Servers::parse(&config.servers).unwrap()).await.map(drop)
    };
    let error = check(BusAuth::None, Some(tls(Some(&missing), None))).await.unwrap_err();
    assert!(matches!(&error, BusError::Tls { path, .. } if *path == missing), "{error}");
    let error = check(BusAuth::None, Some(tls(Some(&garbage), None))).await.unwrap_err();
    assert!(matches!(&error, BusError::Tls { path, .. } if *path == garbage), "{error}");
    let error = check(BusAuth::None, Some(tls(None, Some(&garbage)))).await.unwrap_err();
    assert!(matches!(error, BusError::IncompleteClientCertificate), "{error}");
    let error = check(BusAuth::NkeySeed(Secret("SUhunter2".to_owned())), None).await.unwrap_err();
    assert!(matches!(error, BusError::InvalidNkeySeed { .. }) && !format!("{error:?}").contains("hunter"), "{error}");
    let error = check(BusAuth::CredentialsFile(missing.clone()), None).await.unwrap_err();
    assert!(matches!(&error, BusError::Credentials { path, .. } if *path == missing), "{error}");
    check(BusAuth::None, None).await.unwrap();
}

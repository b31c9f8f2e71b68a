use std::time::Instant;

use dewar_protocol::Secret;
use reqwest::{Certificate, Client};
use serde_json::json;
use tokio_util::sync::DropGuard;
use tracing_subscriber::layer::SubscriberExt as _;

use super::*;
use crate::log_counts::LogCounts;
use crate::test_authority::Authority;
use crate::tls::{KeyPair, install_provider};

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server that everybody may use, for as long as the last of these lives.
struct Api {
    apps: String,
    client: Client,
    requests: mpsc::Receiver<Asked>,
    _stop: DropGuard,
}

impl Api {
    async fn start() -> Self {
        install_provider();
        let authority = Authority::new();
        let (certificate, key) = authority.signs();
        let own = KeyPair { certificates: certificate.into_bytes(), key: Secret(key.into_bytes()) };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let apps = format!("https://localhost:{}/v1/apps", listener.local_addr().unwrap().port());
        let authority = Certificate::from_pem(authority.pem().as_bytes()).unwrap();
        let client = Client::builder().no_proxy().timeout(PATIENCE).tls_certs_only([authority]).build().unwrap();
        let ((sender, requests), stop) = (mpsc::channel(8), CancellationToken::new());
        let api = HttpsApi::new(listener, &ServerTls::new(&own, None).unwrap(), sender);
        tokio::spawn(api.run(TaskTracker::new(), stop.clone()));
        Self { apps, client, requests, _stop: stop.drop_guard() }
    }

    async fn post(&self, body: String) -> u16 {
        self.client.post(&self.apps).body(body).send().await.unwrap().status().as_u16()
    }
}

#[tokio::test]
async fn of_many_bad_bodies_the_log_tells_of_a_few() {
    let counts = LogCounts::default();
    let _logged = tracing::subscriber::set_default(tracing_subscriber::registry().with(counts.clone()));
    let (api, begun) = (Api::start().await, Instant::now());
    for _ in 0..300 {
        assert_eq!(api.post("{".to_owned()).await, 400);
    }
    let told = counts.by_level()["warn"];
    // Twenty at once, and one a second.
    assert!((20..=20 + begun.elapsed().as_secs() + 2).contains(&told), "{told}");
}

#[tokio::test]
async fn what_was_answered_with_503_is_not_done_later() {
    let mut api = Api::start().await;
    let start = json!({
        "droplet": "shop", "index": 0, "version": "v1", "name": "shop", "uris": [], "services": [], "env": [],
        "sha1": "2fd4e1c67a2d28fced849ee1bb76e7391b93eb12", "executableUri": "http://127.0.0.1:1/", "cc_partition": "default",
        "limits": { "mem": 64, "disk": 64, "fds": 64 },
    });
    // The driver is busy for longer than anybody waits.
    assert_eq!(api.post(start.to_string()).await, 503);
    let late = api.requests.recv().await.unwrap();
    assert!(matches!(&late.request, Request::StartInstanceByHttp(_)), "{late:?}");
    assert_eq!(late.into_input().0, None);

    let (status, in_time) = tokio::join!(api.client.post(&api.apps).body(start.to_string()).send(), async {
        let (input, asker) = api.requests.recv().await.unwrap().into_input();
        let Asker::Here(sender) = asker else { panic!("nobody to answer") };
        sender.send(Answer::Accepted).unwrap();
        input
    });
    assert_eq!((status.unwrap().status().as_u16(), in_time.is_some()), (202, true));
}

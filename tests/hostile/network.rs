//! Guests that talk to whom they should not.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use dewar_protocol::{Bytes, EgressRule};
use dewar_sandbox::EgressPolicy;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

use crate::attack::{Attack, attack, command, driver};
use crate::cpu::SOON;
use crate::fixture::{Instance, Plan};

pub(crate) fn attacks() -> Vec<Attack> {
    vec![
        driver("network::whoever_listens_here", "no rule, no connection").does(everybody_is_refused).serves_on(),
        driver(
            "network::own_networks_by_every_spelling",
            "a rule for everybody is none for loopback, private and link-local addresses, however written",
        )
        .egress(everybody())
        .asks_each(
            &[
                "/fetch?url=http://169.254.169.254/latest/meta-data/",
                "/fetch?url=http://[::ffff:169.254.169.254]/",
                "/fetch?url=http://127.0.0.1:1/",
                "/fetch?url=http://2130706433:1/",
                "/fetch?url=http://0x7f.1:1/",
                "/fetch?url=http://127.1:1/",
                "/fetch?url=http://0177.0.0.1:1/",
                "/fetch?url=http://localhost:1/",
                "/fetch?url=http://[::1]:1/",
                "/fetch?url=http://[::ffff:127.0.0.1]:1/",
                "/fetch?url=http://0.0.0.0:1/",
                "/fetch?url=http://10.0.0.1/",
                "/fetch?url=http://[fd00::1]/",
                "/connect?to=127.0.0.1:1",
                "/connect?to=[::1]:1",
                "/connect?to=[::ffff:10.0.0.1]:80",
                "/connect?to=0.0.0.0:1",
                "/connect?to=169.254.169.254:80",
                "/udp?to=127.0.0.1:53",
            ],
            "422",
        )
        .serves_on(),
        driver("network::its_own_router_and_itself", "the platform's addresses are the operator's own network")
            .egress(everybody())
            // With one turn all come to the same store.
            .http(|limits| limits.concurrent_requests = 1)
            .does(itself_is_refused)
            .serves_on(),
        driver("network::port_theft", "an http app listens nowhere")
            .egress(everybody())
            .asks_each(&["/bind?to=127.0.0.1:0", "/bind?to=0.0.0.0:0", "/bind?to=0.0.0.0:80", "/bind?to=[::]:0"], "422")
            .does(neighbours_port_is_refused)
            .serves_on(),
        command(
            "network::port_theft_by_a_command",
            "a command listens on its own port",
            &["bind:0.0.0.0:0", "bind:127.0.0.1:8099", "bind:[::]:0", "connect:127.0.0.1:22"],
        )
        .dies("app instance exited"),
        driver("network::names_of_the_host", "without a rule no name is resolved")
            .asks_each(&["/resolve?name=localhost", "/resolve?name=metadata.google.internal"], "422")
            .serves_on(),
        driver("network::another_head_in_a_target", "a target is a URI, and a URI has no line ends")
            .asks_each(&["/fetch?url=http://127.0.0.1:1/%0d%0aHost:%20other", "/fetch?url=http://127.0.0.1:1/%20HTTP/1.1%0d%0a"], "400|422")
            .serves_on(),
        attack("network::a_server_that_never_stops", "what a guest keeps of an answer is within its memory", || async {
            with_server(b"HTTP/1.1 200 OK\r\n\r\n", true, "500|504|none|422 OutOfMemory").await;
        }),
        attack("network::a_server_that_never_answers", "the deadline of the answer", || async {
            with_server(b"", false, "504").await;
        }),
        attack("network::a_server_with_a_head_without_end", "a head has a limit, whoever sends it", || async {
            with_server(b"HTTP/1.1 200 OK\r\nx: ", true, "422|504").await;
        }),
        attack("network::a_server_that_talks_nonsense", "an answer that is none is an error code", || async {
            with_server(b"nonsense\r\n\r\n", false, "422").await;
        }),
    ]
}

fn everybody() -> EgressPolicy {
    EgressPolicy::new(&[rule("0.0.0.0/0", None), rule("::/0", None)]).unwrap()
}

fn rule(destination: &str, port: Option<u16>) -> EgressRule {
    let ports = port.map(|port| port.to_string());
    EgressRule { protocol: "all".into(), destination: destination.into(), ports, icmp_type: None, code: None, log: None }
}

async fn refused(app: &Instance, path: &str) {
    let answer = app.get(path).await;
    assert_eq!(answer.status, 422, "{path}: {}", answer.text());
}

async fn everybody_is_refused(app: Arc<Instance>) {
    let somebody = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = somebody.local_addr().unwrap().port();
    for path in ["connect?to=127.0.0.1", "udp?to=127.0.0.1", "fetch?url=http://127.0.0.1", "fetch?url=http://localhost"] {
        refused(&app, &format!("/{path}:{port}")).await;
    }
    let knocked = tokio::time::timeout(Duration::from_millis(50), somebody.accept()).await;
    assert!(knocked.is_err(), "somebody connected");
}

async fn itself_is_refused(app: Arc<Instance>) {
    refused(&app, &format!("/fetch?url=http://{}/", app.address)).await;
    refused(&app, &format!("/connect?to={}", app.address)).await;
    assert_eq!(app.ok("/counter").await, "3", "no request came from itself");
}

async fn neighbours_port_is_refused(app: Arc<Instance>) {
    let neighbour = Plan::of("examples/hello").await.start().await;
    refused(&app, &format!("/bind?to={}", neighbour.address)).await;
    refused(&app, &format!("/bind?to={}", app.address)).await;
}

/// Where the fixture has its settings from: nobody is the operator's but the host itself.
pub(crate) mod origin {
    pub(crate) fn network() -> dewar_sandbox::NetworkConfig {
        dewar_sandbox::NetworkConfig::default()
    }
}

/// A guest fetches from a server that says this, maybe for ever, and nothing else.
async fn with_server(says: &'static [u8], for_ever: bool, sees: &'static str) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let _server = AbortOnDropHandle::new(tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let mut request = [0; 4096];
            let _ = client.read(&mut request).await;
            let mut said = client.write_all(says).await;
            while for_ever && said.is_ok() {
                said = client.write_all(&[b'x'; 16 << 10]).await;
            }
            // Until the guest has gone, if that is all.
            let _ = client.read(&mut request).await;
        }
    }));
    let policy = EgressPolicy::new(&[rule("127.0.0.1", Some(port))]).unwrap();
    let upon = driver("", "")
        .egress(policy)
        .quota(|quota| quota.memory = Bytes(16 << 20))
        .http(|limits| limits.response_timeout = 2 * SOON)
        .asks(&format!("/fetch?url=http://127.0.0.1:{port}/"), sees)
        .serves_on();
    upon.run().await;
}

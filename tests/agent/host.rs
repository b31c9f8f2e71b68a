//! What an agent owns on its host: a directory, a pid file, a port for its status.

use dewar_agent::{Agent, AgentError, BaseDirError};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::world::{World, config, get, guest};

pub(crate) async fn a_directory_has_one_agent() {
    let world = World::new("").await;
    let second = Agent::start(config(world.base.path(), world.broker.addr, ""), CancellationToken::new()).await;
    let error = second.expect_err("two agents share a directory");
    assert!(matches!(&error, AgentError::BaseDir(BaseDirError::InUse { .. })), "{error}");
    assert!(error.to_string().contains(&world.base.path().display().to_string()), "{error}");
    let broker = world.broker.addr;
    let (code, base) = world.shut_down().await;
    assert_eq!(code, 0);
    let stop = CancellationToken::new();
    stop.cancel();
    assert_eq!(Agent::start(config(base.path(), broker, ""), stop).await.unwrap().wait().await, 0);
}

pub(crate) async fn status_needs_credentials_and_tells_no_secrets() {
    let world = World::new("status: { user: me, password: 'pass:word' }\nstaging: { enabled: true }\n").await;
    let address = world.agent.status_addr();
    let authorization = "Basic bWU6cGFzczp3b3Jk";
    for wrong in [None, Some("Basic bWU6d3Jvbmc="), Some("Basic !"), Some("Bearer bWU6cGFzczp3b3Jk"), Some("")] {
        for path in ["/healthz", "/varz", "/metrics", "/other"] {
            assert_eq!(get(address, path, wrong).await.unwrap().0, 401, "{path} {wrong:?}");
        }
    }
    assert_eq!(get(address, "/healthz", Some(authorization)).await.unwrap(), (200, "ok\n".to_owned()));
    assert_eq!(get(address, "/other", Some(authorization)).await.unwrap().0, 404);

    world.start(&world.start_message(&guest("tests/http-driver"), "shop"));
    let found = world.in_state("shop", "RUNNING").await;
    let (status, body) = get(address, "/varz", Some(authorization)).await.unwrap();
    assert_eq!(status, 200);
    let (_, metrics) = get(address, "/metrics", Some(authorization)).await.unwrap();
    for secret in ["hunter2", "pass:word", "SECRET", "GREETING", "executableUri", "services", "credentials"] {
        assert!(!body.contains(secret) && !metrics.contains(secret), "{secret} in {body} {metrics}");
    }
    let varz: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((&varz["type"], &varz["uuid"]), (&json!("DEA"), &json!(world.agent.id().as_str())));
    let instance = &varz["instance_registry"]["shop"][found["instance"].as_str().unwrap()];
    assert_eq!((&instance["state"], &instance["application_uris"]), (&json!("RUNNING"), &json!(["shop.example.net"])));
    assert_eq!((&varz["can_stage"], &varz["bus"]["up"]), (&json!(1), &json!(true)));
    assert!(varz["reservable_stagers"].as_u64().unwrap() > 0 && varz["bus"]["published"].as_u64().unwrap() > 0);
    assert_eq!((&varz["index"], &varz["host"], &varz["stacks"]), (&json!(0), &json!(address.to_string()), &json!(["cflinuxfs2"])));
    assert_eq!(varz["warden_containers"], json!([found["instance"]]));
    assert_eq!(instance["warden_handle"], found["instance"]);
    assert_eq!(instance["limits"], json!({ "mem": 64, "disk": 64, "fds": 64 }));
    assert!(instance["used_memory_in_bytes"].is_u64() && instance["used_disk_in_bytes"].is_u64() && instance["computed_pcpu"].is_f64());
    assert!(varz["warden_request_count"].as_u64().unwrap() >= 2 && varz["warden_error_response_count"] == json!(0));
    assert!(varz["log_counts"].is_object() && varz["start"].is_string());
    assert!(varz["uptime"].as_str().unwrap().starts_with("0d:0h:"), "{body}");
    assert!(!varz["sandbox_allocation"].as_str().unwrap().is_empty());
    for number in [
        "num_cores",
        "mem",
        "cpu",
        "available_memory_ratio",
        "available_disk_ratio",
        "cpu_load_avg",
        "mem_bytes",
        "mem_used_bytes",
        "mem_free_bytes",
    ] {
        assert!(varz[number].is_number(), "{number} in {body}");
    }

    let answer = world.bus.request("vcap.component.discover", &json!({}), crate::world::PATIENCE).await.unwrap();
    let component: Value = serde_json::from_slice(&answer.payload).unwrap();
    assert_eq!((&component["host"], &component["credentials"]), (&json!(address.to_string()), &json!(["me", "pass:word"])));
    assert_eq!((&component["type"], &component["index"], &component["uuid"]), (&json!("DEA"), &json!(0), &varz["uuid"]));
    assert_eq!(component["start"], varz["start"]);
    assert!(component["uptime"].as_str().unwrap().starts_with("0d:0h:"), "{component}");
}

pub(crate) async fn an_agent_without_instances_lists_none() {
    let world = World::new("status: { user: me, password: 'pass:word' }\nresources: { memory_mb: 512 }\n").await;
    let (_, body) = get(world.agent.status_addr(), "/varz", Some("Basic bWU6cGFzczp3b3Jk")).await.unwrap();
    let varz: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((&varz["instance_registry"], &varz["warden_containers"]), (&json!({}), &json!([])));
    assert_eq!((&varz["can_stage"], &varz["reservable_stagers"]), (&json!(0), &json!(0)), "a task wants 1024 MiB");
}

pub(crate) async fn a_pid_file_lives_as_long_as_the_agent() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.pid");
    let world = World::new(&format!("pid_filename: {}\n", path.display())).await;
    assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("{}\n", std::process::id()));
    world.shut_down().await;
    assert!(!path.exists());
}

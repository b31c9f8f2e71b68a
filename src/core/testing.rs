//! Building blocks of this crate's own tests.

use std::time::Duration;

use dewar_protocol::{AppId, DropletSha1, Limits, Mib, Secret, StagingMessage, StagingProperties, StartMessage, TaskId};

use crate::{Capacity, CellConfig, ComponentFacts, Mono, Now, Wall};

pub(crate) const EPOCH: u64 = 1_381_932_000;

/// So many seconds after the process started.
pub(crate) fn at(seconds: u64) -> Now {
    Now { mono: Mono(Duration::from_secs(seconds)), wall: Wall(Duration::from_secs(EPOCH + seconds)) }
}

/// 1000 MiB of memory and 4000 of disk; small staging tasks.
pub(crate) fn config() -> CellConfig {
    let component = ComponentFacts {
        host: "10.0.16.23:49871".to_owned(),
        credentials: Secret(("user".to_owned(), "password".to_owned())),
        start: "2013-10-16 14:00:00 +0000".to_owned(),
    };
    let mut config = CellConfig::new("cell".into(), "10.0.16.23".to_owned(), component);
    config.index = 2;
    config.stacks = vec!["wasm".to_owned(), "lucid64".to_owned()];
    config.capacity = Capacity { memory: Mib(1000), disk: Mib(4000) };
    config.staging.memory = Mib(300);
    config.staging.disk = Mib(500);
    config
}

pub(crate) fn sha1(digit: char) -> DropletSha1 {
    DropletSha1::parse(&digit.to_string().repeat(40)).unwrap()
}

/// 100 MiB of memory and 200 of disk, one route.
pub(crate) fn start_message(app: &str, index: u32) -> StartMessage {
    StartMessage {
        app_id: AppId::from(app),
        index,
        version: "v1".to_owned(),
        name: app.to_owned(),
        uris: vec![format!("{app}.example.net")],
        sha1: Some(sha1('a')),
        droplet_uri: Some(Secret("http://cc/droplet".to_owned())),
        cc_partition: "default".to_owned(),
        limits: Limits { mem: Mib(100), disk: Mib(200), fds: 16 },
        services: vec![],
        env: vec![],
        start_command: None,
        health_check_timeout: None,
        health_check_type: None,
        health_check_http_endpoint: None,
        vcap_application: None,
        egress_network_rules: vec![],
        stack: None,
    }
}

pub(crate) fn staging_message(app: &str, task: &str) -> StagingMessage {
    StagingMessage {
        app_id: AppId::from(app),
        task_id: TaskId::from(task),
        properties: StagingProperties::default(),
        download_uri: Secret("http://cc/bits".to_owned()),
        upload_uri: Secret("http://cc/upload".to_owned()),
        buildpack_cache_download_uri: None,
        buildpack_cache_upload_uri: None,
        admin_buildpacks: vec![],
        start_message: None,
        stack: None,
        egress_network_rules: vec![],
        memory_limit: None,
        disk_limit: None,
    }
}

//! What is drawn at a start.

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::*;

#[tokio::test]
async fn ids_and_keys_are_drawn_anew() {
    let with_domain = FilesSettings { domain: Some("example.net".to_owned()), v1_port: Some(0), ..settings() };
    let mut urls = Vec::new();
    for seed in [1, 1, 2] {
        let mut rng = StdRng::seed_from_u64(seed);
        let servers = FileServers::bind(&with_domain, [127, 0, 0, 1].into(), || format!("{:032x}", rng.random::<u128>())).await.unwrap();
        let told = servers.told();
        let id = told.route.as_ref().unwrap().host_name.strip_suffix(".example.net").unwrap().to_owned();
        assert!(id.len() == 32 && id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')), "{id}");
        let url = told.urls.sign(&FilesOf::Instance(InstanceId::from("x")), None, 1).expose().clone();
        let hmac = url.split_once("hmac=").unwrap().1[..128].to_owned();
        urls.push((id, hmac, told.v1.clone().unwrap().credentials));
    }
    assert_eq!(urls[0], urls[1], "nothing but the drawn numbers counts");
    assert!(urls[0].0 != urls[2].0 && urls[0].1 != urls[2].1 && urls[0].2 != urls[2].2);
}

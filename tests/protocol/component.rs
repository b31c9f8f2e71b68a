//! How a component makes itself known.

use dewar_protocol::{ComponentAnnounce, Secret};

use crate::golden;

#[test]
fn announce_and_discover() {
    let announce = ComponentAnnounce {
        kind: "DEA".to_owned(),
        index: 2,
        uuid: "2-5b0c7a3e".to_owned(),
        host: "10.0.16.23:49871".to_owned(),
        credentials: Secret(("6d1e".to_owned(), "f0a2".to_owned())),
        start: "2013-10-16 13:58:01 +0000".to_owned(),
        uptime: None,
    };
    let text = r#"{"type":"DEA","index":2,"uuid":"2-5b0c7a3e","host":"10.0.16.23:49871","credentials":["6d1e","f0a2"],
        "start":"2013-10-16 13:58:01 +0000"}"#;
    golden("§1.23", text, &announce);
    let text = text.trim_end_matches('}').to_owned() + r#","uptime":"0d:1h:2m:3s"}"#;
    golden("§1.23", &text, &ComponentAnnounce { uptime: Some("0d:1h:2m:3s".to_owned()), ..announce.clone() });
    assert!(!format!("{announce:?}").contains("f0a2"));
}

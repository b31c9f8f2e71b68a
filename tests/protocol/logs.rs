//! Log lines over the bus, Dewar's own addition: no section of the protocol document is about them.

use dewar_protocol::{AppId, LogLine, LogRequest, LogSource, LogStream, UnixSeconds};

use crate::{golden, refused, understood};

#[test]
fn request_and_line() {
    let request = LogRequest { app_id: AppId::from("7b1d"), tail: 100, follow_seconds: 30 };
    golden("dewar.logs", r#"{"droplet":"7b1d","tail":100,"follow_seconds":30}"#, &request);
    understood("dewar.logs", r#"{"droplet":"7b1d"}"#, &LogRequest { tail: 0, follow_seconds: 0, ..request });
    refused::<LogRequest>("dewar.logs", &[(r#"{"droplet":"7b1d","tail":-1}"#, "tail: invalid value: integer `-1`")]);
    let line = LogLine {
        app_id: AppId::from("7b1d"),
        source: LogSource::App,
        index: Some(0),
        stream: LogStream::Out,
        timestamp: UnixSeconds(1.5),
        text: "listening on \"8080\"".to_owned(),
    };
    let text = r#"{"droplet":"7b1d","source":"APP","index":0,"stream":"out","timestamp":1.5,"text":"listening on \"8080\""}"#;
    golden("dewar.logs", text, &line);
    let staging = LogLine { source: LogSource::Stg, index: None, stream: LogStream::Err, text: String::new(), ..line.clone() };
    golden("dewar.logs", r#"{"droplet":"7b1d","source":"STG","index":null,"stream":"err","timestamp":1.5,"text":""}"#, &staging);
    let dea = r#"{"droplet":"7b1d","source":"DEA","index":0,"stream":"out","timestamp":1.5,"text":""}"#;
    golden("dewar.logs", dea, &LogLine { source: LogSource::Dea, text: String::new(), ..line });
}

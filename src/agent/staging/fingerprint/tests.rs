use std::collections::BTreeSet;

use dewar_protocol::EgressRule;

use super::Inputs;
use crate::staging::buildpacks::{Candidate, Selection, built_in};
use crate::tree::{Node, Tree};

struct Case {
    package: Tree,
    selection: Selection,
    start_command: Option<&'static str>,
    environment: Vec<(String, String)>,
    egress: Vec<EgressRule>,
    stack: &'static str,
}

impl Case {
    fn new() -> Self {
        let rule =
            EgressRule { protocol: "tcp".into(), destination: "10.0.0.1".into(), ports: None, icmp_type: None, code: None, log: None };
        Self {
            package: tree("a", 1),
            selection: Selection::Detect(candidates()),
            start_command: None,
            environment: vec![pair("A", "1"), pair("VCAP_APPLICATION", r#"{"name":"x","version":"1","application_version":"1"}"#)],
            egress: vec![rule],
            stack: "dewar",
        }
    }

    fn changed(change: impl FnOnce(&mut Self)) -> String {
        let mut case = Self::new();
        change(&mut case);
        let Self { package, selection, start_command, environment, egress, stack } = &case;
        let inputs = Inputs { package, selection, start_command: *start_command, environment, egress, stack };
        inputs.fingerprint().to_string()
    }
}

fn candidates() -> Vec<Candidate> {
    built_in().collect()
}

fn pair(name: &str, value: &str) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

fn tree(path: &str, byte: u8) -> Tree {
    let file = Node::File { size: 1, executable: false, sha256: [byte; 32] };
    Tree { nodes: [(path.to_owned(), file)].into(), bytes: 1, ..Tree::default() }
}

#[test]
fn whatever_may_change_the_droplet_changes_the_fingerprint() {
    let fingerprints = [
        Case::changed(|_| ()),
        Case::changed(|case| case.package = tree("b", 1)),
        Case::changed(|case| case.package = tree("a", 2)),
        Case::changed(|case| case.selection = Selection::Detect(candidates().into_iter().rev().collect())),
        Case::changed(|case| case.selection = Selection::Detect(candidates().split_off(1))),
        Case::changed(|case| case.selection = Selection::Given(candidates().remove(0))),
        Case::changed(|case| {
            let Selection::Detect(candidates) = &mut case.selection else { return };
            candidates[0].digest = "0".repeat(64);
        }),
        Case::changed(|case| case.start_command = Some("")),
        Case::changed(|case| case.start_command = Some("run")),
        Case::changed(|case| case.environment[0].1 = "2".into()),
        Case::changed(|case| case.environment.swap(0, 1)),
        Case::changed(|case| case.environment[0].0 = "B".into()),
        Case::changed(|case| case.environment[0] = pair("A1", "")),
        Case::changed(|case| case.environment[1].1 = r#"{"name":"y","version":"1"}"#.into()),
        Case::changed(|case| case.egress.clear()),
        Case::changed(|case| case.egress[0].ports = Some("80".into())),
        Case::changed(|case| case.stack = "other"),
    ];
    assert_eq!(fingerprints.iter().collect::<BTreeSet<_>>().len(), fingerprints.len());
}

#[test]
fn the_version_of_a_push_changes_nothing() {
    let newer = r#"{"name":"x","version":"2","application_version":"2"}"#;
    assert_eq!(Case::changed(|_| ()), Case::changed(|case| case.environment[1].1 = newer.into()));
}

//! What decides the result of a staging, as one hash.
//!
//! Equal fingerprints, equal droplets. The package counts by its content (paths, bytes, links, who may execute), not by the bytes of
//! its archive, so that times and the order of entries do not matter. What buildpacks see counts as they see it, with one
//! exception: the version in `VCAP_APPLICATION` names the push, not what is pushed, and would make every staging a new one.

use dewar_protocol::{EgressRule, Fingerprint};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::buildpacks::{Origin, Selection};
use crate::digest;
use crate::tree::Tree;

/// To be changed with anything in the code that makes another droplet of the same input.
const FORMAT: &str = "droplet 1, dewar:buildpack@0.1.0";

/// What decides the result of a staging.
#[derive(Debug)]
pub(super) struct Inputs<'a> {
    pub(super) package: &'a Tree,
    pub(super) selection: &'a Selection,
    pub(super) start_command: Option<&'a str>,
    pub(super) environment: &'a [(String, String)],
    pub(super) egress: &'a [EgressRule],
    pub(super) stack: &'a str,
}

impl Inputs<'_> {
    pub(super) fn fingerprint(&self) -> Fingerprint {
        let mut hash = Sha256::new();
        field(&mut hash, FORMAT);
        field(&mut hash, self.stack);
        field(&mut hash, if self.start_command.is_some() { "command" } else { "no command" });
        field(&mut hash, self.start_command.unwrap_or_default());
        let given = matches!(self.selection, Selection::Given(_));
        field(&mut hash, if given { "given" } else { "detect" });
        count(&mut hash, self.selection.candidates().len());
        for candidate in self.selection.candidates() {
            field(
                &mut hash,
                match candidate.origin {
                    Origin::Admin(_) => "operator",
                    Origin::BuiltIn(_) => "built-in",
                    Origin::Url(_) => "url",
                },
            );
            field(&mut hash, candidate.origin.name());
            field(&mut hash, &candidate.digest);
        }
        count(&mut hash, self.environment.len());
        for (name, value) in self.environment {
            field(&mut hash, name);
            field(&mut hash, &if name == "VCAP_APPLICATION" { without_version(value) } else { value.clone() });
        }
        count(&mut hash, self.egress.len());
        for rule in self.egress {
            let EgressRule { protocol, destination, ports, icmp_type, code, log: _ } = rule;
            field(&mut hash, &format!("{protocol:?} {destination:?} {ports:?} {icmp_type:?} {code:?}"));
        }
        self.package.hash_into(&mut hash);
        digest::fingerprint(hash)
    }
}

/// Lengths go first, so that no two lists of fields are the same bytes.
fn field(hash: &mut Sha256, text: &str) {
    count(hash, text.len());
    hash.update(text);
}

fn count(hash: &mut Sha256, number: usize) {
    hash.update((number as u64).to_le_bytes());
}

fn without_version(application: &str) -> String {
    match serde_json::from_str(application) {
        Ok(Value::Object(mut keys)) => {
            keys.remove("version");
            keys.remove("application_version");
            Value::Object(keys).to_string()
        }
        _ => application.to_owned(),
    }
}

#[cfg(test)]
mod tests;

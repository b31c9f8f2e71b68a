//! `egress.*`: whom guests may talk to, as far as the operator decides it.

use dewar_protocol::EgressRule;
use dewar_sandbox::{DENIED_NAMES, DENIED_NETWORKS, OperatorEgress};
use serde_json::Value;

use super::EgressConfig;
use super::check::file;
use super::reader::Reader;

pub(super) fn egress(reader: &mut Reader) -> EgressConfig {
    let wanted = "a rule, as `tcp 10.0.0.0/8 443,8000-8100` or a section with `protocol`, `destination` and maybe `ports`";
    let allow = reader.list("egress.allow", wanted, rule, text);
    let deny = reader.texts("egress.deny", &DENIED_NETWORKS);
    let deny_names = reader.texts("egress.deny_names", &DENIED_NAMES);
    for (key, read) in [
        ("egress.allow", OperatorEgress::new(&allow, &[], &[])),
        ("egress.deny", OperatorEgress::new(&[], &deny, &[])),
        ("egress.deny_names", OperatorEgress::new(&[], &[], &deny_names)),
    ] {
        if let Err(error) = read {
            reader.error(key, format_args!("cannot be used: failed to {error}"));
        }
    }
    // What could not be read has been noted, so nobody gets to see this default.
    let operator = OperatorEgress::new(&allow, &deny, &deny_names).unwrap_or_default();
    EgressConfig { operator, ca_file: file(reader, "egress.ca_file") }
}

/// A rule as the Cloud Controller writes it, or in one line.
fn rule(value: &Value) -> Option<EgressRule> {
    let Some(line) = value.as_str() else {
        return serde_json::from_value(value.clone()).ok();
    };
    let mut words = line.split_whitespace().map(str::to_owned);
    let rule =
        EgressRule { protocol: words.next()?, destination: words.next()?, ports: words.next(), icmp_type: None, code: None, log: None };
    words.next().is_none().then_some(rule)
}

fn text(rule: &EgressRule) -> String {
    let words = [Some(&rule.protocol), Some(&rule.destination), rule.ports.as_ref()];
    words.into_iter().flatten().map(|word| word.replace(' ', "")).collect::<Vec<_>>().join(" ")
}

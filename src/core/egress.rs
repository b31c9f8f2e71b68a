//! Rules of whom an app may talk to: the check that the agent makes before it promises to start anything.

use dewar_protocol::EgressRule;
use thiserror::Error;

/// A rule names a protocol that there is none of. The text is the original's, and reaches Cloud Controllers.
#[derive(Debug, PartialEq, Eq, Error)]
#[error("Invalid protocol in egress rule: {0}")]
pub(crate) struct InvalidProtocol(String);

/// # Errors
/// With the first rule whose protocol is not `tcp`, `udp`, `icmp` or `all`.
pub(crate) fn check(rules: &[EgressRule]) -> Result<(), InvalidProtocol> {
    match rules.iter().find(|rule| !matches!(rule.protocol.as_str(), "tcp" | "udp" | "icmp" | "all")) {
        Some(rule) => Err(InvalidProtocol(rule.protocol.clone())),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(protocols: &[&str]) -> Result<(), String> {
        let rule = |protocol: &&str| EgressRule {
            protocol: (*protocol).to_owned(),
            destination: "10.0.0.0/8".to_owned(),
            ports: None,
            icmp_type: None,
            code: None,
            log: None,
        };
        check(&protocols.iter().map(rule).collect::<Vec<_>>()).map_err(|error| error.to_string())
    }

    #[test]
    fn protocols() {
        assert_eq!(verdict(&[]), Ok(()));
        assert_eq!(verdict(&["tcp", "udp", "icmp", "all"]), Ok(()));
        assert_eq!(verdict(&["tcp", "sctp", "x"]), Err("Invalid protocol in egress rule: sctp".to_owned()));
        assert_eq!(verdict(&["TCP"]), Err("Invalid protocol in egress rule: TCP".to_owned()));
        assert_eq!(verdict(&[""]), Err("Invalid protocol in egress rule: ".to_owned()));
    }
}

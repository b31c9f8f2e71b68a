//! Whom a guest may talk to.

use dewar_protocol::EgressRule;

/// Where a guest may connect to or send to; nowhere by default.
#[derive(Debug, Clone, Default)]
pub struct EgressPolicy {}

/// Why an egress rule cannot be carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidEgressRule {
    /// Not `tcp`, `udp`, `icmp` or `all`.
    #[error("understand egress protocol {0:?}")]
    Protocol(String),
    /// Not an address, a CIDR or a range.
    #[error("understand egress destination {0:?}")]
    Destination(String),
    /// Not a port, a list or a range.
    #[error("understand egress ports {0:?}")]
    Ports(String),
}

impl EgressPolicy {
    /// The policy that allows what any of these rules allows.
    ///
    /// # Errors
    /// When a rule is not understood: it must not be dropped in silence.
    pub fn new(_rules: &[EgressRule]) -> Result<Self, InvalidEgressRule> {
        todo!()
    }
}

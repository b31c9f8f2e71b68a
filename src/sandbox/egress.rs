//! Whom a guest may talk to.
//!
//! Nobody, unless a rule of the app or of the operator allows it. A rule for everybody is a rule for the public internet: addresses
//! with a special meaning (loopback, private, multicast, …) are only allowed by a rule whose destination lies wholly inside their
//! block, and those of this host outside loopback only by a rule for that very address, so that nobody opens the operator's own
//! network by accident. What the operator denies stays denied, whatever rules there are. An IPv6 address that carries an IPv4
//! address is judged as both.

mod own;
mod range;
mod rule;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use dewar_protocol::EgressRule;

use range::{Range, carried, special_block};
use rule::{Rule, parse_destination};

/// Rules of an app, of an operator, and denied networks or names, at most; more is a mistake or an attack.
const MAX_RULES: usize = 1_000;

/// Transport protocol of a connection or datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    Tcp,
    Udp,
}

/// What an operator decides for all guests.
#[derive(Debug, Clone)]
pub struct OperatorEgress {
    allow: Arc<[Rule]>,
    deny: Arc<[Range]>,
    deny_names: Arc<[String]>,
}

/// Networks that are denied where an operator says nothing: link-local, where clouds have their metadata services, and those of
/// their services that are elsewhere (AWS and Google over IPv6, Azure, Alibaba, Oracle).
pub const DENIED_NETWORKS: [&str; 7] =
    ["169.254.0.0/16", "fe80::/10", "fd00:ec2::254", "fd20:ce::254", "168.63.129.16", "100.100.100.200", "192.0.0.192"];

/// Names of metadata services, denied where an operator says nothing, with all names below them.
pub const DENIED_NAMES: [&str; 5] =
    ["metadata.google.internal", "metadata.goog", "instance-data", "instance-data.ec2.internal", "metadata.azure.internal"];

impl OperatorEgress {
    /// `allow` is added to every app's own rules. `deny` are addresses, blocks or ranges that no rule opens; `deny_names` are host
    /// names that no guest may look up, nor any below them.
    ///
    /// # Errors
    /// When one of them is not understood.
    pub fn new(allow: &[EgressRule], deny: &[String], deny_names: &[String]) -> Result<Self, InvalidEgressRule> {
        let denied = |name: &String| match url::Host::parse(name.trim_end_matches('.')) {
            Ok(url::Host::Domain(name)) => Ok(name),
            Ok(_) | Err(_) => Err(InvalidEgressRule::Name(name.clone())),
        };
        check_count(deny.len().max(deny_names.len()))?;
        Ok(Self {
            allow: parse_rules(allow)?.into(),
            deny: deny.iter().map(|text| parse_destination(text)).collect::<Result<_, _>>()?,
            deny_names: deny_names.iter().map(denied).collect::<Result<_, _>>()?,
        })
    }

    /// The policy for an app with these rules.
    ///
    /// # Errors
    /// When a rule is not understood: it must not be dropped in silence.
    pub fn policy(&self, app: &[EgressRule]) -> Result<EgressPolicy, InvalidEgressRule> {
        let app = parse_rules(app)?;
        let rules = self.allow.iter().cloned().chain(app).collect();
        Ok(EgressPolicy { rules, deny: self.deny.clone(), deny_names: self.deny_names.clone() })
    }
}

impl Default for OperatorEgress {
    /// Allows nothing, denies [`DENIED_NETWORKS`] and [`DENIED_NAMES`].
    fn default() -> Self {
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        Self::new(&[], &texts(&DENIED_NETWORKS), &texts(&DENIED_NAMES)).expect("the defaults are understood, which a test sees to")
    }
}

/// Where a guest may connect to or send to; nowhere by default. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct EgressPolicy {
    rules: Arc<[Rule]>,
    deny: Arc<[Range]>,
    deny_names: Arc<[String]>,
}

/// What the rules say of an address, the strictest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    Denied,
    /// Only if this host does not have the address itself.
    UnlessOwn,
    Allowed,
}

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
    /// Not a host name.
    #[error("understand denied name {0:?}")]
    Name(String),
    /// Too many rules.
    #[error("accept {0} egress rules: at most {MAX_RULES} are allowed")]
    TooMany(usize),
}

fn check_count(count: usize) -> Result<(), InvalidEgressRule> {
    if count > MAX_RULES { Err(InvalidEgressRule::TooMany(count)) } else { Ok(()) }
}

fn parse_rules(rules: &[EgressRule]) -> Result<Vec<Rule>, InvalidEgressRule> {
    check_count(rules.len())?;
    let parsed: Vec<Option<Rule>> = rules.iter().map(Rule::parse).collect::<Result<_, _>>()?;
    Ok(parsed.into_iter().flatten().collect())
}

impl EgressPolicy {
    /// The policy that allows what any of these rules allows, where the operator has decided nothing of his own.
    ///
    /// # Errors
    /// When a rule is not understood: it must not be dropped in silence.
    pub fn new(rules: &[EgressRule]) -> Result<Self, InvalidEgressRule> {
        OperatorEgress::default().policy(rules)
    }

    /// Whether anything at all is allowed.
    pub(crate) fn allows_any(&self, transport: Transport) -> bool {
        self.rules.iter().any(|rule| rule.is_for(transport))
    }

    /// Whether a guest may talk to this address. May ask the operating system whether the address is its own.
    pub(crate) fn allows(&self, transport: Transport, address: SocketAddr) -> bool {
        match self.verdict(address.ip(), &|rule| rule.matches(transport, address)) {
            Verdict::Denied => false,
            Verdict::UnlessOwn => !own::is_own(address.ip()),
            Verdict::Allowed => true,
        }
    }

    /// Whether a guest may talk to this address on some port.
    pub(crate) fn allows_some_port(&self, address: IpAddr) -> bool {
        self.verdict(address, &|rule| rule.destination.contains(address)) != Verdict::Denied
    }

    /// Whether this host name, in lower case, may be looked up.
    pub(crate) fn allows_name(&self, name: &str) -> bool {
        let name = name.trim_end_matches('.');
        let is_below = |denied: &String| name.strip_suffix(denied.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
        !self.deny_names.iter().any(is_below)
    }

    fn verdict(&self, address: IpAddr, matches: &dyn Fn(&Rule) -> bool) -> Verdict {
        let address = address.to_canonical();
        let carried = carried(address);
        let is_denied = |address: IpAddr| self.deny.iter().any(|range| range.contains(address));
        // Nobody has the unspecified address, and Linux takes it for loopback.
        if address.is_unspecified() || is_denied(address) || carried.iter().any(|v4| is_denied(IpAddr::V4(*v4))) {
            return Verdict::Denied;
        }
        let names_carried = |v4: IpAddr| {
            let block = special_block(v4);
            block.is_none_or(|block| self.rules.iter().any(|rule| rule.destination.contains(v4) && rule.destination.is_within(&block)))
        };
        if !carried.into_iter().all(|v4| names_carried(IpAddr::V4(v4))) {
            return Verdict::Denied;
        }
        let block = special_block(address);
        let fits = |rule: &&Rule| matches(rule) && block.as_ref().is_none_or(|block| rule.destination.is_within(block));
        let allowing = self.rules.iter().filter(fits);
        let names_it = |rule: &Rule| rule.destination.is_one_address() || address.is_loopback();
        allowing.map(|rule| if names_it(rule) { Verdict::Allowed } else { Verdict::UnlessOwn }).max().unwrap_or(Verdict::Denied)
    }
}

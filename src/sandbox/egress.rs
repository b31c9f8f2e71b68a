//! Whom a guest may talk to.
//!
//! Nobody, unless a rule allows it. A rule for everybody is a rule for the public internet: addresses with a special meaning
//! (loopback, private, link-local with the cloud's metadata service, multicast, …) are only allowed by a rule whose destination
//! lies wholly inside their block, so that nobody opens the operator's own network by accident.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::Arc;

use dewar_protocol::EgressRule;

/// Rules and ports of a policy at most; more is a mistake or an attack.
const MAX_RULES: usize = 1_000;
const MAX_PORT_RANGES: usize = 100;

/// Transport protocol of a connection or datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    Tcp,
    Udp,
}

/// Where a guest may connect to or send to; nowhere by default. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct EgressPolicy {
    rules: Arc<[Rule]>,
}

#[derive(Debug)]
struct Rule {
    /// `None`: all.
    transport: Option<Transport>,
    destination: Range,
    /// Empty: all.
    ports: Vec<RangeInclusive<u16>>,
}

/// Addresses of one family as numbers; IPv4 addresses in their IPv6 form are taken for what they are.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Range {
    V4(RangeInclusive<u32>),
    V6(RangeInclusive<u128>),
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
    /// Too many rules.
    #[error("accept {0} egress rules: at most {MAX_RULES} are allowed")]
    TooMany(usize),
}

impl EgressPolicy {
    /// The policy that allows what any of these rules allows. Rules for `icmp` allow nothing here: a guest has no means to send it.
    ///
    /// # Errors
    /// When a rule is not understood: it must not be dropped in silence.
    pub fn new(rules: &[EgressRule]) -> Result<Self, InvalidEgressRule> {
        if rules.len() > MAX_RULES {
            return Err(InvalidEgressRule::TooMany(rules.len()));
        }
        let parsed: Vec<Option<Rule>> = rules.iter().map(parse_rule).collect::<Result<_, _>>()?;
        Ok(Self { rules: parsed.into_iter().flatten().collect() })
    }

    /// Whether anything at all is allowed.
    pub(crate) fn allows_any(&self, transport: Transport) -> bool {
        self.rules.iter().any(|rule| rule.transport.is_none_or(|only| only == transport))
    }

    /// Whether a guest may talk to this address.
    pub(crate) fn allows(&self, transport: Transport, address: SocketAddr) -> bool {
        let ip = address.ip().to_canonical();
        self.rules.iter().any(|rule| {
            rule.transport.is_none_or(|only| only == transport)
                && rule.destination.contains(ip)
                && (rule.ports.is_empty() || rule.ports.iter().any(|ports| ports.contains(&address.port())))
                && special_block(ip).is_none_or(|block| rule.destination.is_within(&block))
        })
    }
}

fn parse_rule(rule: &EgressRule) -> Result<Option<Rule>, InvalidEgressRule> {
    let transport = match rule.protocol.as_str() {
        "tcp" => Some(Transport::Tcp),
        "udp" => Some(Transport::Udp),
        "all" => None,
        "icmp" => {
            parse_destination(&rule.destination)?;
            return Ok(None);
        }
        _ => return Err(InvalidEgressRule::Protocol(rule.protocol.clone())),
    };
    let ports = rule.ports.as_deref().map_or(Ok(Vec::new()), parse_ports)?;
    Ok(Some(Rule { transport, destination: parse_destination(&rule.destination)?, ports }))
}

fn parse_destination(text: &str) -> Result<Range, InvalidEgressRule> {
    let invalid = || InvalidEgressRule::Destination(text.to_owned());
    let address = |text: &str| text.trim().parse::<IpAddr>().map_err(|_| invalid());
    let range = if let Some((address_text, bits)) = text.split_once('/') {
        let bits: u32 = bits.trim().parse().map_err(|_| invalid())?;
        Range::block(address(address_text)?, bits)
    } else if let Some((first, last)) = text.split_once('-') {
        Range::between(address(first)?, address(last)?)
    } else {
        let only = address(text)?;
        Range::between(only, only)
    };
    range.ok_or_else(invalid)
}

fn parse_ports(text: &str) -> Result<Vec<RangeInclusive<u16>>, InvalidEgressRule> {
    let invalid = || InvalidEgressRule::Ports(text.to_owned());
    let port = |text: &str| text.trim().parse::<u16>().map_err(|_| invalid());
    let mut ranges = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let range = port(first)?..=port(last)?;
        if range.is_empty() || ranges.len() == MAX_PORT_RANGES {
            return Err(invalid());
        }
        ranges.push(range);
    }
    Ok(ranges)
}

impl Range {
    fn between(first: IpAddr, last: IpAddr) -> Option<Self> {
        match (first.to_canonical(), last.to_canonical()) {
            (IpAddr::V4(first), IpAddr::V4(last)) if first <= last => Some(Self::V4(first.to_bits()..=last.to_bits())),
            (IpAddr::V6(first), IpAddr::V6(last)) if first <= last => Some(Self::V6(first.to_bits()..=last.to_bits())),
            _ => None,
        }
    }

    fn block(address: IpAddr, bits: u32) -> Option<Self> {
        match address {
            IpAddr::V4(address) if bits <= 32 => {
                let host = u32::MAX.checked_shr(bits).unwrap_or(0);
                Some(Self::V4(address.to_bits() & !host..=address.to_bits() | host))
            }
            IpAddr::V6(address) if bits <= 128 => {
                let host = u128::MAX.checked_shr(bits).unwrap_or(0);
                Some(Self::V6(address.to_bits() & !host..=address.to_bits() | host))
            }
            IpAddr::V4(_) | IpAddr::V6(_) => None,
        }
    }

    fn contains(&self, address: IpAddr) -> bool {
        match (self, address) {
            (Self::V4(range), IpAddr::V4(address)) => range.contains(&address.to_bits()),
            (Self::V6(range), IpAddr::V6(address)) => range.contains(&address.to_bits()),
            (Self::V4(_), IpAddr::V6(_)) | (Self::V6(_), IpAddr::V4(_)) => false,
        }
    }

    fn is_within(&self, block: &Self) -> bool {
        match (self, block) {
            (Self::V4(inner), Self::V4(outer)) => outer.contains(inner.start()) && outer.contains(inner.end()),
            (Self::V6(inner), Self::V6(outer)) => outer.contains(inner.start()) && outer.contains(inner.end()),
            (Self::V4(_), Self::V6(_)) | (Self::V6(_), Self::V4(_)) => false,
        }
    }
}

/// Blocks of addresses that are not the public internet (RFC 6890 and successors).
const SPECIAL_V4: [(Ipv4Addr, u32); 14] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8),
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 0, 0, 0), 24),
    (Ipv4Addr::new(192, 0, 2, 0), 24),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(198, 18, 0, 0), 15),
    (Ipv4Addr::new(198, 51, 100, 0), 24),
    (Ipv4Addr::new(203, 0, 113, 0), 24),
    (Ipv4Addr::new(224, 0, 0, 0), 4),
    (Ipv4Addr::new(240, 0, 0, 0), 4),
];
const SPECIAL_V6: [(Ipv6Addr, u32); 9] = [
    // Unspecified, loopback and the obsolete forms of IPv4 addresses.
    (Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 0), 96),
    // Translated and tunnelled IPv4, which may be any of the above.
    (Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0), 96),
    (Ipv6Addr::new(0x64, 0xff9b, 1, 0, 0, 0, 0, 0), 48),
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16),
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23),
    (Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0), 7),
    (Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10),
    (Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 0), 10),
    (Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8),
];

fn special_block(address: IpAddr) -> Option<Range> {
    let v4 = SPECIAL_V4.iter().filter_map(|(base, bits)| Range::block(IpAddr::V4(*base), *bits));
    let v6 = SPECIAL_V6.iter().filter_map(|(base, bits)| Range::block(IpAddr::V6(*base), *bits));
    v4.chain(v6).find(|block| block.contains(address))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(protocol: &str, destination: &str, ports: Option<&str>) -> EgressRule {
        EgressRule {
            protocol: protocol.into(),
            destination: destination.into(),
            ports: ports.map(Into::into),
            icmp_type: None,
            code: None,
            log: None,
        }
    }

    fn tcp(policy: &EgressPolicy, address: &str) -> bool {
        policy.allows(Transport::Tcp, address.parse().unwrap())
    }

    #[test]
    fn nothing_is_allowed_by_default() {
        let policy = EgressPolicy::default();
        assert!(!tcp(&policy, "8.8.8.8:53") && !tcp(&policy, "127.0.0.1:80") && !policy.allows_any(Transport::Tcp));
    }

    #[test]
    fn protocol_destination_and_port_must_all_match() {
        let policy = EgressPolicy::new(&[rule("tcp", "8.8.0.0/16", Some("53, 80-90"))]).unwrap();
        for (address, allowed) in [("8.8.8.8:53", true), ("8.8.8.8:90", true), ("8.8.8.8:91", false), ("8.9.0.0:53", false)] {
            assert_eq!(tcp(&policy, address), allowed, "{address}");
        }
        assert!(!policy.allows(Transport::Udp, "8.8.8.8:53".parse().unwrap()));
        assert!(!policy.allows_any(Transport::Udp));
    }

    #[test]
    fn special_addresses_need_a_rule_that_names_them() {
        let everybody = EgressPolicy::new(&[rule("all", "0.0.0.0/0", None), rule("all", "::/0", None)]).unwrap();
        assert!(tcp(&everybody, "8.8.8.8:1") && tcp(&everybody, "[2606:4700::1]:1"));
        let special = [
            "127.0.0.1:1",
            "10.1.2.3:1",
            "169.254.169.254:80",
            "192.168.0.1:1",
            "172.31.0.1:1",
            "100.64.0.1:1",
            "0.0.0.0:1",
            "224.0.0.1:1",
            "255.255.255.255:1",
            "[::1]:1",
            "[::]:1",
            "[::ffff:127.0.0.1]:1",
            "[::ffff:10.0.0.1]:1",
            "[fd00::1]:1",
            "[fe80::1]:1",
            "[64:ff9b::7f00:1]:1",
            "[2002:7f00:1::]:1",
            "[ff02::1]:1",
        ];
        for address in special {
            assert!(!tcp(&everybody, address), "{address}");
        }
        let named = EgressPolicy::new(&[rule("tcp", "10.0.0.1-10.0.0.9", None), rule("tcp", "127.0.0.1", None)]).unwrap();
        assert!(tcp(&named, "10.0.0.9:1") && tcp(&named, "127.0.0.1:1") && tcp(&named, "[::ffff:127.0.0.1]:1"));
        assert!(!tcp(&named, "10.0.0.10:1") && !tcp(&named, "127.0.0.2:1"));
    }

    #[test]
    fn what_is_not_understood_is_refused_by_name() {
        let refused = |r: EgressRule| EgressPolicy::new(&[r]).unwrap_err().to_string();
        assert_eq!(refused(rule("sctp", "1.1.1.1", None)), "understand egress protocol \"sctp\"");
        for destination in ["", "example.com", "1.1.1.1/33", "2.2.2.2-1.1.1.1", "1.1.1.1-::1", "1.1.1.1/-1"] {
            assert_eq!(refused(rule("tcp", destination, None)), format!("understand egress destination {destination:?}"));
        }
        for ports in ["", "x", "1-", "9-8", "65536", "1,,2"] {
            assert_eq!(refused(rule("tcp", "1.1.1.1", Some(ports))), format!("understand egress ports {ports:?}"));
        }
        assert!(refused(rule("icmp", "nowhere", None)).contains("nowhere"));
        assert!(!tcp(&EgressPolicy::new(&[rule("icmp", "8.8.8.8", None)]).unwrap(), "8.8.8.8:1"));
    }
}

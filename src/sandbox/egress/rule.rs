//! Rules as the Cloud Controller and the operator write them.

use std::net::SocketAddr;
use std::ops::RangeInclusive;

use dewar_protocol::EgressRule;

use super::range::Range;
use super::{InvalidEgressRule, Transport};

/// Port ranges of a rule at most; more is a mistake or an attack.
const MAX_PORT_RANGES: usize = 100;

#[derive(Debug, Clone)]
pub(super) struct Rule {
    /// `None`: all.
    pub(super) transport: Option<Transport>,
    pub(super) destination: Range,
    /// Empty: all.
    ports: Vec<RangeInclusive<u16>>,
}

impl Rule {
    /// Nothing for `icmp`: a guest has no means to send it.
    pub(super) fn parse(rule: &EgressRule) -> Result<Option<Self>, InvalidEgressRule> {
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
        Ok(Some(Self { transport, destination: parse_destination(&rule.destination)?, ports }))
    }

    pub(super) fn is_for(&self, transport: Transport) -> bool {
        self.transport.is_none_or(|only| only == transport)
    }

    pub(super) fn matches(&self, transport: Transport, address: SocketAddr) -> bool {
        self.is_for(transport)
            && self.destination.contains(address.ip())
            && (self.ports.is_empty() || self.ports.iter().any(|ports| ports.contains(&address.port())))
    }
}

pub(super) fn parse_destination(text: &str) -> Result<Range, InvalidEgressRule> {
    Range::parse(text).ok_or_else(|| InvalidEgressRule::Destination(text.to_owned()))
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

//! Ranges of addresses, and which of them are not the public internet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

/// Addresses of one family as numbers; IPv4 addresses in their IPv6 form are taken for what they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Range {
    V4(RangeInclusive<u32>),
    V6(RangeInclusive<u128>),
}

impl Range {
    /// An address, a block (`10.0.0.0/8`) or a range (`10.0.0.1-10.0.0.9`).
    pub(super) fn parse(text: &str) -> Option<Self> {
        let address = |text: &str| text.trim().parse::<IpAddr>().ok();
        if let Some((base, bits)) = text.split_once('/') {
            Self::block(address(base)?, bits.trim().parse().ok()?)
        } else if let Some((first, last)) = text.split_once('-') {
            Self::between(address(first)?, address(last)?)
        } else {
            address(text).map(Self::only)
        }
    }

    fn only(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::V4(address.to_bits()..=address.to_bits()),
            IpAddr::V6(address) => Self::V6(address.to_bits()..=address.to_bits()),
        }
    }

    fn between(first: IpAddr, last: IpAddr) -> Option<Self> {
        match (first.to_canonical(), last.to_canonical()) {
            (IpAddr::V4(first), IpAddr::V4(last)) if first <= last => Some(Self::V4(first.to_bits()..=last.to_bits())),
            (IpAddr::V6(first), IpAddr::V6(last)) if first <= last => Some(Self::V6(first.to_bits()..=last.to_bits())),
            _ => None,
        }
    }

    fn block(address: IpAddr, bits: u32) -> Option<Self> {
        match (address, address.to_canonical()) {
            (IpAddr::V6(_), IpAddr::V4(mapped)) if (96..=128).contains(&bits) => Self::block(IpAddr::V4(mapped), bits - 96),
            (IpAddr::V4(address), _) if bits <= 32 => {
                let host = u32::MAX.checked_shr(bits).unwrap_or(0);
                Some(Self::V4(address.to_bits() & !host..=address.to_bits() | host))
            }
            (IpAddr::V6(address), _) if bits <= 128 => {
                let host = u128::MAX.checked_shr(bits).unwrap_or(0);
                Some(Self::V6(address.to_bits() & !host..=address.to_bits() | host))
            }
            (IpAddr::V4(_) | IpAddr::V6(_), _) => None,
        }
    }

    pub(super) fn contains(&self, address: IpAddr) -> bool {
        match (self, address.to_canonical()) {
            (Self::V4(range), IpAddr::V4(address)) => range.contains(&address.to_bits()),
            (Self::V6(range), IpAddr::V6(address)) => range.contains(&address.to_bits()),
            (Self::V4(_), IpAddr::V6(_)) | (Self::V6(_), IpAddr::V4(_)) => false,
        }
    }

    pub(super) fn is_within(&self, block: &Self) -> bool {
        match (self, block) {
            (Self::V4(inner), Self::V4(outer)) => outer.contains(inner.start()) && outer.contains(inner.end()),
            (Self::V6(inner), Self::V6(outer)) => outer.contains(inner.start()) && outer.contains(inner.end()),
            (Self::V4(_), Self::V6(_)) | (Self::V6(_), Self::V4(_)) => false,
        }
    }

    pub(super) fn is_one_address(&self) -> bool {
        match self {
            Self::V4(range) => range.start() == range.end(),
            Self::V6(range) => range.start() == range.end(),
        }
    }
}

/// Blocks of addresses that are not the public internet (RFC 6890 and successors).
const SPECIAL_V4: [(Ipv4Addr, u32); 15] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8),
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 0, 0, 0), 24),
    (Ipv4Addr::new(192, 0, 2, 0), 24),
    (Ipv4Addr::new(192, 88, 99, 0), 24),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(198, 18, 0, 0), 15),
    (Ipv4Addr::new(198, 51, 100, 0), 24),
    (Ipv4Addr::new(203, 0, 113, 0), 24),
    (Ipv4Addr::new(224, 0, 0, 0), 4),
    (Ipv4Addr::new(240, 0, 0, 0), 4),
];
const SPECIAL_V6: [(Ipv6Addr, u32); 11] = [
    // Unspecified, loopback and the obsolete forms of IPv4 addresses.
    (Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 0), 64),
    // Translated and tunnelled IPv4, which may be any of the above.
    (Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0), 96),
    (Ipv6Addr::new(0x64, 0xff9b, 1, 0, 0, 0, 0, 0), 48),
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16),
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23),
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32),
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20),
    (Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0), 7),
    (Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10),
    (Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 0), 10),
    (Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8),
];
/// All that IPv6 has given out for the public internet.
const GLOBAL_V6: (Ipv6Addr, u32) = (Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);

/// The block of an address that is not the public internet; an address that nobody has been given is a block of its own.
pub(super) fn special_block(address: IpAddr) -> Option<Range> {
    let address = address.to_canonical();
    let v4 = SPECIAL_V4.iter().filter_map(|(base, bits)| Range::block(IpAddr::V4(*base), *bits));
    let v6 = SPECIAL_V6.iter().filter_map(|(base, bits)| Range::block(IpAddr::V6(*base), *bits));
    let listed = match address {
        IpAddr::V4(_) => v4.into_iter().find(|block| block.contains(address)),
        IpAddr::V6(_) => v6.into_iter().find(|block| block.contains(address)),
    };
    let is_given_out = || address.is_ipv4() || Range::block(IpAddr::V6(GLOBAL_V6.0), GLOBAL_V6.1).is_some_and(|all| all.contains(address));
    listed.or_else(|| (!is_given_out()).then(|| Range::only(address)))
}

/// IPv4 addresses that a translator, a tunnel or an operating system may take out of an IPv6 address and talk to.
pub(super) fn carried(address: IpAddr) -> Vec<Ipv4Addr> {
    let IpAddr::V6(address) = address.to_canonical() else { return Vec::new() };
    let words = address.segments();
    let v4 = |high: u16, low: u16| Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low));
    let last = v4(words[6], words[7]);
    match words {
        // Unspecified, loopback: addresses in their own right.
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => Vec::new(),
        [0, 0, 0, 0, 0, 0, ..] | [0, 0, 0, 0, 0xffff, 0, ..] | [0x64, 0xff9b, 0, 0, 0, 0, ..] => vec![last],
        // NAT64 of an operator's own: with the address at the end, or after 48 bits with a gap in it (RFC 6052).
        [0x64, 0xff9b, 1, high, low, rest, ..] => vec![last, v4(high, (low & 0xff) << 8 | rest >> 8)],
        [0x2002, high, low, ..] => vec![v4(high, low)],
        // Teredo: server, and client with its bits flipped.
        [0x2001, 0, high, low, _, _, client_high, client_low] => vec![v4(high, low), v4(!client_high, !client_low)],
        // ISATAP.
        [_, _, _, _, 0 | 0x200, 0x5efe, _, _] => vec![last],
        _ => Vec::new(),
    }
}

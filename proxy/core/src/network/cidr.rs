//! IP networks as operators write them (RFC 4632 §3.1, RFC 4291 §2.3), for lists of trusted proxies and exempt hosts.
//!
//! Bits behind the prefix (`10.1.2.3/8`) can be read in two ways: the whole network, or a slip for the one address.
//! nginx takes the network and warns, HAProxy and curl take it silently. Here that is an error of its own which holds
//! the network: whoever wants to do as they do takes it from there, and can say so; nobody does it unknowingly.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use super::decimal;

/// An IP network, or one address. Written `192.0.2.0/24`, `2001:db8::/32`, or an address alone.
///
/// A network of IPv4-mapped addresses (`::ffff:192.0.2.0/120`) is the IPv4 network. `0.0.0.0/0` has every IPv4
/// address and no other, `::/0` every IPv6 address and no other: to mean all, give both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Network {
    /// The lowest address: every bit behind the prefix is zero.
    first: IpAddr,
    /// At most 32 for IPv4 and 128 for IPv6.
    prefix: u8,
}

/// Why a text is no network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidNetwork {
    /// What stands before the `/`, or the whole text, is no IP address.
    #[error("expected an IP address or network, such as 10.0.0.0/8, 192.0.2.7 or 2001:db8::/32")]
    Address,
    /// What stands behind the `/` is no prefix length. Net masks are not taken.
    #[error("expected a prefix length from 0 to {0} behind the /")]
    Prefix(u8),
    /// An IPv4-mapped address whose prefix leaves the IPv4 addresses.
    #[error("expected a prefix length from 96 to 128 behind an IPv4-mapped address, or a plain IPv4 network")]
    MappedPrefix,
    /// The address has bits behind the prefix. The network without them.
    #[error("the address has bits behind the prefix: expected {0} for the network, or the address without a prefix")]
    HostBits(Network),
}

impl Network {
    /// The network of this size that the address lies in. A prefix longer than the address is the address alone.
    pub fn around(address: IpAddr, prefix: u8) -> Self {
        let address = address.to_canonical();
        let prefix = prefix.min(width(address));
        Self { first: first(address, prefix), prefix }
    }

    /// Whether the address lies in this network.
    pub fn contains(&self, address: IpAddr) -> bool {
        // Cut at our prefix, an address of the other family stays one, so it equals nothing here.
        first(address.to_canonical(), self.prefix) == self.first
    }
}

/// Whether the address lies in any of the networks.
pub fn any_contains(networks: &[Network], address: IpAddr) -> bool {
    networks.iter().any(|network| network.contains(address))
}

/// The network of this one address.
impl From<IpAddr> for Network {
    fn from(address: IpAddr) -> Self {
        Self::around(address, u8::MAX)
    }
}

impl FromStr for Network {
    type Err = InvalidNetwork;

    fn from_str(text: &str) -> Result<Self, InvalidNetwork> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let written: IpAddr = address.parse().map_err(|_| InvalidNetwork::Address)?;
        let longest = width(written);
        let prefix = match prefix {
            Some(digits) => {
                decimal::<u8>(digits).filter(|length| *length <= longest).ok_or(InvalidNetwork::Prefix(longest))?
            }
            None => longest,
        };
        let address = written.to_canonical();
        let cut = longest.saturating_sub(width(address));
        let prefix = prefix.checked_sub(cut).ok_or(InvalidNetwork::MappedPrefix)?;
        let network = Self { first: first(address, prefix), prefix };
        if network.first == address { Ok(network) } else { Err(InvalidNetwork::HostBits(network)) }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.first, self.prefix)
    }
}

/// How many bits an address of this family has.
const fn width(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

/// The address with every bit behind the prefix at zero.
fn first(address: IpAddr, prefix: u8) -> IpAddr {
    let zeros = |width: u32| width.saturating_sub(u32::from(prefix));
    match address {
        // A shift by the whole width leaves nothing of the mask, which is what prefix 0 means.
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(zeros(32)).unwrap_or(0);
            Ipv4Addr::from_bits(address.to_bits() & mask).into()
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(zeros(128)).unwrap_or(0);
            Ipv6Addr::from_bits(address.to_bits() & mask).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn network(text: &str) -> Network {
        text.parse().unwrap()
    }

    #[test]
    fn a_network_has_its_own_addresses_and_no_others() {
        for (written, shown, inside, outside) in [
            ("10.0.0.0/8", "10.0.0.0/8", "10.255.255.255", "11.0.0.0"),
            ("10.0.0.0/8", "10.0.0.0/8", "::ffff:10.1.2.3", "::ffff:11.0.0.0"),
            ("192.0.2.7", "192.0.2.7/32", "192.0.2.7", "192.0.2.6"),
            ("192.0.2.128/25", "192.0.2.128/25", "192.0.2.128", "192.0.2.127"),
            ("0.0.0.0/0", "0.0.0.0/0", "255.1.2.3", "::1"),
            ("::/0", "::/0", "2001:db8::1", "192.0.2.1"),
            ("::1", "::1/128", "::1", "::2"),
            ("2001:db8::/33", "2001:db8::/33", "2001:db8:7fff::", "2001:db8:8000::"),
            ("::ffff:10.0.0.0/104", "10.0.0.0/8", "10.9.9.9", "::10.9.9.9"),
            ("::ffff:192.0.2.7", "192.0.2.7/32", "192.0.2.7", "192.0.2.8"),
            ("::ffff:0:0/96", "0.0.0.0/0", "192.0.2.7", "2001:db8::1"),
        ] {
            let network = network(written);
            assert_eq!(network.to_string(), shown, "{written}");
            assert!(network.contains(inside.parse().unwrap()), "{written} has {inside}");
            assert!(!network.contains(outside.parse().unwrap()), "{written} has not {outside}");
        }
    }

    #[test]
    fn an_address_is_a_network_of_one() {
        for text in ["192.0.2.7", "2001:db8::1", "::ffff:192.0.2.7"] {
            assert_eq!(Network::from(text.parse::<IpAddr>().unwrap()), network(text), "{text}");
        }
    }

    #[test]
    fn an_address_lies_in_one_network_of_each_size() {
        for (address, prefix, expected) in [
            ("192.0.2.7", 24, "192.0.2.0/24"),
            ("192.0.2.7", 0, "0.0.0.0/0"),
            ("192.0.2.7", 32, "192.0.2.7/32"),
            ("192.0.2.7", 48, "192.0.2.7/32"),
            ("::ffff:192.0.2.7", 24, "192.0.2.0/24"),
            ("2001:db8:1:2::3", 48, "2001:db8:1::/48"),
            ("2001:db8:1:2::3", 255, "2001:db8:1:2::3/128"),
        ] {
            assert_eq!(Network::around(address.parse().unwrap(), prefix).to_string(), expected, "{address} {prefix}");
        }
    }

    #[test]
    fn any_of_several_networks_is_enough() {
        let networks = [network("10.0.0.0/8"), network("fd00::/8")];
        for (address, expected) in [("10.0.0.1", true), ("fd12::1", true), ("192.0.2.1", false), ("::1", false)] {
            assert_eq!(any_contains(&networks, address.parse().unwrap()), expected, "{address}");
        }
        assert!(!any_contains(&[], "10.0.0.1".parse().unwrap()));
    }

    #[test]
    fn what_is_no_network_is_refused_with_the_reason() {
        for (text, expected) in [
            ("", InvalidNetwork::Address),
            ("/8", InvalidNetwork::Address),
            ("localhost", InvalidNetwork::Address),
            ("10.0.0", InvalidNetwork::Address),
            ("10.0.0.08", InvalidNetwork::Address),
            ("10.0.0.0 /8", InvalidNetwork::Address),
            ("[::1]", InvalidNetwork::Address),
            ("fe80::1%eth0", InvalidNetwork::Address),
            ("10.0.0.1:80", InvalidNetwork::Address),
            ("10.0.0.0/", InvalidNetwork::Prefix(32)),
            ("10.0.0.0/33", InvalidNetwork::Prefix(32)),
            ("10.0.0.0/+8", InvalidNetwork::Prefix(32)),
            ("10.0.0.0/08", InvalidNetwork::Prefix(32)),
            ("10.0.0.0/-1", InvalidNetwork::Prefix(32)),
            ("10.0.0.0/8/8", InvalidNetwork::Prefix(32)),
            ("10.0.0.0/255.0.0.0", InvalidNetwork::Prefix(32)),
            ("10.0.0.0/264", InvalidNetwork::Prefix(32)),
            ("2001:db8::/129", InvalidNetwork::Prefix(128)),
            ("::ffff:10.0.0.0/129", InvalidNetwork::Prefix(128)),
            ("::ffff:10.0.0.0/8", InvalidNetwork::MappedPrefix),
            ("::ffff:0:0/95", InvalidNetwork::MappedPrefix),
            ("10.1.2.3/8", InvalidNetwork::HostBits(network("10.0.0.0/8"))),
            ("2001:db8::1/32", InvalidNetwork::HostBits(network("2001:db8::/32"))),
            ("::ffff:10.1.2.3/104", InvalidNetwork::HostBits(network("10.0.0.0/8"))),
        ] {
            assert_eq!(text.parse::<Network>(), Err(expected), "{text}");
        }
    }

    #[test]
    fn the_error_says_what_to_write() {
        let error = "10.1.2.3/8".parse::<Network>().unwrap_err();
        assert!(error.to_string().contains("10.0.0.0/8"), "{error}");
        assert!("10.0.0.0/40".parse::<Network>().unwrap_err().to_string().contains("0 to 32"));
    }

    proptest! {
        #[test]
        fn an_address_is_inside_when_its_first_bits_agree(
            base in any::<u128>(),
            flipped in 0u32..128,
            is_v4 in any::<bool>(),
            prefix in 0u8..=128,
        ) {
            let (width, prefix) = if is_v4 { (32, prefix.min(32)) } else { (128, prefix) };
            let flipped = flipped % width;
            let address = |bits: u128| -> IpAddr {
                if is_v4 { Ipv4Addr::from_bits(bits as u32).into() } else { Ipv6Addr::from_bits(bits).into() }
            };
            // Random IPv6 addresses are practically never mapped ones; those have a table above.
            let network = match format!("{}/{prefix}", address(base)).parse::<Network>() {
                Ok(network) | Err(InvalidNetwork::HostBits(network)) => network,
                Err(error) => return Err(TestCaseError::fail(error.to_string())),
            };
            let other = address(base ^ (1u128 << (width - 1 - flipped)));
            prop_assert!(network.contains(address(base)));
            prop_assert_eq!(network.contains(other), flipped >= u32::from(prefix), "{} in {}", other, network);
            prop_assert_eq!(network.to_string().parse::<Network>(), Ok(network));
        }

        #[test]
        fn no_text_is_read_as_more_than_it_says(text in "[0-9a-f:./]{0,24}") {
            if let Ok(network) = text.parse::<Network>() {
                let address: IpAddr = text.split('/').next().unwrap().parse().unwrap();
                prop_assert!(network.contains(address));
                prop_assert_eq!(network.first, address.to_canonical());
            }
        }
    }
}

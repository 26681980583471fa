//! Who a request came from, when trusted proxies stand before us.
//!
//! Each proxy adds the address it was reached from at the right end of `X-Forwarded-For`, or of `Forwarded` (RFC 7239).
//! Everything left of what our own proxies added was written by the client, and says what the client wants it to. So the
//! walk goes from the right, through trusted proxies only: the first address that is none of them is the client.
//!
//! `X-Forwarded-For` wins: `Forwarded` is read only in a request without it. Nearly every proxy writes the former, and one
//! that does so passes on a `Forwarded` of the client's own making. In front of us a proxy that writes only `Forwarded`
//! has to remove the other field, or its clients choose their address; whoever knows which field the proxies write gives
//! [`client_address`] nothing for the other.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::cidr::{Network, any_contains};
use crate::http1::octets::is_token_octet;

/// The client's address, in canonical form (an IPv4-mapped one as IPv4).
///
/// `peer` is who opened the connection, or whom a believed PROXY protocol header names. It is the client unless it is one
/// of the `trusted` proxies. The fields are given as the values of their lines, in the order received.
///
/// An entry that is no address (`unknown`, an obfuscated name, a broken one) ends the walk: the client is the last
/// address before it, a trusted proxy's if there is no other. Empty list elements are no entries (RFC 9110 §5.6.1).
/// Where all entries are trusted proxies the leftmost is the client.
pub fn client_address<'a>(
    peer: IpAddr,
    trusted: &[Network],
    x_forwarded_for: impl DoubleEndedIterator<Item = &'a [u8]>,
    forwarded: impl DoubleEndedIterator<Item = &'a [u8]>,
) -> IpAddr {
    let peer = peer.to_canonical();
    if !any_contains(trusted, peer) {
        return peer;
    }
    let mut addresses =
        x_forwarded_for.rev().flat_map(|line| line.rsplit(|octet| *octet == b',')).filter_map(entry).peekable();
    if addresses.peek().is_some() {
        walk(peer, trusted, addresses.map(address))
    } else {
        walk(peer, trusted, forwarded.rev().flat_map(elements_from_the_end).filter_map(entry).map(forwarded_for))
    }
}

/// The network around an address that is kept where the address itself is not to be: 256 addresses of IPv4, or the most
/// that one site gets of IPv6 (RFC 6177 §2).
pub fn truncated(address: IpAddr) -> Network {
    let prefix = if address.to_canonical().is_ipv4() { 24 } else { 48 };
    Network::around(address, prefix)
}

fn walk(peer: IpAddr, trusted: &[Network], addresses: impl Iterator<Item = Option<IpAddr>>) -> IpAddr {
    let mut client = peer;
    for address in addresses {
        let Some(address) = address else { break };
        client = address.to_canonical();
        if !any_contains(trusted, client) {
            break;
        }
    }
    client
}

/// A list element without the white space around it, if anything is left.
fn entry(element: &[u8]) -> Option<&[u8]> {
    let element = element.trim_ascii();
    if element.is_empty() { None } else { Some(element) }
}

/// An entry of `X-Forwarded-For`: an address, which some load balancers write with the port.
fn address(entry: &[u8]) -> Option<IpAddr> {
    std::str::from_utf8(entry).ok()?.parse().ok().or_else(|| node(entry))
}

/// A node with an address (RFC 7239 §6): IPv4, or IPv6 in brackets, each with or without a port.
fn node(node: &[u8]) -> Option<IpAddr> {
    let node = std::str::from_utf8(node).ok()?;
    if let Some(bracketed) = node.strip_prefix('[') {
        let (address, rest) = bracketed.split_once(']')?;
        let is_whole = rest.is_empty() || rest.strip_prefix(':').is_some_and(is_port);
        return address.parse::<Ipv6Addr>().ok().filter(|_| is_whole).map(IpAddr::V6);
    }
    let (address, is_whole) = match node.split_once(':') {
        Some((address, port)) => (address, is_port(port)),
        None => (node, true),
    };
    address.parse::<Ipv4Addr>().ok().filter(|_| is_whole).map(IpAddr::V4)
}

/// A node's port: up to five digits, or an obfuscated one that begins with `_`.
fn is_port(port: &str) -> bool {
    match port.strip_prefix('_') {
        Some(name) => {
            !name.is_empty()
                && name.bytes().all(|octet| octet.is_ascii_alphanumeric() || matches!(octet, b'.' | b'_' | b'-'))
        }
        None => (1..=5).contains(&port.len()) && port.bytes().all(|octet| octet.is_ascii_digit()),
    }
}

/// The elements of a line of `Forwarded`, last first: cut at the commas outside quoted strings.
///
/// Quotes are paired from the right. Paired from the left, a quote that the client opened and never closed would swallow
/// what the proxy wrote behind it.
fn elements_from_the_end(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(line);
    std::iter::from_fn(move || {
        let line = rest?;
        let (before, element) = match last_comma(line).and_then(|comma| line.split_at_checked(comma)) {
            Some((before, [_, element @ ..])) => (Some(before), element),
            _ => (None, line),
        };
        rest = before;
        Some(element)
    })
}

fn last_comma(line: &[u8]) -> Option<usize> {
    let mut is_quoted = false;
    for (at, octet) in line.iter().enumerate().rev() {
        match octet {
            b'"' if !is_escaped(line, at) => is_quoted = !is_quoted,
            b',' if !is_quoted => return Some(at),
            _ => {}
        }
    }
    None
}

/// Whether an odd number of backslashes stands before this place.
fn is_escaped(line: &[u8], at: usize) -> bool {
    let before = line.get(..at).unwrap_or_default();
    !before.iter().rev().take_while(|octet| **octet == b'\\').count().is_multiple_of(2)
}

/// The address in the `for` of a forwarded-element (RFC 7239 §4). White space around `;` is borne, as many write it.
fn forwarded_for(element: &[u8]) -> Option<IpAddr> {
    let mut rest = element;
    let mut found = None;
    loop {
        rest = rest.trim_ascii_start();
        let (name, after) = rest.split_at_checked(rest.iter().take_while(|octet| is_token_octet(**octet)).count())?;
        rest = after;
        // There may be empty pairs.
        if !name.is_empty() {
            let (value, after) = value(after.strip_prefix(b"=")?)?;
            rest = after;
            if name.eq_ignore_ascii_case(b"for") {
                let address = node(&value)?;
                // Each parameter once: of two, nobody knows which one the proxy wrote.
                if found.replace(address).is_some() {
                    return None;
                }
            }
        }
        match rest.trim_ascii_start() {
            [] => return found,
            [b';', after @ ..] => rest = after,
            _ => return None,
        }
    }
}

/// A token or quoted string (RFC 9110 §5.6.4) without its quotes and escapes, and what follows it.
fn value(text: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let Some(mut rest) = text.strip_prefix(b"\"") else {
        let (token, rest) = text.split_at_checked(text.iter().take_while(|octet| is_token_octet(**octet)).count())?;
        return if token.is_empty() { None } else { Some((token.to_vec(), rest)) };
    };
    let mut content = Vec::new();
    loop {
        match rest {
            [b'"', after @ ..] => return Some((content, after)),
            [b'\\', octet, after @ ..] | [octet, after @ ..] => {
                content.push(*octet);
                rest = after;
            }
            [] => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Two networks of proxies of ours.
    fn trusted() -> Vec<Network> {
        ["10.0.0.0/8", "2001:db8:aaaa::/48"].into_iter().map(|text| text.parse().unwrap()).collect()
    }

    fn of(peer: &str, x_forwarded_for: &[&str], forwarded: &[&str]) -> String {
        client_address(
            peer.parse().unwrap(),
            &trusted(),
            x_forwarded_for.iter().map(|line| line.as_bytes()),
            forwarded.iter().map(|line| line.as_bytes()),
        )
        .to_string()
    }

    #[test]
    fn the_first_untrusted_address_from_the_right_is_the_client() {
        for (peer, lines, expected) in [
            ("203.0.113.9", &["192.0.2.1"][..], "203.0.113.9"),
            ("::ffff:203.0.113.9", &["192.0.2.1"], "203.0.113.9"),
            ("10.0.0.1", &[], "10.0.0.1"),
            ("10.0.0.1", &["192.0.2.1"], "192.0.2.1"),
            ("::ffff:10.0.0.1", &["192.0.2.1"], "192.0.2.1"),
            ("2001:db8:aaaa::1", &["192.0.2.1"], "192.0.2.1"),
            ("10.0.0.1", &["198.51.100.7, 192.0.2.1"], "192.0.2.1"),
            ("10.0.0.1", &["198.51.100.7, 192.0.2.1, 10.0.0.2"], "192.0.2.1"),
            ("10.0.0.1", &["198.51.100.7,192.0.2.1\t,\t10.0.0.2 , 2001:db8:aaaa::2"], "192.0.2.1"),
            ("10.0.0.1", &["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
            ("10.0.0.1", &["192.0.2.1", "10.0.0.2"], "192.0.2.1"),
            ("10.0.0.1", &["198.51.100.7", "192.0.2.1, 10.0.0.3", "10.0.0.2"], "192.0.2.1"),
            ("10.0.0.1", &["192.0.2.1", ""], "192.0.2.1"),
            ("10.0.0.1", &["192.0.2.1, , ,10.0.0.2,"], "192.0.2.1"),
            ("10.0.0.1", &["::ffff:192.0.2.1, ::ffff:10.0.0.2"], "192.0.2.1"),
            ("10.0.0.1", &["2001:db8::1"], "2001:db8::1"),
        ] {
            assert_eq!(of(peer, lines, &[]), expected, "{peer} {lines:?}");
        }
    }

    #[test]
    fn an_entry_may_have_a_port() {
        for (entry, expected) in [
            ("192.0.2.1:4711", "192.0.2.1"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("[2001:db8::1]:4711", "2001:db8::1"),
            ("[::ffff:192.0.2.1]:4711", "192.0.2.1"),
            // Without brackets there is no port.
            ("2001:db8::1:4711", "2001:db8::1:4711"),
        ] {
            assert_eq!(of("10.0.0.1", &[entry], &[]), expected, "{entry}");
        }
    }

    #[test]
    fn a_malformed_entry_ends_the_walk_at_the_last_good_one() {
        for entry in [
            "unknown",
            "-",
            "_hidden",
            "localhost",
            "192.0.2",
            "192.0.2.01",
            "192.0.2.256",
            "192.0.2.1:",
            "192.0.2.1:a",
            "192.0.2.1:123456",
            "192.0.2.1 192.0.2.2",
            "\"192.0.2.1\"",
            "192.0.2.0/24",
            "[2001:db8::1",
            "[2001:db8::1]4711",
            "[2001:db8::1]:",
            "[192.0.2.1]",
            "fe80::1%eth0",
            "for=192.0.2.1",
        ] {
            assert_eq!(of("10.0.0.1", &[entry], &[]), "10.0.0.1", "{entry}");
            let line = format!("192.0.2.1, {entry}, 10.0.0.2");
            assert_eq!(of("10.0.0.1", &[&line], &[]), "10.0.0.2", "{line}");
        }
        let not_utf8 = [&b"192.0.2.1, \xff"[..]];
        let found = client_address("10.0.0.1".parse().unwrap(), &trusted(), not_utf8.into_iter(), std::iter::empty());
        assert_eq!(found.to_string(), "10.0.0.1");
    }

    #[test]
    fn forwarded_is_read_only_without_x_forwarded_for() {
        for (x_forwarded_for, forwarded, expected) in [
            (&["192.0.2.1"][..], &["for=198.51.100.7"][..], "192.0.2.1"),
            (&["unknown"], &["for=198.51.100.7"], "10.0.0.1"),
            (&["10.0.0.2"], &["for=198.51.100.7"], "10.0.0.2"),
            (&[], &["for=198.51.100.7"], "198.51.100.7"),
            (&["", " , "], &["for=198.51.100.7"], "198.51.100.7"),
        ] {
            assert_eq!(of("10.0.0.1", x_forwarded_for, forwarded), expected, "{x_forwarded_for:?} {forwarded:?}");
        }
        assert_eq!(of("203.0.113.9", &[], &["for=198.51.100.7"]), "203.0.113.9");
    }

    #[test]
    fn forwarded_is_walked_element_by_element() {
        for (lines, expected) in [
            (&["for=192.0.2.1"][..], "192.0.2.1"),
            (&["For=192.0.2.1;proto=https;by=203.0.113.43"], "192.0.2.1"),
            (&["proto=https ; FOR=\"192.0.2.1:4711\" ;host=\"a, b; \\\" for=198.51.100.7\""], "192.0.2.1"),
            (&["for=\"[2001:db8:cafe::17]:4711\""], "2001:db8:cafe::17"),
            (&["for=\"[2001:db8:cafe::17]\""], "2001:db8:cafe::17"),
            (&["for=\"192.0.2.1:_port\""], "192.0.2.1"),
            (&["for=\"192.0.\\2.1\""], "192.0.2.1"),
            (&[";for=192.0.2.1;"], "192.0.2.1"),
            (&["for=198.51.100.7, for=192.0.2.1;by=10.0.0.9, for=10.0.0.2"], "192.0.2.1"),
            (&["for=198.51.100.7", "for=192.0.2.1,, for=\"10.0.0.3\",", "for=10.0.0.2"], "192.0.2.1"),
            // What a client leaves open does not reach what the proxy adds.
            (&["for=\"198.51.100.7, for=192.0.2.1"], "192.0.2.1"),
            (&["for=198.51.100.7;host=\"\\, for=192.0.2.1"], "192.0.2.1"),
            (&["host=\"\", for=\"192.0.2.1\""], "192.0.2.1"),
        ] {
            assert_eq!(of("10.0.0.1", &[], lines), expected, "{lines:?}");
        }
    }

    #[test]
    fn an_element_without_a_plain_address_ends_the_walk() {
        for element in [
            "for=unknown",
            "for=_hidden",
            "for=\"_hidden:4711\"",
            "for=",
            "for=\"\"",
            "for",
            "for =192.0.2.1",
            "for= 192.0.2.1",
            "by=192.0.2.1",
            ";",
            "192.0.2.1",
            "for=192.0.2.1:4711",
            "for=2001:db8::1",
            "for=\"2001:db8::1\"",
            "for=[2001:db8::1]",
            "for=\"192.0.2.1",
            "for=192.0.2.1\"",
            "for=\"192.0.2.1\"x",
            "for=192.0.2.1;for=192.0.2.1",
            "for=192.0.2.1;proto",
            "for=192.0.2.1 proto=https",
            "for=192.0.2.1;proto=\"",
        ] {
            assert_eq!(of("10.0.0.1", &[], &[element]), "10.0.0.1", "{element}");
            let line = format!("for=198.51.100.7, {element}, for=10.0.0.2");
            assert_eq!(of("10.0.0.1", &[], &[&line]), "10.0.0.2", "{line}");
        }
    }

    #[test]
    fn a_truncated_address_is_a_network_of_many() {
        for (address, expected) in [
            ("192.0.2.77", "192.0.2.0/24"),
            ("::ffff:192.0.2.77", "192.0.2.0/24"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1::/48"),
            ("::1", "::/48"),
        ] {
            assert_eq!(truncated(address.parse().unwrap()).to_string(), expected, "{address}");
        }
    }

    fn untrusted() -> impl Strategy<Value = IpAddr> {
        any::<IpAddr>().prop_filter("an address of our proxies", |address| !any_contains(&trusted(), *address))
    }

    /// What a client may send: any octets that a field value has, and those that matter here more often.
    fn anything() -> impl Strategy<Value = Vec<u8>> {
        let words = prop_oneof![
            Just(b"for=".to_vec()),
            Just(b"\"".to_vec()),
            Just(b"\\".to_vec()),
            Just(b",".to_vec()),
            Just(b";".to_vec()),
            Just(b"10.0.0.7".to_vec()),
            Just(b"198.51.100.7".to_vec()),
            proptest::collection::vec(0x20u8..=0xFF, 0..6),
        ];
        proptest::collection::vec(words, 0..12).prop_map(|words| words.concat())
    }

    proptest! {
        #[test]
        fn whatever_a_client_writes_its_address_is_what_our_proxy_saw(
            lie in anything(),
            other_lie in anything(),
            client in untrusted(),
            with_port in any::<bool>(),
            in_a_line_of_its_own in any::<bool>(),
            through_two in any::<bool>(),
        ) {
            let element = match (client, with_port) {
                (IpAddr::V4(client), false) => format!("for={client}"),
                (IpAddr::V4(client), true) => format!("for=\"{client}:4711\""),
                (IpAddr::V6(client), false) => format!("for=\"[{client}]\""),
                (IpAddr::V6(client), true) => format!("for=\"[{client}]:4711\""),
            };
            for (seen, second, is_forwarded) in
                [(client.to_string(), "10.0.0.2", false), (element, "for=10.0.0.2;proto=https", true)]
            {
                let mut lines = vec![lie.clone()];
                for added in [Some(seen.as_str()), through_two.then_some(second)].into_iter().flatten() {
                    if in_a_line_of_its_own {
                        lines.push(added.as_bytes().to_vec());
                    } else if let Some(last) = lines.last_mut() {
                        last.extend(format!(", {added}").as_bytes());
                    }
                }
                let other = [other_lie.clone()];
                let written = || lines.iter().map(Vec::as_slice);
                let peer = "10.0.0.1".parse().unwrap();
                let found = if is_forwarded {
                    client_address(peer, &trusted(), std::iter::empty(), written())
                } else {
                    client_address(peer, &trusted(), written(), other.iter().map(Vec::as_slice))
                };
                prop_assert_eq!(found, client.to_canonical());
            }
        }

        #[test]
        fn nobody_but_a_trusted_peer_is_believed(lie in anything(), client in untrusted()) {
            let lines = || std::iter::once(lie.as_slice());
            prop_assert_eq!(client_address(client, &trusted(), lines(), lines()), client.to_canonical());
        }
    }
}

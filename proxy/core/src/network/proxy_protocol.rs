//! The PROXY protocol, versions 1 and 2 (proxy-protocol.txt of HAProxy): the line or block with which a load balancer
//! opens a connection to tell from where the client reached it.
//!
//! [`read`] is asked again with all bytes since the connection's start whenever more have come. Its answer depends on
//! the bytes alone: once it is not [`Reading::NeedMore`] it stays, whatever follows and however the bytes were cut.
//!
//! Whether a connection begins with a header is not to be guessed (§2 of the specification): a listener is told to expect
//! one and then closes connections that are [`Reading::NotProxied`] or [`Reading::Invalid`], and it believes headers from
//! trusted peers only, or anybody could choose an address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::decimal;

/// The longest line of version 1 with its CRLF, in bytes (§2.1).
pub const MAX_LINE_BYTES: usize = 107;
/// The longest header of version 2 that is read, in bytes. The specification allows 65,551; what load balancers send,
/// a client certificate's name included, stays well below this.
pub const MAX_HEADER_BYTES: usize = 4096;

const LINE_START: &[u8] = b"PROXY";
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, version and command, family and protocol, length.
const FIXED_BYTES: usize = 16;
/// The TLV whose value is the CRC32C of the header (§2.2.3).
const CRC32C: u8 = 0x03;
const CRC32C_BYTES: usize = 4;

/// What the first bytes of a connection are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reading {
    /// A header may be here, but not all of it is. It will be whole within [`MAX_HEADER_BYTES`].
    NeedMore,
    /// A whole header.
    Header(Header),
    /// Something else, such as HTTP or TLS.
    NotProxied,
    /// A header that breaks the specification. The connection is of no use.
    Invalid(InvalidHeader),
}

/// A whole header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// From where the client reached the load balancer. `None` when the header names no IP address (`LOCAL`, `UNKNOWN`,
    /// UNIX sockets, unspecified families): then the connection's own peer counts.
    pub source: Option<SocketAddr>,
    /// Where the client reached it. `None` exactly when `source` is.
    pub destination: Option<SocketAddr>,
    /// The header's length in bytes. What the client sent begins behind it.
    pub length: usize,
}

/// What is wrong with a header. For the log: the peer is told nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidHeader(&'static str);

/// A header that is whole; `None` while it may become one.
type Outcome = Result<Option<Header>, InvalidHeader>;

/// Reads the header that stands at the start of these bytes, the first of a connection.
pub fn read(bytes: &[u8]) -> Reading {
    let agree = |start: &[u8]| bytes.iter().zip(start).all(|(byte, expected)| byte == expected);
    let outcome = if agree(LINE_START) {
        if bytes.len() < LINE_START.len() { Ok(None) } else { line(bytes) }
    } else if agree(SIGNATURE) {
        block(bytes)
    } else {
        return Reading::NotProxied;
    };
    match outcome {
        Ok(None) => Reading::NeedMore,
        Ok(Some(header)) => Reading::Header(header),
        Err(error) => Reading::Invalid(error),
    }
}

/// Version 1: one line of text.
fn line(bytes: &[u8]) -> Outcome {
    let window = bytes.get(..MAX_LINE_BYTES).unwrap_or(bytes);
    let too_long = window.len() == MAX_LINE_BYTES;
    let end = window.iter().position(|byte| matches!(byte, b'\r' | b'\n'));
    let (line, ending) = match end.and_then(|end| window.split_at_checked(end)) {
        Some(parts) => parts,
        None if too_long => return Err(InvalidHeader("no CRLF within 107 bytes")),
        None => return Ok(None),
    };
    match ending {
        [b'\r', b'\n', ..] => {}
        [b'\r'] if too_long => return Err(InvalidHeader("no CRLF within 107 bytes")),
        [b'\r'] => return Ok(None),
        _ => return Err(InvalidHeader("a line ended by CR or LF alone")),
    }
    let length = line.len().saturating_add(2);
    // What follows UNKNOWN is to be ignored.
    if line == b"PROXY UNKNOWN" || line.starts_with(b"PROXY UNKNOWN ") {
        return Ok(Some(Header { source: None, destination: None, length }));
    }
    let (source, destination) = endpoints_of_line(line).ok_or(InvalidHeader(
        "a line other than PROXY, TCP4 or TCP6, two addresses, two ports, one space between them",
    ))?;
    Ok(Some(Header { source: Some(source), destination: Some(destination), length }))
}

fn endpoints_of_line(line: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    let words: Vec<&str> = std::str::from_utf8(line).ok()?.split(' ').collect();
    let ["PROXY", family, source, destination, source_port, destination_port] = words.as_slice() else { return None };
    // The parser of IPv4 refuses leading zeros, as the specification does. That of IPv6 takes the dotted tail of
    // IPv4-mapped addresses, which the specification does not have but C libraries write.
    let address = |text: &str| -> Option<IpAddr> {
        match *family {
            "TCP4" => text.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
            "TCP6" => text.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
            _ => None,
        }
    };
    Some((
        endpoint(address(source)?, decimal(source_port)?),
        endpoint(address(destination)?, decimal(destination_port)?),
    ))
}

fn endpoint(address: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(address.to_canonical(), port)
}

/// Version 2: a block with its length. Each octet is judged as soon as it is here, in order.
fn block(bytes: &[u8]) -> Outcome {
    let Some(version_and_command) = bytes.get(12) else { return Ok(None) };
    let is_local = match version_and_command {
        0x20 => true,
        0x21 => false,
        0x22..=0x2F => return Err(InvalidHeader("a command other than LOCAL and PROXY")),
        _ => return Err(InvalidHeader("the signature of version 2 with another version")),
    };
    let Some(family_and_protocol) = bytes.get(13) else { return Ok(None) };
    let kind = match Kind::of(*family_and_protocol) {
        Some(kind) => kind,
        // The family of LOCAL is ignored, whatever it is (§2.2).
        None if is_local => Kind::Unspecified,
        None => return Err(InvalidHeader("an unknown family or protocol")),
    };
    let Some(length) = bytes.get(14..FIXED_BYTES).and_then(|rest| rest.first_chunk::<2>()) else { return Ok(None) };
    let length = FIXED_BYTES.saturating_add(usize::from(u16::from_be_bytes(*length)));
    if length > MAX_HEADER_BYTES {
        return Err(InvalidHeader("a header longer than 4096 bytes"));
    }
    let tlvs_at = kind.address_bytes().map(|addresses| FIXED_BYTES.saturating_add(addresses));
    // Where the header speaks of a client, all of it must be right. Otherwise the specification has the block discarded,
    // so that only a checksum that stands where one belongs is looked at.
    let is_used = !is_local && kind != Kind::Absent && kind != Kind::Unspecified;
    if is_used && tlvs_at.is_some_and(|at| at > length) {
        return Err(InvalidHeader("a length too short for the addresses of its family"));
    }
    let Some(header) = bytes.get(..length) else { return Ok(None) };

    let checksum_at = match tlvs_at.map(|at| find_checksum(header, at)) {
        Some(Ok(found)) => found,
        Some(Err(error)) if is_used => return Err(error),
        Some(Err(_)) | None => None,
    };
    if checksum_at.is_some_and(|at| !is_intact(header, at)) {
        return Err(InvalidHeader("a CRC32C that does not match"));
    }
    let endpoints = if is_used { header.get(FIXED_BYTES..).and_then(|block| kind.endpoints(block)) } else { None };
    let (source, destination) = endpoints.unzip();
    Ok(Some(Header { source, destination, length }))
}

/// What the addresses of a block are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Family and protocol zero: no addresses.
    Absent,
    /// TCP or UDP over IPv4. Over UDP (HTTP/3 at the balancer) the client's address is as good.
    Inet,
    /// TCP or UDP over IPv6.
    Inet6,
    /// UNIX sockets.
    Unix,
    /// Family or protocol, but not both, unspecified: the form of the block is not told.
    Unspecified,
}

impl Kind {
    fn of(family_and_protocol: u8) -> Option<Self> {
        match family_and_protocol {
            0x00 => Some(Self::Absent),
            0x11 | 0x12 => Some(Self::Inet),
            0x21 | 0x22 => Some(Self::Inet6),
            0x31 | 0x32 => Some(Self::Unix),
            0x01 | 0x02 | 0x10 | 0x20 | 0x30 => Some(Self::Unspecified),
            _ => None,
        }
    }

    /// How long the addresses are, in bytes; the TLVs begin behind them.
    fn address_bytes(self) -> Option<usize> {
        match self {
            Self::Absent => Some(0),
            Self::Inet => Some(12),
            Self::Inet6 => Some(36),
            Self::Unix => Some(216),
            Self::Unspecified => None,
        }
    }

    /// Source and destination at the start of the block.
    fn endpoints(self, block: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
        let (source, destination, ports): (IpAddr, IpAddr, &[u8]) = match self {
            Self::Inet => {
                let (source, rest) = block.split_first_chunk::<4>()?;
                let (destination, ports) = rest.split_first_chunk::<4>()?;
                (Ipv4Addr::from(*source).into(), Ipv4Addr::from(*destination).into(), ports)
            }
            Self::Inet6 => {
                let (source, rest) = block.split_first_chunk::<16>()?;
                let (destination, ports) = rest.split_first_chunk::<16>()?;
                (Ipv6Addr::from(*source).into(), Ipv6Addr::from(*destination).into(), ports)
            }
            Self::Absent | Self::Unix | Self::Unspecified => return None,
        };
        let (source_port, rest) = ports.split_first_chunk::<2>()?;
        let destination_port = rest.first_chunk::<2>()?;
        Some((
            endpoint(source, u16::from_be_bytes(*source_port)),
            endpoint(destination, u16::from_be_bytes(*destination_port)),
        ))
    }
}

/// Goes over the TLVs from `at` to the header's end and finds the value of the checksum.
fn find_checksum(header: &[u8], mut at: usize) -> Result<Option<usize>, InvalidHeader> {
    let mut found = None;
    while at < header.len() {
        let Some([kind, high, low]) = header.get(at..).and_then(|rest| rest.first_chunk::<3>()) else {
            return Err(InvalidHeader("a TLV cut off by the header's end"));
        };
        let value_at = at.saturating_add(3);
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        at = value_at.saturating_add(length);
        if *kind == CRC32C {
            // With two of them, no checksum could be over the other at zero and the other's over this one.
            if length != CRC32C_BYTES || found.is_some() {
                return Err(InvalidHeader("a second CRC32C, or one that is not four bytes"));
            }
            found = Some(value_at);
        }
    }
    if at > header.len() { Err(InvalidHeader("a TLV cut off by the header's end")) } else { Ok(found) }
}

/// Whether the checksum at this place is that of the header with zeros in its stead. Network byte order (§2.2.3 follows
/// RFC 4960 appendix B; HAProxy and the balancers of AWS write it so).
fn is_intact(header: &[u8], at: usize) -> bool {
    let Some((before, rest)) = header.split_at_checked(at) else { return false };
    let Some((value, after)) = rest.split_first_chunk::<CRC32C_BYTES>() else { return false };
    let crc = crc32c::crc32c_append(crc32c::crc32c(before), &[0; CRC32C_BYTES]);
    crc32c::crc32c_append(crc, after).to_be_bytes() == *value
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(source: &str, destination: &str, length: usize) -> Reading {
        let address = |text: &str| if text.is_empty() { None } else { Some(text.parse::<SocketAddr>().unwrap()) };
        Reading::Header(Header { source: address(source), destination: address(destination), length })
    }

    fn v2(version_and_command: u8, family_and_protocol: u8, block: &[u8]) -> Vec<u8> {
        let mut bytes = SIGNATURE.to_vec();
        bytes.extend([version_and_command, family_and_protocol]);
        bytes.extend(u16::try_from(block.len()).unwrap().to_be_bytes());
        bytes.extend(block);
        bytes
    }

    fn tlv(kind: u8, value: &[u8]) -> Vec<u8> {
        let mut bytes = vec![kind];
        bytes.extend(u16::try_from(value.len()).unwrap().to_be_bytes());
        bytes.extend(value);
        bytes
    }

    const INET: [u8; 12] = [192, 0, 2, 1, 198, 51, 100, 2, 0xDC, 0x04, 0x01, 0xBB];

    /// The block with a checksum behind it, and other TLVs around that.
    fn with_checksum(version_and_command: u8, family_and_protocol: u8, addresses: &[u8]) -> Vec<u8> {
        let block = [addresses, &tlv(0x02, b"api.example.com"), &tlv(CRC32C, &[0; 4]), &tlv(0x04, b"")].concat();
        let mut bytes = v2(version_and_command, family_and_protocol, &block);
        let at = bytes.len() - 7;
        let crc = crc32c::crc32c(&bytes).to_be_bytes();
        bytes[at..at + 4].copy_from_slice(&crc);
        bytes
    }

    #[test]
    fn a_line_tells_source_and_destination() {
        for (text, source, destination) in [
            ("PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n", "192.168.0.1:56324", "192.168.0.11:443"),
            (
                "PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n",
                "255.255.255.255:65535",
                "255.255.255.255:65535",
            ),
            ("PROXY TCP6 2001:db8::1 2001:DB8::2 1 0\r\n", "[2001:db8::1]:1", "[2001:db8::2]:0"),
            ("PROXY TCP6 ::ffff:192.0.2.1 ::ffff:c000:202 1 2\r\n", "192.0.2.1:1", "192.0.2.2:2"),
            (
                "PROXY TCP6 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe 65535 65535\r\n",
                "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535",
                "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe]:65535",
            ),
            ("PROXY UNKNOWN\r\n", "", ""),
            ("PROXY UNKNOWN \r\n", "", ""),
            ("PROXY UNKNOWN whatever  192.0.2.1 stands here\r\n", "", ""),
            (
                "PROXY UNKNOWN ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n",
                "",
                "",
            ),
        ] {
            let expected = header(source, destination, text.len());
            assert_eq!(read(text.as_bytes()), expected, "{text:?}");
            assert_eq!(read(format!("{text}GET / HTTP/1.1\r\n").as_bytes()), expected, "{text:?} and more");
        }
    }

    #[test]
    fn a_line_that_is_not_exactly_right_is_invalid() {
        let long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(92));
        assert_eq!(long.len(), 108);
        let endless = "PROXY ".repeat(20);
        for text in [
            "PROXYTCP4 192.0.2.1 192.0.2.2 1 2\r\n",
            "PROXY\r\n",
            "PROXY \r\n",
            "PROXY  TCP4 192.0.2.1 192.0.2.2 1 2\r\n",
            "PROXY\tTCP4 192.0.2.1 192.0.2.2 1 2\r\n",
            "PROXY tcp4 192.0.2.1 192.0.2.2 1 2\r\n",
            "PROXY UDP4 192.0.2.1 192.0.2.2 1 2\r\n",
            "PROXY UNKNOWNS\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 1 2 \r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 1\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 1 2 3\r\n",
            "PROXY TCP4 192.0.2.1  192.0.2.2 1 2\r\n",
            "PROXY TCP4 192.0.2.01 192.0.2.2 1 2\r\n",
            "PROXY TCP4 192.0.2 192.0.2.2 1 2\r\n",
            "PROXY TCP4 192.0.2.256 192.0.2.2 1 2\r\n",
            "PROXY TCP4 2001:db8::1 2001:db8::2 1 2\r\n",
            "PROXY TCP4 192.0.2.1 2001:db8::2 1 2\r\n",
            "PROXY TCP6 192.0.2.1 192.0.2.2 1 2\r\n",
            "PROXY TCP6 [2001:db8::1] 2001:db8::2 1 2\r\n",
            "PROXY TCP6 fe80::1%1 2001:db8::2 1 2\r\n",
            "PROXY TCP6 2001::db8::1 2001:db8::2 1 2\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 01 2\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 +1 2\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 65536 2\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 1 \r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\rGET",
            "PROXY UNKNOWN a\nb\r\n",
            "PROXY / HTTP/1.1\r\n",
            &long,
            &endless,
        ] {
            assert!(matches!(read(text.as_bytes()), Reading::Invalid(_)), "{text:?}: {:?}", read(text.as_bytes()));
        }
        assert!(matches!(read(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 \xff\r\n"), Reading::Invalid(_)));
    }

    #[test]
    fn a_line_may_fill_its_107_bytes_and_no_more() {
        let most = format!("PROXY UNKNOWN {}\r\n", "x".repeat(91));
        assert_eq!(most.len(), MAX_LINE_BYTES);
        assert_eq!(read(most.as_bytes()), header("", "", MAX_LINE_BYTES));
        let open = format!("PROXY UNKNOWN {}", "x".repeat(92));
        assert_eq!(read(open.as_bytes()), Reading::NeedMore);
        assert!(matches!(read(format!("{open}\r").as_bytes()), Reading::Invalid(_)));
    }

    #[test]
    fn other_protocols_are_told_from_the_first_octets_that_differ() {
        for bytes in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"POST /v1/chat/completions HTTP/1.1\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"PROPFIND / HTTP/1.1\r\n",
            b"proxy TCP4",
            b"\x16\x03\x01\x02\x00",
            b"\r\nGET / HTTP/1.1\r\n",
            b"\r\n\r\nGET",
            b"\r\n\r\n\0\r\nQUIT\r",
            b"\0",
        ] {
            assert_eq!(read(bytes), Reading::NotProxied, "{}", bytes.escape_ascii());
        }
        for bytes in [&b""[..], b"P", b"PRO", b"PROXY", b"PROXY TCP4", b"\r", b"\r\n\r\n\0", SIGNATURE] {
            assert_eq!(read(bytes), Reading::NeedMore, "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn a_block_tells_source_and_destination() {
        let inet6: Vec<u8> = ["2001:db8::1", "2001:db8::2"]
            .into_iter()
            .flat_map(|text| text.parse::<Ipv6Addr>().unwrap().octets())
            .chain([0, 1, 0, 2])
            .collect();
        let mapped: Vec<u8> = ["::ffff:192.0.2.1", "::ffff:192.0.2.2"]
            .into_iter()
            .flat_map(|text| text.parse::<Ipv6Addr>().unwrap().octets())
            .chain([0, 1, 0, 2])
            .collect();
        let (source, destination) = ("192.0.2.1:56324", "198.51.100.2:443");
        for (name, bytes, source, destination) in [
            ("TCP over IPv4", v2(0x21, 0x11, &INET), source, destination),
            ("UDP over IPv4", v2(0x21, 0x12, &INET), source, destination),
            ("TCP over IPv6", v2(0x21, 0x21, &inet6), "[2001:db8::1]:1", "[2001:db8::2]:2"),
            ("UDP over IPv6", v2(0x21, 0x22, &inet6), "[2001:db8::1]:1", "[2001:db8::2]:2"),
            ("IPv4-mapped", v2(0x21, 0x21, &mapped), "192.0.2.1:1", "192.0.2.2:2"),
            ("UNIX stream", v2(0x21, 0x31, &[b'/'; 216]), "", ""),
            ("UNIX datagram", v2(0x21, 0x32, &[b'/'; 216]), "", ""),
            ("unspecified", v2(0x21, 0x00, &[]), "", ""),
            ("unspecified, with a block", v2(0x21, 0x00, &[1, 2]), "", ""),
            ("unspecified protocol", v2(0x21, 0x10, &INET), "", ""),
            ("unspecified family", v2(0x21, 0x01, &INET), "", ""),
            ("LOCAL", v2(0x20, 0x00, &[]), "", ""),
            ("LOCAL with addresses", v2(0x20, 0x11, &INET), "", ""),
            ("LOCAL with a block too short for its family", v2(0x20, 0x11, &INET[..5]), "", ""),
            ("LOCAL of a family nobody knows", v2(0x20, 0xF7, &INET), "", ""),
            ("LOCAL with TLVs", v2(0x20, 0x00, &tlv(0x04, b"padding")), "", ""),
            ("TLVs", v2(0x21, 0x11, &[&INET[..], &tlv(0x05, b"id"), &tlv(0xEA, b"")].concat()), source, destination),
            ("a checksum", with_checksum(0x21, 0x11, &INET), source, destination),
            ("a checksum without addresses", with_checksum(0x20, 0x00, &[]), "", ""),
            (
                "the most bytes",
                v2(0x21, 0x11, &[&INET[..], &tlv(0x04, &[0; 4096 - 16 - 12 - 3])].concat()),
                source,
                destination,
            ),
        ] {
            let expected = header(source, destination, bytes.len());
            assert_eq!(read(&bytes), expected, "{name}");
            assert_eq!(read(&[&bytes[..], b"\x16\x03\x01"].concat()), expected, "{name}, and more");
        }
    }

    /// Made by hand, and checked with a second implementation of CRC32C: a change of byte order or coverage on both
    /// sides of a test would go unseen otherwise.
    #[test]
    fn the_checksum_is_over_the_whole_header_in_network_order() {
        let bytes = with_checksum(0x21, 0x11, &INET);
        let at = bytes.len() - 7;
        let mut zeroed = bytes.clone();
        zeroed[at..at + 4].fill(0);
        let mut crc = u32::MAX;
        for byte in &zeroed {
            crc ^= u32::from(*byte);
            for _ in 0..8 {
                crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82F6_3B78 } else { crc >> 1 };
            }
        }
        assert_eq!(bytes[at..at + 4], (!crc).to_be_bytes());
        assert!(matches!(read(&bytes), Reading::Header(_)));
    }

    #[test]
    fn a_block_that_is_not_exactly_right_is_invalid() {
        let mut wrong_checksum = with_checksum(0x21, 0x11, &INET);
        let last = wrong_checksum.len() - 4;
        wrong_checksum[last] ^= 1;
        let mut wrong_local = with_checksum(0x20, 0x00, &[]);
        let last = wrong_local.len() - 4;
        wrong_local[last] ^= 1;
        let mut became_local = with_checksum(0x21, 0x11, &INET);
        became_local[12] = 0x20;
        let twice = [&INET[..], &tlv(CRC32C, &[0; 4]), &tlv(CRC32C, &[0; 4])].concat();
        for (name, bytes) in [
            ("version 1", v2(0x11, 0x11, &INET)),
            ("version 3", v2(0x31, 0x11, &INET)),
            ("a third command", v2(0x22, 0x11, &INET)),
            ("an unknown family", v2(0x21, 0x41, &INET)),
            ("an unknown protocol", v2(0x21, 0x13, &INET)),
            ("too short for IPv4", v2(0x21, 0x11, &INET[..11])),
            ("too short for IPv6", v2(0x21, 0x21, &[0; 35])),
            ("too short for UNIX", v2(0x21, 0x31, &[0; 215])),
            ("a TLV without its length", v2(0x21, 0x11, &[&INET[..], &[0x04, 0]].concat())),
            ("a TLV longer than the header", v2(0x21, 0x11, &[&INET[..], &[0x04, 0, 2, 0]].concat())),
            ("too long", v2(0x21, 0x11, &[0; 4081])),
            ("a checksum of three bytes", v2(0x21, 0x11, &[&INET[..], &tlv(CRC32C, &[0; 3])].concat())),
            ("two checksums", v2(0x21, 0x11, &twice)),
            ("a wrong checksum", wrong_checksum),
            ("a wrong checksum of LOCAL", wrong_local),
            ("PROXY turned into LOCAL under a checksum", became_local),
        ] {
            assert!(matches!(read(&bytes), Reading::Invalid(_)), "{name}: {:?}", read(&bytes));
        }
    }

    #[test]
    fn what_is_wrong_already_is_not_waited_out() {
        for (bytes, enough) in
            [(v2(0x31, 0x11, &INET), 13), (v2(0x21, 0x41, &INET), 14), (v2(0x21, 0x11, &[0; 9999]), 16)]
        {
            assert!(matches!(read(&bytes[..enough]), Reading::Invalid(_)), "{}", bytes[..enough].escape_ascii());
            assert_eq!(read(&bytes[..enough - 1]), Reading::NeedMore);
        }
    }

    fn anything() -> impl Strategy<Value = Vec<u8>> {
        let words = prop_oneof![
            Just(b"PROXY".to_vec()),
            Just(b" ".to_vec()),
            Just(b"TCP4".to_vec()),
            Just(b"UNKNOWN".to_vec()),
            Just(b"192.0.2.1".to_vec()),
            Just(b"443".to_vec()),
            Just(b"\r\n".to_vec()),
            Just(SIGNATURE.to_vec()),
            Just(vec![0x21, 0x11, 0, 12]),
            Just(vec![0x20, 0x00, 0, 0]),
            Just(vec![CRC32C, 0, 4]),
            proptest::collection::vec(any::<u8>(), 0..20),
        ];
        proptest::collection::vec(words, 0..16).prop_map(|words| words.concat())
    }

    proptest! {
        #[test]
        fn a_verdict_stays_whatever_follows(bytes in anything()) {
            let mut verdict = Reading::NeedMore;
            for end in 0..=bytes.len() {
                let now = read(&bytes[..end]);
                if verdict == Reading::NeedMore {
                    verdict = now;
                } else {
                    prop_assert_eq!(&now, &verdict, "at {}", end);
                }
            }
            if let Reading::Header(header) = &verdict {
                prop_assert!(header.length <= bytes.len());
                prop_assert_eq!(header.source.is_some(), header.destination.is_some());
            }
            if bytes.len() >= MAX_HEADER_BYTES {
                prop_assert_ne!(verdict, Reading::NeedMore);
            }
        }

        #[test]
        fn what_a_balancer_writes_is_read_at_its_last_byte_and_not_before(
            source in any::<SocketAddr>(),
            destination in any::<SocketAddr>(),
            padding in proptest::collection::vec(any::<u8>(), 0..40),
            as_line in any::<bool>(),
            sealed in any::<bool>(),
        ) {
            // One family for both, as on the wire.
            let both_v4 = source.is_ipv4() && destination.is_ipv4();
            let octets = |address: &SocketAddr| match address.ip() {
                IpAddr::V4(address) if both_v4 => address.octets().to_vec(),
                IpAddr::V4(address) => address.to_ipv6_mapped().octets().to_vec(),
                IpAddr::V6(address) => address.octets().to_vec(),
            };
            let shown = |address: &SocketAddr| match address.ip() {
                IpAddr::V4(address) if !both_v4 => address.to_ipv6_mapped().to_string(),
                other => other.to_string(),
            };
            let bytes = if as_line {
                let family = if both_v4 { "TCP4" } else { "TCP6" };
                let (from, to) = (shown(&source), shown(&destination));
                format!("PROXY {family} {from} {to} {} {}\r\n", source.port(), destination.port()).into_bytes()
            } else {
                let ports = [source.port().to_be_bytes(), destination.port().to_be_bytes()].concat();
                let addresses = [octets(&source), octets(&destination), ports].concat();
                let family = if both_v4 { 0x11 } else { 0x21 };
                if sealed {
                    with_checksum(0x21, family, &addresses)
                } else {
                    v2(0x21, family, &[addresses, tlv(0xE0, &padding)].concat())
                }
            };
            for end in 0..bytes.len() {
                prop_assert_eq!(read(&bytes[..end]), Reading::NeedMore, "{} of {}", end, bytes.len());
            }
            let plain = |address: SocketAddr| Some(SocketAddr::new(address.ip().to_canonical(), address.port()));
            let expected = Header { source: plain(source), destination: plain(destination), length: bytes.len() };
            prop_assert_eq!(read(&bytes), Reading::Header(expected));
        }

        #[test]
        fn no_flipped_bit_in_the_addresses_passes_a_checksum(at in 16usize..28, bit in 0u32..8) {
            let mut bytes = with_checksum(0x21, 0x11, &INET);
            bytes[at] ^= 1 << bit;
            prop_assert!(matches!(read(&bytes), Reading::Invalid(_)));
        }
    }
}

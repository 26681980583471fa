//! Is a PROXY protocol header found, read and refused as a second reader says, and at the same byte?
//!
//! An input is what a connection begins with. The second reader looks at all of it and says what it is and with which
//! byte that is certain; ours is asked after each byte and must say so then and not before, and never anything else,
//! whatever follows: that is every split. Nobody guesses a checksum, so one that stands where it belongs is set right and
//! the header read again, and then once more with a bit of its addresses turned.

#![no_main]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use libfuzzer_sys::fuzz_target;
use llm_proxy_core::network::proxy_protocol::{Reading, read};

/// The longest line of version 1, by the specification, and the longest header of version 2, by our documentation.
const LONGEST_LINE: usize = 107;
const LONGEST_HEADER: usize = 4096;
const SIGNATURE: [u8; 12] = [0x0D, 0x0A, 0x0D, 0x0A, 0x00, 0x0D, 0x0A, 0x51, 0x55, 0x49, 0x54, 0x0A];

fuzz_target!(|input: &[u8]| {
    let said = judge(input);
    agrees(input, &said);
    let Some(checksum) = checksum_of(input) else { return };
    let mut sealed = input.to_vec();
    seal(&mut sealed, checksum.at);
    let said = judge(&sealed);
    agrees(&sealed, &said);
    let What::Header(_) = said.what else { return };
    let Some(at) = checksum.addresses.min(input.len()).checked_sub(1).filter(|at| *at >= 16) else { return };
    sealed[at] ^= 1 << (input.len() % 8);
    let said = judge(&sealed);
    assert_eq!(said.what, What::Wrong, "a turned bit passes a checksum");
    agrees(&sealed, &said);
});

/// What a connection begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    /// That cannot be said yet.
    Open,
    /// A header, with source and destination if it names them.
    Header(Option<(SocketAddr, SocketAddr)>),
    /// A broken header.
    Wrong,
    /// Something else.
    Other,
}

#[derive(Debug)]
struct Said {
    what: What,
    /// With so many bytes it is certain.
    at: usize,
}

fn said(what: What, at: usize) -> Said {
    Said { what, at }
}

/// Asks ours after each byte.
fn agrees(input: &[u8], said: &Said) {
    assert!(said.what == What::Open || said.at <= input.len(), "{said:?}");
    let undecided = if said.what == What::Open { input.len() } else { said.at - 1 };
    for length in 0..=undecided {
        assert_eq!(read(&input[..length]), Reading::NeedMore, "after {length} of {said:?}");
    }
    if said.what == What::Open {
        assert!(input.len() < LONGEST_HEADER, "no header is longer: {said:?}");
        return;
    }
    // From there on it stays.
    for length in [said.at, said.at + 1, (said.at + input.len()) / 2, input.len()] {
        let ours = match read(&input[..length.min(input.len())]) {
            Reading::NeedMore => What::Open,
            Reading::NotProxied => What::Other,
            Reading::Invalid(_) => What::Wrong,
            Reading::Header(header) => {
                assert_eq!(header.length, said.at, "the client's bytes begin behind the header");
                assert_eq!(header.source.is_some(), header.destination.is_some());
                What::Header(header.source.zip(header.destination))
            }
        };
        assert_eq!(ours, said.what, "after {length} of {said:?}");
    }
}

fn judge(input: &[u8]) -> Said {
    let same = |start: &[u8]| input.iter().zip(start).take_while(|(found, expected)| found == expected).count();
    // The two beginnings differ in their first byte.
    match input.first() {
        None => said(What::Open, 0),
        Some(b'P') => match same(b"PROXY") {
            5 => line(input),
            alike if alike < input.len() => said(What::Other, alike + 1),
            _ => said(What::Open, 0),
        },
        Some(b'\r') => match same(&SIGNATURE) {
            12 => block(input),
            alike if alike < input.len() => said(What::Other, alike + 1),
            _ => said(What::Open, 0),
        },
        Some(_) => said(What::Other, 1),
    }
}

// --- version 1 (proxy-protocol.txt, section 2.1) ---

fn line(input: &[u8]) -> Said {
    // The first CR or LF ends the line; CRLF has to be within the first 107 bytes.
    let Some(end) = input.iter().take(LONGEST_LINE).position(|byte| *byte == b'\r' || *byte == b'\n') else {
        return if input.len() < LONGEST_LINE { said(What::Open, 0) } else { said(What::Wrong, LONGEST_LINE) };
    };
    if input[end] == b'\n' || end + 1 == LONGEST_LINE {
        return said(What::Wrong, end + 1);
    }
    match input.get(end + 1) {
        None => said(What::Open, 0),
        Some(b'\n') => said(text(&input[..end]), end + 2),
        Some(_) => said(What::Wrong, end + 2),
    }
}

fn text(line: &[u8]) -> What {
    let words: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    match words[..] {
        [b"PROXY", b"UNKNOWN", ..] => What::Header(None),
        [b"PROXY", b"TCP4", source, destination, from, to] => pair(v4(source), v4(destination), from, to),
        [b"PROXY", b"TCP6", source, destination, from, to] => pair(v6(source), v6(destination), from, to),
        _ => What::Wrong,
    }
}

fn pair(source: Option<IpAddr>, destination: Option<IpAddr>, from: &[u8], to: &[u8]) -> What {
    match (source, destination, port(from), port(to)) {
        (Some(source), Some(destination), Some(from), Some(to)) => {
            What::Header(Some((SocketAddr::new(source, from), SocketAddr::new(destination, to))))
        }
        _ => What::Wrong,
    }
}

/// A number without a sign and without needless zeros.
fn number(digits: &[u8], most: u32) -> Option<u32> {
    if !(1..=5).contains(&digits.len()) || (digits[0] == b'0' && digits.len() > 1) {
        return None;
    }
    let value = digits.iter().try_fold(0, |value, digit| match digit {
        b'0'..=b'9' => Some(value * 10 + u32::from(digit - b'0')),
        _ => None,
    });
    value.filter(|value| *value <= most)
}

fn port(digits: &[u8]) -> Option<u16> {
    number(digits, 0xFFFF).map(|port| port as u16)
}

fn quad(text: &[u8]) -> Option<[u8; 4]> {
    let octets: Vec<u8> = text
        .split(|byte| *byte == b'.')
        .map(|octet| number(octet, 0xFF).map(|octet| octet as u8))
        .collect::<Option<_>>()?;
    octets.try_into().ok()
}

fn v4(text: &[u8]) -> Option<IpAddr> {
    quad(text).map(|octets| Ipv4Addr::from(octets).into())
}

/// RFC 4291, section 2.2: eight groups, of which `::` stands for one or more that are zero, the last two perhaps as an
/// IPv4 address.
fn v6(text: &[u8]) -> Option<IpAddr> {
    let gap = (0..text.len().saturating_sub(1)).find(|at| text[*at..].starts_with(b"::"));
    let groups = match gap {
        None => groups(text, true).filter(|groups| groups.len() == 8)?,
        Some(at) => {
            let (before, after) = (&text[..at], &text[at + 2..]);
            let before = if before.is_empty() { Vec::new() } else { groups(before, false)? };
            let after = if after.is_empty() { Vec::new() } else { groups(after, true)? };
            let zeros = 8usize.checked_sub(before.len() + after.len()).filter(|zeros| *zeros >= 1)?;
            [before, vec![0; zeros], after].concat()
        }
    };
    let groups: [u16; 8] = groups.try_into().ok()?;
    Some(plain(groups))
}

/// Groups between single colons; the last one may be an IPv4 address where the text ends with it.
fn groups(text: &[u8], is_end: bool) -> Option<Vec<u16>> {
    let words: Vec<&[u8]> = text.split(|byte| *byte == b':').collect();
    let mut groups = Vec::new();
    for (place, word) in words.iter().enumerate() {
        if is_end && place + 1 == words.len() && word.contains(&b'.') {
            let [a, b, c, d] = quad(word)?;
            groups.extend([u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])]);
        } else {
            let is_group = (1..=4).contains(&word.len()) && word.iter().all(u8::is_ascii_hexdigit);
            let digits = std::str::from_utf8(word).ok().filter(|_| is_group)?;
            groups.push(u16::from_str_radix(digits, 16).ok()?);
        }
    }
    Some(groups)
}

/// An IPv4-mapped address is the IPv4 address.
fn plain(groups: [u16; 8]) -> IpAddr {
    match groups {
        [0, 0, 0, 0, 0, 0xFFFF, high, low] => {
            let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
            Ipv4Addr::new(a, b, c, d).into()
        }
        groups => Ipv6Addr::from(groups).into(),
    }
}

// --- version 2 (section 2.2) ---

fn block(input: &[u8]) -> Said {
    match input.get(12) {
        None => return said(What::Open, 0),
        Some(0x20 | 0x21) => {}
        Some(_) => return said(What::Wrong, 13),
    }
    let is_local = input[12] == 0x20;
    match input.get(13) {
        None => return said(What::Open, 0),
        // UNSPEC, INET, INET6, UNIX over UNSPEC, STREAM, DGRAM; LOCAL may have anything.
        Some(byte) if is_local || (byte >> 4 <= 3 && byte & 0xF <= 2) => {}
        Some(_) => return said(What::Wrong, 14),
    }
    if input.len() < 16 {
        return said(What::Open, 0);
    }
    let length = 16 + usize::from(u16::from_be_bytes([input[14], input[15]]));
    let addresses = addresses_of(input[13]);
    // A header that names somebody is right in all its parts, one that names nobody is passed over.
    let names = !is_local && addresses.is_some_and(|bytes| bytes > 0);
    if length > LONGEST_HEADER || (names && addresses.is_some_and(|bytes| 16 + bytes > length)) {
        return said(What::Wrong, 16);
    }
    if input.len() < length {
        return said(What::Open, 0);
    }
    let header = &input[..length];
    let tlvs = addresses.and_then(|bytes| tlvs(header, 16 + bytes));
    let is_right = match &tlvs {
        None => !names,
        Some(checksums) => checksums.first().is_none_or(|at| {
            let mut zeroed = header.to_vec();
            zeroed[*at..at + 4].fill(0);
            header[*at..at + 4] == crc32c(&zeroed).to_be_bytes()
        }),
    };
    said(if is_right { What::Header(if names { named(header) } else { None }) } else { What::Wrong }, length)
}

/// How many bytes of addresses a family and protocol have; `None` where that is not told.
fn addresses_of(family_and_protocol: u8) -> Option<usize> {
    match family_and_protocol {
        0x00 => Some(0),
        0x11 | 0x12 => Some(12),
        0x21 | 0x22 => Some(36),
        0x31 | 0x32 => Some(216),
        _ => None,
    }
}

fn named(header: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    let word = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    let octets = |at: usize| -> [u8; 4] { [header[at], header[at + 1], header[at + 2], header[at + 3]] };
    let groups = |at: usize| -> [u16; 8] { std::array::from_fn(|group| word(at + 2 * group)) };
    match header[13] >> 4 {
        1 => Some((
            SocketAddr::new(Ipv4Addr::from(octets(16)).into(), word(24)),
            SocketAddr::new(Ipv4Addr::from(octets(20)).into(), word(26)),
        )),
        2 => Some((SocketAddr::new(plain(groups(16)), word(48)), SocketAddr::new(plain(groups(32)), word(50)))),
        _ => None,
    }
}

/// Where the values of checksums stand, at most one, if TLVs fill the header from here to its end.
fn tlvs(header: &[u8], mut at: usize) -> Option<Vec<usize>> {
    let mut checksums = Vec::new();
    while at != header.len() {
        let [kind, high, low] = *header.get(at..)?.first_chunk::<3>()?;
        let length = usize::from(u16::from_be_bytes([high, low]));
        if kind == 3 {
            checksums.push(at + 3);
            if length != 4 || checksums.len() > 1 {
                return None;
            }
        }
        at += 3 + length;
        if at > header.len() {
            return None;
        }
    }
    Some(checksums)
}

/// CRC32C (RFC 3309), one bit at a time.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82F6_3B78 } else { crc >> 1 };
        }
    }
    !crc
}

// --- checksums set right ---

struct Checksum {
    /// Where its value stands.
    at: usize,
    /// Where the addresses end.
    addresses: usize,
}

/// The checksum of a whole header of version 2.
fn checksum_of(input: &[u8]) -> Option<Checksum> {
    let said = block_of(input)?;
    let addresses = 16 + addresses_of(input[13])?;
    let at = *tlvs(&input[..said.at], addresses)?.first()?;
    Some(Checksum { at, addresses })
}

/// What is said of a block, if all of it is here.
fn block_of(input: &[u8]) -> Option<Said> {
    let said = if input.starts_with(&SIGNATURE) { block(input) } else { return None };
    (said.what != What::Open && said.at >= 16 && input.len() >= said.at).then_some(said)
}

fn seal(header: &mut [u8], at: usize) {
    let length = 16 + usize::from(u16::from_be_bytes([header[14], header[15]]));
    header[at..at + 4].fill(0);
    let crc = crc32c(&header[..length]);
    header[at..at + 4].copy_from_slice(&crc.to_be_bytes());
}

//! Addresses: of mailboxes and of hosts.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::{ends_number, ends_word};

/// Longest domain that is looked at, in characters (RFC 1035 §2.3.4).
const MAX_DOMAIN_CHARS: usize = 255;
/// Longest text form of an IPv6 address, with an IPv4 address at its end (RFC 4291 §2.2), and a full stop.
const MAX_IPV6_BYTES: usize = 46;

/// The mailbox around an `@`: bytes of it in `before`, which ends there, and in `after`, which begins behind it.
///
/// The domain needs a dot and a last label of letters, so `npm@10.2.3` is none. Letters may be Latin ones with marks, Greek
/// and Cyrillic ones; those of some other scripts stand beside addresses without a space.
pub(super) fn mailbox(before: &str, after: &str) -> Option<(usize, usize)> {
    let domain = domain_bytes(after)?;
    let letters = before.chars().rev().take_while(|letter| is_letter(*letter) || "._%+-".contains(*letter));
    let mut local = letters.fold(0usize, |bytes, letter| bytes.saturating_add(letter.len_utf8()));
    let start = before.len().saturating_sub(local);
    if super::is_escape_letter(before.as_bytes(), start.saturating_add(1)) {
        local = local.saturating_sub(1); // of `\n` before the address, in JSON inside a string
    }
    (local > 0).then_some((local, domain))
}

fn domain_bytes(after: &str) -> Option<usize> {
    let is_part = |letter: char| is_letter(letter) || matches!(letter, '-' | '.');
    let run = after.chars().take(MAX_DOMAIN_CHARS).take_while(|letter| is_part(*letter));
    let run = after.get(..run.fold(0usize, |bytes, letter| bytes.saturating_add(letter.len_utf8())))?;
    let mut found = None;
    let mut start = 0usize;
    for label in run.split('.') {
        let name = label.trim_end_matches('-');
        let end = start.saturating_add(name.len());
        if start > 0 && is_last_label(name) {
            found = Some(end);
        }
        if name.is_empty() || name.len() < label.len() {
            break;
        }
        start = end.saturating_add(1);
    }
    found
}

fn is_last_label(label: &str) -> bool {
    let is_word = label.chars().count() >= 2 && label.chars().all(char::is_alphabetic);
    is_word || label.len() > 4 && label.starts_with("xn--")
}

/// Up to the last one of Cyrillic.
fn is_letter(letter: char) -> bool {
    letter.is_alphanumeric() && letter < '\u{530}'
}

/// Length of the IPv4 address that `rest` begins with: four numbers up to 255, no more and no less. In a range another one
/// follows.
pub(super) fn ipv4(rest: &[u8]) -> Option<usize> {
    let end = four_numbers(rest)?;
    let is_range = match rest.get(end..) {
        Some([b'-', last @ ..]) => four_numbers(last).is_some_and(|length| ends_number(last, length)),
        _ => false,
    };
    (is_range || ends_number(rest, end)).then_some(end)
}

fn four_numbers(rest: &[u8]) -> Option<usize> {
    let most = rest.get(..16).unwrap_or(rest);
    let run = most.split(|byte| !(byte.is_ascii_digit() || *byte == b'.')).next()?;
    let address = std::str::from_utf8(run).ok()?.trim_end_matches('.');
    address.parse::<Ipv4Addr>().ok()?;
    Some(address.len())
}

/// Length of the IPv6 address that `rest` begins with. Short ones must look like an address of a host, as `a::b` is
/// also what programs are made of.
pub(super) fn ipv6(rest: &[u8]) -> Option<usize> {
    if !rest.iter().take(5).any(|byte| *byte == b':') {
        return None; // groups have at most four digits
    }
    let most = rest.get(..MAX_IPV6_BYTES).unwrap_or(rest);
    let run = most.split(|byte| !(byte.is_ascii_hexdigit() || matches!(byte, b':' | b'.'))).next()?;
    let text = std::str::from_utf8(run).ok()?.trim_end_matches('.');
    let address = if text.ends_with("::") { text } else { text.trim_end_matches(':') };
    address.parse::<Ipv6Addr>().ok()?;
    let groups = address.split(':').filter(|group| !group.is_empty()).count();
    let is_host =
        groups >= 3 || address.contains('.') || address.len() > 4 && address.starts_with(['2', '3', 'f', 'F']);
    (is_host && ends_word(rest, address.len())).then_some(address.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mailbox_has_a_name_and_a_domain() {
        for (text, expected) in [
            ("anna@example.com", "anna@example.com"),
            ("mail anna.b+c@sub.example.co.uk.", "anna.b+c@sub.example.co.uk"),
            ("mailto:a_b%c@example.org?subject=x", "a_b%c@example.org"),
            ("{\"a\":\"a@b.de\"}", "a@b.de"),
            ("jörg@müller.de", "jörg@müller.de"),
            ("a@xn--mller-kva.xn--p1ai", "a@xn--mller-kva.xn--p1ai"),
            ("宛先info@example.jpです", "info@example.jp"),
            ("почта: иван@пример.рф.", "иван@пример.рф"),
            ("line\\nanna@example.com", "anna@example.com"),
            ("a@b.com.5", "a@b.com"),
            ("a@b-c.com-", "a@b-c.com"),
            ("npm@10.2.3", ""),
            ("@mention", ""),
            ("@example.com", ""),
            ("root@host", ""),
            ("a@.com", ""),
            ("a@b.c", ""),
            ("a @ b.com", ""),
            ("5 apples @ 2.50", ""),
        ] {
            let (before, after) = text.split_once('@').unwrap();
            let found = mailbox(before, after)
                .map(|(local, domain)| &text[before.len() - local..before.len() + 1 + domain])
                .unwrap_or_default();
            assert_eq!(found, expected, "{text}");
        }
    }

    #[test]
    fn hosts_have_four_numbers_or_eight_groups() {
        for (text, expected) in [
            ("192.168.0.1", "192.168.0.1"),
            ("10.0.0.255:8080", "10.0.0.255"),
            ("10.0.0.0/8", "10.0.0.0"),
            ("8.8.8.8.", "8.8.8.8"),
            ("10.0.0.1-10.0.0.9", "10.0.0.1"),
            ("1.2.3.4-5.6.7.8.9", ""),
            ("10.0.0", ""),
            ("10.0.0.256", ""),
            ("10.0.0.01", ""),
            ("1.2.3.4.5", ""),
            ("1.2.3.4-5", ""),
            ("1.2.3.4a", ""),
            ("1.2.3.4_", ""),
            ("123.123.123.1234", ""),
            ("2024.11.21", ""),
        ] {
            let found = ipv4(text.as_bytes()).map_or("", |end| &text[..end]);
            assert_eq!(found, expected, "{text}");
        }
        for (text, expected) in [
            ("2001:db8::1", "2001:db8::1"),
            ("2001:db8::1.", "2001:db8::1"),
            ("2001:db8::1]:443", "2001:db8::1"),
            ("2001:db8:0:0:0:0:0:1", "2001:db8:0:0:0:0:0:1"),
            ("fe80::1%eth0", "fe80::1"),
            ("::ffff:10.0.0.1", "::ffff:10.0.0.1"),
            ("2a00:1450:: and", "2a00:1450::"),
            ("2001:db8::1: no route", "2001:db8::1"),
            ("12:30:45", ""),
            ("00:1a:2b:3c:4d:5e", ""),
            ("a::b", ""),
            ("dead::beef::cafe", ""),
            ("abc::def", ""),
            ("::", ""),
            ("2001:db8::12345", ""),
            ("2001:db8::1g", ""),
            ("std::vector", ""),
            ("{\"a\":1}", ""),
        ] {
            let found = ipv6(text.as_bytes()).map_or("", |end| &text[..end]);
            assert_eq!(found, expected, "{text}");
        }
    }
}

//! Judging a raw HTTP/1.1 request head (RFC 9112 §2–§6): the bytes as received become a [`Call`] or a refusal.
//!
//! The rules are stricter than the RFC asks of a server wherever a lenient reading lets two parties see two requests:
//! one Host, one framing, CRLF only, no folding, no octets that terminals or parsers act upon.

use std::borrow::Cow;
use std::ops::Range;

use bytes::Bytes;

use super::call::{Call, Field, Framing, Name, Parts, Version};
use super::lines::{self, BadLine, narrow};
use super::octets::{is_target, is_token};

/// The most field lines taken.
pub const MOST_FIELDS: usize = 100;

/// Why a head is refused. The text goes to the client, in our own words: never the client's bytes.
pub type BadHead = Cow<'static, str>;

/// Reads a complete head, from the request line to the empty line's CRLF.
///
/// # Errors
/// What is wrong, for a 400 that closes the connection.
pub fn parse(raw: Bytes) -> Result<Call, BadHead> {
    let text: &[u8] = &raw;
    let line_end = lines::end(text, 0).ok_or("the request line does not end")?;
    let line = text.get(..line_end).unwrap_or(&[]);
    let (method, mut target, version) = request_line(line)?;
    let mut fields = Vec::with_capacity(16);
    let mut at = line_end.saturating_add(2);
    loop {
        let end = lines::end(text, at).ok_or("a field line does not end")?;
        if end == at {
            break;
        }
        if fields.len() == MOST_FIELDS {
            return Err("more than 100 header fields".into());
        }
        fields.push(field_line(text, at, end)?);
        at = end.saturating_add(2);
    }
    let value = |field: &Field, call: &[u8]| -> Vec<u8> { slice(call, field).to_vec() };
    let host = only(&fields, Name::Host, "Host")?.map(|field| value(field, text));
    match &host {
        Some(host) if !is_authority(host) => return Err("the Host field is not a valid host".into()),
        None if version == Version::Http11 => return Err("the Host field is missing".into()),
        _ => {}
    }
    if text.get(target.clone()).is_some_and(|target| !target.starts_with(b"/")) {
        target = origin_form(text, target, host.as_deref())?;
    }
    let framing = framing(text, &fields, version)?;
    if let Some(expect) = only(&fields, Name::Expect, "Expect")?
        && !slice(text, expect).eq_ignore_ascii_case(b"100-continue")
    {
        return Err("Expect is not 100-continue".into());
    }
    let target = narrow(&target);
    let method = narrow(&method);
    Ok(Call::new(Parts { method, target, fields, version, framing, raw }))
}

fn request_line(line: &[u8]) -> Result<(Range<usize>, Range<usize>, Version), BadHead> {
    let first = memchr::memchr(b' ', line).ok_or("the request line is not method, target, version")?;
    let last = memchr::memrchr(b' ', line).ok_or("the request line is not method, target, version")?;
    let method = line.get(..first).unwrap_or(&[]);
    let target = first.saturating_add(1)..last;
    if method.is_empty() || method.len() > 32 || !is_token(method) {
        return Err("the method is not a token".into());
    }
    let version = match line.get(last.saturating_add(1)..) {
        Some(b"HTTP/1.1") => Version::Http11,
        Some(b"HTTP/1.0") => Version::Http10,
        _ => return Err("the version is not HTTP/1.1 or HTTP/1.0".into()),
    };
    let octets = line.get(target.clone()).unwrap_or(&[]);
    if octets.is_empty() || !is_target(octets) {
        return Err("the target has octets outside visible ASCII, or that must be percent-encoded".into());
    }
    Ok((0..first, target, version))
}

fn field_line(text: &[u8], start: usize, end: usize) -> Result<Field, BadHead> {
    let (name, value) = lines::field(text, start, end).map_err(|bad| match bad {
        BadLine::Name => "a field line does not begin with a token and its colon",
        BadLine::Value => "a field value has a control octet",
    })?;
    let kind = Name::of(text.get(name.clone()).unwrap_or(&[]));
    Ok(Field::new(narrow(&name), narrow(&value), kind))
}

fn slice<'a>(text: &'a [u8], field: &Field) -> &'a [u8] {
    let range = field.value_range();
    text.get(range).unwrap_or(&[])
}

fn only<'a>(fields: &'a [Field], kind: Name, name: &str) -> Result<Option<&'a Field>, BadHead> {
    let mut found = fields.iter().filter(|field| field.kind == kind);
    let first = found.next();
    if found.next().is_some() {
        return Err(format!("{name} stands there more than once").into());
    }
    Ok(first)
}

/// Exactly one of: no body, one Content-Length of 1 to 15 digits, `chunked` (RFC 9112 §6.3, stricter).
fn framing(text: &[u8], fields: &[Field], version: Version) -> Result<Framing, BadHead> {
    let length = only(fields, Name::ContentLength, "Content-Length")?;
    let coding = only(fields, Name::TransferEncoding, "Transfer-Encoding")?;
    match (length, coding) {
        (None, None) => Ok(Framing::None),
        (Some(_), Some(_)) => Err("Content-Length and Transfer-Encoding stand there both".into()),
        (Some(length), None) => {
            let length = lines::digits(slice(text, length)).ok_or("Content-Length is not 1 to 15 digits")?;
            Ok(Framing::Length(length))
        }
        (None, Some(_)) if version == Version::Http10 => Err("Transfer-Encoding came with HTTP/1.0".into()),
        (None, Some(coding)) if slice(text, coding).eq_ignore_ascii_case(b"chunked") => Ok(Framing::Chunked),
        (None, Some(_)) => Err("Transfer-Encoding is not exactly chunked".into()),
    }
}

/// Absolute form is taken when its authority is the Host; what goes on is its origin form (RFC 9112 §3.2.2).
fn origin_form(text: &[u8], target: Range<usize>, host: Option<&[u8]>) -> Result<Range<usize>, BadHead> {
    let whole = text.get(target.clone()).unwrap_or(&[]);
    let scheme = [&b"http://"[..], b"https://"]
        .into_iter()
        .find(|scheme| whole.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme)))
        .ok_or("the target is not in origin form")?;
    let rest = whole.get(scheme.len()..).unwrap_or(&[]);
    let slash = memchr::memchr(b'/', rest).ok_or("the target has no path")?;
    let authority = rest.get(..slash).unwrap_or(&[]);
    if !host.is_some_and(|host| host.eq_ignore_ascii_case(authority)) {
        return Err("the target's authority is not the Host".into());
    }
    Ok(target.start.saturating_add(scheme.len()).saturating_add(slash)..target.end)
}

/// Letters, digits, `-._~`, or an IPv6 literal in brackets; an optional port of at most 65535.
fn is_authority(host: &[u8]) -> bool {
    let (name, port) = if host.first() == Some(&b'[') {
        let Some(close) = memchr::memchr(b']', host) else { return false };
        let inside = host.get(1..close).unwrap_or(&[]);
        let literal = std::str::from_utf8(inside).is_ok_and(|text| text.parse::<std::net::Ipv6Addr>().is_ok());
        if !literal {
            return false;
        }
        (inside, host.get(close.saturating_add(1)..).unwrap_or(&[]))
    } else {
        let end = memchr::memchr(b':', host).unwrap_or(host.len());
        let name = host.get(..end).unwrap_or(&[]);
        if !name.iter().all(|octet| octet.is_ascii_alphanumeric() || matches!(octet, b'-' | b'.' | b'_' | b'~')) {
            return false;
        }
        (name, host.get(end..).unwrap_or(&[]))
    };
    let port_fits = match port {
        [] => true,
        [b':', digits @ ..] => {
            !digits.is_empty()
                && digits.len() <= 5
                && digits.iter().all(u8::is_ascii_digit)
                && std::str::from_utf8(digits).is_ok_and(|digits| digits.parse::<u16>().is_ok())
        }
        _ => false,
    };
    !name.is_empty() && port_fits
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(head: &str) -> Result<Call, BadHead> {
        parse(Bytes::copy_from_slice(head.as_bytes()))
    }

    #[test]
    fn a_good_head_is_read_by_position() {
        let call = judged("POST /v1/x?key=a HTTP/1.1\r\nHost: localhost:8080\r\nContent-Length:  5 \r\nConnection: close, x-a\r\nX-A: b\r\n\r\n").unwrap();
        assert_eq!((call.method(), call.target()), ("POST", "/v1/x?key=a"));
        assert_eq!(call.framing, Framing::Length(5));
        assert!(call.wants_close && !call.wants_keep_alive);
        assert_eq!(call.header("x-a"), Some(&b"b"[..]));
        assert_eq!(call.connection_options().collect::<Vec<_>>(), [&b"close"[..], b"x-a"]);
    }

    #[test]
    fn absolute_form_goes_on_in_origin_form() {
        let call = judged("GET http://a.example/v1/models?x HTTP/1.1\r\nHost: a.example\r\n\r\n").unwrap();
        assert_eq!(call.target(), "/v1/models?x");
        assert!(judged("GET http://b.example/v1 HTTP/1.1\r\nHost: a.example\r\n\r\n").is_err());
        assert!(judged("GET ftp://a.example/v1 HTTP/1.1\r\nHost: a.example\r\n\r\n").is_err());
    }

    #[test]
    fn what_two_readers_could_see_differently_is_refused() {
        for head in [
            "GET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a:99999\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: \r\n\r\n",
            "GET / HTTP/1.1\r\nHost: [::1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: user@a\r\n\r\n",
            "GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/2.0\r\nHost: a\r\n\r\n",
            "GET / http/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1 \r\nHost: a\r\n\r\n",
            "G@T / HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /\u{e9} HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /a\\b HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET * HTTP/1.1\r\nHost: a\r\n\r\n",
            "CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n folded: x\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX : y\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n: y\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX: a\u{0}b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX: a\u{7f}b\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1234567890123456\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n",
            "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nExpect: 200-ok\r\nContent-Length: 1\r\n\r\n",
        ] {
            assert!(judged(head).is_err(), "{}", head.escape_debug());
        }
        assert_eq!(
            judged("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n").unwrap().framing,
            Framing::Chunked
        );
        assert!(judged("GET / HTTP/1.0\r\n\r\n").is_ok(), "HTTP/1.0 needs no Host");
    }
}

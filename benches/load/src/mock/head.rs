//! A request head as it came. Kept as received, byte for byte, because what a proxy did to it is the question; read
//! strictly, because a provider that guesses hides a proxy's mistakes.

use bytes::{Buf, Bytes, BytesMut};
use memchr::{memchr_iter, memmem};

use crate::body::Framing;

const MAX_HEAD_BYTES: usize = 1024 * 1024;
const MAX_HEADERS: usize = 256;

/// One parsed request head.
#[derive(Clone, Debug)]
pub(super) struct Head {
    /// The head as received, its empty line included.
    pub(super) raw: Bytes,
    pub(super) method: String,
    pub(super) target: String,
    /// Names and values in the order received; names in the case received.
    pub(super) headers: Vec<(Bytes, Bytes)>,
    pub(super) framing: Framing,
    pub(super) is_http10: bool,
    pub(super) keep_alive: bool,
    pub(super) expects_continue: bool,
}

/// A head that cannot be answered with anything but 400.
#[derive(Clone, Debug)]
pub(super) struct BadHead {
    pub(super) raw: Bytes,
    pub(super) reason: &'static str,
}

impl Head {
    /// Takes the next head out of `buffer`, or leaves it there until it is whole.
    pub(super) fn take(buffer: &mut BytesMut) -> Result<Option<Self>, BadHead> {
        let Some(end) = memmem::find(buffer, b"\r\n\r\n") else {
            if buffer.len() > MAX_HEAD_BYTES {
                return Err(BadHead { raw: Bytes::copy_from_slice(buffer), reason: "the head is too large" });
            }
            return Ok(None);
        };
        let length = end.saturating_add(4);
        // Copied: a slice of the connection's buffer would keep all of it alive for as long as the books remember.
        let raw = Bytes::copy_from_slice(buffer.get(..length).unwrap_or_default());
        buffer.advance(length);
        Self::parse(&raw).map(Some).map_err(|reason| BadHead { raw, reason })
    }

    /// The value of the first header of this name.
    pub(super) fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers.iter().find(|(own, _)| own.eq_ignore_ascii_case(name.as_bytes())).map(|(_, value)| value.as_ref())
    }

    /// The elements of a list field (RFC 9110 §5.6.1), over all lines of it.
    pub(super) fn elements(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        let lines = self.headers.iter().filter(move |(own, _)| own.eq_ignore_ascii_case(name.as_bytes()));
        lines.flat_map(|(_, value)| value.split(|octet| *octet == b',')).map(<[u8]>::trim_ascii)
    }

    /// The path of the target, without its query.
    pub(super) fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    /// The value of a query parameter, as written.
    pub(super) fn query(&self, name: &str) -> Option<&str> {
        let query = self.target.split_once('?')?.1;
        query
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .find(|(own, _)| is_named(own, name))
            .map(|(_, value)| value)
    }

    fn parse(raw: &Bytes) -> Result<Self, &'static str> {
        if memchr_iter(b'\n', raw).any(|at| at.checked_sub(1).and_then(|before| raw.get(before)) != Some(&b'\r')) {
            return Err("a line ends with a bare LF");
        }
        let mut fields = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut request = httparse::Request::new(&mut fields);
        match request.parse(raw) {
            Ok(httparse::Status::Complete(length)) if length == raw.len() => {}
            Ok(_) => return Err("the head is not whole"),
            Err(_) => return Err("the head is not HTTP/1.1"),
        }
        let (Some(method), Some(target), Some(minor)) = (request.method, request.path, request.version) else {
            return Err("the request line is not whole");
        };
        let headers: Vec<_> = request
            .headers
            .iter()
            .map(|field| (raw.slice_ref(field.name.as_bytes()), raw.slice_ref(field.value)))
            .collect();

        let mut length = None;
        let mut chunked = false;
        let (mut close, mut keep, mut hosts, mut expects_continue) = (false, false, 0_u32, false);
        for (name, value) in &headers {
            if name.eq_ignore_ascii_case(b"content-length") {
                if length.is_some() {
                    return Err("content-length twice");
                }
                length = Some(decimal(value).ok_or("content-length is not a number")?);
            } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
                if chunked || !value.eq_ignore_ascii_case(b"chunked") {
                    return Err("transfer-encoding is not just chunked");
                }
                chunked = true;
            } else if name.eq_ignore_ascii_case(b"connection") {
                close |= value.split(|byte| *byte == b',').any(|item| item.trim_ascii().eq_ignore_ascii_case(b"close"));
                keep |=
                    value.split(|byte| *byte == b',').any(|item| item.trim_ascii().eq_ignore_ascii_case(b"keep-alive"));
            } else if name.eq_ignore_ascii_case(b"host") {
                hosts = hosts.saturating_add(1);
            } else if name.eq_ignore_ascii_case(b"expect") {
                expects_continue |= value.eq_ignore_ascii_case(b"100-continue");
            }
        }
        let is_http10 = minor == 0;
        if chunked && (length.is_some() || is_http10) {
            return Err("transfer-encoding with content-length or HTTP/1.0");
        }
        if hosts > 1 || (hosts == 0 && !is_http10) {
            return Err("not exactly one host");
        }
        Ok(Self {
            method: method.to_owned(),
            target: target.to_owned(),
            framing: if chunked { Framing::Chunked } else { Framing::Length(length.unwrap_or(0)) },
            is_http10,
            keep_alive: !close && (!is_http10 || keep),
            expects_continue: expects_continue && !is_http10,
            headers,
            raw: raw.clone(),
        })
    }
}

fn decimal(value: &[u8]) -> Option<u64> {
    if value.is_empty() || value.len() > 15 || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok()
}

/// Whether a parameter's name, which may be percent-encoded, is this one.
fn is_named(own: &str, name: &str) -> bool {
    let mut octets = own.bytes();
    let decoded = std::iter::from_fn(|| {
        let octet = octets.next()?;
        if octet != b'%' {
            return Some(octet);
        }
        let mut digit =
            || char::from(octets.next().unwrap_or(b'?')).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        Some(digit()?.wrapping_mul(16).wrapping_add(digit()?))
    });
    decoded.eq(name.bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(text: &str) -> Result<Option<Head>, &'static str> {
        Head::take(&mut BytesMut::from(text)).map_err(|bad| bad.reason)
    }

    #[test]
    fn a_head_is_kept_as_received() {
        let text = "POST /v1/x?key=k&alt=sse HTTP/1.1\r\nHOST: a\r\nX-Odd:  two \r\ntransfer-encoding: Chunked\r\n\r\n";
        let mut buffer = BytesMut::from(text);
        buffer.extend_from_slice(b"rest");
        let head = Head::take(&mut buffer).unwrap().unwrap();
        assert_eq!(head.raw, text);
        assert_eq!(buffer, "rest".as_bytes());
        assert_eq!((head.path(), head.query("alt")), ("/v1/x", Some("sse")));
        assert_eq!(head.header("x-odd"), Some(b"two".as_slice()));
        assert_eq!(head.elements("transfer-encoding").collect::<Vec<_>>(), [b"Chunked"]);
        assert_eq!(head.framing, Framing::Chunked);
        assert!(head.keep_alive);
    }

    #[test]
    fn ambiguous_heads_are_refused() {
        for fields in [
            "host: a\r\ncontent-length: 1\r\ncontent-length: 1\r\n",
            "host: a\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n",
            "host: a\r\ncontent-length: +1\r\n",
            "host: a\r\ntransfer-encoding: gzip, chunked\r\n",
            "host: a\r\nhost: b\r\n",
            "host: a\nx: y\r\n",
            "x-no: host\r\n",
        ] {
            assert!(take(&format!("GET / HTTP/1.1\r\n{fields}\r\n")).is_err(), "{fields:?}");
        }
        assert!(take("GET / HTTP/1.1\r\nhost: a\r\n").unwrap().is_none());
    }
}

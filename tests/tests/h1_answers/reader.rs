//! A second reader of answers, strict and slow: what it makes of some bytes is the only thing that a client may be told
//! about them. Written from RFC 9112 for whole answers in memory, and sharing nothing with the proxy's own.

use super::corpus::Ending;

/// What some bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reading {
    /// No final answer's head that can be read in one way only.
    None,
    /// A head, so much of a body, and then something that is not the rest of it.
    Broken { status: u16, body: Vec<u8> },
    /// A whole answer, and so many octets behind it.
    Whole { status: u16, body: Vec<u8>, behind: usize },
}

/// Reads the answer that a connection with this ending brings; interim answers are passed over.
pub fn read(bytes: &[u8], ending: Ending, to_head: bool) -> Reading {
    let mut input = Input(bytes);
    let (status, framing) = loop {
        match input.head() {
            Some((100..=199, _)) => {}
            Some(head) => break head,
            None => return Reading::None,
        }
    };
    let mut body = Vec::new();
    let is_whole = match framing {
        _ if to_head || matches!(status, 204 | 304) => true,
        Framing::Length(length) => input.take(length, &mut body),
        Framing::Chunked => input.chunks(&mut body).is_some(),
        Framing::UntilClose => input.take(input.0.len(), &mut body) && ending == Ending::Fin,
    };
    if is_whole { Reading::Whole { status, body, behind: input.0.len() } } else { Reading::Broken { status, body } }
}

/// RFC 9112 §6.3, but for the answers that have no body whatever they say.
enum Framing {
    Length(usize),
    Chunked,
    UntilClose,
}

/// What has not been read yet.
struct Input<'bytes>(&'bytes [u8]);

impl<'bytes> Input<'bytes> {
    /// The next line without its CRLF, if it has one and no other CR or LF.
    fn line(&mut self) -> Option<&'bytes [u8]> {
        let end = self.0.iter().position(|octet| *octet == b'\n')?;
        let line = self.0[..end].strip_suffix(b"\r")?;
        self.0 = &self.0[end + 1..];
        (!line.contains(&b'\r')).then_some(line)
    }

    /// Moves so many octets, as far as they are there. Whether they all were.
    fn take(&mut self, length: usize, into: &mut Vec<u8>) -> bool {
        let (taken, rest) = self.0.split_at(length.min(self.0.len()));
        into.extend_from_slice(taken);
        self.0 = rest;
        taken.len() == length
    }

    /// A status line and fields (RFC 9112 §4, §5), and what they say about the body.
    fn head(&mut self) -> Option<(u16, Framing)> {
        let line = self.line()?;
        let rest = line.strip_prefix(b"HTTP/1.")?;
        let is_1_1 = match rest.first()? {
            b'1' => true,
            b'0' => false,
            _ => return None,
        };
        let rest = rest[1..].strip_prefix(b" ")?;
        let (status, reason) = rest.split_at_checked(3)?;
        let status: u16 = number(status)?.try_into().ok()?;
        let is_reason = reason.is_empty() || (reason[0] == b' ' && is_text(reason));
        if status < 100 || status == 101 || !is_reason {
            return None;
        }
        let (mut lengths, mut codings) = (Vec::new(), Vec::new());
        loop {
            let line = self.line()?;
            if line.is_empty() {
                break;
            }
            let (name, value) = field(line)?;
            match name.to_ascii_lowercase().as_slice() {
                b"content-length" => lengths.push(value),
                b"transfer-encoding" => codings.push(value),
                _ => {}
            }
        }
        let framing = match (lengths.as_slice(), codings.as_slice()) {
            ([], []) => Framing::UntilClose,
            ([length], []) if length.len() <= 15 => Framing::Length(number(length)?),
            ([], [coding]) if is_1_1 && coding.eq_ignore_ascii_case(b"chunked") => Framing::Chunked,
            _ => return None,
        };
        Some((status, framing))
    }

    /// A chunked body with its trailers (RFC 9112 §7.1). `None`: it broke off, or broke the grammar.
    fn chunks(&mut self, body: &mut Vec<u8>) -> Option<()> {
        loop {
            let line = self.line()?;
            let size_end = line.iter().position(|octet| *octet == b';').unwrap_or(line.len());
            let (size, extension) = line.split_at(size_end);
            if !(1..=15).contains(&size.len()) || !size.iter().all(u8::is_ascii_hexdigit) || !is_text(extension) {
                return None;
            }
            let size = usize::from_str_radix(std::str::from_utf8(size).ok()?, 16).ok()?;
            if size == 0 {
                break;
            }
            if !self.take(size, body) {
                return None;
            }
            self.0 = self.0.strip_prefix(b"\r\n")?;
        }
        loop {
            let line = self.line()?;
            if line.is_empty() {
                return Some(());
            }
            field(line)?;
        }
    }
}

/// A field line: name, and value without the white space around it (RFC 9112 §5).
fn field(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let colon = line.iter().position(|octet| *octet == b':')?;
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    let is_token = |octet: &u8| octet.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(octet);
    (!name.is_empty() && name.iter().all(is_token) && is_text(value)).then(|| (name, value.trim_ascii()))
}

/// Nothing but tabs, visible octets and those above ASCII (RFC 9110 §5.5).
fn is_text(text: &[u8]) -> bool {
    text.iter().all(|octet| *octet == b'\t' || (*octet >= b' ' && *octet != 0x7F))
}

fn number(digits: &[u8]) -> Option<usize> {
    let all = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    if all { std::str::from_utf8(digits).ok()?.parse().ok() } else { None }
}

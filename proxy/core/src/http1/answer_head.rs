//! The head of a provider's answer, parsed strictly (RFC 9112 §4–§6) and read by position. One that came over HTTP/2 is
//! written down and judged by the same measures.

use std::ops::Range;

use bytes::Bytes;

use super::lines::{self, BadLine, narrow};
use super::octets::{has_control, is_token};

/// The most field lines taken.
const MOST_FIELDS: usize = 256;
/// The largest list of fields taken from a stream of HTTP/2, names and values together, in bytes.
const LARGEST_LIST: usize = 64 * 1024;
/// The fields of one connection of HTTP/1.1, which HTTP/2 does not have (RFC 9113 §8.2.2).
const OF_A_CONNECTION: [&[u8]; 5] =
    [b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"];

/// How an answer's body is delimited (RFC 9112 §6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyFraming {
    /// There is none: to HEAD, 1xx, 204, 304.
    None,
    /// So many bytes.
    Length(u64),
    /// Chunked, or to the end of its stream of HTTP/2.
    Chunked,
    /// Until the connection closes.
    UntilClose,
}

/// Why bytes are no answer's head that can be read in one way only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadAnswer(pub &'static str);

/// What a field of an answer is to us. Everything that is [`AnswerName::Other`] goes to the client as it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnswerName {
    /// Passed on.
    Other,
    /// For one connection, or what a provider must not tell a client through us: goes nowhere.
    Dropped,
    /// `connection`: goes nowhere, and what it names neither.
    Connection,
    /// `content-length`: replaced by ours.
    ContentLength,
    /// `transfer-encoding`: replaced by ours.
    TransferEncoding,
    /// `content-type`, passed on.
    ContentType,
    /// `content-encoding`, passed on.
    ContentEncoding,
    /// `link`, passed on.
    Link,
    /// A provider's own id of the request, under one of the names in use; passed on.
    RequestId,
    /// `access-control-allow-origin` or `access-control-expose-headers`: passed on where we have no own.
    Cors,
}

impl AnswerName {
    /// Classifies a field name, any letter case.
    pub fn of(name: &[u8]) -> Self {
        let pick = |pairs: &[(&str, Self)]| {
            let found = pairs.iter().find(|(wanted, _)| name.eq_ignore_ascii_case(wanted.as_bytes()));
            found.map_or(Self::Other, |(_, kind)| *kind)
        };
        // By length first: nearly every field is none of these.
        match name.len() {
            2 => pick(&[("te", Self::Dropped)]),
            4 => pick(&[("link", Self::Link), ("host", Self::Dropped)]),
            // Alt-Svc would send the client past us to the provider.
            7 => pick(&[("alt-svc", Self::Dropped), ("trailer", Self::Dropped), ("upgrade", Self::Dropped)]),
            10 => pick(&[
                ("connection", Self::Connection),
                ("request-id", Self::RequestId),
                ("keep-alive", Self::Dropped),
            ]),
            12 => pick(&[("content-type", Self::ContentType), ("x-request-id", Self::RequestId)]),
            14 => pick(&[("content-length", Self::ContentLength)]),
            15 => pick(&[("apim-request-id", Self::RequestId), ("x-ms-request-id", Self::RequestId)]),
            16 => pick(&[("content-encoding", Self::ContentEncoding), ("proxy-connection", Self::Dropped)]),
            17 => pick(&[("transfer-encoding", Self::TransferEncoding), ("sec-websocket-key", Self::Dropped)]),
            18 => pick(&[("proxy-authenticate", Self::Dropped)]),
            19 => pick(&[("proxy-authorization", Self::Dropped)]),
            20 => pick(&[("sec-websocket-accept", Self::Dropped)]),
            21 => pick(&[("sec-websocket-version", Self::Dropped)]),
            22 => pick(&[("x-llm-proxy-request-id", Self::Dropped), ("sec-websocket-protocol", Self::Dropped)]),
            24 => pick(&[("sec-websocket-extensions", Self::Dropped)]),
            // Would hold for the proxy's own host, and for a year.
            25 => pick(&[("strict-transport-security", Self::Dropped)]),
            27 => pick(&[("access-control-allow-origin", Self::Cors)]),
            29 => pick(&[("access-control-expose-headers", Self::Cors)]),
            _ => Self::Other,
        }
    }
}

#[derive(Debug)]
struct Field {
    kind: AnswerName,
    name: Range<u32>,
    value: Range<u32>,
}

/// What was asked, as far as it changes what may be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// An ordinary request.
    Ordinary,
    /// HEAD: the answer has no body.
    Head,
    /// A switch to WebSocket: 101 may be the final answer.
    Switch,
}

/// A checked answer head.
#[derive(Debug)]
pub struct AnswerHead {
    raw: Bytes,
    status: u16,
    fields: Vec<Field>,
    framing: BodyFraming,
    persists: bool,
}

/// Finds the end of a head in what has arrived; `looked` spares what was looked at.
///
/// # Errors
/// [`BadAnswer`] at a CR or LF that stands alone.
pub fn end(input: &[u8], looked: &mut usize) -> Result<Option<usize>, BadAnswer> {
    while let Some(found) = input.get(*looked..).and_then(|rest| memchr::memchr(b'\n', rest)) {
        let at = looked.saturating_add(found);
        let before = at.checked_sub(1).and_then(|before| input.get(before));
        if before != Some(&b'\r') {
            return Err(BadAnswer("a line ends with a bare LF"));
        }
        let next = at.saturating_add(1);
        // An empty line: CRLF straight after CRLF, or at the very beginning.
        if at.checked_sub(2).is_none_or(|earlier| input.get(earlier) == Some(&b'\n')) {
            return Ok(Some(next));
        }
        *looked = next;
    }
    Ok(None)
}

impl AnswerHead {
    /// Parses a whole head, to its empty line.
    ///
    /// # Errors
    /// [`BadAnswer`].
    pub fn parse(raw: Bytes, asked: Asked) -> Result<Self, BadAnswer> {
        let text: &[u8] = &raw;
        let first_end = line_end(text, 0)?;
        let (status, is_1_1) = status_line(text.get(..first_end).unwrap_or(&[]))?;
        let mut fields = Vec::with_capacity(24);
        let mut at = first_end.saturating_add(2);
        loop {
            let end = line_end(text, at)?;
            if end == at {
                break;
            }
            if fields.len() == MOST_FIELDS {
                return Err(BadAnswer("it has more than 256 fields"));
            }
            fields.push(field_line(text, at, end)?);
            at = end.saturating_add(2);
        }
        let mut head = Self { raw, status, fields, framing: BodyFraming::None, persists: false };
        if status == 101 && (asked != Asked::Switch || !is_1_1) {
            return Err(BadAnswer("it switches protocols, which nobody asked for"));
        }
        head.framing = head.judge_framing(asked == Asked::Head, is_1_1)?;
        let option =
            |wanted: &str| head.connection_options().any(|option| option.eq_ignore_ascii_case(wanted.as_bytes()));
        // A length or chunks where no body may be (RFC 9110 §8.6, RFC 9112 §6.1): one may come all the same.
        let owes_body = matches!(status, 100..=199 | 204)
            && (head.content_length().is_some_and(|length| length > 0)
                || head.get(AnswerName::TransferEncoding).is_some());
        head.persists = status != 101
            && head.framing != BodyFraming::UntilClose
            && !owes_body
            && !option("close")
            && (is_1_1 || option("keep-alive"));
        Ok(head)
    }

    /// The head of an answer on a stream of HTTP/2, from its status and its fields in order, names in lower case (RFC 9113
    /// §8.3.2). White space around a value is left out, as that of a field line is.
    ///
    /// # Errors
    /// [`BadAnswer`]: what HTTP/1.1 would not have either, a field of a connection (§8.2.2), or 101 (§8.6).
    pub fn from_fields<'a>(
        status: u16,
        fields: impl Iterator<Item = (&'a [u8], &'a [u8])>,
        asked: Asked,
    ) -> Result<Self, BadAnswer> {
        if !(100..=999).contains(&status) {
            return Err(BadAnswer("its status is not three digits"));
        }
        if status == 101 {
            return Err(BadAnswer("it switches protocols, which HTTP/2 cannot"));
        }
        let mut raw = Vec::with_capacity(1024);
        let mut found = Vec::with_capacity(24);
        for (name, value) in fields {
            if found.len() == MOST_FIELDS {
                return Err(BadAnswer("it has more than 256 fields"));
            }
            if name.is_empty() || !is_token(name) || name.iter().any(u8::is_ascii_uppercase) {
                return Err(BadAnswer("the name of a field is no token in lower case"));
            }
            if OF_A_CONNECTION.contains(&name) {
                return Err(BadAnswer("it has a field of a connection"));
            }
            if has_control(value) {
                return Err(BadAnswer("a field value has a control octet"));
            }
            found.push(Field {
                kind: AnswerName::of(name),
                name: written(&mut raw, name),
                value: written(&mut raw, value.trim_ascii()),
            });
            if raw.len() > LARGEST_LIST {
                return Err(BadAnswer("its fields are larger than 64 KiB"));
            }
        }
        let mut head = Self { raw: raw.into(), status, fields: found, framing: BodyFraming::None, persists: true };
        head.framing = match head.judge_framing(asked == Asked::Head, true)? {
            // A stream has an end of its own.
            BodyFraming::UntilClose => BodyFraming::Chunked,
            framing => framing,
        };
        Ok(head)
    }

    /// The status code.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// Whether this is an interim answer (RFC 9110 §15.2). A 101 is final: nothing of HTTP follows it.
    pub fn is_interim(&self) -> bool {
        self.status < 200 && self.status != 101
    }

    /// Whether this switches to WebSocket.
    pub fn is_switch(&self) -> bool {
        self.status == 101
    }

    /// How the body is delimited.
    pub fn framing(&self) -> BodyFraming {
        self.framing
    }

    /// Whether the connection outlives this answer.
    pub fn persists(&self) -> bool {
        self.persists
    }

    /// Kind, name and value of each field line, as received.
    pub fn fields(&self) -> impl ExactSizeIterator<Item = (AnswerName, &[u8], &[u8])> {
        self.fields.iter().map(|field| (field.kind, self.slice(&field.name), self.slice(&field.value)))
    }

    /// The first value of this kind.
    pub fn get(&self, kind: AnswerName) -> Option<&[u8]> {
        self.all(kind).next()
    }

    /// Every value of this kind.
    pub fn all(&self, kind: AnswerName) -> impl Iterator<Item = &[u8]> {
        self.fields.iter().filter(move |field| field.kind == kind).map(|field| self.slice(&field.value))
    }

    /// What `Connection` names.
    pub fn connection_options(&self) -> impl Iterator<Item = &[u8]> {
        self.all(AnswerName::Connection)
            .flat_map(|value| value.split(|octet| *octet == b','))
            .map(<[u8]>::trim_ascii)
            .filter(|option| !option.is_empty())
    }

    /// What `content-length` says, where the body is not delimited by it.
    pub fn content_length(&self) -> Option<u64> {
        self.get(AnswerName::ContentLength).and_then(|length| digits(length).ok())
    }

    fn judge_framing(&self, to_head: bool, is_1_1: bool) -> Result<BodyFraming, BadAnswer> {
        let (mut lengths, mut codings) = (self.all(AnswerName::ContentLength), self.all(AnswerName::TransferEncoding));
        let (length, coding) = (lengths.next(), codings.next());
        if lengths.next().is_some() || codings.next().is_some() || (length.is_some() && coding.is_some()) {
            return Err(BadAnswer("it is framed twice"));
        }
        if coding.is_some_and(|coding| !is_1_1 || !coding.eq_ignore_ascii_case(b"chunked")) {
            return Err(BadAnswer("its Transfer-Encoding is not exactly chunked"));
        }
        let length = length.map(digits).transpose()?;
        Ok(match (self.status, length) {
            (100..=199 | 204 | 304, _) => BodyFraming::None,
            _ if to_head => BodyFraming::None,
            (_, Some(length)) => BodyFraming::Length(length),
            (_, None) if coding.is_some() => BodyFraming::Chunked,
            (_, None) => BodyFraming::UntilClose,
        })
    }

    fn slice(&self, range: &Range<u32>) -> &[u8] {
        let end = |end: u32| usize::try_from(end).unwrap_or(usize::MAX);
        self.raw.get(end(range.start)..end(range.end)).unwrap_or(&[])
    }
}

/// Appends to the bytes of a head, and tells where.
fn written(raw: &mut Vec<u8>, text: &[u8]) -> Range<u32> {
    let start = raw.len();
    raw.extend_from_slice(text);
    narrow(&(start..raw.len()))
}

fn digits(value: &[u8]) -> Result<u64, BadAnswer> {
    lines::digits(value).ok_or(BadAnswer("its Content-Length is not 1 to 15 digits"))
}

fn line_end(text: &[u8], from: usize) -> Result<usize, BadAnswer> {
    lines::end(text, from).ok_or(BadAnswer("a line has a bare CR"))
}

/// `HTTP/1.1 200 OK`; the reason may be missing, with its space.
fn status_line(line: &[u8]) -> Result<(u16, bool), BadAnswer> {
    let (version, rest) = line.split_at_checked(9).unwrap_or((line, &[]));
    let is_1_1 = match version {
        b"HTTP/1.1 " => true,
        b"HTTP/1.0 " => false,
        _ => return Err(BadAnswer("it does not begin with HTTP/1.1 or HTTP/1.0")),
    };
    let (status, reason) = match rest {
        [a @ b'1'..=b'9', b @ b'0'..=b'9', c @ b'0'..=b'9', reason @ ..] => {
            let digit = |digit: &u8| u16::from(digit.saturating_sub(b'0'));
            let status =
                digit(a).saturating_mul(100).saturating_add(digit(b).saturating_mul(10)).saturating_add(digit(c));
            (status, reason)
        }
        _ => return Err(BadAnswer("its status is not three digits")),
    };
    if !matches!(reason, [] | [b' ', ..]) || has_control(reason) {
        return Err(BadAnswer("its status line is malformed"));
    }
    Ok((status, is_1_1))
}

fn field_line(text: &[u8], start: usize, end: usize) -> Result<Field, BadAnswer> {
    let (name, value) = lines::field(text, start, end).map_err(|bad| match bad {
        BadLine::Name => BadAnswer("a field line does not begin with a token and a colon"),
        BadLine::Value => BadAnswer("a field value has a control octet"),
    })?;
    let kind = AnswerName::of(text.get(name.clone()).unwrap_or(&[]));
    Ok(Field { kind, name: narrow(&name), value: narrow(&value) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_stream(status: u16, fields: &[(&str, &str)], asked: Asked) -> Result<AnswerHead, BadAnswer> {
        AnswerHead::from_fields(status, fields.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())), asked)
    }

    #[test]
    fn a_head_of_a_stream_is_read_as_one_of_http_1_1() {
        let fields =
            [("content-type", "text/plain"), ("x-a", " 1\t"), ("link", "</a>"), ("x-a", "\u{e9}"), ("x-b", "")];
        let head = of_stream(200, &fields, Asked::Ordinary).unwrap();
        let read: Vec<_> = head.fields().collect();
        assert_eq!(
            read,
            [
                (AnswerName::ContentType, &b"content-type"[..], &b"text/plain"[..]),
                (AnswerName::Other, b"x-a", b"1"),
                (AnswerName::Link, b"link", b"</a>"),
                (AnswerName::Other, b"x-a", "\u{e9}".as_bytes()),
                (AnswerName::Other, b"x-b", b""),
            ]
        );
        assert_eq!(head.status(), 200);
        assert!(head.persists() && !head.is_interim() && !head.is_switch());
        let hints = of_stream(103, &[("link", "</a>")], Asked::Ordinary).unwrap();
        assert!(hints.is_interim() && hints.get(AnswerName::Link) == Some(&b"</a>"[..]));
    }

    #[test]
    fn the_body_of_a_stream_ends_by_its_length_or_with_the_stream() {
        for (status, length, asked, expected) in [
            (200, None, Asked::Ordinary, BodyFraming::Chunked),
            (200, Some("5"), Asked::Ordinary, BodyFraming::Length(5)),
            (200, Some("0"), Asked::Ordinary, BodyFraming::Length(0)),
            (200, Some("5"), Asked::Head, BodyFraming::None),
            (200, None, Asked::Head, BodyFraming::None),
            (204, None, Asked::Ordinary, BodyFraming::None),
            (304, Some("5"), Asked::Ordinary, BodyFraming::None),
            (103, None, Asked::Ordinary, BodyFraming::None),
        ] {
            let fields: Vec<_> = length.map(|length| ("content-length", length)).into_iter().collect();
            let head = of_stream(status, &fields, asked).unwrap();
            assert_eq!(head.framing(), expected, "{status} {length:?} {asked:?}");
        }
    }

    #[test]
    fn what_a_stream_must_not_say_is_no_answer() {
        let many = vec![("x-a", "1"); MOST_FIELDS + 1];
        let large = "a".repeat(LARGEST_LIST);
        for (status, fields, told) in [
            (101, &[][..], "switches"),
            (99, &[], "three digits"),
            (1000, &[], "three digits"),
            (200, &[("connection", "close")], "of a connection"),
            (200, &[("keep-alive", "1")], "of a connection"),
            (200, &[("proxy-connection", "close")], "of a connection"),
            (200, &[("transfer-encoding", "chunked")], "of a connection"),
            (200, &[("upgrade", "h2c")], "of a connection"),
            (200, &[("", "1")], "no token"),
            (200, &[("x a", "1")], "no token"),
            (200, &[("X-A", "1")], "no token"),
            (200, &[(":status", "200")], "no token"),
            (200, &[("x-a", "1\r\nx-b: 2")], "control"),
            (200, &[("x-a", "\0")], "control"),
            (200, &[("content-length", "5"), ("content-length", "5")], "framed twice"),
            (200, &[("content-length", "+5")], "15 digits"),
            (200, &[("content-length", "5, 5")], "15 digits"),
            (204, &[("content-length", "1234567890123456")], "15 digits"),
            (200, &many, "256 fields"),
            (200, &[("x-a", &large)], "64 KiB"),
        ] {
            let bad = of_stream(status, fields, Asked::Switch).unwrap_err();
            assert!(bad.0.contains(told), "{status} {told}: {}", bad.0);
        }
    }
}

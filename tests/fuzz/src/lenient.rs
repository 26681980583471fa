//! Two lenient readers of a connection's requests, as they stand in front of and behind proxies.
//!
//! They disagree with each other on purpose: on which framing wins, on bare LF, on white space around names. Requests
//! are smuggled where two such readers see two streams, so a stream that is taken must be the same to both.

use httparse::{EMPTY_HEADER, ParserConfig, Status};

use crate::http::{Field, owned, values};

/// One request as a reader sees it.
#[derive(Debug, PartialEq, Eq)]
pub struct Message {
    pub method: Vec<u8>,
    pub body: Vec<u8>,
    /// Where in the stream it ends.
    pub end: usize,
}

struct Head {
    method: Vec<u8>,
    fields: Vec<Field>,
    length: usize,
}

/// Takes spaces where none belong and passes over lines it cannot read; Transfer-Encoding wins, the last
/// Content-Length counts.
pub fn coding_first(stream: &[u8]) -> Vec<Message> {
    let mut config = ParserConfig::default();
    config
        .allow_multiple_spaces_in_request_line_delimiters(true)
        .allow_space_before_first_header_name(true)
        .ignore_invalid_headers_in_requests(true);
    let head = |rest: &[u8]| {
        let mut lines = [EMPTY_HEADER; 128];
        let mut head = httparse::Request::new(&mut lines);
        let Ok(Status::Complete(length)) = config.parse_request(&mut head, rest) else { return None };
        Some(Head { method: head.method?.as_bytes().to_vec(), fields: owned(head.headers), length })
    };
    let body = |fields: &[Field], rest: &[u8]| {
        if values(fields, "transfer-encoding").any(names_chunked) {
            chunked(rest)
        } else {
            counted(values(fields, "content-length").last(), rest)
        }
    };
    messages(stream, head, body)
}

/// Takes bare LF, folded lines and white space anywhere; Content-Length wins, and the first one counts.
pub fn length_first(stream: &[u8]) -> Vec<Message> {
    let body = |fields: &[Field], rest: &[u8]| match values(fields, "content-length").next() {
        Some(length) => counted(Some(length), rest),
        None if values(fields, "transfer-encoding").any(names_chunked) => chunked(rest),
        None => Some((Vec::new(), 0)),
    };
    messages(stream, head_by_lines, body)
}

fn messages(
    stream: &[u8],
    head: impl Fn(&[u8]) -> Option<Head>,
    body: impl Fn(&[Field], &[u8]) -> Option<(Vec<u8>, usize)>,
) -> Vec<Message> {
    let mut messages = Vec::new();
    let mut at = 0;
    while let Some(Head { method, fields, length }) = head(&stream[at..]) {
        at += length;
        let Some((body, length)) = body(&fields, &stream[at..]) else { break };
        at += length;
        messages.push(Message { method, body, end: at });
    }
    messages
}

fn head_by_lines(stream: &[u8]) -> Option<Head> {
    let mut method: Option<Vec<u8>> = None;
    let mut fields: Vec<Field> = Vec::new();
    let mut length = 0;
    for line in stream.split_inclusive(|byte| *byte == b'\n') {
        length += line.len();
        let text = line.strip_suffix(b"\n")?.trim_ascii_end();
        match &method {
            None if text.is_empty() => {} // before the request line
            None => method = text.split(u8::is_ascii_whitespace).next().map(<[u8]>::to_vec),
            Some(method) if text.is_empty() => return Some(Head { method: method.clone(), fields, length }),
            Some(_) if text.first().is_some_and(u8::is_ascii_whitespace) => {
                if let Some((_, value)) = fields.last_mut() {
                    value.extend_from_slice(text);
                }
            }
            Some(_) => {
                let colon = text.iter().position(|byte| *byte == b':').unwrap_or(text.len());
                let (name, value) = text.split_at(colon);
                let value = value.strip_prefix(b":").unwrap_or(value).trim_ascii();
                fields.push((name.trim_ascii().to_vec(), value.to_vec()));
            }
        }
    }
    None
}

fn names_chunked(coding: &[u8]) -> bool {
    crate::find(&coding.to_ascii_lowercase(), b"chunked").is_some()
}

/// A body of as many bytes as the first digits say; none where there are none.
fn counted(length: Option<&[u8]>, rest: &[u8]) -> Option<(Vec<u8>, usize)> {
    let text = length.unwrap_or_default().trim_ascii();
    let digits: String = text
        .strip_prefix(b"+")
        .unwrap_or(text)
        .iter()
        .take_while(|digit| digit.is_ascii_digit())
        .map(|digit| char::from(*digit))
        .collect();
    let length: usize = if digits.is_empty() { 0 } else { digits.parse().ok()? };
    rest.get(..length).map(|body| (body.to_vec(), length))
}

/// A chunked body whose lines may end in bare LF, whose sizes may have white space and `0x`, and whose trailer is
/// whatever comes before an empty line.
fn chunked(bytes: &[u8]) -> Option<(Vec<u8>, usize)> {
    let mut body = Vec::new();
    let mut at = 0;
    loop {
        let line = next_line(bytes, &mut at)?.trim_ascii();
        let line = line.strip_prefix(b"0x").unwrap_or(line);
        let digits: String =
            line.iter().take_while(|digit| digit.is_ascii_hexdigit()).map(|digit| char::from(*digit)).collect();
        let size = usize::from_str_radix(&digits, 16).unwrap_or(0);
        if size == 0 {
            break;
        }
        body.extend_from_slice(bytes.get(at..at.checked_add(size)?)?);
        at += size;
        at += bytes[at..].iter().take(2).take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
    }
    while !next_line(bytes, &mut at)?.trim_ascii().is_empty() {}
    Some((body, at))
}

fn next_line<'b>(bytes: &'b [u8], at: &mut usize) -> Option<&'b [u8]> {
    let rest = &bytes[*at..];
    let end = rest.iter().position(|byte| *byte == b'\n')?;
    *at += end + 1;
    Some(&rest[..end])
}

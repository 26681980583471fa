//! Heads of HTTP/1.1 messages read a second time: httparse reads them, and the rules by which the product is stricter
//! stand here once more, as a list.

use httparse::{EMPTY_HEADER, Header, Status};
use llm_proxy_core::http1::answer_head::BodyFraming;
use llm_proxy_core::http1::call::{Framing, Version};

/// Name and value of a field line.
pub type Field = (Vec<u8>, Vec<u8>);

/// A request's head.
#[derive(Debug, PartialEq, Eq)]
pub struct Request {
    pub method: String,
    /// In origin form.
    pub target: String,
    pub version: Version,
    pub framing: Framing,
    pub fields: Vec<Field>,
}

/// An answer's head.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub framing: BodyFraming,
    /// Whether the connection outlives it.
    pub persists: bool,
    pub fields: Vec<Field>,
}

/// The place behind the first empty line that CRLF CRLF makes.
pub fn head_end(bytes: &[u8]) -> Option<usize> {
    crate::find(bytes, b"\r\n\r\n").map(|at| at + 4)
}

/// Reads a request's head that ends with its first empty line; `None` if it has to be refused.
pub fn request(raw: &[u8]) -> Option<Request> {
    if !has_strict_lines(raw) {
        return None;
    }
    let mut lines = [EMPTY_HEADER; 100];
    let mut head = httparse::Request::new(&mut lines);
    if head.parse(raw) != Ok(Status::Complete(raw.len())) {
        return None;
    }
    let (method, target) = (head.method?, head.path?);
    let version = if head.version? == 1 { Version::Http11 } else { Version::Http10 };
    let fields = owned(head.headers);

    let is_legal = |octet: u8| octet.is_ascii_graphic() && !b"#\\<>\"^`{|}".contains(&octet);
    if method.len() > 32 || !target.bytes().all(is_legal) {
        return None;
    }
    let host = at_most_one(&fields, "host")?;
    if host.is_some_and(|host| !is_authority(host)) || (host.is_none() && version == Version::Http11) {
        return None;
    }
    if at_most_one(&fields, "expect")?.is_some_and(|value| !value.eq_ignore_ascii_case(b"100-continue")) {
        return None;
    }
    let framing = match body_length(&fields, version == Version::Http11)? {
        (Some(length), _) => Framing::Length(length),
        (None, true) => Framing::Chunked,
        (None, false) => Framing::None,
    };
    Some(Request { method: method.to_owned(), target: origin_form(target, host)?, version, framing, fields })
}

/// Reads an answer's head that ends with its first empty line; `None` if it has to be refused.
pub fn answer(raw: &[u8], to_head: bool) -> Option<Answer> {
    if !has_strict_lines(raw) {
        return None;
    }
    let mut lines = [EMPTY_HEADER; 256];
    let mut head = httparse::Response::new(&mut lines);
    if head.parse(raw) != Ok(Status::Complete(raw.len())) {
        return None;
    }
    let (status, is_1_1) = (head.code?, head.version? == 1);
    let fields = owned(head.headers);
    if status < 100 || status == 101 {
        return None;
    }
    let has_no_body = to_head || matches!(status, 100..=199 | 204 | 304);
    let framing = match body_length(&fields, is_1_1)? {
        _ if has_no_body => BodyFraming::None,
        (Some(length), _) => BodyFraming::Length(length),
        (None, true) => BodyFraming::Chunked,
        (None, false) => BodyFraming::UntilClose,
    };
    // Where no body may be but one is announced, its bytes may come all the same, where the next answer is expected.
    let announces = match body_length(&fields, is_1_1)? {
        (Some(length), _) => length > 0,
        (None, is_chunked) => is_chunked,
    };
    let is_doubtful = announces && matches!(status, 100..=199 | 204);
    let stays = if is_1_1 { !has_option(&fields, "close") } else { has_option(&fields, "keep-alive") };
    let persists = stays && framing != BodyFraming::UntilClose && !is_doubtful;
    Some(Answer { status, framing, persists, fields })
}

/// Whether `Connection` names this option.
pub fn has_option(fields: &[Field], wanted: &str) -> bool {
    values(fields, "connection")
        .flat_map(|value| value.split(|octet| *octet == b','))
        .any(|option| option.trim_ascii().eq_ignore_ascii_case(wanted.as_bytes()))
}

/// Every value under a name.
pub fn values<'f>(fields: &'f [Field], name: &str) -> impl Iterator<Item = &'f [u8]> {
    fields.iter().filter(move |(found, _)| found.eq_ignore_ascii_case(name.as_bytes())).map(|(_, value)| &value[..])
}

/// The field lines with memory of their own.
pub fn owned(lines: &[Header<'_>]) -> Vec<Field> {
    lines.iter().map(|line| (line.name.as_bytes().to_vec(), line.value.to_vec())).collect()
}

/// CR and LF only together, and not at the very beginning.
fn has_strict_lines(raw: &[u8]) -> bool {
    let stands_alone = |at: usize| match raw[at] {
        b'\r' => raw.get(at + 1) != Some(&b'\n'),
        b'\n' => at == 0 || raw[at - 1] != b'\r',
        _ => false,
    };
    !raw.starts_with(b"\r\n") && !(0..raw.len()).any(stands_alone)
}

/// `None` if a name stands there twice.
fn at_most_one<'f>(fields: &'f [Field], name: &str) -> Option<Option<&'f [u8]>> {
    let mut found = values(fields, name);
    let first = found.next();
    found.next().is_none().then_some(first)
}

/// The Content-Length, and whether the body is chunked; `None` if that can be read in two ways.
fn body_length(fields: &[Field], is_1_1: bool) -> Option<(Option<u64>, bool)> {
    match (at_most_one(fields, "content-length")?, at_most_one(fields, "transfer-encoding")?) {
        (None, None) => Some((None, false)),
        (Some(length), None) => {
            let digits = std::str::from_utf8(length).ok()?;
            let is_plain = (1..=15).contains(&digits.len()) && digits.bytes().all(|digit| digit.is_ascii_digit());
            if is_plain { Some((digits.parse().ok(), false)) } else { None }
        }
        (None, Some(coding)) => (is_1_1 && coding.eq_ignore_ascii_case(b"chunked")).then_some((None, true)),
        (Some(_), Some(_)) => None,
    }
}

/// The target itself, or the path of one in absolute form whose authority is the Host.
fn origin_form(target: &str, host: Option<&[u8]>) -> Option<String> {
    if target.starts_with('/') {
        return Some(target.to_owned());
    }
    let (scheme, rest) = target.split_once("://")?;
    let (authority, path) = rest.split_at(rest.find('/')?);
    let is_ours = ["http", "https"].iter().any(|known| scheme.eq_ignore_ascii_case(known))
        && host?.eq_ignore_ascii_case(authority.as_bytes());
    is_ours.then(|| path.to_owned())
}

fn is_authority(host: &[u8]) -> bool {
    let Ok(host) = std::str::from_utf8(host) else { return false };
    let (is_name, port) = match host.strip_prefix('[').map(|rest| rest.split_once(']')) {
        Some(None) => return false,
        Some(Some((address, ""))) => (address.parse::<std::net::Ipv6Addr>().is_ok(), None),
        Some(Some((address, after))) => (address.parse::<std::net::Ipv6Addr>().is_ok(), Some(after)),
        None => {
            let (name, port) = host.split_at(host.find(':').unwrap_or(host.len()));
            let is_plain = |octet: u8| octet.is_ascii_alphanumeric() || b"-._~".contains(&octet);
            (!name.is_empty() && name.bytes().all(is_plain), Some(port).filter(|port| !port.is_empty()))
        }
    };
    let is_port = |text: &str| {
        text.strip_prefix(':').is_some_and(|digits| {
            (1..=5).contains(&digits.len())
                && digits.bytes().all(|digit| digit.is_ascii_digit())
                && digits.parse::<u32>().is_ok_and(|port| port <= 65_535)
        })
    };
    is_name && port.is_none_or(is_port)
}

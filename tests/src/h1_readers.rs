//! Readers of a stream of HTTP/1.1 requests: a strict one (RFC 9112), and some that are lenient as servers in use are or
//! have been.
//!
//! Two parties on a chain that see two streams of requests are what request smuggling needs. So what a proxy sends on
//! must read alike to all of these: the same requests, with the same targets and bodies, ending at the same octets.

use std::fmt;

/// One request, as a reader saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The method.
    pub method: Vec<u8>,
    /// The target.
    pub target: Vec<u8>,
    /// The fields in order, names in lower case.
    pub fields: Vec<(String, Vec<u8>)>,
    /// The body without its framing.
    pub body: Vec<u8>,
    /// How many octets it took.
    pub end: usize,
}

impl Message {
    /// The values of all fields of this name, which is in lower case.
    pub fn values<'m>(&'m self, name: &'m str) -> impl Iterator<Item = &'m [u8]> {
        values(&self.fields, name)
    }

    /// Method and target.
    pub fn line(&self) -> Vec<u8> {
        [&self.method[..], b" ", &self.target[..]].concat()
    }

    /// Whether both are the same request. Fields that frame nothing may be read in different ways.
    fn is_the_same(&self, other: &Self) -> bool {
        (&self.method, &self.target, &self.body, self.end) == (&other.method, &other.target, &other.body, other.end)
    }
}

fn values<'m>(fields: &'m [(String, Vec<u8>)], name: &'m str) -> impl Iterator<Item = &'m [u8]> {
    fields.iter().filter(move |(found, _)| found == name).map(|(_, value)| value.as_slice())
}

/// What a reader makes of the octets so far.
#[derive(Clone, Debug)]
pub enum Read {
    /// A whole request.
    Whole(Message),
    /// The beginning of one.
    More,
    /// None, whatever follows; and why.
    Never(&'static str),
}

impl Read {
    fn is_the_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Whole(one), Self::Whole(other)) => one.is_the_same(other),
            (Self::More, Self::More) | (Self::Never(_), Self::Never(_)) => true,
            _ => false,
        }
    }
}

impl fmt::Display for Read {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole(message) => {
                let (line, body) = (message.line().escape_ascii().to_string(), message.body.len());
                write!(to, "{line:.80} with a body of {body} octets, all in {}", message.end)
            }
            Self::More => write!(to, "the beginning of a request"),
            Self::Never(why) => write!(to, "no request ({why})"),
        }
    }
}

/// A way to read.
#[derive(Clone, Copy, Debug)]
pub struct Reader {
    /// What it does, for messages.
    pub name: &'static str,
    lines: Lines,
    heads: Heads,
    framing: Priority,
    chunks: Chunks,
}

/// What ends a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lines {
    /// CRLF; anything else that looks like a line end is a fault.
    Strict,
    /// LF, a CR before it or not.
    Lf,
    /// CR, LF, or both.
    CrOrLf,
}

/// How request lines and fields are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Heads {
    /// By the grammar.
    Strict,
    /// White space anywhere, folded lines, lines that are no fields.
    Loose,
    /// The same, and a value ends at a NUL, and an underscore in a name is a hyphen.
    LikeCgi,
}

/// Which framing field counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Priority {
    /// One of them, once; all else is a fault.
    Strict,
    /// Any coding with `chunked` in it, then the first length.
    Coding,
    /// The first length, then a coding.
    FirstLength,
    /// The last length, then a coding.
    LastLength,
}

/// How chunks are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Chunks {
    /// Hexadecimal digits, no extensions, no trailers: what a proxy that frames anew sends.
    Strict,
    /// White space, extensions and trailers are read over.
    Tolerant,
    /// As many digits as are there, none being zero; whatever ends a chunk is skipped.
    Careless,
}

/// Who reads what the proxy sends. The strict one comes first.
pub const READERS: [Reader; 7] = [
    Reader::new("is strict", Lines::Strict, Heads::Strict, Priority::Strict, Chunks::Strict),
    Reader::new("takes LF for CRLF", Lines::Lf, Heads::Loose, Priority::Coding, Chunks::Tolerant),
    Reader::new("takes CR for CRLF", Lines::CrOrLf, Heads::Loose, Priority::Coding, Chunks::Tolerant),
    Reader::new("takes the first length", Lines::Lf, Heads::Loose, Priority::FirstLength, Chunks::Tolerant),
    Reader::new("takes the last length", Lines::Lf, Heads::Loose, Priority::LastLength, Chunks::Tolerant),
    Reader::new("reads fields as CGI gets them", Lines::Lf, Heads::LikeCgi, Priority::FirstLength, Chunks::Tolerant),
    Reader::new("reads sizes carelessly", Lines::Lf, Heads::Loose, Priority::Coding, Chunks::Careless),
];

/// The request that all readers see next; `None` while all of them wait for more.
///
/// # Errors
/// When two readers see two things, or all agree that it is no request; what the strict one and the other see.
pub fn agreed(bytes: &[u8]) -> Result<Option<Message>, String> {
    let [strict, lenient @ ..] = &READERS;
    let seen = strict.read(bytes);
    for reader in lenient {
        let read = reader.read(bytes);
        if !read.is_the_same(&seen) {
            return Err(format!("the strict reader sees {seen}; the one that {} sees {read}", reader.name));
        }
    }
    match seen {
        Read::Whole(message) => Ok(Some(message)),
        Read::More => Ok(None),
        Read::Never(_) => Err(format!("all readers see {seen}")),
    }
}

/// Why there is no message.
enum Stop {
    More,
    Never(&'static str),
}

/// Where a body ends.
enum Framing {
    Length(usize),
    Chunked,
}

impl Reader {
    const fn new(name: &'static str, lines: Lines, heads: Heads, framing: Priority, chunks: Chunks) -> Self {
        Self { name, lines, heads, framing, chunks }
    }

    /// Reads the first request of a stream, or of the rest of one.
    pub fn read(&self, bytes: &[u8]) -> Read {
        match self.message(bytes) {
            Ok(message) => Read::Whole(message),
            Err(Stop::More) => Read::More,
            Err(Stop::Never(why)) => Read::Never(why),
        }
    }

    fn message(&self, bytes: &[u8]) -> Result<Message, Stop> {
        let mut at = 0;
        let mut line = self.line(bytes, &mut at)?;
        while line.is_empty() {
            if self.heads == Heads::Strict {
                return Err(Stop::Never("an empty line where a request is due"));
            }
            line = self.line(bytes, &mut at)?;
        }
        let (method, target) = self.request_line(line)?;
        let mut fields = Vec::new();
        loop {
            let line = self.line(bytes, &mut at)?;
            if line.is_empty() {
                break;
            }
            self.field(line, &mut fields)?;
        }
        let body = match self.framing(&fields)? {
            Framing::Length(length) => {
                let end = at.saturating_add(length);
                let body = bytes.get(at..end).ok_or(Stop::More)?.to_vec();
                at = end;
                body
            }
            Framing::Chunked => self.chunked(bytes, &mut at)?,
        };
        Ok(Message { method, target, fields, body, end: at })
    }

    /// The next line without its end.
    fn line<'a>(&self, bytes: &'a [u8], at: &mut usize) -> Result<&'a [u8], Stop> {
        let rest = &bytes[*at..];
        let ends = |octet: &u8| *octet == b'\n' || (*octet == b'\r' && self.lines != Lines::Lf);
        let found = rest.iter().position(ends).ok_or(Stop::More)?;
        let (text, taken) = match (rest[found], rest.get(found + 1)) {
            (b'\r', None) => return Err(Stop::More),
            (b'\r', Some(b'\n')) => (&rest[..found], found + 2),
            _ if self.lines == Lines::Strict => return Err(Stop::Never("a line end that is not CRLF")),
            (b'\n', _) if self.lines == Lines::Lf && found > 0 && rest[found - 1] == b'\r' => {
                (&rest[..found - 1], found + 1)
            }
            _ => (&rest[..found], found + 1),
        };
        *at += taken;
        Ok(text)
    }

    fn request_line(&self, line: &[u8]) -> Result<(Vec<u8>, Vec<u8>), Stop> {
        if self.heads == Heads::Strict {
            let parts: Vec<&[u8]> = line.split(|octet| *octet == b' ').collect();
            return match parts[..] {
                [method, target, b"HTTP/1.1"] if is_token(method) && is_origin_form(target) => {
                    Ok((method.to_vec(), target.to_vec()))
                }
                _ => Err(Stop::Never("a request line that is not method, target and HTTP/1.1")),
            };
        }
        let mut parts = line.split(|octet| is_space(*octet)).filter(|part| !part.is_empty());
        match (parts.next(), parts.next()) {
            (Some(method), Some(target)) => Ok((method.to_vec(), target.to_vec())),
            _ => Err(Stop::Never("a request line without a target")),
        }
    }

    fn field(&self, line: &[u8], fields: &mut Vec<(String, Vec<u8>)>) -> Result<(), Stop> {
        let colon = line.iter().position(|octet| *octet == b':');
        if self.heads == Heads::Strict {
            let colon = colon.ok_or(Stop::Never("a field without a colon"))?;
            let (name, value) = (&line[..colon], ows(&line[colon + 1..]));
            if !is_token(name) || value.iter().any(|octet| octet.is_ascii_control() && *octet != b'\t') {
                return Err(Stop::Never("a field with octets that it must not have"));
            }
            fields.push((lower(name), value.to_vec()));
            return Ok(());
        }
        if let (true, Some((_, value))) = (is_space(line[0]), fields.last_mut()) {
            value.push(b' ');
            value.extend_from_slice(trim(line));
        } else if let Some(colon) = colon {
            let (mut name, mut value) = (lower(trim(&line[..colon])), trim(&line[colon + 1..]));
            if self.heads == Heads::LikeCgi {
                name = name.replace('_', "-");
                value = value.split(|octet| *octet == 0).next().unwrap_or(value);
            }
            fields.push((name, value.to_vec()));
        }
        Ok(())
    }

    fn framing(&self, fields: &[(String, Vec<u8>)]) -> Result<Framing, Stop> {
        let lengths: Vec<&[u8]> = values(fields, "content-length").collect();
        let codings: Vec<&[u8]> = values(fields, "transfer-encoding").collect();
        let chunked = codings.iter().any(|coding| lower(coding).contains("chunked")).then_some(Framing::Chunked);
        let first = lengths.first().map(|length| Framing::Length(number(length)));
        let last = lengths.last().map(|length| {
            // Of a list the last, too.
            let last = length.rsplit(|octet| *octet == b',').next().unwrap_or(length);
            Framing::Length(number(last))
        });
        let none = Framing::Length(0);
        Ok(match self.framing {
            Priority::Strict => match (&lengths[..], &codings[..]) {
                ([], []) => none,
                ([length], []) if is_number(length) => Framing::Length(number(length)),
                ([], [coding]) if coding.eq_ignore_ascii_case(b"chunked") => Framing::Chunked,
                _ => return Err(Stop::Never("a framing that can be read in two ways")),
            },
            Priority::Coding => chunked.or(first).unwrap_or(none),
            Priority::FirstLength => first.or(chunked).unwrap_or(none),
            Priority::LastLength => last.or(chunked).unwrap_or(none),
        })
    }

    fn chunked(&self, bytes: &[u8], at: &mut usize) -> Result<Vec<u8>, Stop> {
        let mut body = Vec::new();
        loop {
            let size = self.size(self.line(bytes, at)?)?;
            if size == 0 {
                break;
            }
            let end = at.saturating_add(size);
            body.extend_from_slice(bytes.get(*at..end).ok_or(Stop::More)?);
            *at = end;
            self.chunk_end(bytes, at)?;
        }
        while !self.line(bytes, at)?.is_empty() {
            if self.chunks == Chunks::Strict {
                return Err(Stop::Never("a trailer"));
            }
        }
        Ok(body)
    }

    fn size(&self, line: &[u8]) -> Result<usize, Stop> {
        let digits = match self.chunks {
            Chunks::Strict => line,
            Chunks::Tolerant => trim(line.split(|octet| *octet == b';').next().unwrap_or(line)),
            Chunks::Careless => {
                let line = trim(line);
                let line = line.strip_prefix(b"0x").unwrap_or(line);
                let end = line.iter().position(|octet| !octet.is_ascii_hexdigit()).unwrap_or(line.len());
                &line[..end]
            }
        };
        let fits = !digits.is_empty() && digits.len() <= 15 && digits.iter().all(u8::is_ascii_hexdigit);
        if !fits && self.chunks != Chunks::Careless {
            return Err(Stop::Never("a chunk size that is none"));
        }
        // Beyond 64 bits the careless one wraps.
        Ok(digits.iter().fold(0usize, |size, digit| {
            let digit = char::from(*digit).to_digit(16).unwrap_or(0);
            size.wrapping_mul(16).wrapping_add(digit as usize)
        }))
    }

    fn chunk_end(&self, bytes: &[u8], at: &mut usize) -> Result<(), Stop> {
        if self.chunks != Chunks::Careless {
            let is_over = self.line(bytes, at)?.is_empty();
            return if is_over { Ok(()) } else { Err(Stop::Never("a chunk longer than its size")) };
        }
        *at += match &bytes[*at..] {
            [] | [b'\r'] => return Err(Stop::More),
            [b'\r', b'\n', ..] => 2,
            [b'\r' | b'\n', ..] => 1,
            _ => 0,
        };
        Ok(())
    }
}

fn is_space(octet: u8) -> bool {
    matches!(octet, b' ' | b'\t' | 0x0B | 0x0C | b'\r')
}

/// Without the octets of a class at both ends.
fn stripped(text: &[u8], is_stripped: impl Fn(u8) -> bool) -> &[u8] {
    let start = text.iter().position(|octet| !is_stripped(*octet)).unwrap_or(text.len());
    let end = text.iter().rposition(|octet| !is_stripped(*octet)).map_or(start, |last| last + 1);
    &text[start..end]
}

/// Without OWS (RFC 9110 §5.6.3) at both ends.
fn ows(text: &[u8]) -> &[u8] {
    stripped(text, |octet| matches!(octet, b' ' | b'\t'))
}

/// Without anything at both ends that some take for white space.
fn trim(text: &[u8]) -> &[u8] {
    stripped(text, |octet| octet <= b' ' || octet == 0x7F)
}

fn lower(text: &[u8]) -> String {
    String::from_utf8_lossy(text).to_ascii_lowercase()
}

/// RFC 9110 §5.6.2.
fn is_token(text: &[u8]) -> bool {
    let is_tchar = |octet: &u8| octet.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(octet);
    !text.is_empty() && text.iter().all(is_tchar)
}

/// RFC 9112 §3.2.1, as far as its octets go.
fn is_origin_form(target: &[u8]) -> bool {
    target.starts_with(b"/") && target.iter().all(|octet| octet.is_ascii_graphic() && *octet != b'#')
}

fn is_number(text: &[u8]) -> bool {
    (1..=15).contains(&text.len()) && text.iter().all(u8::is_ascii_digit)
}

/// The digits that a text begins with, as C reads them; a plus before them or not.
fn number(text: &[u8]) -> usize {
    let text = trim(text);
    let text = text.strip_prefix(b"+").unwrap_or(text);
    let digits = text.iter().take_while(|octet| octet.is_ascii_digit());
    digits.fold(0usize, |sum, digit| sum.wrapping_mul(10).wrapping_add(usize::from(digit - b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clean_stream_reads_alike_to_all_and_is_nothing_before_its_last_octet() {
        for (stream, line, body) in [
            (&b"GET /a?b HTTP/1.1\r\nhost: x\r\n\r\n"[..], &b"GET /a?b"[..], &b""[..]),
            (b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nhe\r\no", b"POST /", b"he\r\no"),
            (
                b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n5\r\n0\r\n\r\n\r\na\r\n0123456789\r\n0\r\n\r\n",
                b"POST /",
                b"0\r\n\r\n0123456789",
            ),
        ] {
            for cut in 0..stream.len() {
                assert_eq!(agreed(&stream[..cut]).map(|seen| seen.is_some()), Ok(false), "{cut} octets");
            }
            let seen = agreed(&[stream, b"GET"].concat()).unwrap().unwrap();
            assert_eq!((seen.line(), seen.body.as_slice(), seen.end), (line.to_vec(), body, stream.len()));
            assert_eq!(seen.values("host").collect::<Vec<_>>(), [b"x"]);
        }
    }

    #[test]
    fn each_way_to_smuggle_a_request_is_seen_by_some_reader() {
        let post = |framing: &[u8]| [&b"POST / HTTP/1.1\r\nhost: x\r\n"[..], framing].concat();
        for stream in [
            post(b"content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"),
            post(b"content-length: 3\r\ncontent-length: 0\r\n\r\nabc"),
            post(b"content-length: 0, 3\r\n\r\nabc"),
            post(b"content-length: +3\r\n\r\nabc"),
            post(b"content_length: 3\r\n\r\nabc"),
            post(b"transfer_encoding: chunked\r\n\r\n0\r\n\r\n"),
            post(b"content-length : 3\r\n\r\nabc"),
            post(b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n"),
            post(b"transfer-encoding: chunked\x0b\r\n\r\n0\r\n\r\n"),
            post(b"x: a\ncontent-length: 3\r\n\r\nabc"),
            post(b"x: a\rcontent-length: 3\r\n\r\nabc"),
            post(b"x: a\0b\r\n\r\n"),
            post(b"x: a\r\n content-length: 3\r\n\r\n"),
            post(b"transfer-encoding: chunked\r\n\r\n\r\n\r\n0\r\n\r\n"),
            post(b"transfer-encoding: chunked\r\n\r\n0x3\r\nabc\r\n0\r\n\r\n"),
            post(b"transfer-encoding: chunked\r\n\r\n3;a\nabc\r\n0\r\n\r\n"),
            post(b"transfer-encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n"),
            post(b"transfer-encoding: chunked\r\n\r\n0\r\nx: a\r\n\r\n"),
            b"\r\nGET / HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(),
            b"GET  / HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(),
            b"GET / HTTP/1.1 HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(),
            b"GET /\x0bx HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(),
            b"GET / HTTP/1.1\nhost: x\n\n".to_vec(),
        ] {
            assert!(agreed(&stream).is_err(), "{}", stream.escape_ascii());
        }
    }
}

//! A request head as the plane works with it: checked once, then read by position.
//!
//! The edge fills it from the raw bytes of an HTTP/1.1 head. Nothing here is trusted twice: a [`Call`] that exists has
//! one Host, one framing, fields of legal octets, and a target in origin form.

use std::ops::Range;

use bytes::Bytes;

/// How the request body is delimited (RFC 9112 §6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// No body.
    None,
    /// Exactly so many bytes.
    Length(u64),
    /// Chunked transfer coding.
    Chunked,
}

/// HTTP/1.0 or HTTP/1.1; HTTP/2 counts as 1.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.0.
    Http10,
    /// HTTP/1.1.
    Http11,
}

/// What a field is to us. Everything that is [`Name::Other`] goes to the provider as it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Name {
    /// Passed on.
    Other,
    /// Hop-by-hop, framing, or what a client must not tell the provider through us: goes nowhere.
    Dropped,
    /// `connection`: goes nowhere, and what it names neither.
    Connection,
    /// `host`: replaced by the provider's.
    Host,
    /// `content-length`: replaced by ours.
    ContentLength,
    /// `transfer-encoding`: replaced by ours.
    TransferEncoding,
    /// `expect`: answered by us.
    Expect,
    /// `upgrade`: goes nowhere.
    Upgrade,
    /// `authorization`: a credential.
    Authorization,
    /// `x-api-key`: a credential.
    XApiKey,
    /// `api-key`: a credential.
    ApiKey,
    /// `x-goog-api-key`: a credential.
    XGoogApiKey,
    /// `content-type`, passed on.
    ContentType,
    /// `content-encoding`, passed on.
    ContentEncoding,
    /// `accept-encoding`, passed on unless we must read the answer as it stands.
    AcceptEncoding,
    /// `origin`, passed on.
    Origin,
    /// `access-control-request-method`, passed on.
    AccessControlRequestMethod,
    /// `access-control-request-headers`, passed on.
    AccessControlRequestHeaders,
    /// `anthropic-version`, passed on.
    AnthropicVersion,
    /// `x-request-id` or `x-client-request-id`, passed on.
    ClientRequestId,
    /// `x-llm-proxy-*`: what the client tells us for the record. Goes nowhere.
    Ours,
    /// `helicone-*`: read for the record too, and passed on, since the provider may be a gateway that wants it. The key of
    /// that service alone is dropped.
    Helicone,
}

impl Name {
    /// Classifies a field name, any letter case.
    pub fn of(name: &[u8]) -> Self {
        let is = |wanted: &str| name.eq_ignore_ascii_case(wanted.as_bytes());
        let pick =
            |pairs: &[(&str, Self)]| pairs.iter().find(|(wanted, _)| is(wanted)).map_or(Self::Other, |(_, kind)| *kind);
        // By length first: most fields are no special ones, and find that out in one comparison.
        match name.len() {
            2 => pick(&[("te", Self::Dropped)]),
            4 => pick(&[("host", Self::Host), ("date", Self::Dropped)]),
            6 => pick(&[("expect", Self::Expect), ("origin", Self::Origin)]),
            7 => pick(&[("upgrade", Self::Upgrade), ("api-key", Self::ApiKey), ("trailer", Self::Dropped)]),
            9 => pick(&[("x-api-key", Self::XApiKey), ("forwarded", Self::Dropped), ("x-real-ip", Self::Dropped)]),
            10 => pick(&[("connection", Self::Connection), ("keep-alive", Self::Dropped)]),
            12 => pick(&[("content-type", Self::ContentType), ("x-request-id", Self::ClientRequestId)]),
            13 => pick(&[("authorization", Self::Authorization), ("helicone-auth", Self::Dropped)]),
            14 => pick(&[
                ("content-length", Self::ContentLength),
                // Behind us may stand somebody who takes an underscore for a hyphen.
                ("content_length", Self::Dropped),
                ("x-goog-api-key", Self::XGoogApiKey),
                ("http2-settings", Self::Dropped),
            ]),
            15 => pick(&[("accept-encoding", Self::AcceptEncoding)]),
            16 => pick(&[("content-encoding", Self::ContentEncoding), ("proxy-connection", Self::Dropped)]),
            17 => pick(&[
                ("transfer-encoding", Self::TransferEncoding),
                ("transfer_encoding", Self::Dropped),
                ("anthropic-version", Self::AnthropicVersion),
            ]),
            19 => pick(&[("proxy-authorization", Self::Dropped), ("x-client-request-id", Self::ClientRequestId)]),
            22 => pick(&[("x-http-method-override", Self::Dropped)]),
            29 => pick(&[("access-control-request-method", Self::AccessControlRequestMethod)]),
            30 => pick(&[("access-control-request-headers", Self::AccessControlRequestHeaders)]),
            _ => Self::Other,
        }
        .or_forwarded(name)
    }

    /// The `x-forwarded-*` family, the other spellings of a method override, and a WebSocket's handshake.
    fn or_forwarded(self, name: &[u8]) -> Self {
        let starts =
            |prefix: &str| name.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix.as_bytes()));
        if self == Self::Other && starts("sec-websocket-") {
            // For one connection only, and may hold the token; what a WebSocket needs of them is written anew.
            return Self::Dropped;
        }
        match name.first() {
            _ if self != Self::Other => self,
            Some(b'x' | b'X') if starts("x-llm-proxy-") => Self::Ours,
            Some(b'x' | b'X')
                if starts("x-forwarded-")
                    || name.eq_ignore_ascii_case(b"x-method-override")
                    || name.eq_ignore_ascii_case(b"x-http-method") =>
            {
                Self::Dropped
            }
            Some(b'h' | b'H') if starts("helicone-") => Self::Helicone,
            _ => self,
        }
    }
}

/// One field line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// What it is to us.
    pub kind: Name,
    name: Range<u32>,
    value: Range<u32>,
}

impl Field {
    /// Positions of name and value in the head's bytes.
    pub fn new(name: Range<u32>, value: Range<u32>, kind: Name) -> Self {
        Self { kind, name, value }
    }

    /// Where the value stands in the head's bytes.
    pub fn value_range(&self) -> Range<usize> {
        let (start, end) = ends(&self.value);
        start..end
    }
}

/// A checked request head.
#[derive(Clone, Debug)]
pub struct Call {
    raw: Bytes,
    method: Range<u32>,
    target: Range<u32>,
    fields: Vec<Field>,
    /// The protocol version of the client.
    pub version: Version,
    /// How the body is delimited.
    pub framing: Framing,
    /// The client waits for `100 Continue` before it sends the body.
    pub expects_continue: bool,
    /// The client asks to close the connection after this exchange.
    pub wants_close: bool,
    /// The connection is to stay open for an HTTP/1.0 client.
    pub wants_keep_alive: bool,
}

/// What [`Call::new`] is made of.
pub struct Parts {
    /// The head's bytes, which every range points into.
    pub raw: Bytes,
    /// Where the method stands.
    pub method: Range<u32>,
    /// Where the target stands, in origin form.
    pub target: Range<u32>,
    /// The field lines in order.
    pub fields: Vec<Field>,
    /// The protocol version.
    pub version: Version,
    /// How the body is delimited.
    pub framing: Framing,
}

impl Call {
    /// Assembles a call from a checked head.
    pub fn new(parts: Parts) -> Self {
        let Parts { raw, method, target, fields, version, framing } = parts;
        let mut call = Self {
            raw,
            method,
            target,
            fields,
            version,
            framing,
            expects_continue: false,
            wants_close: false,
            wants_keep_alive: false,
        };
        let has_option = |call: &Self, option: &str| {
            call.connection_options().any(|found| found.eq_ignore_ascii_case(option.as_bytes()))
        };
        call.wants_close = has_option(&call, "close");
        call.wants_keep_alive = has_option(&call, "keep-alive");
        call.expects_continue = version == Version::Http11
            && framing != Framing::None
            && call.value_of(Name::Expect).is_some_and(|value| value.eq_ignore_ascii_case(b"100-continue"));
        call
    }

    /// All of it as it came, or as it was written down.
    pub fn head(&self) -> &[u8] {
        &self.raw
    }

    /// The method, case-sensitive (RFC 9110 §9.1).
    pub fn method(&self) -> &str {
        self.text(&self.method)
    }

    /// The target in origin form, visible ASCII.
    pub fn target(&self) -> &str {
        self.text(&self.target)
    }

    /// The fields in the order received.
    pub fn fields(&self) -> &[Field] {
        &self.fields
    }

    /// A field's name as received.
    pub fn name(&self, field: &Field) -> &[u8] {
        self.slice(&field.name)
    }

    /// A field's value, without surrounding white space.
    pub fn value(&self, field: &Field) -> &[u8] {
        self.slice(&field.value)
    }

    /// A field's value, sharing the head's memory.
    pub fn shared_value(&self, field: &Field) -> Bytes {
        let (start, end) = ends(&field.value);
        if start <= end && end <= self.raw.len() { self.raw.slice(start..end) } else { Bytes::new() }
    }

    /// The fields of one kind.
    pub fn all(&self, kind: Name) -> impl Iterator<Item = &Field> {
        self.fields.iter().filter(move |field| field.kind == kind)
    }

    /// The first value of one kind.
    pub fn value_of(&self, kind: Name) -> Option<&[u8]> {
        self.all(kind).next().map(|field| self.value(field))
    }

    /// The first value under a name we have no kind for.
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        self.fields
            .iter()
            .find(|field| self.name(field).eq_ignore_ascii_case(name.as_bytes()))
            .map(|field| self.value(field))
    }

    /// What `Connection` names (RFC 9110 §7.6.1): `close`, `keep-alive`, and fields that must not be forwarded.
    pub fn connection_options(&self) -> impl Iterator<Item = &[u8]> {
        self.all(Name::Connection)
            .flat_map(|field| self.value(field).split(|byte| *byte == b','))
            .map(<[u8]>::trim_ascii)
            .filter(|option| !option.is_empty())
    }

    /// The body's length, where the head tells it.
    pub fn content_length(&self) -> Option<u64> {
        match self.framing {
            Framing::Length(length) => Some(length),
            Framing::None => Some(0),
            Framing::Chunked => None,
        }
    }

    fn slice(&self, range: &Range<u32>) -> &[u8] {
        let (start, end) = ends(range);
        self.raw.get(start..end).unwrap_or(&[])
    }

    fn text(&self, range: &Range<u32>) -> &str {
        std::str::from_utf8(self.slice(range)).unwrap_or("")
    }
}

fn ends(range: &Range<u32>) -> (usize, usize) {
    (usize::try_from(range.start).unwrap_or(usize::MAX), usize::try_from(range.end).unwrap_or(usize::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_classified_in_any_case() {
        for (name, kind) in [
            ("Authorization", Name::Authorization),
            ("X-API-Key", Name::XApiKey),
            ("X-Forwarded-For", Name::Dropped),
            ("x-forwarded-anything", Name::Dropped),
            ("X-HTTP-Method-Override", Name::Dropped),
            ("X-Http-Method", Name::Dropped),
            ("Forwarded", Name::Dropped),
            ("X-Real-IP", Name::Dropped),
            ("Content_Length", Name::Dropped),
            ("transfer_encoding", Name::Dropped),
            ("Sec-WebSocket-Protocol", Name::Dropped),
            ("sec-websocket-key", Name::Dropped),
            ("TE", Name::Dropped),
            ("Content-Type", Name::ContentType),
            ("User-Agent", Name::Other),
            ("x-stainless-lang", Name::Other),
            ("X-LLM-Proxy-User-Id", Name::Ours),
            ("x-llm-proxy-tag-team", Name::Ours),
            ("x-llm-proxy", Name::Other),
            ("Helicone-User-Id", Name::Helicone),
            ("helicone-property-team", Name::Helicone),
            ("Helicone-Auth", Name::Dropped),
            ("helicone", Name::Other),
        ] {
            assert_eq!(Name::of(name.as_bytes()), kind, "{name}");
        }
    }
}

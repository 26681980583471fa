//! Captured content: what a project's policy lets be kept of an exchange's bodies and headers, and in which form.
//!
//! A record must be readable by people, safe to keep and small, and a body on the wire is none of it: a stream says one
//! answer in a thousand pieces, an image is a megabyte of base64, and whatever people paste into a prompt is in there.
//! So a body is copied while it passes ([`Keeper`], bounded) and worked on once, when the exchange has ended:
//!
//! * the content coding is undone, with the decoders of metering and their bounds against bombs;
//! * a stream is put together to the answer it would have been without streaming (`assemble`);
//! * under `redacted` images, sound and files give way to their hashes (`media`), then secrets and personal data to the
//!   name of their kind (`redact`): over whole texts, as no pattern finds what is spread over two events;
//! * what is still too long is shortened so that JSON stays JSON (`shorten`).
//!
//! Everything here is total: any bytes give a [`Body`], and however they were cut into pieces, the same one. Bodies
//! show in debug output by their sizes only.

mod assemble;
mod json;
mod keeper;
mod media;
#[cfg(test)]
mod recorded;
mod redact;
mod shorten;
mod tags;

use std::borrow::Cow;
use std::fmt;

pub use self::keeper::Keeper;
pub use self::tags::{MAX_NAME_BYTES, MAX_TAGS, MAX_VALUE_BYTES, Omit, omit, tags};

use self::assemble::Assembled;
use self::json::{Node, Parsed};
use self::shorten::Fitted;
use crate::usage::Lost;
use crate::usage::decode::{Coding, Decoder};

/// How much of an exchange its project lets be kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Policy {
    /// Numbers and times. No bodies, no tags.
    None,
    /// Tags too, but no bodies.
    #[default]
    Metadata,
    /// Bodies without secrets, personal data and media, as far as a program can tell.
    Redacted,
    /// Bodies as they were.
    Full,
}

impl Policy {
    /// All policies, from the least to the most.
    pub const ALL: [Self; 4] = [Self::None, Self::Metadata, Self::Redacted, Self::Full];

    /// The name used in configuration and records.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Metadata => "metadata",
            Self::Redacted => "redacted",
            Self::Full => "full",
        }
    }

    /// The policy of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|policy| policy.name() == name)
    }

    /// Whether bodies are kept at all, in whatever form.
    pub const fn keeps_bodies(self) -> bool {
        matches!(self, Self::Redacted | Self::Full)
    }
}

/// The number of bytes is outside of [`Capture::MAX_BYTES`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected 1024 to 524288 bytes")]
pub struct InvalidMaxBytes;

/// What is kept of the bodies of a project's exchanges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capture {
    policy: Policy,
    max_bytes: usize,
}

impl Capture {
    /// What [`Capture::max_bytes`] can be. Two bodies of the most fit into one record of the journal.
    pub const MAX_BYTES: std::ops::RangeInclusive<usize> = 1024..=512 * 1024;
    /// Unless the project says otherwise.
    pub const DEFAULT_MAX_BYTES: usize = 64 * 1024;

    /// Keeps bodies by this policy, at most so many bytes of each.
    ///
    /// # Errors
    /// [`InvalidMaxBytes`].
    pub fn new(policy: Policy, max_bytes: usize) -> Result<Self, InvalidMaxBytes> {
        if Self::MAX_BYTES.contains(&max_bytes) { Ok(Self { policy, max_bytes }) } else { Err(InvalidMaxBytes) }
    }

    /// The policy.
    pub const fn policy(self) -> Policy {
        self.policy
    }

    /// Most bytes kept of each body, after all that was done to it.
    pub const fn max_bytes(self) -> usize {
        self.max_bytes
    }

    /// Makes what keeps a passing body: 32 times as many bytes as are kept of it in the end, at most 4 MiB.
    ///
    /// A chat completion's event is some 250 bytes for one token, of which four are text; the answer is read from its
    /// copy, so a copy as short as the record would end in the middle of a stream that is short. A photograph in a
    /// request is a megabyte that becomes a line.
    pub fn keeper(self) -> Keeper {
        const MOST: usize = 4 * 1024 * 1024;
        Keeper::new(self.max_bytes.saturating_mul(32).min(MOST))
    }
}

impl Default for Capture {
    fn default() -> Self {
        Self { policy: Policy::default(), max_bytes: Self::DEFAULT_MAX_BYTES }
    }
}

/// One body as it is kept, or what is said instead. At most one of `json`, `text`, `sha256` and `omitted` is there.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Body {
    /// Its `content-type`, as it was sent.
    pub content_type: Option<String>,
    /// How many bytes it had on the wire, kept or not.
    pub bytes: u64,
    /// A part of it is missing: it was longer than what is kept, or broke off.
    pub truncated: bool,
    /// One JSON value on one line: of a JSON body, or the answer that a stream was.
    pub json: Option<Vec<u8>>,
    /// A body that is text and no JSON, or whose JSON could not be shortened.
    pub text: Option<String>,
    /// Of a body that is neither, all of which was here: SHA-256 of it, its content coding undone, in hexadecimal.
    pub sha256: Option<String>,
    /// Why nothing of it is kept.
    pub omitted: Option<String>,
}

impl fmt::Debug for Body {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Body")
            .field("content_type", &self.content_type)
            .field("bytes", &self.bytes)
            .field("truncated", &self.truncated)
            .field("json_bytes", &self.json.as_ref().map(Vec::len))
            .field("text_bytes", &self.text.as_ref().map(String::len))
            .field("sha256", &self.sha256)
            .field("omitted", &self.omitted)
            .finish()
    }
}

/// What is kept of a request's body, as it was forwarded. `None` if it had none, or the policy keeps none.
///
/// `content_type` and `content_encoding` are the values of these fields.
pub fn request_body(
    capture: Capture,
    content_type: Option<&str>,
    content_encoding: Option<&str>,
    keeper: &Keeper,
) -> Option<Body> {
    Kept::new(capture, content_type, keeper)?.body(content_encoding, keeper, Side::Request)
}

/// What is kept of an answer's body. `None` if it had none, or the policy keeps none.
///
/// `content_type` and `content_encoding` are the values of these fields. What kind of stream it is, the stream says.
pub fn response_body(
    capture: Capture,
    content_type: Option<&str>,
    content_encoding: Option<&str>,
    keeper: &Keeper,
) -> Option<Body> {
    Kept::new(capture, content_type, keeper)?.body(content_encoding, keeper, Side::Response)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Request,
    Response,
}

/// What a content type lets expect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Json,
    Events,
    Text,
    /// What programs send that do not say what they send, JSON mostly. Where it is none, it is as good as binary: its
    /// text is encoded, and nothing would be found in it.
    Form,
    Binary,
    Untold,
}

impl Kind {
    fn of(content_type: Option<&str>) -> Self {
        let media_type = content_type.unwrap_or_default().split(';').next().unwrap_or_default();
        let media_type = media_type.trim().to_ascii_lowercase();
        match &*media_type {
            "" => Self::Untold,
            "application/json" => Self::Json,
            "text/event-stream" => Self::Events,
            "application/x-www-form-urlencoded" => Self::Form,
            "application/x-ndjson"
            | "application/jsonl"
            | "application/xml"
            | "application/yaml"
            | "application/javascript"
            | "application/graphql" => Self::Text,
            other if other.ends_with("+json") => Self::Json,
            other if other.ends_with("+xml") || other.starts_with("text/") => Self::Text,
            _ => Self::Binary,
        }
    }
}

/// What is said of a stream in which nothing would be found.
const UNKNOWN_STREAM: &str = "a stream of an unknown kind";

/// A body on its way into the record.
struct Kept {
    capture: Capture,
    kind: Kind,
    body: Body,
}

impl Kept {
    fn new(capture: Capture, content_type: Option<&str>, keeper: &Keeper) -> Option<Self> {
        if !capture.policy.keeps_bodies() || keeper.bytes() == 0 {
            return None;
        }
        let body = Body {
            content_type: content_type.map(str::to_owned),
            bytes: keeper.bytes(),
            truncated: keeper.is_cut(),
            ..Body::default()
        };
        Some(Self { capture, kind: Kind::of(content_type), body })
    }

    fn body(mut self, content_encoding: Option<&str>, keeper: &Keeper, side: Side) -> Option<Body> {
        let Some((plain, is_cut)) = decoded(content_encoding, keeper) else {
            return Some(self.omit("its content-encoding is not read"));
        };
        self.body.truncated |= is_cut;
        if plain.is_empty() {
            return Some(self.omit(if is_cut { "its content-encoding is broken" } else { "nothing of it is kept" }));
        }
        if self.kind == Kind::Binary || self.kind == Kind::Untold && !is_text(&plain, self.body.truncated) {
            return Some(self.hash(&plain));
        }
        let text = self.readable(&plain);
        let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
        if side == Side::Response && (self.kind == Kind::Events || assemble::is_stream(text)) {
            return Some(self.stream(text));
        }
        let may_be_json = self.kind == Kind::Json || text.trim_start().starts_with(['{', '[']);
        let parsed = if may_be_json { json::parse(text, self.body.truncated) } else { None };
        Some(match parsed {
            Some(Parsed { node, is_whole }) if side == Side::Response => match assemble::from_list(node) {
                Ok(assembled) => self.assembled(assembled, is_whole),
                Err(node) => self.json(node, is_whole),
            },
            Some(Parsed { node, is_whole }) => self.json(node, is_whole),
            None if self.kind == Kind::Form => self.hash(&plain),
            // As of events that we do not know.
            None if side == Side::Response && self.capture.policy == Policy::Redacted && json::is_lines(text) => {
                self.omit(UNKNOWN_STREAM)
            }
            None => self.text(text.to_owned()),
        })
    }

    /// The body as text, as far as it can be looked through: right before a cut may stand half of what is to be
    /// replaced. In a stream that is the end of the answer's texts, not that of its bytes.
    fn readable<'p>(&self, plain: &'p [u8]) -> Cow<'p, str> {
        const MARGIN_BYTES: usize = 256;
        let has_margin = self.body.truncated && self.capture.policy == Policy::Redacted && self.kind != Kind::Events;
        let margin = if has_margin { MARGIN_BYTES } else { 0 };
        let plain = plain.get(..plain.len().saturating_sub(margin)).unwrap_or_default();
        match std::str::from_utf8(plain) {
            // A character that was cut in two.
            Err(error) if error.error_len().is_none() => {
                String::from_utf8_lossy(plain.get(..error.valid_up_to()).unwrap_or_default())
            }
            _ => String::from_utf8_lossy(plain),
        }
    }

    fn stream(self, text: &str) -> Body {
        let events = assemble::events(text);
        match assemble::from_events(&events) {
            Some(assembled) => self.assembled(assembled, true),
            // What is spread over events of an unknown kind cannot be found in them.
            None if self.capture.policy == Policy::Redacted => self.omit(UNKNOWN_STREAM),
            None => self.text(text.to_owned()),
        }
    }

    /// An answer that was put together; `is_all`: of all that was sent. Where it broke off may stand half of what is to
    /// be replaced.
    fn assembled(self, mut assembled: Assembled<'_>, is_all: bool) -> Body {
        let is_whole = assembled.is_whole && is_all;
        if (!is_whole || self.body.truncated) && self.capture.policy == Policy::Redacted {
            redact::drop_last_words(&mut assembled.answer);
        }
        self.json(assembled.answer, is_whole)
    }

    fn json(mut self, mut node: Node<'_>, is_whole: bool) -> Body {
        if self.capture.policy == Policy::Redacted {
            media::replace(&mut node);
            redact::value(&mut node);
        }
        self.body.truncated |= !is_whole;
        match shorten::fit(node, self.capture.max_bytes) {
            Fitted::Whole(text) => self.body.json = Some(text.into_bytes()),
            Fitted::Shortened(text) => {
                self.body.truncated = true;
                self.body.json = Some(text.into_bytes());
            }
            Fitted::TooLong(text) => self.cut(text),
        }
        self.body
    }

    fn text(mut self, mut text: String) -> Body {
        if self.capture.policy == Policy::Redacted {
            text = media::without_payloads(&text).unwrap_or(text);
            text = redact::text(&text).unwrap_or(text);
        }
        self.cut(text);
        self.body
    }

    fn cut(&mut self, mut text: String) {
        if text.len() > self.capture.max_bytes {
            text.truncate(text.floor_char_boundary(self.capture.max_bytes));
            text.shrink_to_fit();
            self.body.truncated = true;
        }
        self.body.text = Some(text);
    }

    fn hash(mut self, plain: &[u8]) -> Body {
        if self.body.truncated {
            return self.omit("longer than what is kept, and no text");
        }
        self.body.sha256 = Some(media::sha256(plain));
        self.body
    }

    fn omit(mut self, why: &str) -> Body {
        self.body.omitted = Some(why.to_owned());
        self.body
    }
}

/// Whether bytes of which nobody said what they are look like text.
fn is_text(plain: &[u8], is_cut: bool) -> bool {
    let is_utf8 = match std::str::from_utf8(plain) {
        Ok(_) => true,
        Err(error) => is_cut && error.error_len().is_none(),
    };
    is_utf8 && !plain.contains(&0)
}

/// The body without its content coding, of the same most bytes as the copy, and whether some is missing; `None` if the
/// coding is none that is read.
fn decoded<'k>(content_encoding: Option<&str>, keeper: &'k Keeper) -> Option<(Cow<'k, [u8]>, bool)> {
    let coding = Coding::of(content_encoding.unwrap_or_default().as_bytes());
    if coding == Coding::Unread {
        return None;
    }
    let Some(mut decoder) = Decoder::new(coding) else { return Some((Cow::Borrowed(keeper.kept()), false)) };
    let mut plain = Vec::new();
    let read = decoder.push(keeper.kept(), &mut |step| {
        let room = keeper.limit().saturating_sub(plain.len());
        plain.extend_from_slice(step.get(..room).unwrap_or(step));
        if step.len() > room { Err(Lost) } else { Ok(()) }
    });
    Some((Cow::Owned(plain), read.is_err()))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use proptest::prelude::*;
    use serde::de::IgnoredAny;

    use super::*;

    fn capture(policy: Policy, max_bytes: usize) -> Capture {
        Capture::new(policy, max_bytes).unwrap()
    }

    fn keeper(capture: Capture, body: &[u8]) -> Keeper {
        let mut keeper = capture.keeper();
        keeper.push(body);
        keeper
    }

    /// A request's body of this type under this policy.
    fn kept(policy: Policy, content_type: &str, body: &[u8]) -> Body {
        let capture = capture(policy, 1024);
        request_body(capture, Some(content_type), None, &keeper(capture, body)).unwrap()
    }

    fn json(body: &Body) -> Option<&str> {
        body.json.as_deref().map(|json| std::str::from_utf8(json).unwrap())
    }

    fn gzipped(plain: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(plain).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn policies_have_names_and_captures_have_bounds() {
        for policy in Policy::ALL {
            assert_eq!(Policy::from_name(policy.name()), Some(policy));
        }
        assert_eq!(Policy::from_name("Full"), None);
        assert_eq!(Capture::default(), capture(Policy::Metadata, 65_536));
        for (max_bytes, is_valid) in [(1023, false), (1024, true), (524_288, true), (524_289, false)] {
            assert_eq!(Capture::new(Policy::Full, max_bytes).is_ok(), is_valid, "{max_bytes}");
        }
        assert_eq!(capture(Policy::Full, 1024).keeper().limit(), 32 * 1024);
        assert_eq!(capture(Policy::Full, 524_288).keeper().limit(), 4 * 1024 * 1024);
    }

    #[test]
    fn only_redacted_and_full_keep_bodies_that_are_there() {
        for policy in Policy::ALL {
            let capture = capture(policy, 1024);
            let full = keeper(capture, b"{}");
            let expected = policy.keeps_bodies();
            assert_eq!(request_body(capture, None, None, &full).is_some(), expected, "{policy:?}");
            assert_eq!(response_body(capture, None, None, &full).is_some(), expected, "{policy:?}");
            assert_eq!(request_body(capture, None, None, &capture.keeper()), None);
        }
    }

    #[test]
    fn a_body_is_kept_by_its_type() {
        const JSON: &str = "{\"a\":\"b@c.de\"}";
        let full = |content_type, body: &str| kept(Policy::Full, content_type, body.as_bytes());
        for content_type in
            ["application/json", "Application/JSON; charset=utf-8", "application/problem+json", "", "text/plain"]
        {
            let body = full(content_type, " {\n\"a\" : \"b@c.de\" }\n");
            assert_eq!((json(&body), &body.text, body.truncated), (Some(JSON), &None, false), "{content_type}");
            assert_eq!((body.content_type.as_deref(), body.bytes), (Some(content_type), 20));
        }
        assert_eq!(json(&full("application/x-www-form-urlencoded", JSON)), Some(JSON), "curl -d");
        for content_type in
            ["text/plain", "text/html; charset=x", "application/xml", "application/x-ndjson", "", "application/json"]
        {
            let body = full(content_type, "<a>\n");
            assert_eq!((json(&body), body.text.as_deref()), (None, Some("<a>\n")), "{content_type}");
        }
        let hello = Some("2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824");
        for content_type in [
            "audio/mpeg",
            "image/png",
            "multipart/form-data; boundary=x",
            "application/octet-stream",
            "application/x-www-form-urlencoded",
        ] {
            for policy in [Policy::Redacted, Policy::Full] {
                let body = kept(policy, content_type, b"hello");
                assert_eq!(
                    (body.sha256.as_deref(), &body.text, &body.omitted),
                    (hello, &None, &None),
                    "{content_type}"
                );
            }
        }
        for bytes in [&b"\0abc"[..], b"\xff\xfe"] {
            assert!(kept(Policy::Full, "", bytes).sha256.is_some(), "nobody said it was text");
        }
        assert_eq!(kept(Policy::Full, "text/plain", b"a\xffb").text.as_deref(), Some("a\u{fffd}b"));
        let long = kept(Policy::Full, "image/png", &vec![7; 40_000]);
        assert!(long.truncated && long.sha256.is_none() && long.omitted.is_some(), "{long:?}");
        let mark = kept(Policy::Full, "application/json", b"\xef\xbb\xbf[1]");
        assert_eq!(json(&mark), Some("[1]"));
    }

    #[test]
    fn redacted_bodies_have_no_secrets_and_no_media() {
        let image = "QUJD".repeat(2000);
        let body = format!(
            "{{\"model\":\"m\",\"messages\":[{{\"role\":\"user\",\"content\":[{{\"type\":\"text\",\"text\":\"I am a@b.com\"}},\
             {{\"type\":\"image_url\",\"image_url\":{{\"url\":\"data:image/png;base64,{image}\"}}}}]}}]}}"
        );
        let redacted = kept(Policy::Redacted, "application/json", body.as_bytes());
        let text = json(&redacted).unwrap();
        assert!(
            text.contains("\"I am [email]\"") && text.contains("data:image/png;base64,[6000 bytes, sha256 "),
            "{text}"
        );
        assert!(!redacted.truncated && text.len() < 400, "what was replaced is no loss");

        let full = kept(Policy::Full, "application/json", body.as_bytes());
        let text = json(&full).unwrap();
        assert!(text.contains("I am a@b.com") && text.contains("…[") && text.len() <= 1024 && full.truncated, "{text}");

        assert_eq!(kept(Policy::Redacted, "text/plain", b"mail a@b.com").text.as_deref(), Some("mail [email]"));
    }

    #[test]
    fn what_is_too_long_is_cut_where_it_can_be() {
        let numbers = format!("[{}1]", "1234,".repeat(1000));
        let body = kept(Policy::Full, "application/json", numbers.as_bytes());
        assert_eq!((body.truncated, json(&body), body.text.as_deref()), (true, None, Some(&numbers[..1024])));
        let text = "é".repeat(1000);
        let body = kept(Policy::Full, "text/plain", format!("x{text}").as_bytes());
        assert_eq!(body.text.map(|text| text.len()), Some(1023));

        // More than is copied: the end is missing, and what is there stays JSON.
        let long = format!("{{\"a\":\"b\",\"c\":\"{}\"}}", "x".repeat(40_000));
        let body = kept(Policy::Full, "application/json", long.as_bytes());
        let text = json(&body).unwrap();
        assert!(
            body.truncated && text.starts_with("{\"a\":\"b\",\"c\":\"xxx") && text.ends_with(" more bytes]\"}"),
            "{text}"
        );
    }

    #[test]
    fn half_of_what_is_replaced_is_not_kept_before_a_cut() {
        let capture = capture(Policy::Redacted, 1024);
        for (content_type, body) in [("text/plain", "me: a@exam"), ("application/json", "{\"me\":\"a@exam")] {
            let mut keeper = keeper(capture, body.as_bytes());
            keeper.break_off();
            let body = request_body(capture, Some(content_type), None, &keeper).unwrap();
            let told = [json(&body), body.text.as_deref()].into_iter().flatten().collect::<String>();
            assert!(body.truncated && !told.contains("exam"), "{told}");
        }
    }

    #[test]
    fn a_content_coding_is_undone_and_a_bomb_is_cut() {
        let capture = capture(Policy::Full, 1024);
        let coded = |field: &str, content_type: &str, wire: &[u8]| {
            response_body(capture, Some(content_type), Some(field), &keeper(capture, wire)).unwrap()
        };
        let wire = gzipped(b"{\"a\":1}");
        let body = coded("gzip", "application/json", &wire);
        assert_eq!((json(&body), body.bytes, body.truncated), (Some("{\"a\":1}"), wire.len() as u64, false));
        let bomb = coded("gzip", "text/plain", &gzipped(&vec![b'x'; 16 * 1024 * 1024]));
        assert_eq!((bomb.text.map(|text| text.len()), bomb.truncated), (Some(1024), true));
        for (field, wire) in [("gzip", &b"no gzip"[..]), ("gzip, br", b"{}"), ("unheard-of", b"{}")] {
            let body = coded(field, "application/json", wire);
            assert!(body.omitted.is_some() && body.json.is_none() && body.text.is_none(), "{field}");
        }
    }

    #[test]
    fn a_stream_of_an_unknown_kind_is_text_or_nothing() {
        let stream = "data: {\"type\":\"unheard-of\",\"text\":\"a@b\"}\n\ndata: {\"text\":\".com\"}\n\n";
        for (policy, expected) in [(Policy::Full, Some(stream)), (Policy::Redacted, None)] {
            let capture = capture(policy, 1024);
            let body =
                response_body(capture, Some("text/event-stream"), None, &keeper(capture, stream.as_bytes())).unwrap();
            assert_eq!((body.text.as_deref(), body.omitted.is_some()), (expected, expected.is_none()));
        }
    }

    #[test]
    fn a_stream_is_one_whatever_it_is_said_to_be() {
        let chat = "data: {\"choices\":[{\"delta\":{\"content\":\"a@b\"}}]}\n\n\
                    data: {\"choices\":[{\"delta\":{\"content\":\".com\"}}]}\n\ndata: [DONE]\n\n";
        let lines = "{\"message\":{\"content\":\"a@b\"}}\n{\"message\":{\"content\":\".com\"}}\n";
        for (content_type, stream, is_known) in [
            ("text/plain", chat, true),
            ("application/json", chat, true),
            ("application/x-ndjson", lines, false),
            ("application/stream+json", lines, false),
        ] {
            for policy in [Policy::Redacted, Policy::Full] {
                let capture = capture(policy, 1024);
                let keeper = keeper(capture, stream.as_bytes());
                let body = response_body(capture, Some(content_type), None, &keeper).unwrap();
                let is_omitted = policy == Policy::Redacted && !is_known;
                assert_eq!((body.omitted.is_some(), json(&body).is_some()), (is_omitted, is_known), "{content_type}");
                let told = [json(&body), body.text.as_deref()].into_iter().flatten().collect::<String>();
                assert!(policy == Policy::Full || !told.contains("a@b"), "{told}");
            }
        }
        let batch = kept(Policy::Redacted, "application/x-ndjson", lines.as_bytes());
        assert_eq!(batch.text.as_deref(), Some(lines), "a request is no stream");
    }

    #[test]
    fn half_of_what_is_replaced_is_not_kept_of_a_list_that_broke_off() {
        let list = format!(
            r#"[{{"candidates":[{{"content":{{"parts":[{{"text":"mail anna@exam"}}]}}}}],"more":"{}""#,
            "x".repeat(400)
        );
        let capture = capture(Policy::Redacted, 1024);
        let mut keeper = keeper(capture, list.as_bytes());
        keeper.break_off();
        let body = response_body(capture, Some("application/json"), None, &keeper).unwrap();
        let text = json(&body).unwrap();
        assert!(body.truncated && text.contains("\"mail…\"") && !text.contains("exam"), "{text}");
    }

    #[test]
    fn what_is_spread_over_events_is_found_and_half_of_it_dropped() {
        let pieces = ["Write to an", "na@exam", "ple.", "com, or 4242 42", "42 4242 4242"];
        let event =
            |piece: &&str| format!("data: {{\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{piece}\"}}}}]}}\n\n");
        let stream =
            |pieces: &[&str], end: &str| -> String { pieces.iter().map(event).chain([end.to_owned()]).collect() };
        let capture = capture(Policy::Redacted, 1024);
        for (stream, expected, is_whole) in [
            (stream(&pieces, "data: [DONE]\n\n"), "\"Write to [email], or [card]\"", true),
            (stream(&pieces[..2], ""), "\"Write to…\"", false),
            (stream(&pieces[..4], ""), "\"Write to [email], or 4242…\"", false),
        ] {
            let body = response_body(capture, Some("text/event-stream"), None, &keeper(capture, stream.as_bytes()));
            let body = body.unwrap();
            let text = json(&body).unwrap();
            assert!(text.contains(expected) && body.truncated != is_whole, "{text}");
        }
    }

    #[test]
    fn bodies_are_not_printed() {
        let body = kept(Policy::Full, "application/json", b"{\"a\":\"prompt\"}");
        assert!(!format!("{body:?}").contains("prompt"), "{body:?}");
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_bytes_give_one_body_however_they_are_split(
            bytes in prop_oneof![
                prop::collection::vec(any::<u8>(), 0..300),
                "[\\[\\]{}:,\"a-c0-2 @.]{0,300}".prop_map(String::into_bytes),
                prop::collection::vec(
                    prop::sample::select(vec![
                        "data: ", "{", "}", "[", "]", "\"choices\":", "\"delta\":", "\"content\":", "\"a@b.com\"", ",", "\n\n", "\r\n",
                        "\"candidates\":", "\"parts\":", "\"text\":", "\"type\":", "\"message_start\"", "\"content_block_delta\"",
                        "\"response.created\"", "\"index\":0", "[DONE]", "1", "null", "é",
                    ]),
                    0..60,
                )
                .prop_map(|pieces| pieces.concat().into_bytes()),
            ],
            content_type in prop::sample::select(vec!["application/json", "text/event-stream", "text/plain", "", "image/png"]),
            coding in prop::sample::select(vec!["", "gzip", "br", "zstd", "deflate", "x"]),
            policy in prop::sample::select(vec![Policy::Redacted, Policy::Full]),
            piece in 1usize..40,
            is_cut in any::<bool>(),
        ) {
            let capture = capture(policy, 1024);
            let (mut whole, mut split) = (capture.keeper(), capture.keeper());
            whole.push(&bytes);
            bytes.chunks(piece).for_each(|piece| split.push(piece));
            if is_cut {
                whole.break_off();
                split.break_off();
            }
            for make in [request_body, response_body] {
                let body = make(capture, Some(content_type), Some(coding), &whole);
                prop_assert_eq!(&make(capture, Some(content_type), Some(coding), &split), &body);
                let Some(body) = body else { continue };
                let forms = [body.json.is_some(), body.text.is_some(), body.sha256.is_some(), body.omitted.is_some()];
                prop_assert_eq!(forms.iter().filter(|is_there| **is_there).count(), 1, "{:?}", body);
                if let Some(json) = json(&body) {
                    prop_assert!(json.len() <= 1024 && !json.contains('\n'), "{}", json);
                    prop_assert!(serde_json::from_str::<IgnoredAny>(json).is_ok(), "{}", json);
                }
                prop_assert!(body.text.as_ref().is_none_or(|text| text.len() <= 1024));
                prop_assert!(!is_cut || body.truncated);
            }
        }

        #[test]
        fn redacting_what_is_redacted_changes_nothing(
            texts in prop::collection::vec("[a-c@. \\[\\]\"\\\\0-9+-]{0,40}|a@b.com|4111111111111111|data:a/b;base64,QUJD", 0..6),
        ) {
            let capture = capture(Policy::Redacted, 64 * 1024);
            let sent = serde_json::json!({"messages": texts, "input": {"data": texts.concat()}}).to_string();
            let kept = |sent: &[u8]| {
                let body = request_body(capture, Some("application/json"), None, &keeper(capture, sent));
                body.unwrap().json.unwrap()
            };
            let once = kept(sent.as_bytes());
            prop_assert_eq!(kept(&once), once);
        }
    }
}

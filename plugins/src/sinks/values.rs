//! What the text of a sink's setting may be: one type for each kind of value, checked where it is read.
//!
//! Every single value arrives as the text it was written as, as the reader of the configuration file hands it over:
//! whether `10` is a number or a name is for the key to say. Reading is strict. A message says what was found and what
//! is expected, and never shows a secret.

use std::fmt;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::uri::{PathAndQuery, Scheme, Uri};
use llm_proxy_core::secret::Secret;
use rustls::pki_types::ServerName;
use serde::de::{Deserialize, Deserializer, Error};
use serde_json::Value;
use uuid::Uuid;

use crate::dispatcher::Sample;

/// The longest duration taken. Anything longer is a slip of the unit.
const LONGEST: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// A value that is read from a text.
pub(super) trait FromText: Sized {
    /// Ends the sentence "found …, expected".
    const EXPECTED: &'static str;
    /// Whether the text must not be shown.
    const IS_SECRET: bool = false;

    fn from_text(text: &str) -> Option<Self>;

    /// What is expected in place of this text, where that can be said more exactly than by [`Self::EXPECTED`].
    fn expected(_text: &str) -> &'static str {
        Self::EXPECTED
    }
}

/// A value read from a text, in a struct that serde fills.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Text<T>(pub T);

impl<'de, T: FromText> Deserialize<'de> for Text<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        judge(&Value::deserialize(deserializer)?).map(Self).map_err(D::Error::custom)
    }
}

/// The value, or the problem without its place.
pub(super) fn judge<T: FromText>(found: &Value) -> Result<T, String> {
    let text = match found {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(truth) => Some(truth.to_string()),
        _ => None,
    };
    match (text.as_deref().and_then(T::from_text), text) {
        (Some(value), _) => Ok(value),
        (None, Some(text)) if T::IS_SECRET && !text.is_empty() => {
            Err(format!("found a value that is not shown here, expected {}", T::expected(&text)))
        }
        (None, Some(text)) => Err(format!("found {}, expected {}", quoted(&text), T::expected(&text))),
        (None, None) => Err(format!("found {}, expected {}", described(found), T::EXPECTED)),
    }
}

/// What stands where a single value is expected.
pub(super) fn described(found: &Value) -> &'static str {
    match found {
        Value::Null => "nothing",
        Value::Array(_) => "a list",
        Value::Object(_) => "a map",
        _ => "a single value",
    }
}

/// The text in quotes, escaped, and cut where nobody would read on.
pub(super) fn quoted(text: &str) -> String {
    const LONGEST: usize = 80;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{:?}…", text.get(..end).unwrap_or("")),
        None => format!("{text:?}"),
    }
}

impl FromText for Duration {
    const EXPECTED: &'static str = "a duration with its unit, up to 720h, such as 500ms, 10s, 5m or 1h";

    fn from_text(text: &str) -> Option<Self> {
        let (number, unit) = text.split_at_checked(text.find(|letter: char| !letter.is_ascii_digit())?)?;
        let unit_ms: u64 = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return None,
        };
        let duration = Self::from_millis(number.parse::<u64>().ok()?.checked_mul(unit_ms)?);
        (duration <= LONGEST).then_some(duration)
    }
}

/// A duration above zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span(pub Duration);

impl FromText for Span {
    const EXPECTED: &'static str = "a duration with its unit, above zero and up to 720h, such as 500ms, 10s, 5m or 1h";

    fn from_text(text: &str) -> Option<Self> {
        Duration::from_text(text).filter(|duration| !duration.is_zero()).map(Self)
    }
}

/// A number of things above zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Count(pub u32);

impl FromText for Count {
    const EXPECTED: &'static str = "a whole number from 1 to 100000";

    fn from_text(text: &str) -> Option<Self> {
        let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
        let count = text.parse::<u32>().ok().filter(|_| is_number)?;
        (1..=100_000).contains(&count).then_some(Self(count))
    }
}

/// A number of bytes above zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bytes(pub u64);

impl FromText for Bytes {
    const EXPECTED: &'static str =
        "a number of bytes above zero, alone or with one of KB, MB, GB, TB, KiB, MiB, GiB, TiB, such as 32MiB";

    fn from_text(text: &str) -> Option<Self> {
        let end = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at_checked(end)?;
        let unit_bytes: u64 = match unit.trim_start_matches(' ') {
            "" | "B" => 1,
            "KB" | "kB" => 1_000,
            "MB" => 1_000_000,
            "GB" => 1_000_000_000,
            "TB" => 1_000_000_000_000,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            "TiB" => 1 << 40,
            _ => return None,
        };
        number.parse::<u64>().ok()?.checked_mul(unit_bytes).filter(|bytes| *bytes > 0).map(Self)
    }
}

impl FromText for Sample {
    const EXPECTED: &'static str = "a share of all events from 0 to 1, such as 0.1, or in percent, such as 10%";

    fn from_text(text: &str) -> Option<Self> {
        let (number, whole) = text.strip_suffix('%').map_or((text, 1.0), |number| (number, 100.0));
        // `parse` alone would take "inf", "1e-1" and "+1".
        let is_plain = number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
        Self::new(number.parse::<f64>().ok().filter(|_| is_plain)? / whole)
    }
}

/// One of a few words.
pub(super) fn one_of<T: Copy>(text: &str, words: &[(&str, T)]) -> Option<T> {
    words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value)
}

/// A text that is not empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Word(pub String);

impl FromText for Word {
    const EXPECTED: &'static str = "a text that is not empty";

    fn from_text(text: &str) -> Option<Self> {
        (!text.is_empty()).then(|| Self(text.to_owned()))
    }
}

/// A credential for a header: visible ASCII.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Key(pub Secret);

impl FromText for Key {
    const EXPECTED: &'static str = "a key of 8 to 4096 visible ASCII characters";
    const IS_SECRET: bool = true;

    fn from_text(text: &str) -> Option<Self> {
        let is_visible = text.bytes().all(|byte| byte.is_ascii_graphic());
        (is_visible && (8..=4_096).contains(&text.len())).then(|| Self(Secret::new(text)))
    }
}

/// A key that is a UUID, as some services issue them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct UuidKey(pub Secret);

impl FromText for UuidKey {
    const EXPECTED: &'static str = "a project's public or private key, which is a UUID";
    const IS_SECRET: bool = true;

    fn from_text(text: &str) -> Option<Self> {
        (text.len() == 36 && Uuid::try_parse(text).is_ok()).then(|| Self(Secret::new(text)))
    }
}

/// A secret that messages are signed with: `whsec_` and base64 of 24 to 64 bytes. Standard Webhooks, "Signature scheme".
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SigningSecret(pub Secret);

impl SigningSecret {
    const PREFIX: &'static str = "whsec_";

    /// The bytes of a secret in this form.
    pub fn octets(text: &str) -> Option<Vec<u8>> {
        let octets = STANDARD.decode(text.strip_prefix(Self::PREFIX)?).ok()?;
        (24..=64).contains(&octets.len()).then_some(octets)
    }
}

impl FromText for SigningSecret {
    const EXPECTED: &'static str =
        "whsec_ and 24 to 64 random bytes in base64, such as `echo whsec_$(openssl rand -base64 32)` prints";
    const IS_SECRET: bool = true;

    fn from_text(text: &str) -> Option<Self> {
        Self::octets(text).map(|_| Self(Secret::new(text)))
    }
}

/// The name of an environment variable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Variable(pub String);

impl FromText for Variable {
    const EXPECTED: &'static str = "the name of an environment variable, such as LUNARY_API_KEY";

    fn from_text(text: &str) -> Option<Self> {
        let is_name = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        let begins_well = text.bytes().next().is_some_and(|byte| !byte.is_ascii_digit());
        (is_name && begins_well).then(|| Self(text.to_owned()))
    }
}

/// Where a sink is reached. Its query may hold a secret, so it is shown nowhere.
#[derive(Clone, PartialEq, Eq)]
pub struct HttpUrl {
    /// `https`. Plain `http` is taken as meant: receivers also run next door.
    pub tls: bool,
    /// A name or an IP address; an IPv6 address without its brackets.
    pub host: String,
    /// The port given, or the scheme's.
    pub port: u16,
    /// For the `host` field: the port only where it is not the scheme's own (RFC 9110 §4.2.3), IPv6 in brackets.
    pub authority: String,
    /// Path and query, beginning with a slash.
    target: String,
}

impl HttpUrl {
    /// Path and query of the URL itself.
    pub fn target(&self) -> &str {
        &self.target
    }

    /// The target of `path`, which begins with a slash, below this URL. A query is dropped.
    pub fn below(&self, path: &str) -> String {
        let base = self.target.split('?').next().unwrap_or("");
        format!("{}{path}", base.trim_end_matches('/'))
    }
}

impl fmt::Display for HttpUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        write!(formatter, "{scheme}://{}{}", self.authority, self.target.split('?').next().unwrap_or(""))
    }
}

impl fmt::Debug for HttpUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "HttpUrl({self})")
    }
}

impl FromText for HttpUrl {
    const EXPECTED: &'static str = "a URL such as https://logs.example.com/hook, without user name or fragment";
    // What stands before an `@`, or in the query, may be a password.
    const IS_SECRET: bool = true;

    fn from_text(text: &str) -> Option<Self> {
        let uri: Uri = text.parse().ok().filter(|_| !text.contains('#'))?;
        let tls = match uri.scheme() {
            Some(scheme) if *scheme == Scheme::HTTPS => true,
            Some(scheme) if *scheme == Scheme::HTTP => false,
            _ => return None,
        };
        let authority = uri.authority().filter(|authority| !authority.as_str().contains('@'))?;
        let host = authority.host();
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        ServerName::try_from(host).ok()?;
        let own_port = if tls { 443 } else { 80 };
        let port = match authority.as_str().rsplit_once(':') {
            Some((_, digits)) if !digits.ends_with(']') => {
                let is_number = digits.bytes().all(|byte| byte.is_ascii_digit());
                digits.parse::<u16>().ok().filter(|port| is_number && *port != 0)?
            }
            _ => own_port,
        };
        let bracketed = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        let target = uri.path_and_query().map_or("/", PathAndQuery::as_str);
        Some(Self {
            tls,
            host: host.to_owned(),
            port,
            authority: if port == own_port { bracketed } else { format!("{bracketed}:{port}") },
            target: if target.starts_with('/') { target.to_owned() } else { format!("/{target}") },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<T: FromText>(text: &str) -> Result<T, String> {
        judge(&Value::String(text.to_owned()))
    }

    #[test]
    fn values_are_read_strictly() {
        for (text, expected) in [("500ms", Some(500)), ("2m", Some(120_000)), ("0s", Some(0)), ("10", None), ("", None)]
        {
            assert_eq!(read::<Duration>(text).ok(), expected.map(Duration::from_millis), "{text}");
        }
        for (text, expected) in [("1", Some(1)), ("100000", Some(100_000)), ("0", None), ("+1", None), ("1.5", None)] {
            assert_eq!(read::<Count>(text).ok().map(|count| count.0), expected, "{text}");
        }
        for (text, expected) in [("512", Some(512)), ("4 MiB", Some(4 << 20)), ("0", None), ("4M", None), ("-1", None)]
        {
            assert_eq!(read::<Bytes>(text).ok().map(|bytes| bytes.0), expected, "{text}");
        }
        for (text, expected) in [
            ("0.25", Sample::new(0.25)),
            ("25%", Sample::new(0.25)),
            ("1", Sample::new(1.0)),
            ("0", Sample::new(0.0)),
            ("101%", None),
            ("-0.1", None),
            ("1e-1", None),
            ("nan", None),
            ("", None),
        ] {
            assert_eq!(read::<Sample>(text).ok(), expected, "{text}");
        }
        for (text, fits) in [("LUNARY_API_KEY", true), ("_x1", true), ("1X", false), ("", false), ("A-B", false)] {
            assert_eq!(read::<Variable>(text).is_ok(), fits, "{text}");
        }
    }

    #[test]
    fn numbers_and_truths_are_the_text_they_are_written_as_and_other_things_are_named() {
        assert_eq!(judge::<Count>(&Value::from(12)), Ok(Count(12)));
        for (found, expected) in [
            (Value::Null, "found nothing, expected a whole number from 1 to 100000"),
            (Value::from(Vec::<u8>::new()), "found a list, expected a whole number from 1 to 100000"),
            (Value::from("x\n"), "found \"x\\n\", expected a whole number from 1 to 100000"),
            (Value::from(true), "found \"true\", expected a whole number from 1 to 100000"),
        ] {
            assert_eq!(judge::<Count>(&found), Err(expected.to_owned()));
        }
    }

    #[test]
    fn a_url_is_taken_apart_and_shown_without_its_query() {
        for (text, tls, host, port, authority, target, shown) in [
            ("https://a.example", true, "a.example", 443, "a.example", "/", "https://a.example/"),
            ("https://a.example:443/", true, "a.example", 443, "a.example", "/", "https://a.example/"),
            (
                "http://10.0.0.7:8000/x?y=1",
                false,
                "10.0.0.7",
                8_000,
                "10.0.0.7:8000",
                "/x?y=1",
                "http://10.0.0.7:8000/x",
            ),
            ("http://[::1]:90/hook", false, "::1", 90, "[::1]:90", "/hook", "http://[::1]:90/hook"),
            ("https://[::1]", true, "::1", 443, "[::1]", "/", "https://[::1]/"),
        ] {
            let url: HttpUrl = read(text).unwrap();
            assert_eq!((url.tls, &*url.host, url.port), (tls, host, port), "{text}");
            assert_eq!((&*url.authority, url.target()), (authority, target), "{text}");
            assert_eq!((url.to_string(), format!("{url:?}")), (shown.to_owned(), format!("HttpUrl({shown})")));
        }
        for (base, expected) in [
            ("https://a.example", "/v1/log"),
            ("https://a.example/b/", "/b/v1/log"),
            ("https://a.example/b?c=d", "/b/v1/log"),
        ] {
            assert_eq!(read::<HttpUrl>(base).unwrap().below("/v1/log"), expected);
        }
    }

    #[test]
    fn other_urls_are_refused_and_never_shown() {
        for text in [
            "",
            "a.example",
            "/hunter2",
            "ftp://a.example/hunter2",
            "https://hunter2@a.example",
            "https://user:hunter2@a.example",
            "https://a.example/#hunter2",
            "https://a.example:0/hunter2",
            "https://a.example:65536/hunter2",
            "https://a.example:/hunter2",
            "https://a b/hunter2",
            "https://-/hunter2",
            "https://[::1/hunter2",
        ] {
            let problem = read::<HttpUrl>(text).unwrap_err();
            assert!(problem.starts_with("found ") && problem.contains("expected a URL"), "{text}: {problem}");
            assert!(!problem.contains("hunter2"), "{problem}");
        }
    }

    #[test]
    fn secrets_have_their_form_and_are_never_shown() {
        let secret = format!("whsec_{}", STANDARD.encode([7; 32]));
        assert_eq!(SigningSecret::octets(&secret).unwrap(), [7; 32]);
        assert!(read::<SigningSecret>(&secret).is_ok());
        for text in ["hunter2", &format!("whsec_{}", STANDARD.encode(b"hunter2")), "whsec_hunter2!"] {
            let problem = read::<SigningSecret>(text).unwrap_err();
            assert!(problem.starts_with("found a value that is not shown here, expected whsec_"), "{problem}");
        }
        assert!(read::<UuidKey>("0d0c5a0e-6a58-4d0b-9d59-1f6f0f6f7b11").is_ok());
        for text in ["hunter2", "0d0c5a0e6a584d0b9d591f6f0f6f7b11", "0d0c5a0e-6a58-4d0b-9d59-1f6f0f6f7b1x"] {
            let problem = read::<UuidKey>(text).unwrap_err();
            assert!(!problem.contains(text), "{problem}");
        }
        assert!(read::<Key>("sk-helicone-1234").is_ok());
        assert_eq!(read::<Key>("").unwrap_err(), "found \"\", expected a key of 8 to 4096 visible ASCII characters");
        assert!(!read::<Key>("hunter 2 is long").unwrap_err().contains("hunter"));
    }
}

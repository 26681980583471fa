//! What a command asks of the server, and the parsers of arguments that several commands share.

use std::ops::RangeInclusive;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use clap::builder::PossibleValuesParser;
use http::Method;
use serde_json::{Map, Value};

use super::client;
use super::view::View;

/// One request to the management API and how its answer is shown.
pub(super) struct Request {
    pub(super) method: Method,
    /// Path and query.
    pub(super) target: String,
    pub(super) body: Option<Value>,
    pub(super) view: View,
    /// How long the answer may take.
    pub(super) timeout: Duration,
}

impl Request {
    pub(super) fn new(method: Method, target: impl Into<String>, view: View) -> Self {
        Self { method, target: target.into(), body: None, view, timeout: client::TIMEOUT }
    }

    pub(super) fn with_body(self, body: Map<String, Value>) -> Self {
        Self { body: Some(Value::Object(body)), ..self }
    }

    /// A change with at least one field in it.
    pub(super) fn with_change(self, body: Map<String, Value>) -> anyhow::Result<Self> {
        if body.is_empty() {
            bail!("nothing to change: name at least one field (--help lists them)");
        }
        Ok(self.with_body(body))
    }
}

/// Heads the flags of provider keys.
pub(super) const KEYS: &str = "Provider keys";
/// Heads the flags of what a project lets be kept.
const CONTENT: &str = "Content";
/// Heads the flags of a token's limits.
pub(super) const LIMITS: &str = "Limits";

// The server's own limits, told before anything is sent.

/// `max_requests`, up to what every JSON reader keeps exact.
const REQUESTS: RangeInclusive<u64> = 1..=(1 << 53) - 1;
/// `requests_per_minute`.
const PER_MINUTE: RangeInclusive<u64> = 1..=1_000_000;
/// `content.max_bytes`.
const CAPTURE_BYTES: RangeInclusive<u64> = 1_024..=524_288;
/// `content.retention_days`.
const DAYS: RangeInclusive<u64> = 1..=3_650;
/// Longest life of a token.
const MOST_MINUTES: u64 = 525_600;
/// Rows of a list's page.
const ROWS: RangeInclusive<u64> = 1..=200;

/// Which part of a list is shown.
#[derive(Args)]
pub(super) struct PageArgs {
    /// Most rows to show, 1 to 200
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = rows, allow_negative_numbers = true)]
    limit: u64,
    /// Where to go on: the cursor that the page before ended with
    #[arg(long, value_name = "CURSOR")]
    cursor: Option<String>,
}

impl PageArgs {
    /// The path with the query for this page and these filters.
    pub(super) fn target<'a>(&'a self, path: &str, filters: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
        let mut target = format!("{path}?limit={}", self.limit);
        let cursor = self.cursor.as_deref().map(|cursor| ("cursor", cursor));
        for (name, value) in cursor.into_iter().chain(filters) {
            target.push('&');
            target.push_str(name);
            target.push('=');
            push_escaped(&mut target, value);
        }
        target
    }
}

/// Percent-encodes everything but the unreserved characters of RFC 3986 §2.3.
fn push_escaped(target: &mut String, text: &str) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            target.push(char::from(byte));
        } else {
            target.push_str(&format!("%{byte:02X}"));
        }
    }
}

// What parsers say of a bad value ends the sentence "found …,".

/// An id of a project or token. It goes into a path, so it is only letters, digits and dashes.
pub(super) fn id(text: &str) -> Result<String, String> {
    if text.starts_with("sk-lp-") {
        return Err(
            "expected the token's id, and this is the token itself; `llm-proxy manage token list` shows ids".to_owned()
        );
    }
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
        return Err("expected an id of letters, digits and dashes".to_owned());
    }
    Ok(text.to_owned())
}

fn whole_number(text: &str, range: RangeInclusive<u64>, unit: &str) -> Result<u64, String> {
    let number = text.parse::<u64>().ok().filter(|number| range.contains(number));
    number.ok_or_else(|| format!("expected a whole number of {unit} from {} to {}", range.start(), range.end()))
}

fn rows(text: &str) -> Result<u64, String> {
    whole_number(text, ROWS, "rows")
}

fn capture_bytes(text: &str) -> Result<u64, String> {
    whole_number(text, CAPTURE_BYTES, "bytes")
}

fn days_or_none(text: &str) -> Result<Value, String> {
    or_none(text, |text| whole_number(text, DAYS, "days"))
}

/// `max_requests`.
pub(super) fn requests(text: &str) -> Result<u64, String> {
    whole_number(text, REQUESTS, "requests")
}

/// `requests_per_minute`.
pub(super) fn per_minute(text: &str) -> Result<u64, String> {
    whole_number(text, PER_MINUTE, "requests a minute")
}

/// `max_requests` to set, or `none` to lift it.
pub(super) fn requests_or_none(text: &str) -> Result<Value, String> {
    or_none(text, requests)
}

/// `requests_per_minute` to set, or `none` to lift it.
pub(super) fn per_minute_or_none(text: &str) -> Result<Value, String> {
    or_none(text, per_minute)
}

fn or_none(text: &str, number: fn(&str) -> Result<u64, String>) -> Result<Value, String> {
    if text == "none" {
        return Ok(Value::Null);
    }
    number(text).map(Value::from).map_err(|expected| format!("{expected}, or none"))
}

/// A life span in whole minutes: `90`, `90m`, `12h`, `7d`. It begins now, so none ends in the past.
pub(super) fn minutes(text: &str) -> Result<u64, String> {
    let (digits, minutes_each) = match text.as_bytes().last() {
        Some(b'm') => (text.strip_suffix('m'), 1),
        Some(b'h') => (text.strip_suffix('h'), 60),
        Some(b'd') => (text.strip_suffix('d'), 60 * 24),
        _ => (Some(text), 1),
    };
    digits
        .and_then(|digits| digits.parse::<u64>().ok())
        .and_then(|count| count.checked_mul(minutes_each))
        .filter(|minutes| (1..=MOST_MINUTES).contains(minutes))
        .ok_or_else(|| {
            "expected a time from 1m to 365d in whole minutes, hours or days, such as 90m, 12h or 7d (a bare number is \
             minutes)"
                .to_owned()
        })
}

/// An API and the environment variable that holds its key.
#[derive(Clone)]
pub(super) struct KeySource {
    api: String,
    variable: String,
}

pub(super) fn key_source(text: &str) -> Result<KeySource, String> {
    match text.split_once('=') {
        Some((api, variable)) if !api.is_empty() && !variable.is_empty() => {
            Ok(KeySource { api: api.to_owned(), variable: variable.to_owned() })
        }
        _ => Err("expected API=VARIABLE, an API and the environment variable with its key".to_owned()),
    }
}

/// What a project lets be kept of the bodies of its requests and answers.
#[derive(Args)]
pub(super) struct ContentArgs {
    /// What records keep of a request: none (numbers only), metadata (tags too), redacted (bodies, secrets replaced), full
    #[arg(long, value_name = "POLICY", help_heading = CONTENT,
        value_parser = PossibleValuesParser::new(["none", "metadata", "redacted", "full"]))]
    capture: Option<String>,
    /// Most bytes to keep of one body, 1024 to 524288
    #[arg(
        long,
        value_name = "BYTES",
        help_heading = CONTENT,
        value_parser = capture_bytes,
        allow_negative_numbers = true
    )]
    capture_max_bytes: Option<u64>,
    /// Erase what was kept after so many days, 1 to 3650; none keeps it
    #[arg(
        long,
        value_name = "DAYS|none",
        help_heading = CONTENT,
        value_parser = days_or_none,
        allow_negative_numbers = true
    )]
    retention_days: Option<Value>,
}

impl ContentArgs {
    /// Puts `content` into a body, with what was said of it.
    pub(super) fn put_into(self, body: &mut Map<String, Value>) {
        let said = [
            ("capture", self.capture.map(Value::from)),
            ("max_bytes", self.capture_max_bytes.map(Value::from)),
            ("retention_days", self.retention_days),
        ];
        let content: Map<_, _> =
            said.into_iter().filter_map(|(field, value)| Some((field.to_owned(), value?))).collect();
        if !content.is_empty() {
            body.insert("content".to_owned(), Value::Object(content));
        }
    }
}

/// Provider keys and where they come from.
#[derive(Args)]
pub(super) struct KeyArgs {
    /// The environment variable that holds the default API's key
    #[arg(long, value_name = "VARIABLE", help_heading = KEYS, conflicts_with_all = ["api_key_stdin", "api_key"])]
    api_key_env: Option<String>,
    /// Read the default API's key from standard input
    #[arg(long, help_heading = KEYS, conflicts_with = "api_key")]
    api_key_stdin: bool,
    /// The default API's key itself. Process lists and the shell's history show it: prefer the two above
    #[arg(long, value_name = "KEY", help_heading = KEYS)]
    api_key: Option<String>,
    /// The key of a named API, from an environment variable; may be repeated
    #[arg(long = "provider-key", value_name = "API=VARIABLE", help_heading = KEYS, value_parser = key_source)]
    provider_keys: Vec<KeySource>,
}

impl KeyArgs {
    /// Puts `api_key` and `provider_keys` into a body where keys were given; the APIs in `removed` lose theirs.
    pub(super) fn put_into(self, body: &mut Map<String, Value>, removed: Vec<String>) -> anyhow::Result<()> {
        let api_key = match (self.api_key_env, self.api_key_stdin, self.api_key) {
            (Some(variable), _, _) => Some(from_environment(&variable)?),
            (None, true, _) => Some(std::io::read_to_string(std::io::stdin()).context("reading the key from stdin")?),
            (None, false, given) => given,
        };
        if let Some(key) = api_key {
            body.insert("api_key".to_owned(), Value::from(key.trim()));
        }
        let mut keys = Vec::new();
        for KeySource { api, variable } in self.provider_keys {
            keys.push(serde_json::json!({ "api": api, "key": from_environment(&variable)?.trim() }));
        }
        keys.extend(removed.into_iter().map(|api| serde_json::json!({ "api": api, "key": null })));
        if !keys.is_empty() {
            body.insert("provider_keys".to_owned(), Value::Array(keys));
        }
        Ok(())
    }
}

fn from_environment(variable: &str) -> anyhow::Result<String> {
    // A key in the place of its variable's name would end up in the message.
    if !variable.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
        bail!("the name of an environment variable is expected, of letters, digits and `_`, and not the key itself");
    }
    match std::env::var(variable) {
        Ok(key) if key.trim().is_empty() => bail!("the environment variable {variable} is empty"),
        Ok(key) => Ok(key),
        Err(std::env::VarError::NotPresent) => bail!("the environment variable {variable} is not set"),
        Err(std::env::VarError::NotUnicode(_)) => bail!("the environment variable {variable} is not UTF-8"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_minutes_hours_or_days() {
        for (text, expected) in [
            ("90", Some(90)),
            ("90m", Some(90)),
            ("12h", Some(720)),
            ("7d", Some(10_080)),
            ("0d", None),
            ("d", None),
            ("1.5h", None),
            ("-1", None),
            ("18446744073709551615d", None),
            ("365d", Some(525_600)),
            ("525601", None),
            ("366d", None),
            ("-7d", None),
            ("", None),
        ] {
            assert_eq!(minutes(text).ok(), expected, "{text}");
        }
    }

    #[test]
    fn a_limit_is_within_the_server_s_range_or_none() {
        for (text, expected) in [
            ("1", Some(Value::from(1))),
            ("9007199254740991", Some(Value::from(9_007_199_254_740_991_u64))),
            ("none", Some(Value::Null)),
            ("0", None),
            ("-1", None),
            ("9007199254740992", None),
            ("None", None),
            ("", None),
        ] {
            assert_eq!(requests_or_none(text).ok(), expected, "{text}");
        }
        assert_eq!((per_minute("1000000"), per_minute("1000001").is_err()), (Ok(1_000_000), true));
    }
}

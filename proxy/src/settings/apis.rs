//! The `apis:` of the YAML file: which providers are served, under which prefix, with which policy.
//!
//! A policy key that is present always narrows something. So none of them may be misspelt, empty by accident or half
//! understood: each such entry is an error, because the proxy that would start without it is the laxer one.

use std::path::PathBuf;
use std::time::Duration;

use llm_proxy_core::dialect::Dialect;
use llm_proxy_core::policy::Naming;

use super::base_url::{BASE_URL, BaseUrl};
use super::error::{SettingsError, quoted};
use super::values::{API_NAME, BYTES, DIALECT, DURATION, DURATION_OR_NONE, Found, Refused, Rule};
use super::yaml::{Content, Fields, Key, Node};

/// Longest wait for a connection, TLS included.
pub const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for the answer's first byte. Reasoning models can think for minutes before it.
pub const DEFAULT_FIRST_BYTE_TIMEOUT: Duration = Duration::from_secs(600);
/// Longest silence within an answer.
pub const DEFAULT_IDLE_TIMEOUT: Duration = Duration::from_secs(600);
/// Largest request body of any kind, in bytes.
pub const DEFAULT_MAX_REQUEST_BYTES: u64 = 1 << 30;
/// Largest request body that a policy may have to read, in bytes.
pub const DEFAULT_MAX_HELD_BYTES: u64 = 32 << 20;

const KEYS: [&str; 15] = [
    "dialect",
    "base_url",
    "allowed_endpoints",
    "allowed_methods",
    "param_whitelist",
    "allowed_origins",
    "required_headers",
    "timeouts",
    "max_request_bytes",
    "max_held_bytes",
    "inject_usage",
    "http2",
    "ca_file",
    "client_cert_file",
    "client_key_file",
];
const TIMEOUT_KEYS: [&str; 4] = ["connect", "first_byte", "idle", "total"];

/// One provider, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiSettings {
    /// Its URL prefix, the key of provider keys, the `api` of records.
    pub name: String,
    /// How it speaks.
    pub dialect: Dialect,
    /// Where it is.
    pub base_url: BaseUrl,
    /// Path patterns: `*` is one segment, a final `**` the rest. `None`: every path under the dialect's roots. Never empty.
    pub allowed_endpoints: Option<Vec<String>>,
    /// Upper-case methods. `None`: all. Never empty.
    pub allowed_methods: Option<Vec<String>>,
    /// Body field → globs, in the file's order. A field without globs is forbidden. `None`: no such policy.
    pub param_whitelist: Option<Vec<(String, Vec<String>)>>,
    /// Origins as browsers send them, in lower case, or `*`. `None`: any. Empty: no browser's.
    pub allowed_origins: Option<Vec<String>>,
    /// Lower-case field names that a request must carry. `None`: none.
    pub required_headers: Option<Vec<String>>,
    /// The clocks of an exchange.
    pub timeouts: Timeouts,
    /// Largest request body, in bytes; above zero.
    pub max_request_bytes: u64,
    /// Largest request body that a policy must read, in bytes; above zero and at most `MAX_HELD_BYTES_TOTAL`.
    pub max_held_bytes: u64,
    /// Streams are asked for their usage in the client's place, and the extra chunk is hidden from it.
    pub inject_usage: bool,
    /// The provider may choose HTTP/2. Only where it is reached by TLS.
    pub http2: bool,
    /// PEM file with the only certificate authorities that the provider is checked against. `None`: the system's.
    pub ca_file: Option<PathBuf>,
    /// PEM file with the certificate shown to the provider, and its chain. There together with its key, or not at all.
    pub client_cert_file: Option<PathBuf>,
    /// PEM file with that certificate's private key.
    pub client_key_file: Option<PathBuf>,
}

/// Four of the five clocks; the fifth, the request head's, belongs to the listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// Until a connection stands, TLS included.
    pub connect: Duration,
    /// From the request forwarded to the answer's first byte.
    pub first_byte: Duration,
    /// Between two bytes of the answer.
    pub idle: Duration,
    /// The whole exchange. `None`: as long as it makes progress.
    pub total: Option<Duration>,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: DEFAULT_CONNECT_TIMEOUT,
            first_byte: DEFAULT_FIRST_BYTE_TIMEOUT,
            idle: DEFAULT_IDLE_TIMEOUT,
            total: None,
        }
    }
}

/// What is served without a file: the three public providers.
pub(super) fn defaults(held_total: u64) -> Vec<ApiSettings> {
    [Dialect::OpenAi, Dialect::Anthropic, Dialect::Gemini]
        .into_iter()
        .filter_map(|dialect| Some(plain(dialect.name(), dialect, public_base_url(dialect)?, held_total)))
        .collect()
}

fn plain(name: &str, dialect: Dialect, base_url: BaseUrl, held_total: u64) -> ApiSettings {
    ApiSettings {
        name: name.to_owned(),
        dialect,
        http2: base_url.tls,
        base_url,
        allowed_endpoints: None,
        allowed_methods: None,
        param_whitelist: None,
        allowed_origins: None,
        required_headers: None,
        timeouts: Timeouts::default(),
        max_request_bytes: DEFAULT_MAX_REQUEST_BYTES,
        max_held_bytes: DEFAULT_MAX_HELD_BYTES.min(held_total),
        inject_usage: false,
        ca_file: None,
        client_cert_file: None,
        client_key_file: None,
    }
}

/// Where everybody finds the dialect's own provider. Azure has no such place: its host names the customer's resource.
fn public_base_url(dialect: Dialect) -> Option<BaseUrl> {
    let host = match dialect {
        Dialect::OpenAi => "api.openai.com",
        Dialect::Anthropic => "api.anthropic.com",
        Dialect::Gemini => "generativelanguage.googleapis.com",
        Dialect::Azure => return None,
    };
    Some(BaseUrl { tls: true, host: host.to_owned(), port: 443, path: String::new() })
}

/// Reads the map under `apis:`. `held_total` is `MAX_HELD_BYTES_TOTAL`.
pub(super) fn read(node: &Node, held_total: u64) -> Result<Vec<ApiSettings>, SettingsError> {
    const EXPECTED: &str = "a map from the name of an API to its settings";
    let entries = node.entries("apis", EXPECTED)?;
    if entries.is_empty() {
        return Err(node.place.of("apis").error(format!("found an empty map, expected {EXPECTED}")));
    }
    entries.iter().map(|(key, node)| read_api(key, node, held_total)).collect()
}

fn read_api(key: &Key, node: &Node, held_total: u64) -> Result<ApiSettings, SettingsError> {
    let name = API_NAME.judge(Found::Text(&key.text)).map_err(|problem| key.place.of("apis").error(problem))?;
    let path = format!("apis.{name}");
    // `openai:` with nothing behind it is the API with every default.
    let entries: &[(Key, Node)] = match &node.content {
        Content::Nothing => &[],
        _ => node.entries(&path, "a map of the API's settings")?,
    };
    let fields = Fields::new(path.clone(), entries, &KEYS)?;

    let dialect = match fields.read("dialect", &DIALECT)? {
        Some(dialect) => dialect,
        None => name.parse::<Dialect>().map_err(|_| {
            key.place.of(&path).error("found a name that is no dialect, expected a key `dialect` with one of openai, anthropic, gemini, azure")
        })?,
    };
    let base_url = match fields.read("base_url", &BASE_URL)? {
        Some(base_url) => base_url,
        None => public_base_url(dialect).ok_or_else(|| {
            key.place
                .of(&path)
                .error("found no `base_url`, expected your resource's, such as https://NAME.openai.azure.com")
        })?,
    };
    let inject_usage = fields.read("inject_usage", &BOOLEAN)?.unwrap_or(false);
    if let (Some(node), true, Dialect::Anthropic | Dialect::Gemini) =
        (fields.get("inject_usage"), inject_usage, dialect)
    {
        let problem =
            format!("found true, expected false: streams of the {} dialect tell their usage unasked", dialect.name());
        return Err(node.place.of(&fields.name("inject_usage")).error(problem));
    }

    let http2 = fields.read("http2", &BOOLEAN)?.unwrap_or(base_url.tls);
    if let (Some(node), true, false) = (fields.get("http2"), http2, base_url.tls) {
        let problem = "found true, expected false: `base_url` is not https, and without TLS HTTP/1.1 is spoken";
        return Err(node.place.of(&fields.name("http2")).error(problem));
    }

    let file = |key: &str| tls_file(&fields, key, &base_url);
    let (ca_file, client_cert_file, client_key_file) =
        (file("ca_file")?, file("client_cert_file")?, file("client_key_file")?);
    for (key, other, is_alone) in [
        ("client_cert_file", "client_key_file", client_key_file.is_none()),
        ("client_key_file", "client_cert_file", client_cert_file.is_none()),
    ] {
        if let (Some(node), true) = (fields.get(key), is_alone) {
            return Err(node.place.of(&fields.name(key)).error(format!("found no `{other}` beside it, expected both")));
        }
    }

    Ok(ApiSettings {
        inject_usage,
        http2,
        ca_file,
        client_cert_file,
        client_key_file,
        allowed_endpoints: filled(&fields, "allowed_endpoints", fields.read_list("allowed_endpoints", &ENDPOINT)?)?,
        allowed_methods: filled(&fields, "allowed_methods", fields.read_list("allowed_methods", &METHOD)?)?,
        param_whitelist: param_whitelist(&fields, dialect)?,
        allowed_origins: fields.read_list("allowed_origins", &ORIGIN)?,
        required_headers: filled(&fields, "required_headers", fields.read_list("required_headers", &FIELD_NAME)?)?,
        timeouts: timeouts(&fields)?,
        max_request_bytes: fields.read("max_request_bytes", &BYTES)?.unwrap_or(DEFAULT_MAX_REQUEST_BYTES),
        max_held_bytes: max_held_bytes(&fields, held_total)?,
        ..plain(&name, dialect, base_url, held_total)
    })
}

/// A file that matters to TLS: in an API that is spoken to in the clear it would do nothing.
fn tls_file(fields: &Fields<'_>, key: &str, base_url: &BaseUrl) -> Result<Option<PathBuf>, SettingsError> {
    let found = fields.read(key, &FILE)?;
    match fields.get(key) {
        Some(node) if !base_url.tls => {
            Err(node.place.of(&fields.name(key)).error("found a file, expected none: `base_url` is not https"))
        }
        _ => Ok(found),
    }
}

/// Refuses an empty list where it would allow nothing at all, or ask for nothing.
fn filled<T>(fields: &Fields<'_>, key: &str, list: Option<Vec<T>>) -> Result<Option<Vec<T>>, SettingsError> {
    match (&list, fields.get(key)) {
        (Some(items), Some(node)) if items.is_empty() => Err(node
            .place
            .of(&fields.name(key))
            .error("found an empty list, expected at least one item, or no such key")),
        _ => Ok(list),
    }
}

/// Body field → globs.
type ParamWhitelist = Vec<(String, Vec<String>)>;

fn param_whitelist(fields: &Fields<'_>, dialect: Dialect) -> Result<Option<ParamWhitelist>, SettingsError> {
    let key = "param_whitelist";
    let Some(node) = fields.get(key) else { return Ok(None) };
    let path = fields.name(key);
    let entries = node.entries(&path, "a map from a body field to a list of globs, such as `model: [gpt-4o*]`")?;
    let naming = Naming::of(dialect);
    let mut whitelist = ParamWhitelist::new();
    for (field, globs) in entries {
        let refused = |problem: String| field.place.of(&path).error(problem);
        let name = BODY_FIELD.judge(Found::Text(&field.text)).map_err(refused)?;
        // A body's field is judged by one entry.
        if let Some((other, _)) = whitelist.iter().find(|(other, _)| naming.resembles(other, &name)) {
            let (found, other) = (quoted(&name), quoted(other));
            return Err(refused(format!("found {found}, expected only one spelling of a field, and there is {other}")));
        }
        let globs = globs.read_list(&format!("{path}.{name}"), &GLOB)?;
        whitelist.push((name, globs));
    }
    Ok(Some(whitelist))
}

fn timeouts(fields: &Fields<'_>) -> Result<Timeouts, SettingsError> {
    let default = Timeouts::default();
    let Some(node) = fields.get("timeouts") else { return Ok(default) };
    let path = fields.name("timeouts");
    let entries = node.entries(&path, "a map with connect, first_byte, idle or total")?;
    let clocks = Fields::new(path, entries, &TIMEOUT_KEYS)?;
    Ok(Timeouts {
        connect: clocks.read("connect", &DURATION)?.unwrap_or(default.connect),
        first_byte: clocks.read("first_byte", &DURATION)?.unwrap_or(default.first_byte),
        idle: clocks.read("idle", &DURATION)?.unwrap_or(default.idle),
        total: clocks.read("total", &DURATION_OR_NONE)?.unwrap_or(default.total),
    })
}

/// A body that may be held must fit into what all bodies together may hold, or it would be refused forever with an
/// answer that says "later".
fn max_held_bytes(fields: &Fields<'_>, held_total: u64) -> Result<u64, SettingsError> {
    let key = "max_held_bytes";
    match (fields.get(key), fields.read(key, &BYTES)?) {
        (Some(node), Some(bytes)) if bytes > held_total => Err(node
            .place
            .of(&fields.name(key))
            .error(format!("found {bytes} bytes, expected at most the {held_total} bytes of MAX_HELD_BYTES_TOTAL"))),
        (_, given) => Ok(given.unwrap_or(DEFAULT_MAX_HELD_BYTES.min(held_total))),
    }
}

const ENDPOINT: Rule<String> = Rule {
    expected: "a path such as /v1/chat/completions, /v1/models/* or /v1/files/**",
    is_secret: false,
    read: endpoint,
};
const METHOD: Rule<String> = Rule {
    expected: "one of GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS",
    is_secret: false,
    read: |text| {
        let is_known = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"].contains(&text);
        if is_known { Ok(text.to_owned()) } else { Err(Refused::Malformed) }
    },
};
const FILE: Rule<PathBuf> = Rule {
    expected: "the path of a PEM file",
    is_secret: false,
    read: |text| if text.is_empty() { Err(Refused::Malformed) } else { Ok(PathBuf::from(text)) },
};
const BODY_FIELD: Rule<String> = Rule {
    expected: "the name of a field, without `.`, `[`, `]`, `*` or white space: only fields at the top of the body can be listed",
    is_secret: false,
    read: |text| {
        // A path or a pattern would never be the name of a field, and the policy would be laxer than it reads.
        let is_odd = |letter: char| letter.is_whitespace() || letter.is_control() || ".[]*".contains(letter);
        if text.is_empty() || text.contains(is_odd) { Err(Refused::Malformed) } else { Ok(text.to_owned()) }
    },
};
const GLOB: Rule<String> = Rule {
    expected: "a glob such as gpt-4o*, in which * matches any run of characters",
    is_secret: false,
    read: |text| if text.is_empty() { Err(Refused::Malformed) } else { Ok(text.to_owned()) },
};
const ORIGIN: Rule<String> = Rule {
    expected: "an origin such as https://app.example.com or http://localhost:3000, without a path, or *",
    is_secret: false,
    read: origin,
};
const FIELD_NAME: Rule<String> = Rule {
    expected: "the name of a header, such as x-team",
    is_secret: false,
    read: |text| {
        let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte); // RFC 9110 §5.6.2
        if !text.is_empty() && text.bytes().all(is_token) {
            Ok(text.to_ascii_lowercase())
        } else {
            Err(Refused::Malformed)
        }
    },
};
const BOOLEAN: Rule<bool> = Rule {
    expected: "true or false",
    is_secret: false,
    read: |text| match text {
        "false" => Ok(false),
        "true" => Ok(true),
        _ => Err(Refused::Malformed),
    },
};

/// A pattern that no path could ever match is refused too: it is a typo.
fn endpoint(text: &str) -> Result<String, Refused> {
    let rest = text.strip_prefix('/').ok_or(Refused::Malformed)?;
    let segments: Vec<&str> = rest.split('/').collect();
    for (index, segment) in segments.iter().enumerate() {
        let is_last = index.saturating_add(1) == segments.len();
        match *segment {
            "*" => {}
            "**" if is_last => {}
            "" | "." | ".." => return Err(Refused::Malformed),
            other if other.contains('*') => {
                return Err(Refused::Because(format!(
                    "found {}, expected `*` alone between slashes, where it is one segment, or `**` alone at the end",
                    quoted(text)
                )));
            }
            other
                if other
                    .chars()
                    .any(|letter| letter.is_control() || matches!(letter, '\\' | ';' | '?' | '#' | '%')) =>
            {
                return Err(Refused::Malformed);
            }
            _ => {}
        }
    }
    Ok(text.to_owned())
}

/// An origin as browsers serialize it (RFC 6454 §6.2): scheme and host in lower case, the port only if it is not the
/// scheme's own. Whatever else stands here would never match.
fn origin(text: &str) -> Result<String, Refused> {
    if text == "*" {
        return Ok(text.to_owned());
    }
    let lower = text.to_ascii_lowercase();
    let (scheme, authority) = lower.split_once("://").ok_or(Refused::Malformed)?;
    let scheme_fits = scheme.starts_with(|first: char| first.is_ascii_alphabetic())
        && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.'));
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (authority, None),
    };
    let host_fits = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            !host.is_empty()
                && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'))
        }
    };
    let port_fits = match port {
        None => true,
        Some(port) => port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port != 0),
    };
    if !(scheme_fits && host_fits && port_fits) {
        return Err(Refused::Malformed);
    }
    if matches!((scheme, port), ("https", Some("443")) | ("http", Some("80"))) {
        return Err(Refused::Because(format!(
            "found {}, expected it without the port, as browsers send it",
            quoted(text)
        )));
    }
    Ok(lower)
}

#[cfg(test)]
mod tests {
    use super::super::yaml;
    use super::*;

    const TOTAL: u64 = 512 << 20;

    fn apis(text: &str) -> Result<Vec<ApiSettings>, String> {
        let node = yaml::parse("f", text).map_err(|error| error.to_string())?;
        read(&node, TOTAL).map_err(|error| error.to_string())
    }

    const FULL: &str = "\
openai-eu:
  dialect: openai
  base_url: https://eu.api.openai.com/v1
  allowed_endpoints: [/v1/chat/completions, /v1/models/*, /v1/files/**]
  allowed_methods: [GET, POST]
  param_whitelist: {model: [gpt-4o*, 'o3'], temperature: [0.50, 1], stream: [true], tools: []}
  allowed_origins: [https://App.example.com, 'http://localhost:3000', chrome-extension://abc]
  required_headers: [X-Team]
  timeouts: {connect: 1s, first_byte: 2s, idle: 3s, total: 4m}
  max_request_bytes: 10MB
  max_held_bytes: 1048576
  inject_usage: true
  http2: false
  ca_file: ca.pem
  client_cert_file: /etc/ours.pem
  client_key_file: ours.key
";

    #[test]
    fn every_key_is_read() {
        let strings = |list: &[&str]| Some(list.iter().map(ToString::to_string).collect::<Vec<_>>());
        let api = apis(FULL).unwrap().remove(0);
        assert_eq!(api.name, "openai-eu");
        assert_eq!(api.dialect, Dialect::OpenAi);
        assert_eq!(api.base_url.to_string(), "https://eu.api.openai.com/v1");
        assert_eq!(api.allowed_endpoints, strings(&["/v1/chat/completions", "/v1/models/*", "/v1/files/**"]));
        assert_eq!(api.allowed_methods, strings(&["GET", "POST"]));
        let whitelist: Vec<_> =
            api.param_whitelist.unwrap().into_iter().map(|(field, globs)| (field, globs.join(" "))).collect();
        let expected = [("model", "gpt-4o* o3"), ("temperature", "0.50 1"), ("stream", "true"), ("tools", "")];
        assert_eq!(whitelist, expected.map(|(field, globs)| (field.to_owned(), globs.to_owned())));
        assert_eq!(
            api.allowed_origins,
            strings(&["https://app.example.com", "http://localhost:3000", "chrome-extension://abc"])
        );
        assert_eq!(api.required_headers, strings(&["x-team"]));
        let timeouts = Timeouts {
            connect: Duration::from_secs(1),
            first_byte: Duration::from_secs(2),
            idle: Duration::from_secs(3),
            total: Some(Duration::from_secs(240)),
        };
        assert_eq!(api.timeouts, timeouts);
        assert_eq!((api.max_request_bytes, api.max_held_bytes), (10_000_000, 1 << 20));
        assert_eq!((api.inject_usage, api.http2), (true, false));
        assert_eq!(
            [api.ca_file, api.client_cert_file, api.client_key_file].map(|file| file.unwrap()),
            ["ca.pem", "/etc/ours.pem", "ours.key"].map(PathBuf::from)
        );
    }

    #[test]
    fn a_provider_may_choose_http_2_unless_that_is_forbidden() {
        for (text, expected) in [
            ("openai:", true),
            ("openai: {http2: true}", true),
            ("openai: {http2: false}", false),
            ("openai: {base_url: 'http://a', http2: false}", false),
            ("openai: {base_url: 'http://a'}", false),
        ] {
            assert_eq!(apis(text).unwrap().remove(0).http2, expected, "{text}");
        }
    }

    #[test]
    fn a_provider_may_have_authorities_of_its_own_without_a_certificate_of_ours_and_the_other_way_round() {
        let files = |text: &str| {
            let api = apis(text).unwrap().remove(0);
            [api.ca_file, api.client_cert_file, api.client_key_file].map(|file| file.is_some())
        };
        assert_eq!(files("openai: {}"), [false, false, false]);
        assert_eq!(files("openai: {ca_file: a}"), [true, false, false]);
        assert_eq!(files("openai: {client_cert_file: a, client_key_file: b}"), [false, true, true]);
        // One file may have both.
        assert_eq!(files("openai: {client_cert_file: a, client_key_file: a, ca_file: a}"), [true, true, true]);
    }

    #[test]
    fn a_name_alone_is_its_dialect_with_every_default() {
        for name in ["openai", "anthropic", "gemini"] {
            let expected: Vec<_> = defaults(TOTAL).into_iter().filter(|api| api.name == name).collect();
            assert_eq!(apis(&format!("{name}:\n")).unwrap(), expected);
            assert_eq!(apis(&format!("{name}: {{}}\n")).unwrap(), expected);
        }
        assert_eq!(defaults(1_000)[0].max_held_bytes, 1_000);
    }

    #[test]
    fn only_gemini_takes_two_spellings_for_one_field() {
        let both = "param_whitelist: {maxTokens: ['1'], max_tokens: ['2'], $schema: [a], x-y: [a], \u{fc}: [a]}";
        for (dialect, expected) in [("openai", true), ("anthropic", true), ("gemini", false)] {
            assert_eq!(apis(&format!("{dialect}: {{{both}}}")).is_ok(), expected, "{dialect}");
        }
    }

    #[test]
    fn apis_keep_the_order_of_the_file() {
        let found = apis("zeta: {dialect: gemini}\nopenai:\nalpha: {dialect: anthropic}\n").unwrap();
        assert_eq!(found.iter().map(|api| &*api.name).collect::<Vec<_>>(), ["zeta", "openai", "alpha"]);
    }

    #[test]
    fn a_misspelt_key_never_starts_a_laxer_proxy() {
        for key in KEYS.into_iter().chain(TIMEOUT_KEYS) {
            for place in 0..key.len() {
                let swapped = {
                    let mut letters: Vec<char> = key.chars().collect();
                    letters[place] = if letters[place] == 'x' { 'y' } else { 'x' };
                    letters.into_iter().collect::<String>()
                };
                let dropped = format!("{}{}", &key[..place], &key[place + 1..]);
                let doubled = format!("{}{}", &key[..=place], &key[place..]);
                for typo in [swapped, dropped, doubled, key.to_uppercase(), key.replace('_', "-")] {
                    if typo == key {
                        continue;
                    }
                    let text = FULL.replacen(&format!("{key}: "), &format!("{typo}: "), 1);
                    assert_ne!(text, FULL, "{key} is in the example");
                    let error = apis(&text).unwrap_err();
                    assert!(
                        error.starts_with("f:") && error.contains("unknown key") && error.contains(key),
                        "{typo}: {error}"
                    );
                }
            }
        }
    }

    #[test]
    fn wrong_values_are_named_with_place_and_expectation() {
        for (text, expected) in [
            ("[openai]", "f:1:1: apis: found a list, expected a map"),
            ("{}", "f:1:1: apis: found an empty map"),
            ("openai: x", "f:1:9: apis.openai: found \"x\", expected a map"),
            ("Openai: {}", "f:1:1: apis: found \"Openai\", expected 1 to 32 lower-case"),
            ("v1: {dialect: openai}", "f:1:1: apis: found \"v1\", expected"),
            ("health: {dialect: openai}", "f:1:1: apis: found \"health\", expected"),
            ("groq: {}", "f:1:1: apis.groq: found a name that is no dialect, expected a key `dialect`"),
            ("azure: {}", "f:1:1: apis.azure: found no `base_url`, expected"),
            ("openai: {dialect: opnai}", "f:1:19: apis.openai.dialect: found \"opnai\", expected one of openai"),
            ("openai: {dialect: }", "apis.openai.dialect: found nothing, expected one of openai"),
            ("openai: {base_url: 'ftp://x'}", "apis.openai.base_url: found \"ftp://x\", expected a URL"),
            ("openai:\n  allowed_endpoints:\n", "f:2:3: apis.openai.allowed_endpoints: found nothing, expected a list"),
            (
                "openai: {allowed_endpoints: []}",
                "apis.openai.allowed_endpoints: found an empty list, expected at least one",
            ),
            (
                "openai: {allowed_endpoints: /v1/models}",
                "apis.openai.allowed_endpoints: found \"/v1/models\", expected a list",
            ),
            (
                "openai: {allowed_endpoints: [v1/models]}",
                "f:1:30: apis.openai.allowed_endpoints: found \"v1/models\", expected a path",
            ),
            ("openai: {allowed_endpoints: [/v1/chat*]}", "found \"/v1/chat*\", expected `*` alone"),
            ("openai: {allowed_endpoints: [/v1/**/x]}", "found \"/v1/**/x\", expected `*` alone"),
            ("openai: {allowed_endpoints: [/]}", "found \"/\", expected a path"),
            ("openai: {allowed_endpoints: [/v1/models/]}", "found \"/v1/models/\", expected a path"),
            ("openai: {allowed_endpoints: ['/v1/models?x=1']}", "expected a path"),
            ("openai: {allowed_endpoints: [/v1/../x]}", "expected a path"),
            ("openai: {allowed_methods: [post]}", "apis.openai.allowed_methods: found \"post\", expected one of GET"),
            ("openai: {allowed_methods: []}", "found an empty list"),
            ("openai: {param_whitelist: [model]}", "apis.openai.param_whitelist: found a list, expected a map"),
            (
                "openai: {param_whitelist: {model: gpt-4o}}",
                "apis.openai.param_whitelist.model: found \"gpt-4o\", expected a list",
            ),
            (
                "gemini: {param_whitelist: {generationConfig.temperature: ['0']}}",
                "f:1:28: apis.gemini.param_whitelist: found \"generationConfig.temperature\", expected the name of a field, without",
            ),
            ("openai: {param_whitelist: {'messages[0]': [a]}}", "found \"messages[0]\", expected the name of a field"),
            ("openai: {param_whitelist: {'[model': [a]}}", "found \"[model\", expected the name of a field"),
            ("openai: {param_whitelist: {'model]': [a]}}", "found \"model]\", expected the name of a field"),
            ("openai: {param_whitelist: {'mod*': [a]}}", "found \"mod*\", expected the name of a field"),
            ("openai: {param_whitelist: {'max tokens': ['1']}}", "found \"max tokens\", expected the name of a field"),
            ("openai: {param_whitelist: {'model ': [a]}}", "only fields at the top of the body can be listed"),
            ("openai: {param_whitelist: {'': [a]}}", "found \"\", expected the name of a field"),
            (
                "openai: {param_whitelist: {model: [a], Model: [b]}}",
                "found \"Model\", expected only one spelling of a field, and there is \"model\"",
            ),
            (
                "gemini: {param_whitelist: {generationConfig: [], generation_config: ['*']}}",
                "found \"generation_config\", expected only one spelling of a field, and there is \"generationConfig\"",
            ),
            ("openai: {param_whitelist: {model: ['']}}", "found \"\", expected a glob"),
            ("openai: {param_whitelist: {model: [[a]]}}", "found a list, expected a glob"),
            (
                "openai: {allowed_origins: [app.example.com]}",
                "apis.openai.allowed_origins: found \"app.example.com\", expected an origin",
            ),
            ("openai: {allowed_origins: ['https://app.example.com/']}", "expected an origin"),
            ("openai: {allowed_origins: ['https://*.example.com']}", "expected an origin"),
            ("openai: {allowed_origins: ['https://app.example.com:443']}", "expected it without the port"),
            (
                "openai: {required_headers: ['x team']}",
                "apis.openai.required_headers: found \"x team\", expected the name of a header",
            ),
            ("openai: {timeouts: 5s}", "apis.openai.timeouts: found \"5s\", expected a map"),
            ("openai: {timeouts: {idle: 10}}", "f:1:27: apis.openai.timeouts.idle: found \"10\", expected a duration"),
            ("openai: {timeouts: {idle: none}}", "apis.openai.timeouts.idle: found \"none\", expected a duration"),
            (
                "openai: {max_request_bytes: 1G}",
                "apis.openai.max_request_bytes: found \"1G\", expected a number of bytes",
            ),
            ("openai: {max_held_bytes: 0}", "apis.openai.max_held_bytes: found \"0\", expected a number of bytes"),
            (
                "openai: {max_held_bytes: 1GiB}",
                "found 1073741824 bytes, expected at most the 536870912 bytes of MAX_HELD_BYTES_TOTAL",
            ),
            (
                "gemini: {inject_usage: true}",
                "apis.gemini.inject_usage: found true, expected false: streams of the gemini",
            ),
            ("openai: {inject_usage: yes}", "apis.openai.inject_usage: found \"yes\", expected true or false"),
            ("openai: {http2: on}", "apis.openai.http2: found \"on\", expected true or false"),
            (
                "openai: {base_url: 'http://a', http2: true}",
                "f:1:39: apis.openai.http2: found true, expected false: `base_url` is not https",
            ),
            ("openai: {ca_file: }", "apis.openai.ca_file: found nothing, expected the path of a PEM file"),
            ("openai: {ca_file: ''}", "apis.openai.ca_file: found \"\", expected the path of a PEM file"),
            ("openai: {ca_file: [a, b]}", "apis.openai.ca_file: found a list, expected the path of a PEM file"),
            (
                "openai: {client_cert_file: a}",
                "f:1:28: apis.openai.client_cert_file: found no `client_key_file` beside it, expected both",
            ),
            (
                "openai: {client_key_file: a}",
                "f:1:27: apis.openai.client_key_file: found no `client_cert_file` beside it, expected both",
            ),
            (
                "openai: {base_url: 'http://a', ca_file: b}",
                "f:1:41: apis.openai.ca_file: found a file, expected none: `base_url` is not https",
            ),
            (
                "openai: {base_url: 'http://a', client_cert_file: b, client_key_file: c}",
                "apis.openai.client_cert_file: found a file, expected none: `base_url` is not https",
            ),
        ] {
            let error = apis(text).unwrap_err();
            assert!(error.starts_with("f:"), "{text}: {error}");
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}

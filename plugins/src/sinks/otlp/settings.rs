//! What an OTLP sink is told: where to, over which protocol, with which fields, and how much to tell.

use std::collections::BTreeMap;
use std::time::Duration;

use http::header::{HeaderMap, HeaderName, HeaderValue};
use llm_proxy_core::secret::Secret;
use serde::Deserialize;
use serde_json::Value;

use super::super::settings::{Environment, Problem, parsed, required};
use super::super::values::{FromText, HttpUrl, Span, Text, Variable, Word, one_of};
use super::span::Tells;

/// As the specification has it for exporters.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
const DEFAULT_SERVICE_NAME: &str = "llm-proxy";

/// Fields that say how a call is framed, which is not for settings to say.
const OURS: [&str; 11] = [
    "host",
    "connection",
    "content-type",
    "content-length",
    "content-encoding",
    "transfer-encoding",
    "te",
    "trailer",
    "upgrade",
    "expect",
    "proxy-authorization",
];
/// The shortest text that is looked for in a receiver's words, to hide it: shorter ones are versions and flags.
const SHORTEST_SECRET: usize = 8;

/// How spans travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    HttpProtobuf,
    Grpc,
}

impl FromText for Protocol {
    const EXPECTED: &'static str = "one of http/protobuf, grpc";

    fn from_text(text: &str) -> Option<Self> {
        one_of(text, &[("http/protobuf", Self::HttpProtobuf), ("grpc", Self::Grpc)])
    }
}

/// Whether calls are made smaller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compression {
    Gzip,
    None,
}

impl FromText for Compression {
    const EXPECTED: &'static str = "one of gzip, none";

    fn from_text(text: &str) -> Option<Self> {
        one_of(text, &[("gzip", Self::Gzip), ("none", Self::None)])
    }
}

struct Truth(bool);

impl FromText for Truth {
    const EXPECTED: &'static str = "one of true, false";

    fn from_text(text: &str) -> Option<Self> {
        one_of(text, &[("true", true), ("false", false)]).map(Self)
    }
}

/// The value of a header field.
struct FieldValue(Secret);

impl FromText for FieldValue {
    const EXPECTED: &'static str = "visible ASCII with spaces between, at most 8192 characters";
    // Most fields that have to be set hold a key.
    const IS_SECRET: bool = true;

    fn from_text(text: &str) -> Option<Self> {
        let is_value = text.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic());
        let is_sized = (1..=8_192).contains(&text.len()) && text.trim() == text;
        (is_value && is_sized).then(|| Self(Secret::new(text)))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OtlpFile {
    endpoint: Option<Text<HttpUrl>>,
    protocol: Option<Text<Protocol>>,
    headers: Option<BTreeMap<String, Text<FieldValue>>>,
    headers_env: Option<BTreeMap<String, Text<Variable>>>,
    compression: Option<Text<Compression>>,
    service_name: Option<Text<Word>>,
    content: Option<Text<Truth>>,
    legacy_names: Option<Text<Truth>>,
    timeout: Option<Text<Span>>,
}

/// Checked settings.
#[derive(Debug)]
pub(super) struct OtlpSettings {
    pub endpoint: HttpUrl,
    pub protocol: Protocol,
    /// Sent with every call; marked so that they are printed nowhere.
    pub headers: HeaderMap,
    /// What receivers may repeat of them, and what must then be hidden.
    pub secrets: Vec<Secret>,
    pub compression: Compression,
    pub service_name: String,
    pub tells: Tells,
    pub timeout: Duration,
}

impl OtlpSettings {
    pub fn read(tree: Value, environment: &Environment<'_>) -> Result<Self, Problem> {
        let file: OtlpFile = parsed(tree)?;
        let endpoint = required(file.endpoint, "endpoint")?;
        let protocol = file.protocol.map_or(Protocol::HttpProtobuf, |protocol| protocol.0);
        if protocol == Protocol::Grpc && endpoint.target() != "/" {
            return Err(Problem::at("endpoint", "found a path, expected none with `protocol: grpc`"));
        }
        let mut settings = Self {
            endpoint,
            protocol,
            headers: HeaderMap::new(),
            secrets: Vec::new(),
            compression: file.compression.map_or(Compression::Gzip, |compression| compression.0),
            service_name: file.service_name.map_or_else(|| DEFAULT_SERVICE_NAME.to_owned(), |name| name.0.0),
            tells: Tells {
                content: file.content.is_some_and(|content| content.0.0),
                legacy_names: file.legacy_names.is_some_and(|legacy_names| legacy_names.0.0),
            },
            timeout: file.timeout.map_or(DEFAULT_TIMEOUT, |timeout| timeout.0.0),
        };
        for (name, Text(FieldValue(value))) in file.headers.unwrap_or_default() {
            let at_name = |text: String| Problem { path: vec!["headers".to_owned(), name.clone()], text };
            settings.add_field(&name, value).map_err(at_name)?;
        }
        for (name, Text(Variable(variable))) in file.headers_env.unwrap_or_default() {
            let at_name = |text: String| Problem { path: vec!["headers_env".to_owned(), name.clone()], text };
            let value = of_variable(&variable, environment).map_err(at_name)?;
            settings.add_field(&name, value).map_err(at_name)?;
        }
        Ok(settings)
    }

    fn add_field(&mut self, name: &str, value: Secret) -> Result<(), String> {
        const EXPECTED: &str = "expected the name of a header field that is not about the call's own framing";
        let field = HeaderName::try_from(name).map_err(|_| format!("found no name of a field, {EXPECTED}"))?;
        if OURS.contains(&field.as_str()) || field.as_str().starts_with("grpc-") {
            return Err(format!("found a field that is ours to set, {EXPECTED}"));
        }
        let mut sent = HeaderValue::from_str(value.expose())
            .map_err(|_| format!("found a value that is not shown here, expected {}", FieldValue::EXPECTED))?;
        sent.set_sensitive(true);
        if self.headers.insert(field, sent).is_some() {
            return Err("found it twice, expected each field once, in `headers` or in `headers_env`".to_owned());
        }
        // Behind a scheme such as `Bearer` stands the secret itself.
        let credential = value.expose().split_once(' ').map(|(_, credential)| Secret::new(credential));
        let secrets = [Some(value), credential].into_iter().flatten();
        self.secrets.extend(secrets.filter(|secret| secret.expose().len() >= SHORTEST_SECRET));
        Ok(())
    }
}

fn of_variable(name: &str, environment: &Environment<'_>) -> Result<Secret, String> {
    let found = environment(name).filter(|found| !found.expose().is_empty());
    let found = found.ok_or_else(|| format!("found no variable {name}, expected {} in it", FieldValue::EXPECTED))?;
    let refused = || format!("found a value in {name} that is not shown here, expected {}", FieldValue::EXPECTED);
    Ok(FieldValue::from_text(found.expose()).ok_or_else(refused)?.0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn settings(tree: Value) -> Result<OtlpSettings, String> {
        let environment = |name: &str| match name {
            "LANGFUSE_AUTH" => Some(Secret::new("Basic aHVudGVyMg==")),
            "BROKEN" => Some(Secret::new("hunter2\n")),
            _ => None,
        };
        OtlpSettings::read(tree, &environment).map_err(|problem| problem.to_string())
    }

    #[test]
    fn an_endpoint_is_all_that_has_to_be_said() {
        let least = settings(json!({"endpoint": "http://localhost:4318"})).unwrap();
        assert_eq!((least.protocol, least.compression), (Protocol::HttpProtobuf, Compression::Gzip));
        assert_eq!((least.service_name.as_str(), least.timeout), ("llm-proxy", Duration::from_secs(10)));
        assert_eq!((least.tells, least.headers.len()), (Tells::default(), 0));
        let most = settings(json!({
            "endpoint": "https://cloud.langfuse.example/api/public/otel", "protocol": "http/protobuf",
            "headers": {"X-Langfuse-Ingestion-Version": 4}, "headers_env": {"authorization": "LANGFUSE_AUTH"},
            "compression": "none", "service_name": "edge", "content": true, "legacy_names": "true", "timeout": "3s",
        }))
        .unwrap();
        assert_eq!((most.compression, most.timeout), (Compression::None, Duration::from_secs(3)));
        assert_eq!(most.tells, Tells { content: true, legacy_names: true });
        assert_eq!(most.headers["x-langfuse-ingestion-version"], "4");
        assert_eq!(most.headers["authorization"], "Basic aHVudGVyMg==");
        let secrets: Vec<_> = most.secrets.iter().map(Secret::expose).collect();
        assert_eq!(secrets, ["Basic aHVudGVyMg==", "aHVudGVyMg=="]);
        assert!(!format!("{most:?}").contains("aHVudGVyMg"), "{most:?}");
    }

    #[test]
    fn every_mistake_names_its_place_and_no_secret() {
        let with = |more: Value| {
            let mut tree = json!({"endpoint": "http://localhost:4318"});
            let (Value::Object(all), Value::Object(more)) = (&mut tree, more) else { panic!("no maps") };
            all.extend(more);
            tree
        };
        for (tree, expected) in [
            (json!({}), "endpoint: found nothing, expected a URL"),
            (json!({"endpoint": "localhost:4318"}), "endpoint: found a value that is not shown here, expected a URL"),
            (
                json!({"endpoint": "http://localhost:4317/v1/traces", "protocol": "grpc"}),
                "endpoint: found a path, expected none with `protocol: grpc`",
            ),
            (
                with(json!({"protocol": "http/json"})),
                "protocol: found \"http/json\", expected one of http/protobuf, grpc",
            ),
            (with(json!({"compression": "zstd"})), "compression: found \"zstd\", expected one of gzip, none"),
            (with(json!({"content": "yes"})), "content: found \"yes\", expected one of true, false"),
            (with(json!({"headers": "a=b, expected c"})), "headers: found a text, expected a map"),
            (with(json!({"headers": {"a b": "c"}})), "headers: a b: found no name of a field, expected the name of"),
            (with(json!({"headers": {"Host": "c"}})), "headers: Host: found a field that is ours to set, expected"),
            (with(json!({"headers": {"grpc-timeout": "1S"}})), "headers: grpc-timeout: found a field that is ours"),
            (with(json!({"headers": {"a": "hunter2 "}})), "headers: a: found a value that is not shown here, expected"),
            (with(json!({"headers": {"a": "1", "A": "2"}})), "headers: a: found it twice, expected each field once"),
            (with(json!({"headers_env": {"a": "NONE"}})), "headers_env: a: found no variable NONE, expected visible"),
            (with(json!({"headers_env": {"a": "BROKEN"}})), "headers_env: a: found a value in BROKEN that is not"),
            (
                with(json!({"headers": {"authorization": "x"}, "headers_env": {"authorization": "LANGFUSE_AUTH"}})),
                "headers_env: authorization: found it twice, expected each field once, in `headers` or in `headers_env`",
            ),
            (with(json!({"insecure": "true"})), "insecure: unknown key `insecure`, expected one of `endpoint`"),
        ] {
            let problem = settings(tree.clone()).unwrap_err();
            assert!(problem.starts_with(expected), "{tree}\n{problem}\n{expected}");
            assert!(!problem.contains("hunter2") && !problem.contains('\n'), "{problem}");
        }
    }
}

//! The OTLP sink: a span for each exchange, by the OpenTelemetry GenAI conventions, to any collector.
//!
//! `POST {endpoint}/v1/traces` with protobuf, or `TraceService/Export` over gRPC. What the protocol says, and what
//! follows from it:
//! * A call that is taken may have been taken in part, and says how many spans were rejected, not which. It must not be
//!   repeated. Where all were rejected they are dead letters; where some were, all count as delivered, with a warning.
//! * A receiver keeps no list of spans that it has. Trace and span id are made of the record's id, so that a span that is
//!   sent twice is the same one, which storage that is keyed by them shows once.
//! * 429, 502, 503 and 504, and their like in gRPC, are repeated, when the receiver wants it. Other errors need not be
//!   by the specification; here they cost no record, as with every sink: what speaks of the key or the address waits,
//!   and what speaks of the content is looked for in halves.
//! * Receivers of gRPC take 4 MiB in a message by default, so larger batches go in parts.

mod answer;
mod attributes;
mod grpc;
mod messages;
mod names;
mod parameters;
mod settings;
mod span;

use std::io::{self, Write};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use flate2::write::GzEncoder;
use futures::FutureExt;
use futures::future::BoxFuture;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderValue};
use llm_proxy_core::secret::Secret;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::InstrumentationScope;
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans};
use prost::Message as _;
use rustls::ClientConfig;
use serde_json::Value;

use self::answer::{Taken, words};
use self::attributes::Attributes;
use self::grpc::GrpcClient;
use self::settings::{Compression, OtlpSettings, Protocol};
use self::span::Tells;
use super::client::HttpClient;
use super::settings::{Environment, Problem};
use super::split::{self, Post, Posted};
use super::values::HttpUrl;
use super::verdict::{Verdict, judge};
use super::{Kind, Target};
use crate::dispatcher::{Event, Fault, Filter, Limits, Match, Outcome, Policy, Sink};
use crate::event::EventType;

const PATH: &str = "/v1/traces";
/// The most that receivers of gRPC take in a message where nobody has told them otherwise.
const MAX_MESSAGE_BYTES: usize = 4 << 20;
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What the list of sinks says of this one.
pub(super) const KIND: Kind = Kind { name: "otlp", policy, read };

fn policy() -> Policy {
    Policy {
        // The most spans that exporters send at once by default.
        limits: Limits { events: 512, bytes: 1 << 20, age: Duration::from_secs(1) },
        // It knows requests to models, and nothing that an administrator does.
        filter: Filter {
            only: Some(Match { types: vec![EventType::Exchange], ..Match::default() }),
            ..Filter::default()
        },
        ..Policy::default()
    }
}

fn read(tree: Value, environment: &Environment<'_>) -> Result<Arc<dyn Target>, Problem> {
    Ok(Arc::new(OtlpSettings::read(tree, environment)?))
}

impl Target for OtlpSettings {
    fn sink(&self, tls: &Arc<ClientConfig>) -> Box<dyn Sink> {
        let is_gzip = self.compression == Compression::Gzip;
        let over = match self.protocol {
            Protocol::HttpProtobuf => Over::Http {
                target: target(&self.endpoint),
                client: HttpClient::new(self.endpoint.clone(), tls, self.timeout),
                headers: fields(&self.headers, is_gzip),
            },
            Protocol::Grpc => {
                Over::Grpc(GrpcClient::new(self.endpoint.clone(), tls, self.headers.clone(), self.timeout))
            }
        };
        Box::new(Otlp {
            over,
            is_gzip,
            receiver: self.endpoint.to_string(),
            secrets: self.secrets.clone(),
            resource: resource(&self.service_name),
            tells: self.tells,
        })
    }
}

/// An endpoint is meant to be without the path of the signal, but nobody means that path twice.
fn target(endpoint: &HttpUrl) -> String {
    let path = endpoint.target().split('?').next().unwrap_or_default();
    if path.ends_with(PATH) { endpoint.target().to_owned() } else { endpoint.below(PATH) }
}

fn fields(headers: &HeaderMap, is_gzip: bool) -> HeaderMap {
    let mut fields = headers.clone();
    fields.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
    if is_gzip {
        fields.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    fields
}

struct Otlp {
    over: Over,
    is_gzip: bool,
    /// For people.
    receiver: String,
    secrets: Vec<Secret>,
    resource: Resource,
    tells: Tells,
}

enum Over {
    Http { target: String, client: HttpClient, headers: HeaderMap },
    Grpc(GrpcClient),
}

impl Sink for Otlp {
    fn deliver<'a>(&'a self, batch: &'a [&'a Event]) -> BoxFuture<'a, Vec<Outcome>> {
        split::deliver(self, batch).boxed()
    }
}

impl Post for Otlp {
    fn post<'a>(&'a self, events: &'a [&'a Event]) -> BoxFuture<'a, Posted> {
        async move {
            let message = self.request(events).encode_to_vec();
            if message.len() > MAX_MESSAGE_BYTES && events.len() > 1 {
                let reason = format!("{} bytes are more than one call should have", message.len());
                return Posted::All(Verdict::Refused { reason });
            }
            match self.send(message).await {
                Ok(taken) => self.posted(events.len(), taken),
                Err(verdict) => Posted::All(verdict),
            }
        }
        .boxed()
    }
}

impl Otlp {
    fn request(&self, events: &[&Event]) -> ExportTraceServiceRequest {
        let scope = InstrumentationScope {
            name: names::SCOPE.to_owned(),
            version: VERSION.to_owned(),
            ..InstrumentationScope::default()
        };
        let spans = ScopeSpans {
            scope: Some(scope),
            spans: events.iter().map(|event| span::of(event, self.tells)).collect(),
            schema_url: names::GENAI_SCHEMA_URL.to_owned(),
        };
        let resource = Some(self.resource.clone());
        let spans = ResourceSpans { resource, scope_spans: vec![spans], ..ResourceSpans::default() };
        ExportTraceServiceRequest { resource_spans: vec![spans] }
    }

    /// One call, and what the receiver says of it.
    async fn send(&self, message: Vec<u8>) -> Result<Taken, Verdict> {
        // Writing into memory does not fail.
        let message = if self.is_gzip { gzip(&message).unwrap_or_default() } else { message };
        let hide: Vec<&str> = self.secrets.iter().map(Secret::expose).collect();
        match &self.over {
            Over::Http { target, client, headers } => {
                let answer = client.post(target, headers.clone(), message.into()).await;
                match (&answer, judge(&answer, SystemTime::now(), &hide)) {
                    (Ok(answer), Verdict::Taken) => {
                        Taken::from_http(&answer.headers, &answer.body).ok_or_else(|| Verdict::Again {
                            after: None,
                            fault: Fault::Sink,
                            reason: "a web page and no OTLP: the endpoint is another one".to_owned(),
                        })
                    }
                    (_, verdict) => Err(verdict),
                }
            }
            Over::Grpc(client) => {
                let called = client.call(&message, self.is_gzip).await;
                grpc::judge(called, SystemTime::now(), &hide).map(|message| Taken::from_protobuf(&message))
            }
        }
    }

    /// What became of `sent` spans. See [`answer`].
    fn posted(&self, sent: usize, taken: Taken) -> Posted {
        let hide: Vec<&str> = self.secrets.iter().map(Secret::expose).collect();
        let (rejected, said) = (taken.rejected, words(&taken.message, &hide));
        let receiver = self.receiver.as_str();
        if usize::try_from(rejected).is_ok_and(|rejected| rejected < sent) {
            if rejected > 0 {
                tracing::warn!(receiver, rejected, sent, said, "A receiver of spans has rejected some of a batch");
            } else if !said.is_empty() {
                tracing::debug!(receiver, said, "A receiver of spans has advice");
            }
            return Posted::All(Verdict::Taken);
        }
        let reason = if said.is_empty() { "rejected".to_owned() } else { format!("rejected: {said}") };
        Posted::Each(vec![Outcome::Poison { reason }; sent])
    }
}

fn resource(service_name: &str) -> Resource {
    let mut attributes = Attributes::default();
    for (name, value) in [
        (names::SERVICE_NAME, service_name),
        (names::SERVICE_VERSION, VERSION),
        (names::TELEMETRY_SDK_NAME, names::SCOPE),
        (names::TELEMETRY_SDK_LANGUAGE, "rust"),
        (names::TELEMETRY_SDK_VERSION, VERSION),
    ] {
        attributes.text(name, Some(value));
    }
    Resource { attributes: attributes.into_list(), ..Resource::default() }
}

fn gzip(message: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(message.len() / 4), flate2::Compression::fast());
    encoder.write_all(message)?;
    encoder.finish()
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use uuid::Uuid;

    use super::super::values::FromText;
    use super::attributes::as_json;
    use super::*;
    use crate::event::Exchange;

    fn otlp() -> Otlp {
        let settings = OtlpSettings::read(json!({"endpoint": "http://localhost:4318"}), &|_| None).unwrap();
        Otlp {
            over: Over::Http {
                target: target(&settings.endpoint),
                client: HttpClient::new(settings.endpoint.clone(), &no_authorities(), settings.timeout),
                headers: fields(&settings.headers, true),
            },
            is_gzip: true,
            receiver: settings.endpoint.to_string(),
            secrets: vec![Secret::new("hunter22")],
            resource: resource("edge"),
            tells: settings.tells,
        }
    }

    fn no_authorities() -> Arc<ClientConfig> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        Arc::new(builder.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth())
    }

    #[test]
    fn an_endpoint_is_with_or_without_the_path_of_the_signal() {
        for (endpoint, expected) in [
            ("http://localhost:4318", "/v1/traces"),
            ("http://localhost:4318/", "/v1/traces"),
            ("https://a.example/api/public/otel", "/api/public/otel/v1/traces"),
            ("https://a.example/api/v1/traces", "/api/v1/traces"),
            ("https://a.example/v1/traces?x=y", "/v1/traces?x=y"),
        ] {
            assert_eq!(target(&HttpUrl::from_text(endpoint).unwrap()), expected, "{endpoint}");
        }
    }

    #[test]
    fn a_batch_is_one_request_of_one_resource_and_one_scope() {
        let event = |id| Event {
            seq: 1,
            id: Uuid::from_u128(id),
            time_us: 0,
            exchange: Exchange::default(),
            payload: Box::default(),
        };
        let (first, second) = (event(1), event(2));
        let request = otlp().request(&[&first, &second]);
        let [of_resource] = &request.resource_spans[..] else { panic!("{request:?}") };
        let expected = json!({
            "service.name": "edge", "service.version": VERSION, "telemetry.sdk.name": "llm-proxy",
            "telemetry.sdk.language": "rust", "telemetry.sdk.version": VERSION,
        });
        assert_eq!(Value::Object(as_json(&of_resource.resource.as_ref().unwrap().attributes)), expected);
        let [of_scope] = &of_resource.scope_spans[..] else { panic!("{request:?}") };
        assert_eq!(of_scope.scope.as_ref().unwrap().name, "llm-proxy");
        assert_eq!(of_scope.schema_url, "https://opentelemetry.io/schemas/gen-ai/1.42.0");
        let ids: Vec<_> = of_scope.spans.iter().map(|span| span.trace_id[15]).collect();
        assert_eq!(ids, [1, 2]);
    }

    #[test]
    fn only_what_is_known_to_be_rejected_is_given_up() {
        let posted = |sent, rejected, message: &str| {
            let taken = Taken { rejected, message: message.to_owned() };
            match otlp().posted(sent, taken) {
                Posted::All(verdict) => vec![verdict.outcome()],
                Posted::Each(outcomes) => outcomes,
            }
        };
        let dead = |reason: &str| Outcome::Poison { reason: reason.to_owned() };
        assert_eq!(posted(3, 0, ""), [Outcome::Delivered]);
        assert_eq!(posted(3, 0, "use gRPC"), [Outcome::Delivered]);
        assert_eq!(posted(3, 2, "too old"), [Outcome::Delivered]);
        assert_eq!(posted(2, 2, "key\nhunter22"), vec![dead("rejected: key [secret]"); 2]);
        assert_eq!(posted(1, u64::MAX, ""), [dead("rejected")]);
    }
}

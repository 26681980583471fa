//! A collector of spans, as strict as the protocol and the conventions let one be: over HTTP behind the server that all
//! stand-ins have, and over gRPC behind one of its own, as statuses and trailers want it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::convert::Infallible;
use std::io::Read;
use std::net::SocketAddr;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use bytes::Bytes;
use flate2::read::GzDecoder;
use futures::stream;
use http::request::Parts;
use http::{HeaderMap, Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::trace::v1::Span;
use parking_lot::Mutex;
use prost::Message;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpSocket;
use tokio::sync::oneshot;
use tokio_rustls::TlsAcceptor;

use super::stand_in::{Service, reserve};

/// What receivers of gRPC take in a message where nobody tells them otherwise.
const MAX_MESSAGE_BYTES: usize = 4 << 20;

pub struct Collector {
    /// Where it takes spans over HTTP.
    pub path: String,
    /// Fields that a call must have.
    pub fields: Vec<(&'static str, String)>,
    /// How many spans of each call it rejects, and what it says.
    pub rejects: Option<(i64, String)>,
    /// Trace ids of spans that it cannot read, whoever sends them along.
    pub refuses: BTreeSet<Vec<u8>>,
    /// Whether it answers with JSON over HTTP, as some do.
    pub answers_json: bool,
    /// Every span that it has taken, by trace and span id; the last one counts.
    pub spans: BTreeMap<(Vec<u8>, Vec<u8>), Span>,
    /// How often each span was taken, by trace id.
    pub times: BTreeMap<Vec<u8>, usize>,
    /// Values of `service.name`.
    pub services: BTreeSet<String>,
    /// Calls that were compressed, and that were not.
    pub gzipped: usize,
    pub plain: usize,
}

impl Default for Collector {
    fn default() -> Self {
        Self {
            path: "/v1/traces".to_owned(),
            fields: Vec::new(),
            rejects: None,
            refuses: BTreeSet::new(),
            answers_json: false,
            spans: BTreeMap::new(),
            times: BTreeMap::new(),
            services: BTreeSet::new(),
            gzipped: 0,
            plain: 0,
        }
    }
}

/// Why it does not take a call.
enum Refusal {
    Unauthenticated,
    TooLarge,
    Malformed(String),
}

impl Collector {
    fn admits(&self, headers: &HeaderMap) -> bool {
        self.fields.iter().all(|(name, value)| headers.get(*name).is_some_and(|found| found == value.as_str()))
    }

    fn take(&mut self, headers: &HeaderMap, body: &[u8], is_gzip: bool) -> Result<ExportTraceServiceResponse, Refusal> {
        if !self.admits(headers) {
            return Err(Refusal::Unauthenticated);
        }
        let malformed = Refusal::Malformed;
        let mut message = Vec::new();
        if is_gzip {
            self.gzipped += 1;
            GzDecoder::new(body).read_to_end(&mut message).map_err(|error| malformed(error.to_string()))?;
        } else {
            self.plain += 1;
            message.extend_from_slice(body);
        }
        if message.len() > MAX_MESSAGE_BYTES {
            return Err(Refusal::TooLarge);
        }
        let request =
            ExportTraceServiceRequest::decode(message.as_slice()).map_err(|error| malformed(error.to_string()))?;
        let mut spans = Vec::new();
        for of_resource in request.resource_spans {
            let resource = of_resource.resource.ok_or_else(|| malformed("no resource".to_owned()))?;
            let service = resource.attributes.iter().find(|pair| pair.key == "service.name");
            let service = service.and_then(|pair| pair.value.as_ref()?.value.as_ref());
            let Some(Any::StringValue(service)) = service else { return Err(malformed("no service".to_owned())) };
            self.services.insert(service.clone());
            for of_scope in of_resource.scope_spans {
                if of_scope.scope.is_none_or(|scope| scope.name.is_empty()) {
                    return Err(malformed("no scope".to_owned()));
                }
                spans.extend(of_scope.spans);
            }
        }
        if spans.is_empty() {
            return Err(malformed("no spans".to_owned()));
        }
        for span in &spans {
            check(span).map_err(|error| malformed(format!("{}: {error}", span.name)))?;
            if self.refuses.contains(&span.trace_id) {
                return Err(malformed("a span that is not taken".to_owned()));
            }
        }
        let rejected = self.rejects.clone();
        let kept = spans.len() - rejected.as_ref().map_or(0, |(rejected, _)| usize::try_from(*rejected).unwrap());
        for span in spans.into_iter().take(kept) {
            *self.times.entry(span.trace_id.clone()).or_default() += 1;
            self.spans.insert((span.trace_id.clone(), span.span_id.clone()), span);
        }
        let partial_success =
            rejected.map(|(rejected_spans, error_message)| ExportTracePartialSuccess { rejected_spans, error_message });
        Ok(ExportTraceServiceResponse { partial_success })
    }

    /// Trace ids of what it has.
    pub fn ids(&self) -> BTreeSet<Vec<u8>> {
        self.spans.keys().map(|(trace_id, _)| trace_id.clone()).collect()
    }

    fn over_http(&mut self, head: &Parts, body: &[u8]) -> Response<String> {
        let reply = |status: u16, text: &str| Response::builder().status(status).body(text.to_owned()).unwrap();
        let field = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok());
        if head.uri.path() != self.path {
            return reply(404, "404 page not found");
        }
        if head.method != "POST" {
            return reply(405, "405 method not allowed, supported: [POST]");
        }
        if field("content-type") != Some("application/x-protobuf") {
            return reply(415, "415 unsupported media type, supported: [application/json, application/x-protobuf]");
        }
        let is_gzip = match field("content-encoding") {
            None => false,
            Some("gzip") => true,
            Some(_) => return reply(400, "unsupported Content-Encoding"),
        };
        match self.take(&head.headers, body, is_gzip) {
            Ok(answer) if self.answers_json => {
                let partial = answer.partial_success.unwrap_or_default();
                let partial = serde_json::json!({"partialSuccess": {
                    "rejectedSpans": partial.rejected_spans.to_string(), "errorMessage": partial.error_message,
                }});
                let answer = Response::builder().header("content-type", "application/json");
                answer.body(partial.to_string()).unwrap()
            }
            // Short texts and small numbers are UTF-8 in protobuf too.
            Ok(answer) => Response::builder()
                .header("content-type", "application/x-protobuf")
                .body(String::from_utf8(answer.encode_to_vec()).unwrap())
                .unwrap(),
            Err(Refusal::Unauthenticated) => {
                let shown = field("authorization").unwrap_or("nothing");
                reply(401, &format!("unauthenticated: {shown}"))
            }
            Err(Refusal::TooLarge) => reply(413, "request body too large"),
            Err(Refusal::Malformed(error)) => reply(400, &error),
        }
    }
}

/// What the data model and the conventions ask of a span.
fn check(span: &Span) -> Result<(), String> {
    let is_id = |id: &[u8], length: usize| id.len() == length && id.iter().any(|octet| *octet != 0);
    if !is_id(&span.trace_id, 16) || !is_id(&span.span_id, 8) {
        return Err("no id".to_owned());
    }
    if span.name.is_empty() || span.kind != 3 {
        return Err("no name, or another kind".to_owned());
    }
    if span.start_time_unix_nano == 0 || span.end_time_unix_nano < span.start_time_unix_nano {
        return Err("times that cannot be".to_owned());
    }
    let mut attributes = BTreeMap::new();
    for pair in &span.attributes {
        let value = pair.value.as_ref().and_then(|value| value.value.as_ref()).ok_or("an empty value")?;
        if pair.key.is_empty() || attributes.insert(pair.key.as_str(), value).is_some() {
            return Err(format!("{} twice, or without a name", pair.key));
        }
    }
    if span.status.as_ref().is_some_and(|status| status.code == 2) != attributes.contains_key("error.type") {
        return Err("an error without its type, or a type without an error".to_owned());
    }
    for (name, needs) in [
        ("gen_ai.input.messages", &["role", "parts"][..]),
        ("gen_ai.output.messages", &["role", "parts", "finish_reason"]),
        ("gen_ai.system_instructions", &["type"]),
    ] {
        let Some(Any::StringValue(text)) = attributes.get(name) else { continue };
        let list: Vec<Value> = serde_json::from_str(text).map_err(|error| error.to_string())?;
        for item in &list {
            if let Some(missing) = needs.iter().find(|key| item.get(*key).is_none()) {
                return Err(format!("{name} without {missing}"));
            }
            let mut parts = item.get("parts").and_then(Value::as_array).into_iter().flatten();
            if parts.any(|part| !part["type"].is_string()) {
                return Err(format!("{name} with a part without a type"));
            }
        }
    }
    Ok(())
}

impl Service for Collector {
    fn answer(&mut self, head: &Parts, body: &[u8]) -> Response<String> {
        self.over_http(head, body)
    }
}

/// A span's attribute, as text or number.
pub fn attribute(span: &Span, name: &str) -> Option<Value> {
    let pair = span.attributes.iter().find(|pair| pair.key == name)?;
    Some(match pair.value.as_ref()?.value.as_ref()? {
        Any::StringValue(text) => text.as_str().into(),
        Any::IntValue(number) => (*number).into(),
        Any::DoubleValue(number) => (*number).into(),
        Any::BoolValue(truth) => (*truth).into(),
        other => format!("{other:?}").into(),
    })
}

/// One way to fail over gRPC, before anything is kept unless it says so.
#[derive(Clone, Debug)]
pub enum GrpcFault {
    /// This status, in the head if nothing else comes.
    Status(u32),
    /// `RESOURCE_EXHAUSTED`, with the wait in its details.
    Limited { retry_after_ms: u64 },
    /// An answer by something that speaks HTTP/2 and no gRPC.
    Http(u16),
    /// The spans are taken, and the stream is reset instead of an answer.
    TakenThenReset,
}

struct Shared {
    collector: Mutex<Collector>,
    faults: Mutex<VecDeque<GrpcFault>>,
    calls: Mutex<Vec<Instant>>,
}

/// A running collector over gRPC. Dropping it stops it and its connections.
pub struct GrpcCollector {
    pub addr: SocketAddr,
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl GrpcCollector {
    pub fn start(collector: Collector) -> Self {
        Self::start_on(reserve().1, collector, None)
    }

    /// Serves where the socket is bound. On return it takes connections.
    pub fn start_on(socket: TcpSocket, collector: Collector, tls: Option<TlsAcceptor>) -> Self {
        let shared =
            Arc::new(Shared { collector: Mutex::new(collector), faults: Mutex::default(), calls: Mutex::default() });
        let addr = socket.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let (listens, is_listening) = mpsc::channel();
        let thread = {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async move {
                    let listener = socket.listen(1_024).unwrap();
                    listens.send(()).unwrap();
                    let accept = async {
                        while let Ok((tcp, _)) = listener.accept().await {
                            let (shared, tls) = (Arc::clone(&shared), tls.clone());
                            tokio::spawn(async move {
                                match tls {
                                    Some(tls) => {
                                        if let Ok(stream) = tls.accept(tcp).await {
                                            serve(stream, shared).await;
                                        }
                                    }
                                    None => serve(tcp, shared).await,
                                }
                            });
                        }
                    };
                    tokio::select! {
                        () = accept => {}
                        _ = stopped => {}
                    }
                });
            })
        };
        is_listening.recv().unwrap();
        Self { addr, shared, stop: Some(stop), thread: Some(thread) }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Queues faults.
    pub fn fail(&self, faults: impl IntoIterator<Item = GrpcFault>) {
        self.shared.faults.lock().extend(faults);
    }

    /// Looks at the collector, or changes it.
    pub fn service<T>(&self, look: impl FnOnce(&mut Collector) -> T) -> T {
        look(&mut self.shared.collector.lock())
    }

    /// When calls came.
    pub fn calls(&self) -> Vec<Instant> {
        self.shared.calls.lock().clone()
    }
}

impl Drop for GrpcCollector {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

type Body = BoxBody<Bytes, Infallible>;

async fn serve<T>(stream: T, shared: Arc<Shared>)
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let answer = service_fn(move |request: Request<Incoming>| {
        let shared = Arc::clone(&shared);
        async move { one(request, &shared).await }
    });
    // An error is a connection that the client has broken.
    let _ = http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), answer).await;
}

async fn one(request: Request<Incoming>, shared: &Shared) -> Result<Response<Body>, std::io::Error> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(std::io::Error::other)?.to_bytes();
    shared.calls.lock().push(Instant::now());
    let fault = shared.faults.lock().pop_front();
    match fault {
        Some(GrpcFault::Status(code)) => return Ok(failed(code, "out of order", None)),
        Some(GrpcFault::Limited { retry_after_ms }) => return Ok(failed(8, "slow down", Some(retry_after_ms))),
        Some(GrpcFault::Http(status)) => {
            return Ok(Response::builder().status(status).body(Empty::new().boxed()).unwrap());
        }
        Some(GrpcFault::TakenThenReset) => {
            let _ = answer(&head, &body, shared);
            return Err(std::io::ErrorKind::ConnectionReset.into());
        }
        None => {}
    }
    Ok(answer(&head, &body, shared))
}

fn answer(head: &Parts, body: &[u8], shared: &Shared) -> Response<Body> {
    let field = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok());
    if head.method != "POST" || field("content-type") != Some("application/grpc") {
        return Response::builder().status(415).body(Empty::new().boxed()).unwrap();
    }
    if head.uri.path() != "/opentelemetry.proto.collector.trace.v1.TraceService/Export" {
        return failed(12, "unknown service", None);
    }
    if field("te") != Some("trailers") {
        return failed(13, "no te: trailers", None);
    }
    let Some((prefix, message)) = body.split_at_checked(5) else { return failed(13, "no message", None) };
    let length = u32::from_be_bytes(prefix[1..].try_into().unwrap());
    if usize::try_from(length).unwrap() != message.len() {
        return failed(13, "a message of another length", None);
    }
    let is_gzip = match (prefix[0], field("grpc-encoding")) {
        (0, _) => false,
        (1, Some("gzip")) => true,
        _ => return failed(12, "unknown compression", None),
    };
    let taken = shared.collector.lock().take(&head.headers, message, is_gzip);
    match taken {
        Ok(taken) => {
            let message = taken.encode_to_vec();
            let length = u32::try_from(message.len()).unwrap().to_be_bytes();
            let framed = [&[0][..], &length, &message].concat();
            let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), "0".parse().unwrap())]);
            let frames = [Frame::data(Bytes::from(framed)), Frame::trailers(trailers)].map(Ok::<_, Infallible>);
            let response = Response::builder().header("content-type", "application/grpc");
            response.body(BodyExt::boxed(StreamBody::new(stream::iter(frames)))).unwrap()
        }
        Err(Refusal::Unauthenticated) => {
            failed(16, &format!("unauthenticated: {}", field("authorization").unwrap_or("nothing")), None)
        }
        Err(Refusal::TooLarge) => failed(8, "received message larger than max", None),
        Err(Refusal::Malformed(error)) => failed(3, &error, None),
    }
}

/// A status without a message stands in the head.
fn failed(code: u32, message: &str, retry_after_ms: Option<u64>) -> Response<Body> {
    let mut response = Response::builder()
        .header("content-type", "application/grpc")
        .header("grpc-status", code)
        .header("grpc-message", message.replace('\n', "%0A"));
    if let Some(milliseconds) = retry_after_ms {
        response = response.header("grpc-status-details-bin", STANDARD_NO_PAD.encode(retry_info(milliseconds)));
    }
    response.body(Empty::new().boxed()).unwrap()
}

/// `google.rpc.Status` with `google.rpc.RetryInfo` among its details, field by field.
fn retry_info(milliseconds: u64) -> Vec<u8> {
    let delimited = |key: u8, value: &[u8]| [&[key, u8::try_from(value.len()).unwrap()][..], value].concat();
    let varint = |key: u8, value: u64| {
        let mut octets = vec![key];
        prost::encoding::encode_varint(value, &mut octets);
        octets
    };
    let duration = [varint(0x08, milliseconds / 1_000), varint(0x10, milliseconds % 1_000 * 1_000_000)].concat();
    let info = delimited(0x0a, &duration);
    let any = [delimited(0x0a, b"type.googleapis.com/google.rpc.RetryInfo"), delimited(0x12, &info)].concat();
    [varint(0x08, 8), delimited(0x1a, &any)].concat()
}

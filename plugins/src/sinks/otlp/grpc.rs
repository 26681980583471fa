//! One gRPC call, `TraceService/Export`, over HTTP/2.
//!
//! A unary call is a message behind five bytes, and a status in the trailers (gRPC over HTTP2, "Requests",
//! "Responses"): that much is here, on the HTTP client that is in the tree anyway. A gRPC framework would bring
//! channels, balancing and streams that no call of ours needs, and a TLS configuration of its own beside ours.
//!
//! `https` negotiates `h2`, and a receiver that speaks none is refused; `http` means HTTP/2 with prior knowledge.

use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use bytes::{BufMut, Bytes, BytesMut};
use http::header::{CONTENT_TYPE, HeaderMap, HeaderValue, TE, USER_AGENT};
use http::{Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use prost::Message;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::super::client::{Answer, HttpError};
use super::super::values::HttpUrl;
use super::super::verdict::{self, Verdict};
use super::answer::words;
use crate::dispatcher::Fault;

const PATH: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
/// Largest answer that is read, in bytes.
const MAX_ANSWER_BYTES: usize = 4 << 20;
/// What stands before a message: whether it is compressed, and its length.
const PREFIX_BYTES: usize = 5;

type Connection = SendRequest<Full<Bytes>>;

/// A client of one receiver, which keeps its connection.
pub(super) struct GrpcClient {
    url: HttpUrl,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    headers: HeaderMap,
    timeout: Duration,
    kept: Mutex<Option<Connection>>,
}

/// What came back.
#[derive(Debug)]
pub(super) struct Reply {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
    trailers: HeaderMap,
}

impl GrpcClient {
    /// A client for the host of `url`, which sends `headers` with every call. A call, from connecting to the answer's
    /// last byte, takes at most `timeout`. `tls` says which certificate authorities are believed.
    pub fn new(url: HttpUrl, tls: &Arc<ClientConfig>, headers: HeaderMap, timeout: Duration) -> Self {
        let name = if url.tls { ServerName::try_from(url.host.clone()).ok() } else { None };
        let tls = name.map(|name| {
            let mut tls = ClientConfig::clone(tls);
            tls.alpn_protocols = vec![b"h2".to_vec()];
            (TlsConnector::from(Arc::new(tls)), name)
        });
        Self { url, tls, headers, timeout, kept: Mutex::default() }
    }

    /// One call with `message`, which is gzip where `is_gzip`.
    ///
    /// # Errors
    /// No whole answer within the time.
    pub async fn call(&self, message: &[u8], is_gzip: bool) -> Result<Reply, HttpError> {
        let request = self.request(message, is_gzip)?;
        let called = match tokio::time::timeout(self.timeout, self.send(request)).await {
            Ok(called) => called,
            Err(_) => Err(HttpError::Timeout { authority: self.url.authority.clone(), limit: self.timeout }),
        };
        if called.is_err() {
            // It may be one that nobody answers on any more.
            self.kept.lock().take();
        }
        called
    }

    fn request(&self, message: &[u8], is_gzip: bool) -> Result<Request<Full<Bytes>>, http::Error> {
        let mut frame = BytesMut::with_capacity(message.len().saturating_add(PREFIX_BYTES));
        frame.put_u8(is_gzip.into());
        // A batch is a few MiB at most.
        frame.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
        frame.put_slice(message);
        let scheme = if self.url.tls { "https" } else { "http" };
        let uri = Uri::builder().scheme(scheme).authority(self.url.authority.as_str()).path_and_query(PATH).build()?;
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(uri)
            .header(USER_AGENT, concat!("llm-proxy/", env!("CARGO_PKG_VERSION")))
            .header(CONTENT_TYPE, HeaderValue::from_static("application/grpc"))
            .header(TE, HeaderValue::from_static("trailers"))
            .body(Full::new(frame.freeze()))?;
        if is_gzip {
            request.headers_mut().insert("grpc-encoding", HeaderValue::from_static("gzip"));
        }
        request.headers_mut().extend(self.headers.clone());
        Ok(request)
    }

    /// Sends over the kept connection, or else over a new one. A kept one may have been closed by the receiver at the
    /// very moment; then the request goes out again: spans have ids, so that a second time does no harm.
    async fn send(&self, request: Request<Full<Bytes>>) -> Result<Reply, HttpError> {
        let kept = self.kept.lock().clone().filter(|kept| !kept.is_closed());
        if let Some(kept) = kept
            && let Ok(reply) = exchange(kept, request.clone()).await
        {
            return Ok(reply);
        }
        let connection = self.connect().await?;
        *self.kept.lock() = Some(connection.clone());
        let broken = |source| HttpError::Broken { authority: self.url.authority.clone(), source };
        exchange(connection, request).await.map_err(broken)
    }

    async fn connect(&self) -> Result<Connection, HttpError> {
        let failed = |source| HttpError::Connect { authority: self.url.authority.clone(), source };
        let tcp = TcpStream::connect((self.url.host.as_str(), self.url.port)).await.map_err(failed)?;
        tcp.set_nodelay(true).map_err(failed)?;
        let Some((connector, name)) = &self.tls else { return self.speak(tcp).await };
        let stream = connector.connect(name.clone(), tcp).await.map_err(failed)?;
        if stream.get_ref().1.alpn_protocol() != Some(&b"h2"[..]) {
            return Err(failed(io::Error::new(io::ErrorKind::Unsupported, "it does not speak HTTP/2")));
        }
        self.speak(stream).await
    }

    /// HTTP/2 over an open connection, which lives in a task of its own until either side closes it or the sink's
    /// runtime ends.
    async fn speak<S>(&self, stream: S) -> Result<Connection, HttpError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .map_err(|error| HttpError::Broken { authority: self.url.authority.clone(), source: error.into() })?;
        tokio::spawn(async move {
            // Whoever waits for an answer is told; nobody else has to be.
            let _ = connection.await;
        });
        Ok(sender)
    }
}

async fn exchange(
    mut connection: Connection,
    request: Request<Full<Bytes>>,
) -> Result<Reply, Box<dyn std::error::Error + Send + Sync>> {
    connection.ready().await?;
    let (head, body) = connection.send_request(request).await?.into_parts();
    let body = Limited::new(body, MAX_ANSWER_BYTES).collect().await?;
    let trailers = body.trailers().cloned().unwrap_or_default();
    Ok(Reply { status: head.status, headers: head.headers, body: body.to_bytes(), trailers })
}

/// What a call came to: the message of its answer, or what to do instead. `hide` are secrets of ours that the receiver
/// may repeat in its words.
pub(super) fn judge(called: Result<Reply, HttpError>, now: SystemTime, hide: &[&str]) -> Result<Bytes, Verdict> {
    let reply = match called {
        Ok(reply) => reply,
        Err(error) => return Err(verdict::judge(&Err(error), now, hide)),
    };
    let field = |name: &str| reply.trailers.get(name).or_else(|| reply.headers.get(name))?.to_str().ok();
    let Some(code) = field("grpc-status").and_then(|code| code.parse::<u32>().ok()) else {
        return Err(judge_no_grpc(reply, now, hide));
    };
    if code == 0 {
        return Ok(message(&reply.body));
    }
    let asked = field("grpc-status-details-bin").and_then(retry_info);
    let asked = asked.or_else(|| field("grpc-retry-pushback-ms")?.parse().ok().map(Duration::from_millis));
    let text = words(&percent_decoded(field("grpc-message").unwrap_or_default()), hide);
    let reason = if text.is_empty() { name(code) } else { format!("{}: {text}", name(code)) };
    Err(judge_code(code, asked, reason))
}

/// An answer by something before the receiver, or by something else in its place. Its status says whether to wait; it
/// has not looked at what the call holds, except for its size.
fn judge_no_grpc(reply: Reply, now: SystemTime, hide: &[&str]) -> Verdict {
    let again = |reason| Verdict::Again { after: None, fault: Fault::Sink, reason };
    let status = reply.status;
    let answer = Answer { status, headers: reply.headers, body: reply.body };
    match verdict::judge(&Ok(answer), now, hide) {
        Verdict::Taken => again(format!("HTTP {}, and no gRPC", status.as_u16())),
        Verdict::Refused { reason } if status != StatusCode::PAYLOAD_TOO_LARGE => again(reason),
        verdict => verdict,
    }
}

/// OTLP, "OTLP/gRPC Response", says which failures may be repeated with the same content: these are. Of the others, what
/// speaks of the content refuses it, and what speaks of key or address waits until somebody has put it right, as
/// everywhere here. `INTERNAL` and its like, which a receiver that breaks at one event gives as well as one that is
/// broken, are repeated until others get through.
fn judge_code(code: u32, after: Option<Duration>, reason: String) -> Verdict {
    let again = |fault| Verdict::Again { after, fault, reason: reason.clone() };
    match code {
        // INVALID_ARGUMENT.
        3 => Verdict::Refused { reason },
        // NOT_FOUND, PERMISSION_DENIED, UNIMPLEMENTED, UNAVAILABLE, UNAUTHENTICATED.
        5 | 7 | 12 | 14 | 16 => again(Fault::Sink),
        // RESOURCE_EXHAUSTED: with a wait it is a limit of load; without one it may be that of a message's size.
        8 if after.is_some() => again(Fault::Sink),
        _ => again(Fault::Unclear),
    }
}

fn name(code: u32) -> String {
    const NAMES: [&str; 17] = [
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    ];
    let name = usize::try_from(code).ok().and_then(|code| NAMES.get(code));
    name.map_or_else(|| format!("gRPC status {code}"), |name| format!("gRPC {name}"))
}

/// The message of an answer. We never say that we take compressed ones, so one that is says nothing to us.
fn message(body: &Bytes) -> Bytes {
    let length = body.get(1..PREFIX_BYTES).and_then(|length| length.try_into().ok()).map(u32::from_be_bytes);
    let message = body.get(PREFIX_BYTES..).unwrap_or_default();
    let is_whole = length.and_then(|length| usize::try_from(length).ok()) == Some(message.len());
    if is_whole && body.first() == Some(&0) { body.slice_ref(message) } else { Bytes::new() }
}

/// How long the receiver wants to be left alone: `google.rpc.RetryInfo` among the details of its status.
fn retry_info(details: &str) -> Option<Duration> {
    let octets = STANDARD_NO_PAD.decode(details.trim_end_matches('=')).ok()?;
    let status = RpcStatus::decode(octets.as_slice()).ok()?;
    let info = status.details.iter().find(|detail| detail.type_url.ends_with("/google.rpc.RetryInfo"))?;
    let delay = RetryInfo::decode(info.value.as_slice()).ok()?.retry_delay.unwrap_or_default();
    Some(Duration::new(u64::try_from(delay.seconds).unwrap_or(0), u32::try_from(delay.nanos).unwrap_or(0)))
}

/// gRPC writes `%` and all but visible ASCII as `%XX`. What is written otherwise stays as it is.
fn percent_decoded(text: &str) -> String {
    let mut octets = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let code = after.get(..2).filter(|_| *first == b'%').and_then(|code| std::str::from_utf8(code).ok());
        let code = code.filter(|code| code.bytes().all(|byte| byte.is_ascii_hexdigit()));
        if let Some(octet) = code.and_then(|code| u8::from_str_radix(code, 16).ok()) {
            octets.push(octet);
            rest = after.get(2..).unwrap_or_default();
        } else {
            octets.push(*first);
            rest = after;
        }
    }
    String::from_utf8_lossy(&octets).into_owned()
}

/// `google.rpc.Status`, as far as it is read here.
#[derive(Clone, PartialEq, Message)]
struct RpcStatus {
    #[prost(message, repeated, tag = "3")]
    details: Vec<Detail>,
}

/// `google.protobuf.Any`.
#[derive(Clone, PartialEq, Message)]
struct Detail {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

/// `google.rpc.RetryInfo`.
#[derive(Clone, PartialEq, Message)]
struct RetryInfo {
    #[prost(message, optional, tag = "1")]
    retry_delay: Option<Delay>,
}

/// `google.protobuf.Duration`.
#[derive(Clone, PartialEq, Message)]
struct Delay {
    #[prost(int64, tag = "1")]
    seconds: i64,
    #[prost(int32, tag = "2")]
    nanos: i32,
}

#[cfg(test)]
mod tests {
    use http::HeaderName;

    use super::*;

    fn fields(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let pairs = pairs.iter().map(|&(name, value)| (HeaderName::from_static(name), value.parse().unwrap()));
        HeaderMap::from_iter(pairs)
    }

    fn judged(status: u16, headers: &[(&'static str, &str)], trailers: &[(&'static str, &str)]) -> Verdict {
        let reply = Reply {
            status: StatusCode::from_u16(status).unwrap(),
            headers: fields(headers),
            body: Bytes::new(),
            trailers: fields(trailers),
        };
        match judge(Ok(reply), SystemTime::UNIX_EPOCH, &["hunter22"]) {
            Ok(_) => Verdict::Taken,
            Err(verdict) => verdict,
        }
    }

    fn again(after: Option<u64>, fault: Fault, reason: &str) -> Verdict {
        Verdict::Again { after: after.map(Duration::from_millis), fault, reason: reason.to_owned() }
    }

    #[test]
    fn a_code_says_whether_to_send_again_and_whom_it_speaks_against() {
        let of = |code: &str| judged(200, &[], &[("grpc-status", code)]);
        assert_eq!(of("0"), Verdict::Taken);
        assert_eq!(of("3"), Verdict::Refused { reason: "gRPC INVALID_ARGUMENT".to_owned() });
        for (code, reason) in [
            ("5", "gRPC NOT_FOUND"),
            ("7", "gRPC PERMISSION_DENIED"),
            ("12", "gRPC UNIMPLEMENTED"),
            ("14", "gRPC UNAVAILABLE"),
            ("16", "gRPC UNAUTHENTICATED"),
        ] {
            assert_eq!(of(code), again(None, Fault::Sink, reason));
        }
        for (code, reason) in [
            ("1", "gRPC CANCELLED"),
            ("2", "gRPC UNKNOWN"),
            ("4", "gRPC DEADLINE_EXCEEDED"),
            ("8", "gRPC RESOURCE_EXHAUSTED"),
            ("10", "gRPC ABORTED"),
            ("11", "gRPC OUT_OF_RANGE"),
            ("13", "gRPC INTERNAL"),
            ("15", "gRPC DATA_LOSS"),
            ("99", "gRPC status 99"),
        ] {
            assert_eq!(of(code), again(None, Fault::Unclear, reason));
        }
        // A status alone stands in the head.
        let head = judged(200, &[("grpc-status", "16"), ("grpc-message", "no hunter22%0Ahere %zz")], &[]);
        assert_eq!(head, again(None, Fault::Sink, "gRPC UNAUTHENTICATED: no [secret] here %zz"));
    }

    #[test]
    fn a_wait_that_is_asked_for_is_found_in_the_details_or_beside_them() {
        let delay = Delay { seconds: 2, nanos: 500_000_000 };
        let info = RetryInfo { retry_delay: Some(delay) }.encode_to_vec();
        let detail = Detail { type_url: "type.googleapis.com/google.rpc.RetryInfo".to_owned(), value: info };
        let status = RpcStatus { details: vec![Detail::default(), detail] };
        let bare = STANDARD_NO_PAD.encode(status.encode_to_vec());
        let padded = format!("{bare}{}", "=".repeat(bare.len().next_multiple_of(4) - bare.len()));
        for details in [&bare, &padded] {
            let limited = judged(200, &[], &[("grpc-status", "8"), ("grpc-status-details-bin", details.as_str())]);
            assert_eq!(limited, again(Some(2_500), Fault::Sink, "gRPC RESOURCE_EXHAUSTED"));
        }
        let pushed = judged(200, &[], &[("grpc-status", "14"), ("grpc-retry-pushback-ms", "700")]);
        assert_eq!(pushed, again(Some(700), Fault::Sink, "gRPC UNAVAILABLE"));
        for (name, value) in [("grpc-status-details-bin", "!"), ("grpc-retry-pushback-ms", "-1")] {
            let unread = judged(200, &[], &[("grpc-status", "14"), (name, value)]);
            assert_eq!(unread, again(None, Fault::Sink, "gRPC UNAVAILABLE"), "{name}");
        }
    }

    #[test]
    fn what_answers_without_grpc_has_not_judged_the_content() {
        assert_eq!(judged(200, &[], &[]), again(None, Fault::Sink, "HTTP 200, and no gRPC"));
        for status in [400, 404, 415] {
            assert_eq!(judged(status, &[], &[]), again(None, Fault::Sink, &format!("HTTP {status}")));
        }
        assert_eq!(judged(502, &[], &[]), again(None, Fault::Unclear, "HTTP 502"));
        assert_eq!(judged(503, &[("retry-after", "3")], &[]), again(Some(3_000), Fault::Sink, "HTTP 503"));
        assert_eq!(judged(413, &[], &[]), Verdict::Refused { reason: "HTTP 413".to_owned() });
    }

    #[test]
    fn a_message_is_what_stands_behind_its_prefix_if_it_is_whole_and_plain() {
        for (body, expected) in [
            (&b"\0\0\0\0\x02ab"[..], &b"ab"[..]),
            (b"\0\0\0\0\0", b""),
            (b"\0\0\0\0\x03ab", b""),
            (b"\x01\0\0\0\x02ab", b""),
            (b"\0\0", b""),
            (b"", b""),
        ] {
            assert_eq!(message(&Bytes::from_static(body)), expected, "{body:?}");
        }
    }

    #[test]
    fn percent_encoding_is_undone_where_it_is_one() {
        for (text, expected) in
            [("a%20b%C3%BC", "a bü"), ("100%", "100%"), ("%2", "%2"), ("%+1", "%+1"), ("%FF", "\u{fffd}"), ("", "")]
        {
            assert_eq!(percent_decoded(text), expected, "{text}");
        }
    }
}

//! The edge: owns a client connection, finds out where it comes from and which HTTP it speaks, reads and judges each
//! HTTP/1.1 head, and hands checked calls to the plane.
//!
//! HTTP/2 comes by ALPN, or in the clear by the octets that a client begins with who knows already. Other connections
//! pay nothing for it: what is larger than HTTP/1.1 needs is boxed, and the first octets are looked at where they are a
//! head.

mod entrance;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use llm_proxy_core::answer::Refusal;
use llm_proxy_core::http1::request_head;
use pingora_core::apps::ServerApp;
use pingora_core::protocols::Stream;
use pingora_core::server::ShutdownWatch;

pub use self::entrance::Entrance;

use crate::downstream::{Caller, Downstream};
use crate::http1::{Received, Wire, read_head};
use crate::http2;
use crate::plane::Plane;
use crate::plane::credentials::Remembered;
use crate::tls::TlsListener;

/// How long a kept-alive connection may stay silent between requests, and a new one before its first.
const IDLE: Duration = Duration::from_secs(120);
/// After the order to stop, how long idle connections still take a request, so that a client that is just sending one
/// is answered instead of cut.
const LINGER: Duration = Duration::from_millis(400);

/// The `ServerApp` of the data plane's listener.
pub struct Edge {
    plane: Arc<Plane>,
    head_timeout: Duration,
    tls: Option<TlsListener>,
    entrance: Option<Entrance>,
}

impl Edge {
    /// `head_timeout` bounds a whole request head from its first byte, and a TLS handshake. Without `tls`, connections are
    /// in the clear. Without `entrance`, where they come from is nobody's concern.
    pub fn new(
        plane: Arc<Plane>,
        head_timeout: Duration,
        tls: Option<TlsListener>,
        entrance: Option<Entrance>,
    ) -> Self {
        Self { plane, head_timeout, tls, entrance }
    }

    /// Carries one exchange after another.
    async fn speak_http1(&self, downstream: Downstream, caller: Option<Caller>) {
        let is_tls = downstream.is_tls();
        let mut wire = Wire::new(downstream);
        let mut remembered = Remembered::default();
        let mut is_first = true;
        loop {
            let received = tokio::select! {
                biased;
                received = read_head(&mut wire, IDLE, self.head_timeout) => received,
                () = self.stopped_and_lingered() => Received::Nothing,
            };
            let refusal = match received {
                Received::Head(head) if is_first && !is_tls && head == http2::PRIOR_KNOWLEDGE => {
                    return Box::pin(self.speak_http2_after(head, wire, caller)).await;
                }
                Received::Head(head) => match request_head::parse(head) {
                    Ok(call) => {
                        let caller = caller.as_ref();
                        let Some(kept) = self.plane.serve(wire, call, caller, &mut remembered).await else { return };
                        wire = kept;
                        is_first = false;
                        continue;
                    }
                    Err(wrong) => Refusal::InvalidRequest(wrong),
                },
                // Under TLS, an end without a word would look like a cut.
                Received::Nothing if is_tls => return wire.close_with(b"").await,
                Received::Nothing => return,
                Received::TooSlow => Refusal::HeadTimeout,
                Received::TooLarge => Refusal::HeadTooLarge,
                Received::LoneLineEnd => Refusal::InvalidRequest("a CR or LF stands alone in the head".into()),
            };
            return wire.close_with(&self.plane.answer_raw(&refusal, caller.as_ref())).await;
        }
    }

    /// Goes on as HTTP/2 where the client's preface was read as a head.
    async fn speak_http2_after(&self, preface: Bytes, wire: Wire<Downstream>, caller: Option<Caller>) {
        let (downstream, rest) = wire.into_parts();
        let early = Bytes::from([&preface[..], &rest[..]].concat());
        http2::serve(&self.plane, downstream, caller, early, self.head_timeout).await;
    }

    async fn stopped_and_lingered(&self) {
        self.plane.gateway.drain.stopping().await;
        tokio::time::sleep(LINGER).await;
    }
}

#[async_trait]
impl ServerApp for Edge {
    async fn process_new(self: &Arc<Self>, stream: Stream, _shutdown: &ShutdownWatch) -> Option<Stream> {
        let (stream, caller) = match &self.entrance {
            None => (stream, None),
            Some(entrance) => Box::pin(entrance.enter(stream)).await?,
        };
        let downstream = match &self.tls {
            None => Downstream::from(stream),
            Some(tls) => Box::pin(tls.accept(stream, self.head_timeout)).await?,
        };
        if downstream.alpn() == Some(b"h2") {
            Box::pin(http2::serve(&self.plane, downstream, caller, Bytes::new(), self.head_timeout)).await;
        } else {
            self.speak_http1(downstream, caller).await;
        }
        None
    }
}

//! The edge: owns a client connection, reads and judges each HTTP/1.1 head, and hands checked calls to the plane.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use llm_proxy_core::answer::Refusal;
use llm_proxy_core::http1::request_head;
use pingora_core::apps::ServerApp;
use pingora_core::protocols::Stream;
use pingora_core::server::ShutdownWatch;

use crate::downstream::Downstream;
use crate::http1::{Received, Wire, read_head};
use crate::plane::Plane;
use crate::plane::credentials::Remembered;

/// How long a kept-alive connection may stay silent between requests, and a new one before its first.
const IDLE: Duration = Duration::from_secs(120);
/// After the order to stop, how long idle connections still take a request, so that a client that is just sending one
/// is answered instead of cut.
const LINGER: Duration = Duration::from_millis(400);

/// The `ServerApp` of the data plane's listener.
pub struct Edge {
    plane: Arc<Plane>,
    head_timeout: Duration,
}

impl Edge {
    /// `head_timeout` bounds a whole request head from its first byte.
    pub fn new(plane: Arc<Plane>, head_timeout: Duration) -> Self {
        Self { plane, head_timeout }
    }

    async fn stopped_and_lingered(&self) {
        self.plane.gateway.drain.stopping().await;
        tokio::time::sleep(LINGER).await;
    }
}

#[async_trait]
impl ServerApp for Edge {
    async fn process_new(self: &Arc<Self>, stream: Stream, _shutdown: &ShutdownWatch) -> Option<Stream> {
        let mut wire = Wire::new(Downstream::from(stream));
        let mut remembered = Remembered::default();
        loop {
            let received = tokio::select! {
                biased;
                received = read_head(&mut wire, IDLE, self.head_timeout) => received,
                () = self.stopped_and_lingered() => return None,
            };
            let refusal = match received {
                Received::Head(head) => match request_head::parse(head) {
                    Ok(call) => {
                        wire = self.plane.serve(wire, call, &mut remembered).await?;
                        continue;
                    }
                    Err(wrong) => Refusal::InvalidRequest(wrong),
                },
                Received::Nothing => return None,
                Received::TooSlow => Refusal::HeadTimeout,
                Received::TooLarge => Refusal::HeadTooLarge,
                Received::LoneLineEnd => Refusal::InvalidRequest("a CR or LF stands alone in the head".into()),
            };
            wire.close_with(&self.plane.answer_raw(&refusal)).await;
            return None;
        }
    }
}

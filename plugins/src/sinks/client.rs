//! HTTP for sinks: one receiver, `POST`, HTTP/1.1, connections kept.
//!
//! On hyper, rustls and ring, which the proxy has in its tree anyway. A client with redirects, cookies, proxies and
//! connection pools for many hosts would bring more than it saves here: a sink talks to one host, must never send its
//! key to another one, and repeats a call by its own rules. Verification of certificates cannot be switched off.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST, USER_AGENT};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use llm_proxy_core::secret::Secret;
use parking_lot::Mutex;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::values::HttpUrl;

/// Largest answer that is read, in bytes. What sinks answer is a few words, or one line for each event.
const MAX_ANSWER_BYTES: usize = 4 << 20;
/// Most connections that are kept while nothing goes over them.
const MOST_IDLE: usize = 32;

/// A receiver's answer.
#[derive(Debug)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its header fields.
    pub headers: HeaderMap,
    /// Its body, whole.
    pub body: Bytes,
}

/// Why there was no answer.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// Nobody was reached: nothing was sent.
    #[error("cannot connect to {authority}: {source}")]
    Connect {
        /// Where to.
        authority: String,
        /// What the system, or TLS, said.
        source: io::Error,
    },
    /// Whole connections and answers took too long.
    #[error("no whole answer from {authority} within {limit:?}")]
    Timeout {
        /// From whom.
        authority: String,
        /// How long was waited.
        limit: Duration,
    },
    /// The connection broke, or what came was no HTTP, or too much.
    #[error("{authority} gave no whole answer: {source}")]
    Broken {
        /// Who.
        authority: String,
        /// What happened.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The request cannot be written as HTTP.
    #[error("the request cannot be made: {0}")]
    Request(#[from] http::Error),
}

type Connection = SendRequest<Full<Bytes>>;

/// A client of one receiver.
pub struct HttpClient {
    url: HttpUrl,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    timeout: Duration,
    idle: Mutex<Vec<Connection>>,
}

impl HttpClient {
    /// A client for the host of `url`. A call, from connecting to the answer's last byte, takes at most `timeout`.
    /// `tls` says which certificate authorities are believed; no protocol is negotiated with it.
    pub fn new(url: HttpUrl, tls: &Arc<ClientConfig>, timeout: Duration) -> Self {
        let name = if url.tls { ServerName::try_from(url.host.clone()).ok() } else { None };
        let tls = name.map(|name| (TlsConnector::from(Arc::clone(tls)), name));
        Self { url, tls, timeout, idle: Mutex::default() }
    }

    /// Where calls go to.
    pub fn url(&self) -> &HttpUrl {
        &self.url
    }

    /// Sends one `POST` of JSON to `target`, path and query, with these fields beside our own.
    ///
    /// Cancel safe: a call that is dropped takes its connection with it.
    ///
    /// # Errors
    /// [`HttpError`]. After all but [`HttpError::Connect`] the receiver may have taken the request.
    pub async fn post(&self, target: &str, headers: HeaderMap, body: Bytes) -> Result<Answer, HttpError> {
        let request = self.request(target, headers, body)?;
        match tokio::time::timeout(self.timeout, self.send(request)).await {
            Ok(result) => result,
            Err(_) => Err(HttpError::Timeout { authority: self.url.authority.clone(), limit: self.timeout }),
        }
    }

    fn request(&self, target: &str, headers: HeaderMap, body: Bytes) -> Result<Request<Full<Bytes>>, http::Error> {
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(Uri::try_from(target)?)
            .header(HOST, &self.url.authority)
            .header(USER_AGENT, concat!("llm-proxy/", env!("CARGO_PKG_VERSION")))
            .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
            .body(Full::new(body))?;
        request.headers_mut().extend(headers);
        Ok(request)
    }

    /// Sends over a kept connection, or else over a new one. A kept one may have been closed by the receiver
    /// at the very moment; then the request goes out again: records have ids, so that a second time does no harm.
    async fn send(&self, request: Request<Full<Bytes>>) -> Result<Answer, HttpError> {
        if let Some(connection) = self.take_idle()
            && let Ok(answer) = self.exchange(connection, request.clone()).await
        {
            return Ok(answer);
        }
        let connection = self.connect().await?;
        let broken = |source| HttpError::Broken { authority: self.url.authority.clone(), source };
        self.exchange(connection, request).await.map_err(broken)
    }

    fn take_idle(&self) -> Option<Connection> {
        let mut idle = self.idle.lock();
        loop {
            let connection = idle.pop()?;
            if !connection.is_closed() {
                return Some(connection);
            }
        }
    }

    async fn exchange(
        &self,
        mut connection: Connection,
        request: Request<Full<Bytes>>,
    ) -> Result<Answer, Box<dyn std::error::Error + Send + Sync>> {
        connection.ready().await?;
        let (head, body) = connection.send_request(request).await?.into_parts();
        let body = Limited::new(body, MAX_ANSWER_BYTES).collect().await?.to_bytes();
        let mut idle = self.idle.lock();
        if !connection.is_closed() && idle.len() < MOST_IDLE {
            idle.push(connection);
        }
        Ok(Answer { status: head.status, headers: head.headers, body })
    }

    async fn connect(&self) -> Result<Connection, HttpError> {
        let failed = |source| HttpError::Connect { authority: self.url.authority.clone(), source };
        let tcp = TcpStream::connect((self.url.host.as_str(), self.url.port)).await.map_err(failed)?;
        tcp.set_nodelay(true).map_err(failed)?;
        match &self.tls {
            Some((connector, name)) => self.speak(connector.connect(name.clone(), tcp).await.map_err(failed)?).await,
            None => self.speak(tcp).await,
        }
    }

    /// HTTP/1.1 over an open connection, which lives in a task of its own until either side closes it or the sink's
    /// runtime ends.
    async fn speak<S>(&self, stream: S) -> Result<Connection, HttpError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| HttpError::Broken { authority: self.url.authority.clone(), source: error.into() })?;
        tokio::spawn(async move {
            // Whoever waits for an answer is told; nobody else has to be.
            let _ = connection.await;
        });
        Ok(sender)
    }
}

/// `Authorization: Bearer`, marked so that it is printed nowhere.
pub fn bearer(api_key: &Secret) -> HeaderMap {
    let value = HeaderValue::from_str(&format!("Bearer {}", api_key.expose()));
    let mut value = value.unwrap_or_else(|_| HeaderValue::from_static(""));
    value.set_sensitive(true);
    HeaderMap::from_iter([(AUTHORIZATION, value)])
}

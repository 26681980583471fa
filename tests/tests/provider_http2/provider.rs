//! Providers behind TLS that offer HTTP/2: one that does what a test wrote, by the `h2` crate, and one that writes
//! whatever frames it likes.

use std::future::poll_fn;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use h2::server::{Builder, SendResponse};
use h2::{Reason, RecvStream, SendStream};
use http::Response;
use http::request::Parts;
use llm_proxy_tests::PATIENCE;
use llm_proxy_tests::tls::{Authority, VALID};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::server::TlsStream;

use crate::peer::{END_HEADERS, END_STREAM, block, frame, kind};

/// A connection of the proxy's.
pub type Tls = TlsStream<TcpStream>;

/// What the proxy may choose from.
pub const BOTH: &[&[u8]] = &[b"h2", b"http/1.1"];
pub const HTTP_1_1: &[u8] = b"http/1.1";
pub const HTTP_2: &[u8] = b"h2";

/// A port on loopback that ends with the test.
pub struct Provider {
    port: u16,
    ca_file: String,
    chosen: Arc<Mutex<Vec<Vec<u8>>>>,
    task: JoinHandle<()>,
    _authority: Authority,
}

impl Provider {
    /// Serves each connection with `serve`, which is told which one it is, from 1 on.
    pub async fn serving<Serve, Serving>(alpn: &[&[u8]], serve: Serve) -> Self
    where
        Serve: Fn(Tls, usize) -> Serving + Send + Sync + 'static,
        Serving: Future<Output = ()> + Send + 'static,
    {
        let authority = Authority::new("An authority that is trusted");
        let identity = authority.certify("localhost", VALID);
        let certificate = CertificateDer::from(identity.certificate().to_vec());
        let key = PrivateKeyDer::from_pem_file(identity.key_file()).unwrap();
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .unwrap();
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let chosen = Arc::new(Mutex::new(Vec::new()));
        let (noted, serve) = (Arc::clone(&chosen), Arc::new(serve));
        let task = tokio::spawn(async move {
            let mut serving = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                stream.set_nodelay(true).unwrap();
                let (acceptor, noted, serve) = (acceptor.clone(), Arc::clone(&noted), Arc::clone(&serve));
                serving.spawn(async move {
                    let Ok(tls) = acceptor.accept(stream).await else { return };
                    let number = {
                        let mut noted = noted.lock().unwrap();
                        noted.push(tls.get_ref().1.alpn_protocol().unwrap_or_default().to_vec());
                        noted.len()
                    };
                    serve(tls, number).await;
                });
            }
        });
        let ca_file = authority.file().display().to_string();
        Self { port, ca_file, chosen, task, _authority: authority }
    }

    /// Serves each request with `script`.
    pub async fn start<Script, Serving>(builder: Builder, script: Script) -> Self
    where
        Script: Fn(Asked) -> Serving + Send + Sync + 'static,
        Serving: Future<Output = ()> + Send + 'static,
    {
        let (script, asked) = (Arc::new(script), Arc::new(AtomicUsize::new(0)));
        Self::serving(&[HTTP_2], move |tls, connection| {
            talk(tls, connection, builder.clone(), Arc::clone(&script), Arc::clone(&asked))
        })
        .await
    }

    /// Gives each connection to `script`, once both sides have said their settings.
    pub async fn raw<Script, Serving>(script: Script) -> Self
    where
        Script: Fn(Frames, usize) -> Serving + Send + Sync + 'static,
        Serving: Future<Output = ()> + Send + 'static,
    {
        let script = Arc::new(script);
        Self::serving(&[HTTP_2], move |tls, connection| {
            let script = Arc::clone(&script);
            async move {
                if let Some(frames) = Frames::open(tls).await {
                    script(frames, connection).await;
                }
            }
        })
        .await
    }

    /// The settings of an API that is here.
    pub fn yaml(&self) -> String {
        format!("dialect: openai\nbase_url: https://{}\nca_file: {}\n", self.host(), self.ca_file)
    }

    /// Name and port.
    pub fn host(&self) -> String {
        format!("localhost:{}", self.port)
    }

    /// What was chosen on each connection so far.
    pub fn chosen(&self) -> Vec<Vec<u8>> {
        self.chosen.lock().unwrap().clone()
    }

    /// How many connections there were.
    pub fn connections(&self) -> usize {
        self.chosen.lock().unwrap().len()
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// One request.
pub struct Asked {
    /// On which connection, from 1 on.
    pub connection: usize,
    /// Which one of all, from 1 on.
    pub number: usize,
    pub head: Parts,
    pub body: RecvStream,
    pub respond: SendResponse<Bytes>,
    goodbye: mpsc::UnboundedSender<()>,
}

/// Serves the requests of a connection until it is over, and they are.
pub async fn talk<Script, Serving>(
    tls: Tls,
    connection: usize,
    builder: Builder,
    script: Arc<Script>,
    asked: Arc<AtomicUsize>,
) where
    Script: Fn(Asked) -> Serving,
    Serving: Future<Output = ()> + Send + 'static,
{
    let Ok(mut talk) = builder.handshake::<_, Bytes>(tls).await else { return };
    let (goodbye, mut leaving) = mpsc::unbounded_channel();
    let mut serving = JoinSet::new();
    loop {
        tokio::select! {
            next = talk.accept() => {
                let Some(Ok((request, respond))) = next else { break };
                let (head, body) = request.into_parts();
                let number = asked.fetch_add(1, Ordering::SeqCst) + 1;
                serving.spawn(script(Asked { connection, number, head, body, respond, goodbye: goodbye.clone() }));
            }
            Some(()) = leaving.recv() => talk.graceful_shutdown(),
        }
    }
    while serving.join_next().await.is_some() {}
}

impl Asked {
    pub fn field(&self, name: &str) -> Option<&str> {
        self.head.headers.get(name).map(|value| value.to_str().unwrap())
    }

    /// The whole body.
    pub async fn whole(&mut self) -> Vec<u8> {
        let mut whole = Vec::new();
        while let Some(piece) = timeout(PATIENCE, self.body.data()).await.expect("more of the body") {
            let piece = piece.expect("the body comes whole");
            self.body.flow_control().release_capacity(piece.len()).unwrap();
            whole.extend_from_slice(&piece);
        }
        whole
    }

    /// Sends a head; a body is to follow.
    pub fn begin(&mut self, status: u16, fields: &[(&str, &str)]) -> SendStream<Bytes> {
        self.respond.send_response(head(status, fields), false).unwrap()
    }

    /// Answers.
    pub fn answer(mut self, status: u16, fields: &[(&str, &str)], body: impl Into<Bytes>) {
        let body = body.into();
        let mut stream = self.respond.send_response(head(status, fields), body.is_empty()).unwrap();
        if !body.is_empty() {
            stream.send_data(body, true).unwrap();
        }
    }

    /// Resets the stream.
    pub fn reset(mut self, reason: Reason) {
        self.respond.send_reset(reason);
    }

    /// Says on its connection that it takes nothing more.
    pub fn say_goodbye(&self) {
        self.goodbye.send(()).unwrap();
    }

    /// Waits until the proxy has reset the stream, or is gone.
    pub async fn left(&mut self) -> Option<Reason> {
        let left = poll_fn(|cx| self.respond.poll_reset(cx));
        timeout(PATIENCE, left).await.expect("the proxy resets the stream").ok()
    }
}

/// The same, once an answer has begun.
pub async fn left(stream: &mut SendStream<Bytes>) -> Option<Reason> {
    let left = poll_fn(|cx| stream.poll_reset(cx));
    timeout(PATIENCE, left).await.expect("the proxy resets the stream").ok()
}

/// The head of an answer.
pub fn head(status: u16, fields: &[(&str, &str)]) -> Response<()> {
    let response = Response::builder().status(status);
    fields.iter().fold(response, |response, (name, value)| response.header(*name, *value)).body(()).unwrap()
}

/// A connection on which frames are written as they come to mind. PINGs and SETTINGS are acknowledged.
pub struct Frames {
    tls: Tls,
    buffer: Vec<u8>,
}

/// What came.
#[derive(Debug)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The flag of an acknowledgement.
const ACK: u8 = 0x1;
/// What a frame may carry (RFC 9113 §6.5.2).
const MOST_PAYLOAD: usize = 16_384;

impl Frames {
    async fn open(mut tls: Tls) -> Option<Self> {
        let mut preface = [0; PREFACE.len()];
        tls.read_exact(&mut preface).await.ok()?;
        assert_eq!(preface, PREFACE);
        let mut frames = Self { tls, buffer: Vec::new() };
        frames.write(&frame(kind::SETTINGS, 0, 0, &[])).await;
        Some(frames)
    }

    /// Writes, where the proxy still listens.
    pub async fn write(&mut self, bytes: &[u8]) {
        let _ = self.tls.write_all(bytes).await;
        let _ = self.tls.flush().await;
    }

    /// The next frame. `None`: the connection is over.
    pub async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.take() {
                match frame.kind {
                    kind::SETTINGS | kind::PING if frame.flags & ACK == 0 => {
                        let payload = if frame.kind == kind::PING { &frame.payload[..] } else { &[] };
                        self.write(&crate::peer::frame(frame.kind, ACK, 0, payload)).await;
                    }
                    kind::SETTINGS | kind::PING => {}
                    _ => return Some(frame),
                }
            } else if !matches!(self.tls.read_buf(&mut self.buffer).await, Ok(read) if read > 0) {
                return None;
            }
        }
    }

    fn take(&mut self) -> Option<Frame> {
        let [high, middle, low, kind, flags, a, b, c, d] = *self.buffer.first_chunk::<9>()?;
        let end = 9 + usize::try_from(u32::from_be_bytes([0, high, middle, low])).unwrap();
        let payload = self.buffer.get(9..end)?.to_vec();
        self.buffer.drain(..end);
        Some(Frame { kind, flags, stream: u32::from_be_bytes([a, b, c, d]), payload })
    }

    /// The stream of the next request, whose head is here. `None`: the connection is over.
    pub async fn request(&mut self) -> Option<u32> {
        loop {
            let frame = self.next().await?;
            if frame.kind == kind::HEADERS {
                return Some(frame.stream);
            }
        }
    }

    /// Reads so much of bodies. `false`: the connection ended first.
    pub async fn body(&mut self, length: usize) -> bool {
        let mut left = length;
        while left > 0 {
            let Some(frame) = self.next().await else { return false };
            if frame.kind == kind::DATA {
                left = left.saturating_sub(frame.payload.len());
            }
        }
        true
    }

    /// Lets so much more of a body come.
    pub async fn open_window(&mut self, stream: u32, by: u32) {
        let opened = [0, stream].map(|of| frame(kind::WINDOW_UPDATE, 0, of, &by.to_be_bytes()));
        self.write(&opened.concat()).await;
    }

    /// Writes the head of an answer, and its end where no body follows.
    pub async fn head(&mut self, stream: u32, fields: &[(&str, &str)], is_over: bool) {
        let block = block(fields);
        let count = block.len().div_ceil(MOST_PAYLOAD);
        for (number, part) in block.chunks(MOST_PAYLOAD).enumerate() {
            let ends_block = if number + 1 == count { END_HEADERS } else { 0 };
            let ends_stream = if is_over && number == 0 { END_STREAM } else { 0 };
            let kind = if number == 0 { kind::HEADERS } else { kind::CONTINUATION };
            self.write(&frame(kind, ends_block | ends_stream, stream, part)).await;
        }
    }

    /// Writes a piece of an answer's body.
    pub async fn data(&mut self, stream: u32, data: &[u8], is_over: bool) {
        self.write(&frame(kind::DATA, if is_over { END_STREAM } else { 0 }, stream, data)).await;
    }

    /// Answers 200 with these bytes.
    pub async fn answer(&mut self, stream: u32, body: &[u8]) {
        self.head(stream, &[(":status", "200"), ("content-type", "application/json")], false).await;
        self.data(stream, body, true).await;
    }

    /// Says that no stream behind `last` was looked at.
    pub async fn goaway(&mut self, last: u32, reason: Reason) {
        let payload = [last.to_be_bytes(), u32::from(reason).to_be_bytes()].concat();
        self.write(&frame(kind::GOAWAY, 0, 0, &payload)).await;
    }
}

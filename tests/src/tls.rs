//! Providers behind TLS: an authority that signs their certificates, and a front before the mock that notes what the
//! proxy lets out, on the wire and inside TLS. A secret that left in the clear shows on the wire, one that went to
//! the wrong server inside, so what must not be sent is looked for in both.
//!
//! The same authority signs for the proxy's own listener, and its clients connect through it.

use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, PublicKeyData, date_time_ymd,
};
use ring::digest::{SHA256, digest};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf, copy, copy_bidirectional, sink};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::server::danger::ClientCertVerifier;
pub use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::raw::patient;
use crate::{PATIENCE, eventually};

/// Years in which a certificate is valid that nobody should mind.
pub const VALID: Range<i32> = 2000..2100;

/// A certificate authority of the test's own.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: TempDir,
}

/// What a server proves its name with, or a client.
pub struct Identity {
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
    pin: String,
    folder: TempDir,
}

impl Authority {
    /// One of this name, with a new key: of two with the same name, each is an impostor to the other.
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let authority = Self { issuer, folder: tempfile::tempdir().unwrap() };
        std::fs::write(authority.file(), authority.issuer.pem()).unwrap();
        authority
    }

    /// Its certificate as a PEM file, there as long as the authority is: for `SSL_CERT_FILE` and `ca_file`.
    pub fn file(&self) -> PathBuf {
        self.folder.path().join("authority.pem")
    }

    /// Signs a certificate for `host`, valid from the first day of the first year until that of the last.
    pub fn certify(&self, host: &str, years: Range<i32>) -> Identity {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([host.to_owned()]).unwrap();
        params.not_before = date_time_ymd(years.start, 1, 1);
        params.not_after = date_time_ymd(years.end, 1, 1);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let (certificate_pem, key_pem) = (certificate.pem(), key.serialize_pem());
        let pin = STANDARD.encode(digest(&SHA256, &key.subject_public_key_info()));
        let folder = tempfile::tempdir().unwrap();
        let identity = Identity { certificate: certificate.into(), key: key.into(), pin, folder };
        std::fs::write(identity.certificate_file(), certificate_pem).unwrap();
        std::fs::write(identity.key_file(), key_pem).unwrap();
        identity
    }

    /// Connects to a server that must prove this name, and offers it these protocols (ALPN).
    ///
    /// # Errors
    /// When the handshake fails.
    ///
    /// # Panics
    /// When nothing happens.
    pub async fn connect(&self, to: SocketAddr, name: &str, protocols: &[&[u8]]) -> io::Result<TlsStream<TcpStream>> {
        let mut config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(&[&TLS12, &TLS13])
            .unwrap()
            .with_root_certificates(self.roots())
            .with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let stream = patient("connecting", TcpStream::connect(to)).await?;
        stream.set_nodelay(true)?;
        patient("shaking hands", TlsConnector::from(Arc::new(config)).connect(name, stream)).await
    }

    /// It alone, as what is trusted.
    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).unwrap();
        roots
    }
}

impl Identity {
    /// Its certificate as it is shown (DER).
    pub fn certificate(&self) -> &[u8] {
        &self.certificate
    }

    /// Its certificate as a PEM file, there as long as the identity is: for `client_cert_file`.
    pub fn certificate_file(&self) -> PathBuf {
        self.folder.path().join("certificate.pem")
    }

    /// The SHA-256 of its public key in base64: how browsers are told to take it, whoever signed it.
    pub fn pin(&self) -> &str {
        &self.pin
    }

    /// Its key as a PEM file, there as long as the identity is: for `client_key_file`.
    pub fn key_file(&self) -> PathBuf {
        self.folder.path().join("key.pem")
    }
}

/// What came to a front, over all its connections.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Connections accepted.
    pub connections: usize,
    /// Connections that the proxy has not closed yet.
    pub open: usize,
    /// TLS handshakes that both sides finished.
    pub handshakes: usize,
    /// The certificates that clients showed in them (DER).
    pub clients: Vec<Vec<u8>>,
    /// The bytes on the wire.
    pub wire: Vec<u8>,
    /// The bytes inside TLS.
    pub inside: Vec<u8>,
}

impl Seen {
    /// Whether this text was to be read on the wire.
    pub fn wire_has(&self, text: &str) -> bool {
        has(&self.wire, text)
    }

    /// Whether this text came inside TLS.
    pub fn inside_has(&self, text: &str) -> bool {
        has(&self.inside, text)
    }
}

fn has(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

/// A port on loopback that the proxy takes for a provider. It ends with the test.
pub struct Front {
    addr: SocketAddr,
    seen: Arc<Mutex<Seen>>,
    task: JoinHandle<()>,
}

/// What a front does with a connection.
#[derive(Clone)]
enum Manner {
    Tls(TlsAcceptor, SocketAddr),
    Plain(SocketAddr),
    Saying(&'static [u8]),
}

impl Front {
    /// Speaks TLS of this version under this identity, and carries what is inside to the provider.
    pub async fn tls(identity: Identity, provider: SocketAddr, version: &'static SupportedProtocolVersion) -> Self {
        Self::tls_for(WebPkiClientVerifier::no_client_auth(), identity, provider, version).await
    }

    /// The same, for clients alone that show a certificate of this authority.
    pub async fn mutual_tls(
        clients: &Authority,
        identity: Identity,
        provider: SocketAddr,
        version: &'static SupportedProtocolVersion,
    ) -> Self {
        let (roots, crypto) = (Arc::new(clients.roots()), Arc::new(default_provider()));
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, crypto).build().unwrap();
        Self::tls_for(verifier, identity, provider, version).await
    }

    async fn tls_for(
        clients: Arc<dyn ClientCertVerifier>,
        identity: Identity,
        provider: SocketAddr,
        version: &'static SupportedProtocolVersion,
    ) -> Self {
        let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(&[version])
            .unwrap()
            .with_client_cert_verifier(clients)
            .with_single_cert(vec![identity.certificate], identity.key)
            .unwrap();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Self::start(Manner::Tls(TlsAcceptor::from(Arc::new(config)), provider)).await
    }

    /// Carries everything to the provider as it comes.
    pub async fn plain(provider: SocketAddr) -> Self {
        Self::start(Manner::Plain(provider)).await
    }

    /// Answers the first byte with these, which may be none, and then only listens.
    pub async fn saying(answer: &'static [u8]) -> Self {
        Self::start(Manner::Saying(answer)).await
    }

    async fn start(manner: Manner) -> Self {
        // One family is enough: where `localhost` has an IPv6 address too, that one comes first and refuses.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Seen::default()));
        let notes = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            let mut serving = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                {
                    let mut seen = notes.lock().unwrap();
                    seen.connections += 1;
                    seen.open += 1;
                }
                serving.spawn(serve(manner.clone(), stream, Arc::clone(&notes)));
            }
        });
        Self { addr, seen, task }
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Name and port, as they stand in a URL and in the `host` field.
    pub fn host(&self) -> String {
        format!("localhost:{}", self.addr.port())
    }

    /// What has come so far.
    pub fn seen(&self) -> Seen {
        self.seen.lock().unwrap().clone()
    }

    /// What came until the proxy closed its last connection.
    ///
    /// # Panics
    /// When it never makes one, or never closes it.
    pub async fn ended(&self) -> Seen {
        eventually(PATIENCE, "the proxy connects, and closes again", async || {
            let seen = self.seen();
            (seen.connections > 0 && seen.open == 0).then_some(seen)
        })
        .await
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(manner: Manner, stream: TcpStream, seen: Arc<Mutex<Seen>>) {
    // Every event of a stream is a segment of its own.
    let _ = stream.set_nodelay(true);
    let mut wire = Tapped { stream, seen: Arc::clone(&seen), place: |seen| &mut seen.wire };
    match manner {
        Manner::Tls(acceptor, provider) => match acceptor.accept(wire).into_fallible().await {
            Ok(tls) => {
                let shown = tls.get_ref().1.peer_certificates().and_then(<[_]>::first).map(|shown| shown.to_vec());
                {
                    let mut seen = seen.lock().unwrap();
                    seen.handshakes += 1;
                    seen.clients.extend(shown);
                }
                let inside = Tapped { stream: tls, seen: Arc::clone(&seen), place: |seen| &mut seen.inside };
                forward(inside, provider).await;
            }
            // What comes behind a handshake that failed must show as well.
            Err((_, wire)) => listen_on(wire).await,
        },
        Manner::Plain(provider) => forward(wire, provider).await,
        Manner::Saying(answer) => {
            let _ = wire.read_u8().await;
            let _ = wire.write_all(answer).await;
            listen_on(wire).await;
        }
    }
    seen.lock().unwrap().open -= 1;
}

/// Carries both directions until one side ends it.
async fn forward(mut connection: impl AsyncRead + AsyncWrite + Unpin, provider: SocketAddr) {
    let mut provider = TcpStream::connect(provider).await.unwrap();
    // A cut is the scenario's to judge.
    let _ = copy_bidirectional(&mut connection, &mut provider).await;
}

/// Reads until the other side closes.
async fn listen_on(mut connection: impl AsyncRead + Unpin) {
    let _ = copy(&mut connection, &mut sink()).await;
}

/// A stream, and where what is read from it is noted.
struct Tapped<S> {
    stream: S,
    seen: Arc<Mutex<Seen>>,
    place: fn(&mut Seen) -> &mut Vec<u8>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Tapped<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let polled = Pin::new(&mut this.stream).poll_read(context, buffer);
        (this.place)(&mut this.seen.lock().unwrap()).extend_from_slice(&buffer.filled()[before..]);
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Tapped<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A provider that says what it hears.
    async fn echo() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut from, mut to) = listener.accept().await.unwrap().0.into_split();
            copy(&mut from, &mut to).await.unwrap();
        });
        addr
    }

    #[tokio::test]
    async fn what_is_said_inside_tls_is_noted_there_and_what_is_said_in_the_clear_on_the_wire() {
        let authority = Authority::new("An authority");
        for version in [&TLS12, &TLS13] {
            let front = Front::tls(authority.certify("localhost", VALID), echo().await, version).await;
            let mut tls = authority.connect(front.addr, "localhost", &[]).await.unwrap();
            tls.write_all(b"between us").await.unwrap();
            tls.flush().await.unwrap();
            let mut echoed = [0; 10];
            tls.read_exact(&mut echoed).await.unwrap();
            assert_eq!(&echoed, b"between us");
            tls.shutdown().await.unwrap();
            drop(tls);
            let seen = front.ended().await;
            assert_eq!((seen.connections, seen.handshakes, &*seen.inside), (1, 1, &b"between us"[..]), "{version:?}");
            assert!(!seen.wire.is_empty() && !seen.wire_has("between us"), "{version:?}");

            let mut plain = TcpStream::connect(front.addr).await.unwrap();
            plain.write_all(b"for everybody").await.unwrap();
            plain.shutdown().await.unwrap();
            // Its end comes once the front has read everything.
            let _ = copy(&mut plain, &mut sink()).await;
            drop(plain);
            let seen = front.ended().await;
            assert_eq!((seen.connections, seen.handshakes), (2, 1), "{version:?}");
            assert!(seen.wire_has("for everybody") && !seen.inside_has("for everybody"), "{version:?}");
        }
    }
}

//! TLS towards clients: the certificate that apps are shown, and its replacement while the process runs.
//!
//! Certificates live for weeks and processes for longer, so the files are looked at every few seconds, and at once on
//! SIGHUP. A good pair is shown from the next handshake on; running connections keep theirs. A bad one changes nothing,
//! and the log says once what is wrong with it: the old certificate is better than none. What a certificate is good for
//! is judged by clients; here it is only told when one is expired, because its owner should know first.
//!
//! `rustls` with ring, as towards providers. Not Pingora's TLS listener: it reads its certificate once.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use pingora_core::protocols::Stream;
use ring::digest::{SHA256, digest};
use rustls::crypto::{CryptoProvider, ring as ring_provider};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{InconsistentKeys, ServerConfig};
use secrecy::zeroize::Zeroizing;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_rustls::TlsAcceptor;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::parse_x509_certificate;

use crate::downstream::Downstream;
use crate::settings::TlsFiles;

/// How often the files are looked at.
const LOOKED_AT: Duration = Duration::from_secs(2);
/// What we speak inside TLS, best first (RFC 7301, RFC 9113 §3.2).
const PROTOCOLS: [&[u8]; 3] = [b"h2", b"http/1.1", b"http/1.0"];

/// Why a certificate and its key cannot be used. Says which setting and which file.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// It is not there, or not ours to read.
    #[error("{setting}: {} cannot be read: {error}", .path.display())]
    Unreadable {
        /// The setting.
        setting: &'static str,
        /// Its file.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// It is no PEM. Its content is not shown: it may be a key.
    #[error("{setting}: {} is not proper PEM (RFC 7468)", .path.display())]
    NotPem {
        /// The setting.
        setting: &'static str,
        /// Its file.
        path: PathBuf,
    },
    /// It is PEM of something else.
    #[error("{setting}: {} has no {expected} in it", .path.display())]
    Missing {
        /// The setting.
        setting: &'static str,
        /// Its file.
        path: PathBuf,
        /// What should be there.
        expected: &'static str,
    },
    /// What is there cannot be used.
    #[error("{setting}: the {what} in {} cannot be used: {error}", .path.display())]
    Unusable {
        /// The setting.
        setting: &'static str,
        /// Its file.
        path: PathBuf,
        /// What is there.
        what: &'static str,
        /// What is wrong with it.
        error: String,
    },
    /// Each is good, and they are not a pair.
    #[error(
        "TLS_KEY_FILE: the key in {} does not belong to the first certificate in {} (TLS_CERT_FILE)",
        .files.key.display(),
        .files.certificate.display()
    )]
    NoPair {
        /// Both files.
        files: TlsFiles,
    },
    /// The library cannot speak TLS as it was built.
    #[error("TLS cannot be spoken: {0}")]
    Unspoken(rustls::Error),
    /// The system lets nobody watch for the signal.
    #[error("SIGHUP cannot be watched: {0}")]
    Unwatched(io::Error),
}

const CERTIFICATE: &str = "TLS_CERT_FILE";
const KEY: &str = "TLS_KEY_FILE";
const A_CERTIFICATE: &str = "certificate (BEGIN CERTIFICATE)";
const A_KEY: &str = "private key (BEGIN PRIVATE KEY, RSA PRIVATE KEY or EC PRIVATE KEY, without a passphrase)";

/// The server's side of handshakes.
pub struct TlsListener {
    acceptor: TlsAcceptor,
}

/// Keeps the certificate of a [`TlsListener`] up to date.
pub struct Renewal {
    files: TlsFiles,
    shown: Arc<Shown>,
    /// What the files last were.
    seen: Seen,
    hangup: Signal,
}

/// The certificate that is shown now.
struct Shown(ArcSwap<CertifiedKey>);

impl fmt::Debug for Shown {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Shown")
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

impl TlsListener {
    /// Reads the files, and watches for SIGHUP from now on. Needs a runtime around it, the one that runs the
    /// [`Renewal`].
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn open(files: &TlsFiles) -> Result<(Self, Renewal), TlsError> {
        let provider = Arc::new(ring_provider::default_provider());
        let read = read(files)?;
        let identity = Identity::judge(files, &read, &provider)?;
        identity.tell("TLS towards clients");
        let shown = Arc::new(Shown(ArcSwap::new(identity.key)));
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Unspoken)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&shown) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).into();
        let hangup = signal(SignalKind::hangup()).map_err(TlsError::Unwatched)?;
        let renewal = Renewal { files: files.clone(), shown, seen: read.seen(), hangup };
        Ok((Self { acceptor: TlsAcceptor::from(Arc::new(config)) }, renewal))
    }

    /// Shakes hands, for so long at most. `None`: there is nobody to speak to.
    pub async fn accept(&self, stream: Stream, within: Duration) -> Option<Downstream> {
        match timeout(within, self.acceptor.accept(stream)).await {
            Ok(Ok(stream)) => Some(Downstream::from(stream)),
            Ok(Err(error)) => {
                tracing::debug!(%error, "a client's TLS handshake failed");
                None
            }
            Err(_) => {
                tracing::debug!("a client's TLS handshake took longer than {within:?}");
                None
            }
        }
    }
}

impl Renewal {
    /// Looks at the files again and again.
    pub async fn run(mut self) {
        let mut tick = interval(LOOKED_AT);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let is_asked = tokio::select! {
                _ = tick.tick() => false,
                Some(()) = self.hangup.recv() => true,
            };
            let files = self.files.clone();
            // Reading waits for a disk, or for a network behind it.
            let Ok(read) = tokio::task::spawn_blocking(move || read(&files)).await else { continue };
            self.look(read, is_asked);
        }
    }

    /// Takes what was read, if it is new and good. `is_asked`: somebody waits for an answer.
    fn look(&mut self, read: Result<Read, TlsError>, is_asked: bool) {
        let seen = read.as_ref().map_or_else(|error| Seen::Unreadable(error.to_string()), Read::seen);
        if seen == self.seen {
            if is_asked {
                tracing::info!("SIGHUP: {CERTIFICATE} and {KEY} are as they were");
            }
            return;
        }
        self.seen = seen;
        let judged = read.and_then(|read| Identity::judge(&self.files, &read, &ring_provider::default_provider()));
        match judged {
            Ok(identity) => {
                identity.tell("a new certificate is shown to clients");
                self.shown.0.store(identity.key);
            }
            Err(error) => tracing::error!(%error, "clients are still shown the old certificate"),
        }
    }
}

/// What both files had in them.
struct Read {
    certificate: Vec<u8>,
    key: Zeroizing<Vec<u8>>,
}

/// What the files were, to tell whether they are something else now. Contents, not times: files are replaced by links
/// and by copies that keep theirs. A key is not kept for it.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Contents { certificate: Vec<u8>, key: Vec<u8> },
    Unreadable(String),
}

impl Read {
    fn seen(&self) -> Seen {
        let hash = |content: &[u8]| digest(&SHA256, content).as_ref().to_vec();
        Seen::Contents { certificate: hash(&self.certificate), key: hash(&self.key) }
    }
}

/// Reads both files. Blocks.
fn read(files: &TlsFiles) -> Result<Read, TlsError> {
    let read = |setting, path: &Path| {
        std::fs::read(path).map_err(|error| TlsError::Unreadable { setting, path: path.to_owned(), error })
    };
    Ok(Read { certificate: read(CERTIFICATE, &files.certificate)?, key: read(KEY, &files.key)?.into() })
}

/// A certificate with its key, and what is said about it.
struct Identity {
    key: Arc<CertifiedKey>,
    names: String,
    not_before: OffsetDateTime,
    not_after: OffsetDateTime,
}

impl Identity {
    fn judge(files: &TlsFiles, read: &Read, provider: &CryptoProvider) -> Result<Self, TlsError> {
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&read.certificate)
            .collect::<Result<_, _>>()
            .map_err(|error| not_pem(CERTIFICATE, &files.certificate, &error, A_CERTIFICATE))?;
        let key = PrivateKeyDer::from_pem_slice(&read.key).map_err(|error| not_pem(KEY, &files.key, &error, A_KEY))?;
        let unusable = |setting, path: &Path, what, error: String| TlsError::Unusable {
            setting,
            path: path.to_owned(),
            what,
            error,
        };
        let bad_certificate = |error: String| unusable(CERTIFICATE, &files.certificate, "first certificate", error);
        let Some(first) = chain.first() else {
            return Err(not_pem(CERTIFICATE, &files.certificate, &pem::Error::NoItemsFound, A_CERTIFICATE));
        };
        let (names, not_before, not_after) = about(first).map_err(bad_certificate)?;

        let key = provider
            .key_provider
            .load_private_key(key)
            .map_err(|error| unusable(KEY, &files.key, "private key", error.to_string()))?;
        let key = CertifiedKey::new(chain, key);
        match key.keys_match() {
            Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => {}
            Err(rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => {
                return Err(TlsError::NoPair { files: files.clone() });
            }
            Err(error) => return Err(bad_certificate(error.to_string())),
        }
        Ok(Self { key: Arc::new(key), names, not_before, not_after })
    }

    /// Says what is shown from now on, and whether clients will mind.
    fn tell(&self, what: &str) {
        let text = |moment: OffsetDateTime| moment.format(&Rfc3339).unwrap_or_default();
        let now = OffsetDateTime::now_utc();
        tracing::info!(names = %self.names, not_after = %text(self.not_after), "{what}");
        if now > self.not_after {
            tracing::warn!(not_after = %text(self.not_after), "the certificate in {CERTIFICATE} is expired");
        } else if now < self.not_before {
            tracing::warn!(not_before = %text(self.not_before), "the certificate in {CERTIFICATE} is not valid yet");
        }
    }
}

/// What keeps a file from being read as PEM, or as the PEM that is expected.
fn not_pem(setting: &'static str, path: &Path, error: &pem::Error, expected: &'static str) -> TlsError {
    let path = path.to_owned();
    match error {
        pem::Error::NoItemsFound => TlsError::Missing { setting, path, expected },
        _ => TlsError::NotPem { setting, path },
    }
}

/// The names that a certificate is for, and from when to when, or why it is none.
fn about(certificate: &[u8]) -> Result<(String, OffsetDateTime, OffsetDateTime), String> {
    let (_, parsed) = parse_x509_certificate(certificate).map_err(|error| error.to_string())?;
    let moment = |seconds| OffsetDateTime::from_unix_timestamp(seconds).map_err(|error| error.to_string());
    let validity = parsed.validity();
    Ok((names(&parsed), moment(validity.not_before.timestamp())?, moment(validity.not_after.timestamp())?))
}

/// The names that a certificate is for.
fn names(certificate: &X509Certificate<'_>) -> String {
    let Ok(Some(found)) = certificate.subject_alternative_name() else { return certificate.subject().to_string() };
    let name = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(octets) => <[u8; 4]>::try_from(*octets)
            .map(|octets| Ipv4Addr::from(octets).to_string())
            .or_else(|_| <[u8; 16]>::try_from(*octets).map(|octets| Ipv6Addr::from(octets).to_string()))
            .ok(),
        _ => None,
    };
    found.value.general_names.iter().filter_map(name).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};
    use tempfile::TempDir;

    use super::*;

    /// Two files, and what is in them.
    struct Stage {
        files: TlsFiles,
        _folder: TempDir,
    }

    impl Stage {
        fn with(certificate: &str, key: &str) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let files = TlsFiles { certificate: folder.path().join("cert.pem"), key: folder.path().join("key.pem") };
            let stage = Self { files, _folder: folder };
            stage.write(certificate, key);
            stage
        }

        fn write(&self, certificate: &str, key: &str) {
            std::fs::write(&self.files.certificate, certificate).unwrap();
            std::fs::write(&self.files.key, key).unwrap();
        }

        fn judged(&self) -> Result<Identity, String> {
            let judged = read(&self.files)
                .and_then(|read| Identity::judge(&self.files, &read, &ring_provider::default_provider()));
            judged.map_err(|error| error.to_string())
        }
    }

    fn pair(names: &[&str]) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params =
            CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap();
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2100, 1, 1);
        (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
    }

    #[test]
    fn a_good_pair_says_its_names_and_its_end() {
        let (certificate, key) = pair(&["proxy.test", "127.0.0.1", "::1"]);
        let Ok(identity) = Stage::with(&certificate, &key).judged() else { panic!("a good pair is refused") };
        assert_eq!(identity.names, "proxy.test, 127.0.0.1, ::1");
        assert_eq!(identity.not_after.format(&Rfc3339).unwrap(), "2100-01-01T00:00:00Z");
        assert_eq!(identity.key.cert.len(), 1);
        let chain = format!("{certificate}{}", pair(&["authority.test"]).0);
        assert_eq!(Stage::with(&chain, &key).judged().map(|identity| identity.key.cert.len()), Ok(2));
    }

    #[test]
    fn what_is_wrong_is_told_with_setting_and_file_and_without_the_key() {
        let (certificate, key) = pair(&["proxy.test"]);
        let (_, stranger) = pair(&["proxy.test"]);
        let locked = key.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
        let cut = certificate.lines().take(3).collect::<Vec<_>>().join("\n");
        let garbled = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let no_key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
        for (case, certificate, key, setting, file, expected) in [
            ("empty", "", &*key, CERTIFICATE, "cert.pem", "has no certificate"),
            ("text", "hello", &key, CERTIFICATE, "cert.pem", "has no certificate"),
            ("key for a certificate", &key, &key, CERTIFICATE, "cert.pem", "has no certificate"),
            ("cut", &cut, &key, CERTIFICATE, "cert.pem", "is not proper PEM"),
            ("garbled", garbled, &key, CERTIFICATE, "cert.pem", "the first certificate in"),
            ("no key", &certificate, "", KEY, "key.pem", "has no private key"),
            ("certificate for a key", &certificate, &certificate, KEY, "key.pem", "has no private key"),
            ("locked", &certificate, &locked, KEY, "key.pem", "without a passphrase"),
            ("garbled key", &certificate, no_key, KEY, "key.pem", "the private key in"),
            ("no pair", &certificate, &stranger, KEY, "key.pem", "does not belong to the first certificate"),
        ] {
            let Err(told) = Stage::with(certificate, key).judged() else { panic!("{case} was taken") };
            assert!(told.starts_with(&format!("{setting}: ")), "{case}: {told}");
            assert!(told.contains(file) && told.contains(expected), "{case}: {told}");
            let secret = key.lines().nth(1).filter(|line| line.len() > 10);
            assert!(secret.is_none_or(|secret| !told.contains(secret)), "{case}: {told}");
        }
        let stage = Stage::with(&certificate, &key);
        std::fs::remove_file(&stage.files.key).unwrap();
        let Err(told) = stage.judged() else { panic!("a missing key was taken") };
        assert!(told.starts_with("TLS_KEY_FILE: ") && told.contains("cannot be read"), "{told}");
    }

    #[tokio::test]
    async fn a_good_new_pair_is_shown_and_a_bad_one_is_not() {
        let (first, first_key) = pair(&["first.test"]);
        let (second, second_key) = pair(&["second.test"]);
        let stage = Stage::with(&first, &first_key);
        let (_listener, mut renewal) = TlsListener::open(&stage.files).unwrap();
        let mut shown = |certificate: &str, key: &str| {
            stage.write(certificate, key);
            renewal.look(read(&stage.files), false);
            about(&renewal.shown.0.load().cert[0]).unwrap().0
        };
        assert_eq!(shown(&first, &first_key), "first.test");
        assert_eq!(shown(&second, &first_key), "first.test", "half a change");
        assert_eq!(shown("", ""), "first.test");
        assert_eq!(shown(&second, &second_key), "second.test");
        assert_eq!(shown(&first, &first_key), "first.test", "and back");
    }
}

//! TLS towards clients: both versions of HTTP inside it, ends that say whether they are one, and certificates that are
//! replaced while the process runs.

mod common;

use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::setup::{Setup, eventually, first_event_end, recorded};
use common::wire::Ask;
use llm_proxy_tests::tls::VALID;
use llm_proxy_tests::{PATIENCE, run_binary};
use rcgen::{CertificateParams, DnType, KeyPair, date_time_ymd};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

const CHAT: &str = r#"{"model":"gpt-4o-mini","messages":[{"role":"user","content":"hi"}]}"#;
const STREAM: &str = r#"{"model":"gpt-4o-mini","messages":[],"stream":true,"stream_options":{"include_usage":true}}"#;
const CHAT_PATH: &str = "/v1/chat/completions";
const NAME: &str = "proxy.test";
const HEALTHY: &[u8] = br#"{"status":"ok"}"#;

/// A certificate that signs itself, and its key.
struct Pair {
    name: &'static str,
    certificate: String,
    key: String,
    der: CertificateDer<'static>,
}

fn pair(name: &'static str, years: Range<i32>) -> Pair {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new([name.to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = date_time_ymd(years.start, 1, 1);
    params.not_after = date_time_ymd(years.end, 1, 1);
    let certificate = params.self_signed(&key).unwrap();
    Pair { name, certificate: certificate.pem(), key: key.serialize_pem(), der: certificate.der().clone() }
}

/// The files that the proxy is given.
struct Files(TempDir);

impl Files {
    fn of(pair: &Pair) -> Self {
        let files = Self(tempfile::tempdir().unwrap());
        files.put(&pair.certificate, &pair.key);
        files
    }

    fn certificate(&self) -> PathBuf {
        self.0.path().join("cert.pem")
    }

    fn key(&self) -> PathBuf {
        self.0.path().join("key.pem")
    }

    /// Replaces both, each in one step.
    fn put(&self, certificate: &str, key: &str) {
        for (path, text) in [(self.certificate(), certificate), (self.key(), key)] {
            let new = path.with_extension("new");
            std::fs::write(&new, text).unwrap();
            std::fs::rename(&new, &path).unwrap();
        }
    }

    async fn setup(&self, settings: &[(&str, &str)]) -> Setup {
        let (certificate, key) = (self.certificate(), self.key());
        let tls = [("TLS_CERT_FILE", certificate.to_str().unwrap()), ("TLS_KEY_FILE", key.to_str().unwrap())];
        Setup::with(&[], &[&tls[..], settings].concat()).await
    }
}

/// Shakes hands with a server that must show this certificate.
async fn connect(to: SocketAddr, pair: &Pair, protocols: &[&[u8]]) -> io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(pair.der.clone()).unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    let stream = TcpStream::connect(to).await?;
    let name = ServerName::try_from(pair.name).unwrap();
    let connecting = TlsConnector::from(Arc::new(config)).connect(name, stream);
    timeout(PATIENCE, connecting).await.expect("the handshake ends")
}

/// Sends a request on a connection that is kept, and waits for an answer that ends like this.
async fn exchange(tls: &mut TlsStream<TcpStream>, request: &[u8], end: &[u8]) -> Vec<u8> {
    tls.write_all(request).await.unwrap();
    tls.flush().await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(end) {
        let read = timeout(PATIENCE, tls.read_buf(&mut answer)).await.expect("an answer comes").unwrap();
        assert!(read > 0, "it ended after {:?}", String::from_utf8_lossy(&answer));
    }
    answer
}

/// What comes until the connection ends; an error where nothing said that this is the end.
async fn rest(tls: &mut TlsStream<TcpStream>) -> (Vec<u8>, io::Result<usize>) {
    let mut all = Vec::new();
    let ended = timeout(PATIENCE, tls.read_to_end(&mut all)).await.expect("the connection ends");
    (all, ended)
}

fn health() -> Vec<u8> {
    Ask::get("/health").head()
}

/// Runs a program that must be there, to its end.
async fn run(program: &str, arguments: &[&str]) -> Output {
    let mut command = tokio::process::Command::new(program);
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    let output = timeout(2 * PATIENCE, command.output()).await;
    output.unwrap_or_else(|_| panic!("{program} does not end")).unwrap_or_else(|error| panic!("{program}: {error}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn curl_gets_the_providers_bytes_over_either_version_of_http() {
    let pair = pair(NAME, VALID);
    let files = Files::of(&pair);
    let setup = files.setup(&[]).await;
    let port = setup.proxy().port();
    let url = format!("https://{NAME}:{port}{CHAT_PATH}");
    let resolve = format!("{NAME}:{port}:127.0.0.1");
    let bearer = format!("authorization: Bearer {}", setup.token.text);
    let authority = files.certificate();
    let out = files.0.path().join("body");
    for (flag, version) in [("--http1.1", "1.1"), ("--http2", "2")] {
        for (recording, file, body) in [
            ("openai-chat-basic", "openai-chat-basic.json", CHAT),
            ("openai-chat-stream-usage", "openai-chat-stream-usage.sse", STREAM),
        ] {
            let named = format!("x-mock-recording: {recording}");
            let how = ["-sS", "--noproxy", "*", flag, "--cacert", authority.to_str().unwrap(), "--resolve", &resolve];
            let fields = ["-H", &bearer, "-H", &named, "-H", "content-type: application/json", "-d", body];
            let written = ["-o", out.to_str().unwrap(), "-w", "%{http_version} %{http_code}", &url];
            let told = run("curl", &[&how[..], &fields, &written].concat()).await;
            let (stdout, stderr) = (String::from_utf8_lossy(&told.stdout), String::from_utf8_lossy(&told.stderr));
            assert_eq!(stdout, format!("{version} 200"), "{flag}, {recording}: {stderr}");
            assert_eq!(std::fs::read(&out).unwrap(), recorded(file), "{flag}, {recording}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openssl_agrees_on_versions_and_protocols() {
    let pair = pair(NAME, VALID);
    let files = Files::of(&pair);
    let setup = files.setup(&[]).await;
    let (to, authority) = (setup.proxy().to_string(), files.certificate());
    let how = ["s_client", "-connect", &to, "-servername", NAME, "-CAfile", authority.to_str().unwrap()];
    for (more, expected) in [
        (&["-tls1_3", "-alpn", "h2,http/1.1"][..], &["TLSv1.3, Cipher is TLS_", "ALPN protocol: h2"][..]),
        (&["-tls1_3", "-alpn", "http/1.1,h2"], &["TLSv1.3, Cipher is TLS_", "ALPN protocol: h2"]),
        (&["-tls1_2", "-alpn", "http/1.1"], &["TLSv1.2, Cipher is ECDHE-", "ALPN protocol: http/1.1"]),
        (&["-tls1_2"], &["TLSv1.2, Cipher is ECDHE-", "No ALPN negotiated"]),
    ] {
        let told = run("openssl", &[&how[..], more].concat()).await;
        let told = String::from_utf8_lossy(&told.stdout).into_owned();
        assert!(told.contains("Verify return code: 0 (ok)"), "{more:?}: {told}");
        assert!(expected.iter().all(|expected| told.contains(expected)), "{more:?}: {told}");
    }
    for more in [&["-tls1_1", "-cipher", "DEFAULT@SECLEVEL=0"][..], &["-tls1_3", "-alpn", "spdy/3"]] {
        let told = run("openssl", &[&how[..], more].concat()).await;
        assert!(!told.status.success(), "{more:?}: {}", String::from_utf8_lossy(&told.stdout));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_says_that_it_is_one_and_a_cut_does_not() {
    let pair = pair(NAME, VALID);
    let files = Files::of(&pair);
    let mut setup = files.setup(&[]).await;

    let mut kept = connect(setup.proxy(), &pair, &[b"http/1.1"]).await.unwrap();
    exchange(&mut kept, &health(), HEALTHY).await;
    exchange(&mut kept, &health(), HEALTHY).await;
    kept.write_all(&Ask::get("/health").with("connection", "close").head()).await.unwrap();
    let (answer, ended) = rest(&mut kept).await;
    assert!(ended.is_ok() && answer.ends_with(HEALTHY), "{ended:?}: {}", String::from_utf8_lossy(&answer));

    let mut garbled = connect(setup.proxy(), &pair, &[]).await.unwrap();
    garbled.write_all(b"GET / HTTP/3.0\r\n\r\n").await.unwrap();
    let (answer, ended) = rest(&mut garbled).await;
    assert!(ended.is_ok() && answer.starts_with(b"HTTP/1.1 400 "), "{ended:?}: {}", String::from_utf8_lossy(&answer));

    // Neither framing nor connection looks like an end: HTTP/1.0 has only the connection.
    let event = first_event_end(&recorded("openai-chat-stream-usage.sse"));
    let chat = || setup.chat().with("x-mock-recording", "openai-chat-stream-usage").fault(&format!("cut:{event}"));
    for (case, request) in [("HTTP/1.1", chat().body(STREAM)), ("HTTP/1.0", chat().http10().body(STREAM))] {
        let mut torn = connect(setup.proxy(), &pair, &[]).await.unwrap();
        torn.write_all(&request).await.unwrap();
        let (answer, ended) = rest(&mut torn).await;
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.contains("data: {\"error\"") && !answer.contains("[DONE]"), "{case}: {answer}");
        let ended = ended.expect_err(case);
        assert_eq!(ended.kind(), io::ErrorKind::UnexpectedEof, "{case}");
    }

    let mut idle = connect(setup.proxy(), &pair, &[]).await.unwrap();
    exchange(&mut idle, &health(), HEALTHY).await;
    setup.sigterm();
    let (nothing, ended) = rest(&mut idle).await;
    assert!(ended.is_ok() && nothing.is_empty(), "{ended:?}");
    assert_eq!(setup.exited().await, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_2_inside_tls_is_agreed_upon_and_carries_many_streams() {
    let pair = pair(NAME, VALID);
    let files = Files::of(&pair);
    let setup = files.setup(&[]).await;
    let tls = connect(setup.proxy(), &pair, &[b"h2", b"http/1.1"]).await.unwrap();
    assert_eq!(tls.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (sender, connection) = h2::client::handshake(tls).await.unwrap();
    let connection = tokio::spawn(connection);
    let expected = recorded("openai-chat-basic.json");
    let mut answers = Vec::new();
    for _ in 0..20 {
        let request = http::Request::post(format!("https://{NAME}{CHAT_PATH}"))
            .header("authorization", format!("Bearer {}", setup.token.text))
            .header("content-type", "application/json")
            .header("x-mock-recording", "openai-chat-basic")
            .body(())
            .unwrap();
        let mut sender = sender.clone().ready().await.unwrap();
        let (answer, mut upload) = sender.send_request(request, false).unwrap();
        upload.send_data(CHAT.into(), true).unwrap();
        answers.push(answer);
    }
    for answer in answers {
        let mut answer = timeout(PATIENCE, answer).await.expect("an answer comes").unwrap();
        assert_eq!(answer.status(), 200);
        let mut body = Vec::new();
        while let Some(piece) = answer.body_mut().data().await {
            let piece = piece.unwrap();
            answer.body_mut().flow_control().release_capacity(piece.len()).unwrap();
            body.extend_from_slice(&piece);
        }
        assert_eq!(body, expected);
    }
    drop(sender);
    timeout(PATIENCE, connection).await.expect("the connection ends").unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handshake_has_a_deadline_a_head_inside_it_too_and_nothing_is_said_in_the_clear() {
    let pair = pair(NAME, VALID);
    let files = Files::of(&pair);
    let setup = files.setup(&[("HEAD_TIMEOUT", "1s")]).await;
    let began = Instant::now();
    let mut silent = TcpStream::connect(setup.proxy()).await.unwrap();
    let mut half = TcpStream::connect(setup.proxy()).await.unwrap();
    half.write_all(&[22, 3, 1, 0, 200, 1]).await.unwrap();
    for stream in [&mut silent, &mut half] {
        let mut all = Vec::new();
        let _ = timeout(PATIENCE, stream.read_to_end(&mut all)).await.expect("it is let go");
        assert!(all.is_empty(), "{all:?}");
        assert!(began.elapsed() >= Duration::from_millis(900), "{:?}", began.elapsed());
    }
    let mut plain = TcpStream::connect(setup.proxy()).await.unwrap();
    plain.write_all(&health()).await.unwrap();
    let mut all = Vec::new();
    let _ = timeout(PATIENCE, plain.read_to_end(&mut all)).await.expect("it is let go");
    // An alert (RFC 8446 §6), or nothing.
    assert!(all.first().is_none_or(|first| *first == 21), "{:?}", String::from_utf8_lossy(&all));

    let mut slow = connect(setup.proxy(), &pair, &[]).await.unwrap();
    slow.write_all(b"GET /health HT").await.unwrap();
    let (answer, _) = rest(&mut slow).await;
    assert!(answer.starts_with(b"HTTP/1.1 408 "), "{}", String::from_utf8_lossy(&answer));
}

/// How many lines of the log have all of this.
fn lines(setup: &Setup, marks: &[&str]) -> usize {
    setup.product.log().lines().filter(|line| marks.iter().all(|mark| line.contains(mark))).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_certificate_is_shown_without_a_restart_and_a_bad_one_is_not() {
    const KEPT: &str = "clients are still shown the old certificate";
    let (first, second, third) =
        (pair("first.test", VALID), pair("second.test", 2001..2101), pair("third.test", VALID));
    let files = Files::of(&first);
    let setup = files.setup(&[]).await;
    assert_eq!(lines(&setup, &["first.test", "2100-01-01T00:00:00Z"]), 1, "the start says what is shown");
    let mut running = connect(setup.proxy(), &first, &[]).await.unwrap();
    exchange(&mut running, &health(), HEALTHY).await;
    assert!(connect(setup.proxy(), &second, &[]).await.is_err());

    let shows = async |pair: &Pair| {
        llm_proxy_tests::eventually(PATIENCE, pair.name, async || connect(setup.proxy(), pair, &[]).await.ok()).await
    };
    files.put(&second.certificate, &second.key);
    let mut newer = shows(&second).await;
    assert_eq!(lines(&setup, &["a new certificate is shown", "second.test", "2101-01-01T00:00:00Z"]), 1);
    assert!(connect(setup.proxy(), &first, &[]).await.is_err(), "the old one is shown no more");
    exchange(&mut running, &health(), HEALTHY).await;

    for (case, certificate, key, expected) in [
        ("another's key", &*second.certificate, &*third.key, "TLS_KEY_FILE: the key in"),
        ("no PEM", "not a certificate", &second.key, "TLS_CERT_FILE: "),
        ("nothing", &second.certificate, "", "has no private key"),
    ] {
        files.put(certificate, key);
        eventually(case, || lines(&setup, &[KEPT, expected]) > 0).await;
        assert!(connect(setup.proxy(), &second, &[]).await.is_ok(), "{case}: the old one is shown no more");
    }
    // Looked at once more, and nothing is said again.
    let said = lines(&setup, &[KEPT]);
    setup.product.signal("HUP");
    let answer = ["SIGHUP: TLS_CERT_FILE and TLS_KEY_FILE are as they were"];
    eventually("SIGHUP is answered", || lines(&setup, &answer) > 0).await;
    assert_eq!(lines(&setup, &[KEPT]), said, "what is wrong is said once");

    std::fs::remove_file(files.key()).unwrap();
    eventually("a file that is gone", || lines(&setup, &[KEPT, "cannot be read"]) > 0).await;
    files.put(&third.certificate, &third.key);
    shows(&third).await;
    for connection in [&mut running, &mut newer] {
        exchange(connection, &health(), HEALTHY).await;
    }
    let log = setup.product.log();
    for pair in [&first, &second, &third] {
        let secret = pair.key.lines().nth(1).unwrap();
        assert!(!log.contains(secret), "a key is in the log");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expired_certificate_is_shown_with_a_warning() {
    let old = pair(NAME, 2000..2001);
    let files = Files::of(&old);
    let setup = files.setup(&[]).await;
    assert_eq!(lines(&setup, &["WARN", "is expired", "2001-01-01T00:00:00Z"]), 1);
    let error = connect(setup.proxy(), &old, &[]).await.expect_err("a client minds");
    assert!(error.to_string().contains("expired"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_shown_stops_the_start_with_one_line() {
    let (one, other) = (pair(NAME, VALID), pair("other.test", VALID));
    for (case, certificate, key, expected) in [
        ("no certificate", "", &*one.key, "llm-proxy: TLS_CERT_FILE: "),
        ("no key", &*one.certificate, "", "llm-proxy: TLS_KEY_FILE: "),
        ("no pair", &one.certificate, &other.key, "llm-proxy: TLS_KEY_FILE: the key in "),
    ] {
        let files = Files::of(&one);
        files.put(certificate, key);
        let (certificate, key) = (files.certificate(), files.key());
        let variables = [
            ("TLS_CERT_FILE", certificate.to_str().unwrap()),
            ("TLS_KEY_FILE", key.to_str().unwrap()),
            ("LISTEN_ADDR", "127.0.0.1:0"),
            ("ADMIN_LISTEN_ADDR", "127.0.0.1:0"),
        ];
        let ended = run_binary(files.0.path(), &["server"], &variables).await;
        assert_eq!(ended.code, Some(1), "{case}: {}", ended.stderr);
        let last = ended.stderr.lines().last().unwrap_or_default();
        assert!(last.starts_with(expected) && last.contains(".pem"), "{case}: {}", ended.stderr);
    }
    let files = Files::of(&one);
    let certificate = files.certificate();
    let variables = [("TLS_CERT_FILE", certificate.to_str().unwrap())];
    let ended = run_binary(files.0.path(), &["server"], &variables).await;
    assert_eq!(
        ended.stderr.trim(),
        "llm-proxy: TLS_CERT_FILE: found it without TLS_KEY_FILE, expected both or neither"
    );
}

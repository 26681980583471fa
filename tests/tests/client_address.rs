//! Whose a request is behind load balancers: what trusted proxies say in fields and in PROXY protocol headers, that
//! nobody else is believed, and that nothing of it is written down unless the operator asks.
//!
//! Every address of 127.0.0.0/8 is this machine: the peer is trusted or a stranger by the address it connects from.

mod common;

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::setup::{Setup, eventually};
use common::wire::{Ask, Wire, crc32};
use llm_proxy_tests::tls::VALID;
use llm_proxy_tests::{PATIENCE, metric, run_binary};
use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufWriter};
use tokio::net::{TcpSocket, TcpStream};
use tokio::process::Child;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

/// Who connects unless a scenario says otherwise.
const TRUSTED: &str = "127.0.0.1";
/// Somebody else on this machine.
const STRANGER: &str = "127.0.0.2";
/// An address that nobody here has.
const CLIENT: &str = "203.0.113.77";
/// A balancer from Debian's package, wherever the search path of this user ends.
const HAPROXY: &str = "/usr/sbin/haproxy";
const NAME: &str = "proxy.test";

/// A product that records whole addresses.
async fn recording(settings: &[(&str, &str)]) -> Setup {
    let usual = [("TRUSTED_PROXIES", TRUSTED), ("RECORD_CLIENT_ADDRESS", "full")];
    Setup::with(&[], &[&usual[..], settings].concat()).await
}

/// A product whose connections begin with a header.
async fn behind_balancers(settings: &[(&str, &str)]) -> Setup {
    recording(&[&[("PROXY_PROTOCOL", "on")][..], settings].concat()).await
}

/// A connection from this address.
async fn wire_from(from: &str, to: SocketAddr) -> Wire {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(from.parse().unwrap(), 0)).unwrap();
    Wire::of(socket.connect(to).await.unwrap())
}

/// What the record of an exchange has as the client's address.
async fn recorded(setup: &Setup, id: &str) -> Value {
    let record = setup.only_record(id).await;
    record.get("client_address").unwrap_or_else(|| panic!("no such field: {record}")).clone()
}

/// How many lines of the log somebody should look at.
fn alarms(setup: &Setup) -> Vec<String> {
    let log = setup.product.log();
    log.lines().filter(|line| line.contains("\"WARN\"") || line.contains("\"ERROR\"")).map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_address_is_written_down_unless_the_operator_asks() {
    let setup = Setup::with(&[], &[("TRUSTED_PROXIES", TRUSTED)]).await;
    let told = "TRUSTED_PROXIES does nothing: PROXY_PROTOCOL is off and RECORD_CLIENT_ADDRESS is none";
    assert!(alarms(&setup).iter().any(|line| line.contains(told)), "{}", setup.product.log());
    let answer = setup.wire().await.ask(setup.models().with("x-forwarded-for", CLIENT).head()).await;
    assert_eq!(answer.head.status, 200);
    assert_eq!(recorded(&setup, &answer.head.id()).await, Value::Null);
    let mut files = vec![setup.data_dir().join("events.jsonl")];
    files.extend(std::fs::read_dir(setup.data_dir().join("journal")).unwrap().map(|entry| entry.unwrap().path()));
    assert!(files.len() > 1, "{files:?}");
    for file in files.into_iter().filter(|file| file.is_file()) {
        let content = std::fs::read(&file).unwrap();
        assert!(!content.windows(CLIENT.len()).any(|part| part == CLIENT.as_bytes()), "{}", file.display());
    }
    assert!(!setup.product.log().contains(CLIENT));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_request_on_a_trusted_connection_is_its_own_clients_and_a_strangers_fields_are_not_read() {
    let setup = recording(&[("TRUSTED_PROXIES", "127.0.0.1, 10.0.0.0/8, 2001:db8:aaaa::/48")]).await;
    let cases: [(&[(&str, &str)], &str); 9] = [
        (&[], TRUSTED),
        (&[("x-forwarded-for", CLIENT)], CLIENT),
        (&[("X-Forwarded-For", "198.51.100.1, 203.0.113.77")], CLIENT),
        (
            &[("x-forwarded-for", "198.51.100.1"), ("x-forwarded-for", "203.0.113.77, 10.0.0.2, 2001:db8:aaaa::2")],
            CLIENT,
        ),
        (&[("x-forwarded-for", "10.0.0.3,10.0.0.2")], "10.0.0.3"),
        (&[("x-forwarded-for", "203.0.113.77, unknown, 10.0.0.2")], "10.0.0.2"),
        (&[("x-forwarded-for", "2001:db8::7")], "2001:db8::7"),
        (&[("forwarded", "for=198.51.100.1, for=\"203.0.113.77:4711\";proto=https")], CLIENT),
        (&[("forwarded", "for=198.51.100.1"), ("x-forwarded-for", CLIENT), ("x-real-ip", "198.51.100.2")], CLIENT),
    ];
    let ask =
        |fields: &[(&str, &str)]| fields.iter().fold(setup.models(), |ask, (name, value)| ask.with(name, value)).head();
    let (mut kept, mut strange) = (setup.wire().await, wire_from(STRANGER, setup.proxy()).await);
    for (fields, expected) in cases {
        let answer = kept.ask(ask(fields)).await;
        assert_eq!(recorded(&setup, &answer.head.id()).await, expected, "{fields:?}");
        let answer = strange.ask(ask(fields)).await;
        assert_eq!(recorded(&setup, &answer.head.id()).await, STRANGER, "{fields:?}");
    }
    let mut pipelined = setup.wire().await;
    pipelined.send(cases.map(|(fields, _)| ask(fields)).concat()).await;
    for (fields, expected) in cases {
        let answer = pipelined.answer().await;
        assert_eq!(recorded(&setup, &answer.head.id()).await, expected, "pipelined, {fields:?}");
    }
    for request in setup.mock.requests() {
        let head = String::from_utf8(request.head.to_vec()).unwrap().to_ascii_lowercase();
        assert!(!head.contains("forwarded") && !head.contains("x-real-ip") && !head.contains("203.0.113"), "{head}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_requests_and_streams_of_http_2_have_their_clients_too_and_truncated_is_a_network() {
    let setup = recording(&[("RECORD_CLIENT_ADDRESS", "truncated")]).await;
    for (fields, expected) in [
        (&[("x-forwarded-for", CLIENT)][..], "203.0.113.0/24"),
        (&[("x-forwarded-for", "2001:db8:1:2:3:4:5:6")], "2001:db8:1::/48"),
        (&[], "127.0.0.0/24"),
    ] {
        let with_fields = |ask: Ask| fields.iter().fold(ask, |ask, (name, value)| ask.with(name, value));
        for (case, status, request) in [
            ("answered", 200, with_fields(setup.models()).head()),
            ("no token", 401, with_fields(Ask::get("/v1/models")).head()),
            ("no route", 404, with_fields(setup.ask("GET", "/nowhere")).head()),
        ] {
            let answer = setup.wire().await.ask(request).await;
            assert_eq!(answer.head.status, status, "{case}");
            assert_eq!(recorded(&setup, &answer.head.id()).await, expected, "{case}, {fields:?}");
        }
        let named: Vec<String> = fields.iter().map(|(name, value)| format!("{name}: {value}")).collect();
        let named: Vec<&str> = named.iter().flat_map(|field| ["-H", field]).collect();
        let id = curl(&setup, &format!("http://{}", setup.proxy()), "2", &named).await;
        assert_eq!(recorded(&setup, &id).await, expected, "HTTP/2, {fields:?}");
    }
    // What cannot be read is the connection's.
    let answer =
        setup.wire().await.ask(format!("GET / HTTP/1.1\r\nhost: a b\r\nx-forwarded-for: {CLIENT}\r\n\r\n")).await;
    assert_eq!(answer.head.status, 400);
    assert_eq!(recorded(&setup, &answer.head.id()).await, "127.0.0.0/24");
}

/// A header of version 2.
fn block(command: u8, family: u8, parts: &[&[u8]]) -> Vec<u8> {
    let content = parts.concat();
    let length = u16::try_from(content.len()).unwrap().to_be_bytes();
    [&b"\r\n\r\n\0\r\nQUIT\n"[..], &[command, family], &length, &content].concat()
}

fn tlv(kind: u8, value: &[u8]) -> Vec<u8> {
    [&[kind][..], &u16::try_from(value.len()).unwrap().to_be_bytes(), value].concat()
}

/// The header with its checksum, which stands `from_end` bytes before its end.
fn sealed(mut header: Vec<u8>, from_end: usize) -> Vec<u8> {
    let mut crc = u32::MAX;
    for byte in &header {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82F6_3B78 } else { crc >> 1 };
        }
    }
    let at = header.len() - from_end;
    header[at..at + 4].copy_from_slice(&(!crc).to_be_bytes());
    header
}

const INET: [u8; 12] = [203, 0, 113, 77, 127, 0, 0, 1, 0xDC, 4, 1, 0xBB];

fn line() -> Vec<u8> {
    format!("PROXY TCP4 {CLIENT} 127.0.0.1 56324 443\r\n").into()
}

fn block_with_checksum() -> Vec<u8> {
    sealed(block(0x21, 0x11, &[&INET, &tlv(2, b"proxy.test"), &tlv(3, &[0; 4]), &tlv(5, b"id")]), 9)
}

/// Whom a header names; the peer where it names nobody.
fn headers() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let inet6 = [0x2001u16, 0xDB8, 0, 0, 0, 0, 0, 7].map(u16::to_be_bytes).concat();
    let mapped = [&[0u8; 10][..], &[0xFF, 0xFF], &INET[..4]].concat();
    vec![
        ("line", line(), CLIENT),
        ("line, IPv6", b"PROXY TCP6 2001:db8::7 ::1 1 2\r\n".to_vec(), "2001:db8::7"),
        ("line, IPv4-mapped", format!("PROXY TCP6 ::ffff:{CLIENT} ::1 1 2\r\n").into(), CLIENT),
        ("line, unknown", b"PROXY UNKNOWN\r\n".to_vec(), TRUSTED),
        ("line, unknown, 107 bytes", format!("PROXY UNKNOWN {}\r\n", "x".repeat(91)).into(), TRUSTED),
        ("block", block(0x21, 0x11, &[&INET]), CLIENT),
        ("block, UDP", block(0x21, 0x12, &[&INET]), CLIENT),
        ("block, IPv6", block(0x21, 0x21, &[&inet6, &[0; 16], &[0, 1, 0, 2]]), "2001:db8::7"),
        ("block, IPv4-mapped", block(0x21, 0x21, &[&mapped, &mapped, &[0; 4]]), CLIENT),
        ("block, TLVs with a checksum", block_with_checksum(), CLIENT),
        ("block, 4096 bytes", block(0x21, 0x11, &[&INET, &tlv(4, &[0; 4065])]), CLIENT),
        ("block, LOCAL", block(0x20, 0, &[]), TRUSTED),
        ("block, LOCAL with addresses", block(0x20, 0x11, &[&INET]), TRUSTED),
        ("block, unspecified", block(0x21, 0, &[]), TRUSTED),
        ("block, UNIX", block(0x21, 0x31, &[&[b'/'; 216]]), TRUSTED),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_header_names_the_client_and_no_byte_behind_it_is_lost_however_it_arrives() {
    let setup = behind_balancers(&[]).await;
    let body = b"what stands behind a header".repeat(20);
    let upload = |fields: Ask| fields.body(&body);
    let same = json!([200, body.len(), crc32(&body)]);
    for (case, header, expected) in headers() {
        let request = upload(setup.echo().with("connection", "close"));
        let mut at_once = setup.wire().await;
        at_once.send([&header[..], &request].concat()).await;
        let mut octets = setup.wire().await;
        for octet in header.chunks(1) {
            octets.send(octet).await;
        }
        octets.send(&request).await;
        for (way, mut wire) in [("at once", at_once), ("octet by octet", octets)] {
            let answer = wire.answer().await;
            let seen = answer.json();
            assert_eq!(json!([answer.head.status, seen["body_len"], seen["body_crc32"]]), same, "{case}, {way}");
            assert_eq!(recorded(&setup, &answer.head.id()).await, expected, "{case}, {way}");
        }
    }
    for header in [line(), block_with_checksum()] {
        let sent = [&header[..], &setup.models().head()].concat();
        for cut in 1..=header.len() + 3 {
            let mut wire = setup.wire().await;
            wire.send(&sent[..cut]).await;
            wire.send(&sent[cut..]).await;
            let answer = wire.answer().await;
            assert_eq!(answer.head.status, 200, "cut at {cut}");
            assert_eq!(recorded(&setup, &answer.head.id()).await, CLIENT, "cut at {cut}");
        }
    }
    assert_eq!(alarms(&setup), [] as [&str; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fields_are_believed_behind_a_header_as_far_as_it_names_a_trusted_proxy() {
    let setup = behind_balancers(&[("TRUSTED_PROXIES", "127.0.0.1,10.0.0.0/8")]).await;
    let mut trusted = setup.wire().await;
    trusted.send(b"PROXY TCP4 10.1.2.3 127.0.0.1 1 2\r\n").await;
    let mut strange = setup.wire().await;
    strange.send(b"PROXY TCP4 198.51.100.1 127.0.0.1 1 2\r\n").await;
    for client in [CLIENT, "2001:db8::7"] {
        for (wire, expected) in [(&mut trusted, client), (&mut strange, "198.51.100.1")] {
            let answer = wire.ask(setup.models().with("x-forwarded-for", client).head()).await;
            assert_eq!(recorded(&setup, &answer.head.id()).await, expected);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_right_header_from_a_trusted_peer_a_connection_is_closed_without_a_word() {
    let setup = behind_balancers(&[]).await;
    let request = setup.models().head();
    let mut wrong_checksum = block_with_checksum();
    wrong_checksum[20] ^= 1;
    let openings = [
        ("no header", vec![]),
        ("two headers", [line(), line()].concat()),
        ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec()),
        ("TLS", vec![22, 3, 1, 0, 200, 1, 0, 0, 196, 3, 3]),
        ("small letters", b"proxy TCP4 203.0.113.77 127.0.0.1 1 2\r\n".to_vec()),
        ("LF", b"PROXY TCP4 203.0.113.77 127.0.0.1 1 2\n".to_vec()),
        ("no address", b"PROXY TCP4 client 127.0.0.1 1 2\r\n".to_vec()),
        ("108 bytes", format!("PROXY UNKNOWN {}\r\n", "x".repeat(92)).into()),
        ("another signature", b"\r\n\r\n\0\r\nQUIT\r\n\x21\x11\0\x0C".to_vec()),
        ("version 3", block(0x31, 0x11, &[&INET])),
        ("a third command", block(0x22, 0x11, &[&INET])),
        ("an unknown family", block(0x21, 0x41, &[&INET])),
        ("too short", block(0x21, 0x21, &[&INET])),
        ("4097 bytes", block(0x21, 0x11, &[&INET, &tlv(4, &[0; 4066])])),
        ("a TLV that is cut", block(0x21, 0x11, &[&INET, &[4, 0, 9]])),
        ("a wrong checksum", wrong_checksum),
    ];
    let (before, events) = (setup.mock.stats().requests, setup.records().len());
    for (case, opening) in openings {
        let mut wire = setup.wire().await;
        let _ = wire.try_send([&opening[..], &request].concat()).await;
        let said = wire.closed().await;
        // Behind a right header a second one is a broken request: that is answered.
        let is_answered = case == "two headers";
        assert_eq!(said.starts_with(b"HTTP/1.1 400 "), is_answered, "{case}: {}", said.escape_ascii());
        assert!(is_answered || said.is_empty(), "{case}: {}", said.escape_ascii());
    }
    for header in [line(), block_with_checksum(), block(0x20, 0, &[]), vec![]] {
        let mut wire = wire_from(STRANGER, setup.proxy()).await;
        let _ = wire.try_send([&header[..], &request].concat()).await;
        assert_eq!(wire.closed().await, b"", "a stranger with {}", header.escape_ascii());
    }
    let mut wire = setup.wire().await;
    wire.send([&line()[..], &request].concat()).await;
    let answer = wire.answer().await;
    assert_eq!(recorded(&setup, &answer.head.id()).await, CLIENT, "others are served");
    assert_eq!(setup.mock.stats().requests - before, 1, "nothing else reached the provider");
    assert_eq!(setup.records().len() - events, 2, "the broken request and the good one");
    let metrics = setup.product.metrics().await;
    assert_eq!(metric(&metrics, "llm_proxy_refusals_total", &[]), 1.0, "connections are no requests");

    // Each reason is told, and not each time.
    let told = alarms(&setup);
    for (reason, peer) in [("its peer is not in TRUSTED_PROXIES", STRANGER), ("began without a header", TRUSTED)] {
        assert!(told.iter().any(|line| line.contains(reason) && line.contains(peer)), "{reason}: {told:?}");
    }
    assert!(told.len() < 6, "{told:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_header_has_the_time_that_a_head_has() {
    const DEADLINE: Duration = Duration::from_secs(1);
    const LATEST: Duration = Duration::from_secs(4);
    let setup = behind_balancers(&[("HEAD_TIMEOUT", "1s")]).await;
    let mut cases = JoinSet::new();
    for (case, start, drips) in [
        ("silent", vec![], false),
        ("half a line", line()[..20].to_vec(), false),
        ("half a block", block_with_checksum()[..20].to_vec(), false),
        ("a line, dripped", b"PROXY UNKNOWN ".to_vec(), true),
        ("a block, dripped", block(0x21, 0x11, &[&INET, &tlv(4, &[0; 4000])])[..30].to_vec(), true),
    ] {
        let to = setup.proxy();
        cases.spawn(async move {
            let began = Instant::now();
            let mut wire = wire_from(TRUSTED, to).await;
            wire.send(&start).await;
            let said = loop {
                tokio::select! {
                    biased;
                    said = wire.closed() => break said,
                    () = tokio::time::sleep(Duration::from_millis(20)), if drips => {}
                }
                if wire.try_send("x").await.is_err() {
                    break wire.closed().await;
                }
            };
            let took = began.elapsed();
            assert_eq!(said, b"", "{case}");
            assert!(took >= DEADLINE && took < LATEST, "{case}: after {took:?}");
        });
    }
    while let Some(case) = cases.join_next().await {
        case.unwrap();
    }
    // The time is the header's: behind it, a client may be silent for longer.
    let mut wire = setup.wire().await;
    wire.send(line()).await;
    tokio::time::sleep(DEADLINE + Duration::from_millis(200)).await;
    assert_eq!(wire.ask(setup.models().head()).await.head.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_only_looks_whether_somebody_listens_is_no_event() {
    let setup = behind_balancers(&[]).await;
    for from in [TRUSTED, STRANGER] {
        for _ in 0..10 {
            drop(wire_from(from, setup.proxy()).await);
            wire_from(from, setup.proxy()).await.reset();
        }
    }
    for _ in 0..10 {
        for header in [block(0x20, 0, &[]), b"PROXY UNKNOWN\r\n".to_vec(), line()[..9].to_vec()] {
            let mut wire = setup.wire().await;
            wire.send(header).await;
            wire.reset();
        }
    }
    // The first that is an event is the first that is told.
    let mut last = setup.wire().await;
    last.send("GET /health HTTP/1.1\r\n").await;
    assert_eq!(last.closed().await, b"");
    eventually("the last one is told of", || !alarms(&setup).is_empty()).await;
    let told = alarms(&setup);
    assert!(
        matches!(&told[..], [one] if one.contains("began without a header") && one.contains("\"count\":1")),
        "{told:?}"
    );
    let metrics = setup.product.metrics().await;
    let requests =
        metric(&metrics, "llm_proxy_requests_total", &[]) + metric(&metrics, "llm_proxy_refusals_total", &[]);
    assert_eq!((requests, setup.records().len()), (0.0, 0), "{metrics}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_header_nobody_could_send_stops_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let ended = run_binary(folder.path(), &["server", "--proxy-protocol", "on"], &[]).await;
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert_eq!(
        ended.stderr.trim(),
        "llm-proxy: --proxy-protocol: found on without TRUSTED_PROXIES, expected there the addresses of the load \
         balancers that send the header"
    );
}

/// Asks for a list of models with curl, and tells the id of the exchange.
async fn curl(setup: &Setup, base: &str, version: &str, more: &[&str]) -> String {
    let how = match (version, base.starts_with("https:")) {
        ("2", true) => "--http2",
        ("2", false) => "--http2-prior-knowledge",
        _ => "--http1.1",
    };
    let mut command = tokio::process::Command::new("curl");
    command.args(["-sS", "--noproxy", "*", "-k", "-o", "/dev/null", how]);
    command.args(["-w", "%{http_version} %{http_code} %header{x-llm-proxy-request-id}"]);
    command.args(["-H", &format!("authorization: Bearer {}", setup.token.text)]).args(more);
    command.arg(format!("{base}/v1/models")).stdin(Stdio::null()).kill_on_drop(true);
    let told = timeout(PATIENCE, command.output()).await.expect("curl ends").unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&told.stdout), String::from_utf8_lossy(&told.stderr));
    let id = stdout.strip_prefix(&format!("{version} 200 "));
    id.unwrap_or_else(|| panic!("{base}, HTTP/{version}, {more:?}: {stdout} {stderr}")).to_owned()
}

/// A certificate that signs itself, as files and as what a client trusts.
struct Pair {
    folder: TempDir,
    der: CertificateDer<'static>,
}

impl Pair {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([NAME.to_owned()]).unwrap();
        params.not_before = date_time_ymd(VALID.start, 1, 1);
        params.not_after = date_time_ymd(VALID.end, 1, 1);
        let certificate = params.self_signed(&key).unwrap();
        let pair = Self { folder: tempfile::tempdir().unwrap(), der: certificate.der().clone() };
        std::fs::write(pair.file("cert.pem"), certificate.pem()).unwrap();
        std::fs::write(pair.file("key.pem"), key.serialize_pem()).unwrap();
        pair
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    async fn setup(&self, settings: &[(&str, &str)]) -> Setup {
        let (certificate, key) = (self.file("cert.pem"), self.file("key.pem"));
        let tls = [("TLS_CERT_FILE", certificate.to_str().unwrap()), ("TLS_KEY_FILE", key.to_str().unwrap())];
        behind_balancers(&[&tls[..], settings].concat()).await
    }

    fn connector(&self) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        roots.add(self.der.clone()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        TlsConnector::from(Arc::new(config))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_header_stands_before_tls_and_may_share_a_segment_with_it() {
    let pair = Pair::new();
    let setup = pair.setup(&[]).await;
    let request = setup.models().with("connection", "close").head();
    for (case, header, expected) in headers() {
        // Nothing goes out before the first flush, which is the handshake's.
        let mut stream = BufWriter::with_capacity(64 * 1024, TcpStream::connect(setup.proxy()).await.unwrap());
        stream.write_all(&header).await.unwrap();
        let connecting = pair.connector().connect(ServerName::try_from(NAME).unwrap(), stream);
        let mut tls = timeout(PATIENCE, connecting).await.expect("the handshake ends").unwrap();
        tls.write_all(&request).await.unwrap();
        tls.flush().await.unwrap();
        let mut answer = String::new();
        timeout(PATIENCE, tls.read_to_string(&mut answer)).await.expect("the connection ends").unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{case}: {answer}");
        let id = answer.lines().find_map(|line| line.strip_prefix("x-llm-proxy-request-id: ")).unwrap();
        assert_eq!(recorded(&setup, id).await, expected, "{case}");
    }
    assert_eq!(alarms(&setup), [] as [&str; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn curl_is_known_by_the_line_it_sends_over_every_version() {
    let pair = Pair::new();
    let plain = behind_balancers(&[("TRUSTED_PROXIES", "127.0.0.3")]).await;
    let tls = pair.setup(&[("TRUSTED_PROXIES", "127.0.0.3")]).await;
    for (setup, scheme) in [(&plain, "http"), (&tls, "https")] {
        let base = format!("{scheme}://{}", setup.proxy());
        for version in ["1.1", "2"] {
            let from = ["--haproxy-protocol", "--interface", "127.0.0.3"];
            let id = curl(setup, &base, version, &from).await;
            assert_eq!(recorded(setup, &id).await, "127.0.0.3", "{scheme}, HTTP/{version}");
            let field = format!("x-forwarded-for: {CLIENT}");
            let id = curl(setup, &base, version, &[&from[..], &["-H", field.as_str()]].concat()).await;
            assert_eq!(recorded(setup, &id).await, CLIENT, "{scheme}, HTTP/{version}");
        }
    }
}

/// A running HAProxy, with one port for each of its front ends.
struct Balancer {
    ports: Vec<u16>,
    _child: Child,
    _folder: TempDir,
}

impl Balancer {
    /// Of each front end: its mode with its options, the proxy behind it, and how it connects to that.
    async fn start(ends: &[(&str, SocketAddr, &str)]) -> Self {
        for _ in 0..5 {
            let folder = tempfile::tempdir().unwrap();
            let listeners: Vec<_> = ends.iter().map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
            let ports: Vec<u16> = listeners.iter().map(|listener| listener.local_addr().unwrap().port()).collect();
            let mut config =
                "global\n maxconn 64\ndefaults\n timeout connect 5s\n timeout client 30s\n timeout server 30s\n"
                    .to_owned();
            for ((mode, proxy, how), port) in ends.iter().zip(&ports) {
                config += &format!("listen at{port}\n {mode}\n bind 127.0.0.1:{port}\n server proxy {proxy} {how}\n");
            }
            let path = folder.path().join("haproxy.cfg");
            std::fs::write(&path, config).unwrap();
            drop(listeners);
            let mut command = tokio::process::Command::new(HAPROXY);
            command.arg("-db").arg("-f").arg(path).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            let mut child = command.kill_on_drop(true).spawn().unwrap_or_else(|error| panic!("{HAPROXY}: {error}"));
            let is_up = llm_proxy_tests::eventually(PATIENCE, "HAProxy listens", async || {
                if child.try_wait().unwrap().is_some() {
                    return Some(false);
                }
                for port in &ports {
                    TcpStream::connect(("127.0.0.1", *port)).await.ok()?;
                }
                Some(true)
            });
            // Otherwise somebody else took a port in between.
            if is_up.await {
                return Self { ports, _child: child, _folder: folder };
            }
        }
        panic!("HAProxy does not start");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn haproxy_passes_connections_on_with_either_version_of_the_header() {
    const LINE: &str = "send-proxy check inter 100ms";
    const BLOCK: &str = "send-proxy-v2 proxy-v2-options crc32c,unique-id check check-send-proxy inter 100ms";
    let pair = Pair::new();
    let (plain, tls) = (behind_balancers(&[]).await, pair.setup(&[]).await);
    let ends: Vec<_> = [&plain, &tls]
        .into_iter()
        .flat_map(|setup| [LINE, BLOCK].map(|how| ("mode tcp", setup.proxy(), how)))
        .collect();
    let balancer = Balancer::start(&ends).await;
    for (at, port) in balancer.ports.iter().enumerate() {
        let (setup, scheme) = if at < 2 { (&plain, "http") } else { (&tls, "https") };
        for version in ["1.1", "2"] {
            let lie = format!("x-forwarded-for: {CLIENT}");
            let more = ["--interface", "127.0.0.9", "-H", &lie];
            let id = curl(setup, &format!("{scheme}://127.0.0.1:{port}"), version, &more).await;
            assert_eq!(recorded(setup, &id).await, "127.0.0.9", "{:?}, HTTP/{version}", ends[at]);
        }
    }
    // Its checks, with LOCAL and without a word, are no events.
    for setup in [&plain, &tls] {
        assert_eq!(alarms(setup), [] as [&str; 0]);
        assert_eq!(setup.records().len(), 4);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn haproxy_adds_the_client_behind_what_the_client_wrote() {
    let setup = recording(&[]).await;
    let ends = [("mode http\n option forwardfor", setup.proxy(), "check inter 100ms")];
    let balancer = Balancer::start(&ends).await;
    let base = format!("http://127.0.0.1:{}", balancer.ports[0]);
    let lie = format!("x-forwarded-for: {CLIENT}, 127.0.0.1");
    for more in [&["--interface", "127.0.0.9"][..], &["--interface", "127.0.0.9", "-H", &lie]] {
        let id = curl(&setup, &base, "1.1", more).await;
        assert_eq!(recorded(&setup, &id).await, "127.0.0.9", "{more:?}");
    }
}

//! Providers that somebody else wrote, as many of those are that people run themselves: Node's HTTP server
//! (`e2e/provider.mjs`), and openssl under TLS.

mod common;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;

use common::setup::{Api, Setup};
use llm_proxy_tests::foreign::{Fetched, Listener};
use llm_proxy_tests::tls::{Authority, VALID};
use llm_proxy_tests::{PATIENCE, Provider, World};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;

/// A server that is killed with the test.
struct Server {
    addr: SocketAddr,
    _child: Child,
    /// Open as long as it runs: what it still says must not be the end of it.
    _output: Lines<BufReader<ChildStdout>>,
}

impl Server {
    /// Starts it, and reads its port in the first line that begins like this.
    async fn start(program: &str, arguments: &[&str], before_port: &str) -> Self {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{program}: {error}"));
        let mut lines = BufReader::new(child.stdout.take().expect("its output is a pipe")).lines();
        let listening = async {
            while let Some(line) = lines.next_line().await.unwrap() {
                if let Some(port) = line.strip_prefix(before_port) {
                    return port.trim().parse::<u16>().unwrap();
                }
            }
            panic!("{program} ended")
        };
        let port = timeout(PATIENCE, listening).await.unwrap_or_else(|_| panic!("{program} does not listen"));
        Self { addr: SocketAddr::from(([127, 0, 0, 1], port)), _child: child, _output: lines }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_node_answers_arrives_in_either_version_and_what_is_for_the_connection_does_not() {
    const UPLOAD: usize = 3_000_000;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/e2e/provider.mjs");
    let node = Server::start("node", &[script], "").await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("body");
    let body: Vec<u8> = (0..UPLOAD).map(|at| u8::try_from(at % 251).unwrap()).collect();
    std::fs::write(&file, &body).unwrap();

    let listener = Listener::clear();
    let setup = Setup::with(&[Api::at("node", node.addr, "")], &[]).await;
    for way in listener.ways() {
        let curl = |name: &str| {
            let path = format!("/node/v1/models/{name}");
            listener.curl(way, setup.proxy(), &path).bearer(&setup.token.text)
        };
        let count = async || curl("connections").fetch().await.json()["connections"].as_u64().unwrap();
        let check = |fetched: &Fetched, statuses: &[u16], body: &str| {
            assert_eq!((fetched.statuses(), fetched.text().as_str()), (statuses.to_vec(), body), "{way}");
        };
        let before = count().await;
        let hints = curl("hints").fetch().await;
        check(&hints, &[103, 200], r#"{"hints":true}"#);
        assert!(hints.heads.contains("link: </style.css>; rel=preload"), "{way}: {}", hints.heads);
        let trailers = curl("trailers").fetch().await;
        check(&trailers, &[200], r#"{"trailers":true}"#);
        assert!(!trailers.heads.contains("x-sum"), "{way}: {}", trailers.heads);
        check(&curl("empty").fetch().await, &[204], "");
        let unchanged = curl("unchanged").with("if-none-match", "\"one\"").fetch().await;
        check(&unchanged, &[304], "");
        assert_eq!(unchanged.field("etag"), Some("\"one\""), "{way}");
        check(
            &curl("events").fetch().await,
            &[200],
            "data: 0\n\ndata: 1\n\ndata: 2\n\ndata: 3\n\ndata: 4\n\ndata: [DONE]\n\n",
        );

        // Beside its answer the request is still on its way, and its sender had to be asked for it.
        let waiting = curl("mirror").with("expect", "100-continue").option("--expect100-timeout", "60");
        let mirrored = waiting.upload(&file).fetch().await;
        assert_eq!(mirrored.status, 200, "{way}: {}", mirrored.heads);
        assert!(mirrored.body == body, "{way}: other bytes, {} of them", mirrored.body.len());

        let fields = curl("fields").with("connection", "x-mine").with("x-mine", "1").with("te", "trailers");
        let fields = fields.with("expect", "100-continue").json("{}").fetch().await;
        let told: Vec<String> = serde_json::from_slice(&fields.body).unwrap();
        let names: Vec<String> = told.iter().step_by(2).map(|name| name.to_ascii_lowercase()).collect();
        for name in ["connection", "keep-alive", "te", "trailer", "transfer-encoding", "expect", "upgrade"] {
            assert!(!names.iter().any(|found| found == name), "{way}: {name} went to the provider: {told:?}");
        }
        // A request that comes sooner than the one before has given its connection back may take another.
        assert!(count().await <= before + 1, "{way}: all of that is one connection's work");

        for _ in 0..2 {
            let last = curl("last").fetch().await;
            check(&last, &[200], r#"{"last":true}"#);
            assert_eq!(last.field("connection"), None, "{way}: that the provider closes is no matter of the client's");
        }
        assert!(count().await >= before + 2, "{way}: a connection that ends is not used again");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openssl_is_a_provider_in_either_version_of_tls_and_sees_the_certificate_of_its_api() {
    let authority = Authority::new("An authority that is trusted");
    let (server, client) = (authority.certify("localhost", VALID), authority.certify("llm-proxy.test", VALID));
    let text = |path: PathBuf| path.to_str().unwrap().to_owned();
    let (certificate, key) = (text(server.certificate_file()), text(server.key_file()));
    let trusted = text(authority.file());
    let shown = format!(
        "client_cert_file: {}\nclient_key_file: {}",
        client.certificate_file().display(),
        client.key_file().display()
    );
    let how = ["s_server", "-accept", "127.0.0.1:0", "-cert", &certificate, "-key", &key, "-CAfile", &trusted, "-www"];
    let mut servers = Vec::new();
    for (name, more, yaml) in [
        ("tls13", &["-tls1_3"][..], ""),
        ("tls12", &["-tls1_2"], ""),
        ("mutual13", &["-tls1_3", "-Verify", "1", "-verify_return_error"], &*shown),
        ("mutual12", &["-tls1_2", "-Verify", "1", "-verify_return_error"], &*shown),
    ] {
        let server = Server::start("openssl", &[&how[..], more].concat(), "ACCEPT 127.0.0.1:").await;
        servers.push((name, server, yaml));
    }
    let world = World::with(|mut options| {
        for (name, server, yaml) in &servers {
            let api = format!("dialect: openai\nbase_url: https://localhost:{}\n{yaml}", server.addr.port());
            options = options.api(name, &api);
        }
        options.set("SSL_CERT_FILE", &trusted)
    })
    .await;
    world.set_keys(servers.iter().map(|(name, ..)| ((*name).to_owned(), Provider::OpenAi.key()))).await;
    let listener = Listener::clear();
    for (name, ..) in &servers {
        // A page about the connection, which ends with it.
        for way in listener.ways() {
            let curl = listener.curl(way, world.product.data_addr(), &format!("/{name}/v1/models"));
            let page = curl.bearer(&world.token.secret).fetch().await;
            let text = page.text();
            assert_eq!(page.status, 200, "{name}: {text}");
            let version = if name.ends_with("13") { "TLSv1.3, Cipher is TLS_" } else { "TLSv1.2, Cipher is ECDHE-" };
            assert!(text.contains(version) && text.ends_with("</HTML>\r\n\r\n"), "{name}: {text}");
            let is_anonymous = text.contains("no client certificate available");
            assert_eq!(is_anonymous, !name.starts_with("mutual"), "{name}: {text}");
            let record = world.product.wait_event(&page.id()).await;
            let told = (&record["outcome"], &record["reason"]);
            assert_eq!(told, (&json!("finished"), &json!("until_close")), "{name}: {record}");
        }
    }
}

//! A page in Chromium: what a browser lets an app do with a proxy of another origin, over either version of HTTP, and what
//! it keeps from the page of a stranger. The page is `e2e/page.html`; it tells the server that it came from what it found.

mod common;

use std::fs::File;
use std::process::Stdio;
use std::time::Duration;

use common::setup::recorded;
use common::upstream::Upstream;
use llm_proxy_load::mock::{Ended, RequestRecord};
use llm_proxy_tests::foreign::Listener;
use llm_proxy_tests::{PATIENCE, Provider, World, eventually, is_uuid_v7};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::time::timeout;

const PAGE: &str = include_str!("../e2e/page.html");
/// A cold start of the browser is slow.
const START: Duration = Duration::from_secs(90);
/// Nothing but the page is to be loaded, by nobody's proxy, and nothing kept. Without a sandbox, because root has none, and
/// it runs no script but ours.
const FLAGS: [&str; 10] = [
    "--headless=new",
    "--no-sandbox",
    "--no-proxy-server",
    "--no-first-run",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--password-store=basic",
];

/// The server that the page comes from, and what the page tells it.
struct Site {
    server: Upstream,
    found: mpsc::UnboundedReceiver<(String, Value)>,
}

impl Site {
    async fn start() -> Self {
        let (report, found) = mpsc::unbounded_channel();
        let server = Upstream::start(move |mut wire, _| {
            let report = report.clone();
            async move {
                let Some((asked, body)) = wire.request().await else { return };
                let target = asked.line.split(' ').nth(1).unwrap_or_default();
                let head = |line: &str, length: usize| {
                    format!("HTTP/1.1 {line}\r\nconnection: close\r\ncontent-length: {length}\r\n")
                };
                let answer = if let Some(step) = target.strip_prefix("/found/") {
                    let _ = report.send((step.to_owned(), serde_json::from_slice(&body).unwrap_or_default()));
                    head("200 OK", 0) + "\r\n"
                } else if target.starts_with("/page?") {
                    head("200 OK", PAGE.len()) + "content-type: text/html\r\n\r\n" + PAGE
                } else {
                    head("404 Not Found", 0) + "\r\n"
                };
                let _ = wire.try_send(answer).await;
            }
        })
        .await;
        Self { server, found }
    }

    /// The origin of its page under this host name.
    fn origin(&self, host: &str) -> String {
        format!("http://{host}:{}", self.server.addr.port())
    }

    /// What the page found in this step, which must be the next.
    async fn found(&mut self, step: &str) -> Value {
        let found = timeout(START, self.found.recv()).await;
        let found = found.unwrap_or_else(|_| panic!("the page does not get to {step}"));
        let (name, found) = found.expect("the server is there");
        assert_eq!(name, step, "{found}");
        found
    }
}

/// A browser with a profile of its own.
struct Browser {
    child: Child,
    folder: TempDir,
}

impl Browser {
    fn open(page: &str, pin: Option<&str>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let said = File::create(folder.path().join("said")).unwrap();
        let mut command = Command::new("chromium");
        command.args(FLAGS).arg(format!("--user-data-dir={}", folder.path().join("profile").display()));
        // The certificate of the listener, and no other that nobody vouches for.
        command.args(pin.map(|pin| format!("--ignore-certificate-errors-spki-list={pin}")));
        command.arg(page).env("HOME", folder.path()).stdin(Stdio::null()).kill_on_drop(true);
        let child = command.stdout(said.try_clone().unwrap()).stderr(said).spawn();
        let child = child.unwrap_or_else(|error| panic!("chromium: {error}"));
        Self { child, folder }
    }

    /// Lets it end in order, so that it leaves nothing behind.
    async fn close(mut self) {
        let pid = self.child.id().expect("it still runs").to_string();
        let told = Command::new("kill").args(["-TERM", &pid]).status().await.unwrap();
        assert!(told.success(), "kill -TERM {pid}");
        timeout(PATIENCE, self.child.wait()).await.expect("the browser ends").unwrap();
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let said = std::fs::read(self.folder.path().join("said")).unwrap_or_default();
            eprintln!("--- what chromium said:\n{}", String::from_utf8_lossy(&said));
        }
    }
}

/// A world whose `web` API lets the page of one origin in, and that page's server.
async fn world(listener: &Listener) -> (World, Site) {
    let site = Site::start().await;
    let origin = site.origin("127.0.0.1");
    let world = World::with(|options| {
        let options = options.api("web", &format!("dialect: openai\nallowed_origins: ['{origin}']"));
        listener.settings().into_iter().fold(options, |options, (name, value)| options.set(name, value))
    })
    .await;
    world.set_keys([("web".to_owned(), Provider::OpenAi.key())]).await;
    (world, site)
}

/// The page's address: as whose page it is loaded, and what it is to do.
fn page(origin: &str, listener: &Listener, world: &World, name: &str, steps: &[&str]) -> String {
    let api = listener.url(world.product.data_addr(), "/web");
    let socket = api.replacen("http", "ws", 1);
    let (token, steps) = (&world.token.secret, steps.join(","));
    format!("{origin}/page?api={api}&socket={socket}&token={token}&as={name}&steps={steps}")
}

/// The request that the page called so.
fn seen(world: &World, name: &str) -> RequestRecord {
    let named = |request: &RequestRecord| request.header("x-request-id") == Some(name.as_bytes());
    world.mock.requests().into_iter().find(named).expect("the provider saw it")
}

/// How the browser got rid of the request that the page called so.
async fn left(world: &World, name: &str) -> RequestRecord {
    eventually(PATIENCE, "the provider is told", async || Some(seen(world, name)).filter(|seen| seen.ended.is_some()))
        .await
}

async fn a_page_of_an_allowed_origin(listener: Listener) {
    let (world, mut site) = world(&listener).await;
    let steps = ["json", "stream", "abort", "stranger", "simple", "socket"];
    let address = page(&site.origin("127.0.0.1"), &listener, &world, "app", &steps);
    let browser = Browser::open(&address, listener.pin());

    let json = site.found("app/json").await;
    assert_eq!((&json["status"], &json["type"]), (&json!(200), &json!("cors")), "{json}");
    assert_eq!(json["body"].as_str().unwrap().as_bytes(), recorded("openai-chat-basic.json"), "{json}");
    let id = json["fields"]["x-llm-proxy-request-id"].as_str().expect("the page may read our id");
    assert!(is_uuid_v7(id), "{json}");
    assert!(json["fields"]["x-request-id"].is_string(), "and the provider's: {json}");
    let record = world.product.wait_event(id).await;
    assert_eq!((&record["api"], &record["outcome"]), (&json!("web"), &json!("finished")), "{record}");

    let stream = site.found("app/stream").await;
    let pieces = stream["pieces"].as_array().unwrap_or_else(|| panic!("no pieces: {stream}"));
    let text: String = pieces.iter().map(|piece| piece["text"].as_str().unwrap()).collect();
    assert_eq!(text.as_bytes(), recorded("openai-chat-stream-usage.sse"), "{stream}");
    let finished_ms = left(&world, "page-stream").await.finished_ms.unwrap();
    let first_ms = pieces[0]["at"].as_f64().unwrap();
    assert!(first_ms < finished_ms as f64, "the first piece came at {first_ms}, the last left at {finished_ms}");

    let aborted = site.found("app/abort").await;
    assert_eq!((&aborted["status"], &aborted["ended"]), (&json!(200), &json!("AbortError")), "{aborted}");
    assert_eq!(left(&world, "page-abort").await.ended, Some(Ended::ClientClosed));
    let of_it = |event: &&Value| event["client_request_id"] == "page-abort";
    let outcome = |events: &[Value]| events.iter().find(of_it).map(|event| event["outcome"].clone());
    assert_eq!(world.product.wait_events("a record of what was aborted", outcome).await, "client_gone");

    // With leave asked for and without: what went wrong can be read.
    for step in ["app/stranger", "app/simple"] {
        let refused = site.found(step).await;
        assert_eq!((&refused["status"], &refused["type"]), (&json!(401), &json!("cors")), "{step}: {refused}");
        assert!(refused["body"].as_str().is_some_and(|body| body.contains("invalid_api_key")), "{step}: {refused}");
        assert!(refused["fields"]["x-llm-proxy-request-id"].is_string(), "{step}: {refused}");
    }

    let open = site.found("app/open").await;
    assert_eq!((&open["protocol"], &open["extensions"]), (&json!("realtime"), &json!("")), "{open}");
    let events = open["events"].as_array().unwrap();
    assert_eq!((events.first(), events.last()), (Some(&json!("session.created")), Some(&json!("response.done"))));
    let head = String::from_utf8(world.last_upstream().head.to_vec()).unwrap();
    assert!(head.contains("openai-insecure-api-key.sk-mock-openai") && !head.contains(&world.token.secret), "{head}");
    assert_eq!(world.upstream_count(), 4, "preflights and refusals are the proxy's own");
    world.revoke(&world.token.id).await;
    let closed = site.found("app/socket").await;
    let told = (&closed["code"], &closed["reason"], &closed["wasClean"]);
    assert_eq!(told, (&json!(1008), &json!("token_revoked"), &json!(true)), "{closed}");
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_calls_reads_its_stream_as_it_comes_takes_back_and_talks() {
    a_page_of_an_allowed_origin(Listener::clear()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_does_so_under_tls_and_over_http_2_as_well() {
    a_page_of_an_allowed_origin(Listener::sealed()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_of_another_origin_gets_nothing_whatever_token_it_has() {
    let listener = Listener::clear();
    let (world, mut site) = world(&listener).await;
    // The same server and the same page, under another name.
    let steps = ["json", "stream", "stranger", "simple", "socket"];
    let address = page(&site.origin("localhost"), &listener, &world, "guest", &steps);
    let browser = Browser::open(&address, None);
    for step in ["guest/json", "guest/stream", "guest/stranger", "guest/simple"] {
        let found = site.found(step).await;
        assert_eq!((&found["error"], found.get("status")), (&json!("TypeError"), None), "{step}: {found}");
    }
    let closed = site.found("guest/socket").await;
    assert_eq!((&closed["code"], &closed["events"]), (&json!(1006), &json!(0)), "it never opened: {closed}");
    assert_eq!(world.upstream_count(), 0, "the provider was asked");
    browser.close().await;
}

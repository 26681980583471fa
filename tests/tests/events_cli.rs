//! `llm-proxy events` and `llm-proxy dispatcher`, as people and machines use them beside a running server.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use llm_proxy_tests::{Answer, Finished, PATIENCE, Provider, World, binary, eventually, run_binary};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// Runs `llm-proxy events …` beside a world.
async fn events(world: &World, arguments: &[&str]) -> Finished {
    let data_dir = world.product.data_dir();
    let arguments = [&["events"][..], arguments, &["--data-dir", data_dir.to_str().unwrap()]].concat();
    run_binary(data_dir.parent().unwrap(), &arguments, &[]).await
}

/// What a command that must succeed wrote.
async fn told(world: &World, arguments: &[&str]) -> String {
    let finished = events(world, arguments).await;
    assert_eq!((finished.code, finished.stderr.as_str()), (Some(0), ""), "{arguments:?}: {}", finished.stdout);
    assert!(!finished.stdout.contains('\u{1b}'), "colour without a terminal: {}", finished.stdout);
    finished.stdout
}

async fn told_json(world: &World, arguments: &[&str]) -> Value {
    serde_json::from_str(&told(world, arguments).await).unwrap()
}

/// One line on stderr that has these words, nothing on stdout, and this exit code.
fn refused(case: &str, finished: &Finished, code: i32, words: &[&str]) {
    assert_eq!(finished.code, Some(code), "{case}: {finished:?}");
    assert_eq!(finished.stdout, "", "{case}");
    let line = finished.stderr.strip_suffix('\n').unwrap_or_else(|| panic!("{case}: {finished:?}"));
    assert!(line.starts_with("llm-proxy: ") && !line.contains('\n'), "{case}: one line is expected: {line}");
    for word in words {
        assert!(line.contains(word), "{case}: {word:?} is missing: {line}");
    }
}

fn end_of(id: &str) -> &str {
    &id[id.len() - 8..]
}

/// An exchange that went well and one that was refused, both recorded.
async fn two_exchanges(world: &World) -> (Answer, Answer) {
    let good = world.ask(&Provider::OpenAi.ask(&world.token.secret)).await;
    let limited = world.token_with(serde_json::json!({"allowed_models": ["none-of-these"]})).await;
    let bad = world.ask(&Provider::OpenAi.ask(&limited.secret)).await;
    assert_eq!((good.status, bad.status), (200, 403));
    world.record(&good).await;
    world.record(&bad).await;
    (good, bad)
}

#[tokio::test]
async fn tail_shows_what_ended_a_line_each_and_filters_choose() {
    let world = World::new().await;
    let (good, bad) = two_exchanges(&world).await;
    let table = told(&world, &["tail", "--no-follow", "--type", "exchange"]).await;
    let lines: Vec<_> = table.lines().collect();
    assert_eq!(lines.len(), 3, "{table}");
    assert!(lines[0].starts_with("TIME ") && lines[0].ends_with("REASON"), "{table}");
    for (line, words) in [
        (lines[1], vec!["finished", "200", "openai", end_of(&world.token.id), end_of(&world.project)]),
        (lines[2], vec!["refused", "403", "openai", "model_not_allowed", end_of(&world.project)]),
    ] {
        for word in words {
            assert!(line.contains(word), "{word}: {table}");
        }
    }
    assert!(lines[1].contains(end_of(&good.id())) && lines[2].contains(end_of(&bad.id())), "{table}");

    let token = end_of(&world.token.id).to_owned();
    for (filter, expected) in [
        (vec!["--status", "4xx"], vec![bad.id()]),
        (vec!["--outcome", "finished,timeout"], vec![good.id()]),
        (vec!["--token", &token], vec![good.id()]),
        (vec!["--project", &world.project, "--api", "openai", "--model", "gpt-4o*"], vec![good.id(), bad.id()]),
        (vec!["--since", "2h", "--until", "1h"], vec![]),
        (vec!["-n", "1"], vec![bad.id()]),
    ] {
        let arguments = [vec!["tail", "--no-follow", "--type", "exchange", "--output", "json"], filter].concat();
        let records = told(&world, &arguments).await;
        let records: Vec<Value> = records.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let ids: Vec<_> = records.iter().map(|record| record["id"].as_str().unwrap()).collect();
        assert_eq!(ids, expected, "{arguments:?}");
        for record in &records {
            let id = record["id"].as_str().unwrap();
            assert_eq!(*record, world.product.wait_event(id).await, "as events.jsonl has it");
        }
    }
}

#[tokio::test]
async fn tail_follows_what_happens_while_it_watches() {
    let world = World::new().await;
    let (good, _) = two_exchanges(&world).await;
    let mut tail = tokio::process::Command::new(binary())
        .args(["events", "tail", "--output", "json", "--type", "exchange", "--outcome", "finished"])
        .env_clear()
        .env("DATA_DIR", world.product.data_dir())
        .current_dir(world.product.data_dir().parent().unwrap())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(tail.stdout.take().unwrap()).lines();
    let mut next = async || {
        let line = tokio::time::timeout(PATIENCE, lines.next_line()).await.expect("tail shows it").unwrap().unwrap();
        serde_json::from_str::<Value>(&line).unwrap()["id"].as_str().unwrap().to_owned()
    };
    assert_eq!(next().await, good.id());
    for _ in 0..3 {
        let answer = world.ask(&Provider::OpenAi.ask(&world.token.secret)).await;
        assert_eq!(next().await, answer.id());
    }
}

#[tokio::test]
async fn show_has_all_of_an_event_from_its_begin_on() {
    let mut world = World::new().await;
    let (good, _) = two_exchanges(&world).await;
    let record = world.record(&good).await;
    let id = good.id();
    for given in [id.as_str(), &id[24..], &id.to_uppercase()] {
        let shown = told(&world, &["show", given]).await;
        assert_eq!(serde_json::from_str::<Value>(&shown).unwrap(), record);
        assert!(shown.starts_with("{\n  \"id\": ") && shown.ends_with("\n}\n"), "{shown}");
    }

    let mut running = world.connect().await;
    running.write(&Provider::OpenAi.ask_stream(&world.token.secret).with("x-mock-fault", "hang-body:5").bytes()).await;
    let head = running.read_head().await;
    let id = head.header("x-llm-proxy-request-id").unwrap().to_owned();
    let begun = events(&world, &["show", &id]).await;
    assert_eq!(begun.code, Some(0), "{begun:?}");
    assert!(begun.stderr.contains("has not ended"), "{begun:?}");
    let shown: Value = serde_json::from_str(&begun.stdout).unwrap();
    assert_eq!((&shown["id"], &shown["outcome"], &shown["reason"]), (&id.into(), &"unknown".into(), &Value::Null));
    assert_eq!(shown["project_id"], world.project.as_str());
    drop(running);

    // Also when nobody writes the journal.
    world.product.sigterm(PATIENCE).await;
    let shown = told_json(&world, &["show", &good.id()]).await;
    assert_eq!(shown, record);
    let nobody = "0193a5b0-7c5e-7abc-9def-0123456789ab";
    refused("no such event", &events(&world, &["show", nobody]).await, 1, &["there is no event", nobody]);
}

#[tokio::test]
async fn stats_count_the_journal_and_say_how_far_its_readers_are() {
    let mut world = World::new().await;
    two_exchanges(&world).await;
    let exchanges = |stats: &Value| stats["journal"]["events"].as_u64().unwrap();
    let caught_up = eventually(PATIENCE, "the file's cursor has passed all", async || {
        let stats = told_json(&world, &["stats", "--output", "json"]).await;
        (stats["sinks"][0]["lag_events"] == 0).then_some(stats)
    })
    .await;
    let journal = &caught_up["journal"];
    assert!(exchanges(&caught_up) >= 2, "{caught_up}");
    assert_eq!((&journal["segments"], &journal["not_ended"]), (&1.into(), &0.into()), "{caught_up}");
    assert!(journal["bytes"].as_u64() > Some(200) && journal["first"]["seq"] == 1, "{caught_up}");
    assert_eq!(
        (&caught_up["sinks"][0]["name"], &caught_up["sinks"][0]["is_configured"]),
        (&"file".into(), &true.into())
    );
    assert_eq!(caught_up["sinks"][0]["served_by_pid"], world.product.pid());

    let table = told(&world, &["stats"]).await;
    for word in ["segments", "last record", "EVENTS BEHIND", "DEAD LETTERS", &format!("pid {}", world.product.pid())] {
        assert!(table.contains(word), "{word}: {table}");
    }
    world.product.sigterm(PATIENCE).await;
    let stopped = told_json(&world, &["stats", "--output", "json"]).await;
    assert_eq!((&stopped["sinks"][0]["served_by_pid"], exchanges(&stopped)), (&Value::Null, exchanges(&caught_up)));
}

#[tokio::test]
async fn dedupe_takes_out_what_came_twice_and_leaves_a_file_in_use_alone() {
    let world = World::new().await;
    let (good, bad) = two_exchanges(&world).await;
    let live = world.product.data_dir().join("events.jsonl");
    let text = std::fs::read_to_string(&live).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("a.jsonl"), format!("{text}{text}")).unwrap();
    let mut packed = flate2::write::GzEncoder::new(File::create(path("b.jsonl.gz")).unwrap(), Default::default());
    packed.write_all(format!("{text}not json\n").as_bytes()).unwrap();
    packed.finish().unwrap();

    let run = async |arguments: &[&str]| {
        run_binary(folder.path(), &[&["events", "dedupe"][..], arguments].concat(), &[]).await
    };
    let finished = run(&["a.jsonl", "b.jsonl.gz"]).await;
    assert_eq!((finished.code, finished.stdout), (Some(0), format!("{text}not json\n")), "{}", finished.stderr);
    assert!(
        finished.stderr.contains("b.jsonl.gz: ") && finished.stderr.contains("1 have no id"),
        "{}",
        finished.stderr
    );

    let finished = run(&["--in-place", "a.jsonl"]).await;
    assert_eq!((finished.code, finished.stdout.as_str()), (Some(0), ""), "{}", finished.stderr);
    assert_eq!(std::fs::read_to_string(path("a.jsonl")).unwrap(), text);
    assert!(text.contains(&good.id()) && text.contains(&bad.id()));

    refused("in use", &run(&["--in-place", live.to_str().unwrap()]).await, 1, &["is being written"]);
    refused("not there", &run(&["a.jsonl", "nothing.jsonl"]).await, 1, &["nothing.jsonl cannot be read"]);
}

#[tokio::test]
async fn what_cannot_be_done_is_one_clear_line_and_an_exit_code() {
    let folder = tempfile::tempdir().unwrap();
    for (case, arguments, code, words) in [
        ("no journal", &["events", "tail"][..], 1, &["DATA_DIR: there is no journal", "--data-dir"][..]),
        ("no such command", &["events", "tale"], 2, &["tale", "tail"]),
        ("no id", &["events", "show", "nonsense"], 2, &["<ID>: found \"nonsense\"", "last 8 characters"]),
        ("no time", &["events", "tail", "--since", "10"], 2, &["--since: found \"10\"", "10m"]),
        ("no status", &["events", "tail", "--status", "teapot"], 2, &["--status: found \"teapot\"", "4xx"]),
        ("no range", &["events", "replay", "--sink", "x"], 2, &["not provided: --since", "events replay --help"]),
        ("no such sink", &["events", "replay", "--sink", "x", "--since", "1h"], 1, &["--sink: found \"x\"", "sinks"]),
        ("no such sink", &["events", "redrive", "--sink", "x"], 1, &["--sink: found \"x\"", "sinks"]),
        ("no file", &["events", "dedupe"], 2, &["not provided", "FILE"]),
        ("no Redis", &["dispatcher", "--from", "redis"], 1, &["REDIS_URL: found nothing, expected"]),
        (
            "no such source",
            &["dispatcher", "--from", "kafka"],
            2,
            &["--from: found \"kafka\", expected journal or redis"],
        ),
        ("a flag of Redis", &["dispatcher", "--consumer", "a"], 2, &["--consumer: found it without --from redis"]),
    ] {
        refused(case, &run_binary(folder.path(), arguments, &[]).await, code, words);
    }
    std::fs::write(folder.path().join("llm-proxy.yaml"), "sinks: {file: none}\n").unwrap();
    let nothing = run_binary(folder.path(), &["dispatcher"], &[]).await;
    refused("no sink", &nothing, 1, &["sinks: found none that could be served"]);
}

/// A receiver of webhooks: it keeps the ids of what it took, in the order that they came.
struct Receiver {
    addr: SocketAddr,
    state: Arc<Mutex<Received>>,
}

#[derive(Default)]
struct Received {
    ids: Vec<String>,
    refuses: bool,
}

impl Receiver {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(Received::default()));
        tokio::spawn({
            let state = Arc::clone(&state);
            async move {
                while let Ok((stream, _)) = listener.accept().await {
                    tokio::spawn(receive(stream, Arc::clone(&state)));
                }
            }
        });
        Self { addr, state }
    }

    fn ids(&self) -> Vec<String> {
        self.state.lock().unwrap().ids.clone()
    }

    /// Whether it answers that it will never take what it gets.
    fn refuse(&self, refuses: bool) {
        self.state.lock().unwrap().refuses = refuses;
    }

    async fn has(&self, expected: &[String]) {
        eventually(PATIENCE, "the receiver has it", async || (self.ids().len() >= expected.len()).then_some(())).await;
        assert_eq!(self.ids(), expected);
    }

    /// Settings of a server whose records go here, and to `events.jsonl` as ever.
    fn settings(&self, server: &str, folder: &Path) -> PathBuf {
        let hook = format!("{{type: webhook, url: 'http://{}/hook', secret: {SECRET}, batch: {{age: 20ms}}", self.addr);
        let only = "only: {types: [exchange]}, retry: {first: 20ms, longest: 100ms}}";
        let path = folder.join("with-sinks.yaml");
        std::fs::write(&path, format!("{server}sinks:\n  hook: {hook}, {only}\n")).unwrap();
        path
    }
}

/// Requests of one connection, until it closes.
async fn receive(mut stream: TcpStream, state: Arc<Mutex<Received>>) {
    let mut held = Vec::new();
    loop {
        let (body, rest) = loop {
            if let Some(end) = held.windows(4).position(|four| four == b"\r\n\r\n") {
                let head = String::from_utf8_lossy(&held[..end]).to_ascii_lowercase();
                let length = head.lines().find_map(|line| line.strip_prefix("content-length:")).unwrap();
                let body_end = end + 4 + length.trim().parse::<usize>().unwrap();
                if held.len() >= body_end {
                    break (held[end + 4..body_end].to_vec(), held[body_end..].to_vec());
                }
            }
            if !matches!(stream.read_buf(&mut held).await, Ok(1..)) {
                return;
            }
        };
        held = rest;
        let body: Value = serde_json::from_slice(&body).unwrap();
        let records = body["data"].as_array().unwrap();
        let refuses = {
            let mut state = state.lock().unwrap();
            if !state.refuses {
                state.ids.extend(records.iter().map(|record| record["id"].as_str().unwrap().to_owned()));
            }
            state.refuses
        };
        let status = if refuses { "400 Bad Request" } else { "204 No Content" };
        if stream.write_all(format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n").as_bytes()).await.is_err() {
            return;
        }
    }
}

/// A dispatcher beside a world. Dropping it kills the process.
struct Dispatcher {
    child: Child,
    log: PathBuf,
}

impl Dispatcher {
    fn start(world: &World, settings: &Path, folder: &Path) -> Self {
        let log = folder.join("dispatcher.log");
        let file = OpenOptions::new().create(true).append(true).open(&log).unwrap();
        let child = Command::new(binary())
            .args(["dispatcher", "--config", settings.to_str().unwrap()])
            .env_clear()
            .env("DATA_DIR", world.product.data_dir())
            .env("LOG_FORMAT", "json")
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap();
        Self { child, log }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// SIGTERM, and waits for an end without fault.
    async fn end(mut self) {
        let status = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
        let ended = eventually(PATIENCE, "the dispatcher ends", async || self.child.try_wait().unwrap()).await;
        assert!(ended.success(), "{ended}: {}", self.log());
    }
}

impl Drop for Dispatcher {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- the log of the dispatcher:\n{}", self.log());
        }
    }
}

/// A world whose records go to a receiver, with the dispatcher where it says.
async fn world_with(receiver: &Receiver, place: &str) -> (World, PathBuf, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let mut settings = PathBuf::new();
    let world = World::with(|options| {
        settings = receiver.settings(&options.yaml(), folder.path());
        options.set("CONFIG", settings.display()).set("DISPATCHER", place)
    })
    .await;
    (world, settings, folder)
}

async fn exchange(world: &World) -> String {
    let answer = world.ask(&Provider::OpenAi.ask(&world.token.secret)).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.id()
}

#[tokio::test]
async fn a_dispatcher_of_its_own_delivers_what_the_server_records_each_event_once() {
    let receiver = Receiver::start().await;
    let (world, settings, folder) = world_with(&receiver, "outside").await;
    let mut ids = vec![exchange(&world).await];
    let first = Dispatcher::start(&world, &settings, folder.path());
    receiver.has(&ids).await;
    world.product.wait_event(&ids[0]).await;

    let data_dir = world.product.data_dir();
    let variables = [("DATA_DIR", data_dir.to_str().unwrap()), ("CONFIG", settings.to_str().unwrap())];
    let second = run_binary(folder.path(), &["dispatcher"], &variables).await;
    refused("a second one", &second, 1, &["`hook` in ", &format!("pid {}", first.child.id())]);

    for _ in 0..3 {
        ids.push(exchange(&world).await);
        receiver.has(&ids).await;
    }
    let log = first.log.clone();
    first.end().await;
    let log = std::fs::read_to_string(log).unwrap();
    let books =
        log.lines().find(|line| line.contains("books") && line.contains("hook")).unwrap_or_else(|| panic!("{log}"));
    assert!(books.contains("\"delivered\":4") && books.contains("\"remaining\":0"), "{books}");

    // What happens while there is none waits in the journal, also when the server ends meanwhile.
    let mut world = world;
    for _ in 0..3 {
        ids.push(exchange(&world).await);
    }
    world.product.restart().await;
    assert_eq!(receiver.ids(), ids[..4]);
    let again = Dispatcher::start(&world, &settings, folder.path());
    receiver.has(&ids).await;
    for id in &ids {
        world.product.wait_event(id).await;
    }
    again.end().await;
    assert_eq!(world.product.events().len(), ids.len());
}

#[tokio::test]
async fn a_range_is_sent_again_and_so_are_dead_letters_while_the_server_serves_the_sink() {
    let receiver = Receiver::start().await;
    let (world, settings, _folder) = world_with(&receiver, "inside").await;
    let config = settings.to_str().unwrap();
    let run = async |arguments: &[&str]| {
        let finished = events(&world, &[arguments, &["--config", config]].concat()).await;
        assert_eq!(finished.code, Some(0), "{arguments:?}: {finished:?}");
        finished
    };
    let mut ids = vec![exchange(&world).await, exchange(&world).await];
    receiver.has(&ids).await;

    let would = run(&["replay", "--sink", "hook", "--since", "1h", "--dry-run"]).await;
    assert!(would.stdout.starts_with("2 events"), "{would:?}");
    assert_eq!(receiver.ids(), ids);
    let replayed = run(&["replay", "--sink", "hook", "--since", "1h", "--token", end_of(&world.token.id)]).await;
    assert!(replayed.stderr.contains("2 of 2 events"), "{replayed:?}");
    ids.extend(ids.clone());
    receiver.has(&ids).await;

    receiver.refuse(true);
    ids.push(exchange(&world).await);
    let dead = async || {
        let stats = run(&["stats", "--output", "json"]).await.stdout;
        let stats: Value = serde_json::from_str(&stats).unwrap();
        stats["sinks"].as_array().unwrap().iter().find(|sink| sink["name"] == "hook").unwrap()["dead_letters"].clone()
    };
    eventually(PATIENCE, "the receiver's refusal is a dead letter", async || (dead().await == 1).then_some(())).await;
    let still = events(&world, &["redrive", "--sink", "hook", "--config", config]).await;
    assert_eq!((still.code, dead().await), (Some(1), 1.into()), "{still:?}");

    receiver.refuse(false);
    let other = run(&["redrive", "--sink", "hook", "--reason", "nothing like it"]).await;
    assert!(other.stderr.contains("no dead letters"), "{other:?}");
    let would = run(&["redrive", "--sink", "hook", "--dry-run"]).await;
    assert!(would.stdout.starts_with("1 event"), "{would:?}");
    assert_eq!(dead().await, 1);
    run(&["redrive", "--sink", "hook"]).await;
    receiver.has(&ids).await;
    assert_eq!(dead().await, 0);

    // And the server, which wrote the first letter, writes the next one to the same place.
    receiver.refuse(true);
    exchange(&world).await;
    eventually(PATIENCE, "the next refusal is a dead letter", async || (dead().await == 1).then_some(())).await;
}

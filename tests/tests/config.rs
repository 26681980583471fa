//! A typo never starts a laxer proxy; what stops a start says where.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;

use llm_proxy_tests::{Finished, Provider, World, run_binary};

/// A start that failed with one line on stderr that begins with these words.
fn stopped(case: &str, finished: &Finished, place: &str, words: &[&str]) {
    assert!(finished.code.is_some_and(|code| code != 0), "{case}: {finished:?}");
    let line = finished.stderr.strip_suffix('\n').unwrap_or_else(|| panic!("{case}: {finished:?}"));
    assert!(!line.contains('\n'), "{case}: one line is expected: {finished:?}");
    assert!(line.starts_with(&format!("llm-proxy: {place}")), "{case}: {place:?} is expected: {line}");
    for word in words {
        assert!(line.contains(word), "{case}: {word:?} is missing: {line}");
    }
    assert_eq!(finished.stdout, "", "{case}");
}

/// Runs the server with files in its folder, flags and variables; it must not get as far as listening.
async fn start(files: &[(&str, &str)], flags: &[&str], variables: &[(&str, &str)]) -> Finished {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    let mut arguments = vec!["server"];
    arguments.extend_from_slice(flags);
    let finished = run_binary(folder.path(), &arguments, variables).await;
    assert!(!folder.path().join("data").exists(), "a start that failed made files");
    finished
}

#[tokio::test]
async fn a_typo_anywhere_stops_the_start_with_one_line_that_names_its_place() {
    for (case, text, place, words) in [
        ("a key", "listen_adr: 127.0.0.1:1\n", "llm-proxy.yaml:1:1", &["listen_adr", "listen_addr"][..]),
        ("a value", "\nhead_timeout: 10\n", "llm-proxy.yaml:2:15", &["head_timeout", "10"]),
        (
            "an API's key",
            "apis:\n  openai:\n    allowed_endpoint: [/v1/models]\n",
            "llm-proxy.yaml:3:5",
            &["allowed_endpoint"],
        ),
        (
            "a dialect",
            "apis:\n  groq:\n    dialect: opnai\n    base_url: http://a\n",
            "llm-proxy.yaml:3:14",
            &["opnai"],
        ),
        ("a clock", "apis:\n  openai:\n    timeouts: {frist_byte: 1s}\n", "llm-proxy.yaml:3:16", &["frist_byte"]),
        ("a key twice", "log_level: info\nlog_level: warn\n", "llm-proxy.yaml:2:1", &["log_level"]),
        ("no YAML", "apis: [\n", "llm-proxy.yaml:", &[]),
    ] {
        stopped(case, &start(&[("llm-proxy.yaml", text)], &[], &[]).await, place, words);
    }
    let named = start(&[("other.yaml", "liste: 1\n")], &["--config", "other.yaml"], &[]).await;
    stopped("another file", &named, "other.yaml:1:1", &["liste"]);
    let missing = start(&[], &["--config", "missing.yaml"], &[]).await;
    stopped("a file that is not there", &missing, "--config", &["missing.yaml"]);
    let variable = start(&[], &[], &[("LISTEN_ADDR", "localhost")]).await;
    stopped("a variable", &variable, "LISTEN_ADDR", &["localhost", "host:port"]);
    let dotenv = start(&[(".env", "# mine\nLOG_LEVEL=loud\n")], &[], &[]).await;
    stopped(".env", &dotenv, ".env:2", &["LOG_LEVEL", "loud"]);
    let flag = start(&[], &["--drain-timeout", "5"], &[]).await;
    stopped("a flag's value", &flag, "--drain-timeout", &["5"]);
    let hidden = start(&[("llm-proxy.yaml", "log_level: loud\n")], &["--log-level", "info"], &[]).await;
    stopped("a value that a flag hides", &hidden, "llm-proxy.yaml:1:12", &["loud"]);
    let unknown = start(&[], &["--listen-adr", "127.0.0.1:1"], &[]).await;
    stopped("a flag", &unknown, "", &["--listen-adr", "--listen-addr"]);
    let secret = start(&[], &[], &[("MANAGEMENT_TOKEN", "hunter2")]).await;
    stopped("a short secret", &secret, "MANAGEMENT_TOKEN", &["16"]);
    assert!(!secret.stderr.contains("hunter2"), "{secret:?}");
}

#[tokio::test]
async fn a_sink_that_cannot_be_meant_stops_the_start_with_one_line() {
    let hook = "sinks:\n  webhook:\n    url: https://hooks.example.com\n";
    for (case, text, place, words) in [
        ("a type", "sinks:\n  splunk: {}\n".to_owned(), "llm-proxy.yaml:2:3", &["sinks.splunk", "webhook", "file"][..]),
        ("a key that is missing", hook.to_owned(), "llm-proxy.yaml:2:3", &["sinks.webhook.secret", "whsec_"]),
        (
            "a variable",
            format!("{hook}    secret_env: HOOK\n"),
            "llm-proxy.yaml:4:17",
            &["secret_env", "no variable HOOK"],
        ),
        ("a key", format!("{hook}    secre: x\n"), "llm-proxy.yaml:4:5", &["unknown key `secre`", "`secret`"]),
        ("a URL", hook.replace("https:", "ftp:"), "llm-proxy.yaml:3:10", &["sinks.webhook.url", "not shown here"]),
        (
            "a batch",
            "sinks:\n  lunary:\n    batch: {events: none}\n".to_owned(),
            "llm-proxy.yaml:3:21",
            &["sinks.lunary.batch.events", "none"],
        ),
        (
            "a list",
            "sinks:\n  lunary:\n    only:\n      outcomes:\n        - finished\n        - fnished\n".to_owned(),
            "llm-proxy.yaml:6:11",
            &["sinks.lunary.only.outcomes", "fnished"],
        ),
    ] {
        stopped(case, &start(&[("llm-proxy.yaml", &text)], &[], &[]).await, place, words);
    }
    let secret = format!("{hook}    secret_env: HOOK\n");
    let bad = start(&[("llm-proxy.yaml", &secret)], &[], &[("HOOK", "whsec_hunter2")]).await;
    stopped("a secret", &bad, "llm-proxy.yaml:4:17", &["in HOOK that is not shown"]);
    assert!(!bad.stderr.contains("hunter2"), "{bad:?}");
    for (name, value, words) in [
        ("JOURNAL_MODE", "paranoid", ["paranoid", "strict, durable, lossy"]),
        ("JOURNAL_MAX_BYTES", "lots", ["lots", "none, or a number of bytes"]),
        ("DISPATCHER", "elsewhere", ["elsewhere", "inside, outside"]),
        ("REDIS_URL", "localhost:6379", ["not shown here", "redis://"]),
    ] {
        stopped(name, &start(&[], &[], &[(name, value)]).await, name, &words);
    }
}

/// The keys that a sink's own page has.
fn documented_keys(kind: &str) -> BTreeSet<String> {
    let path = format!("{}/../docs/sinks/{kind}.md", env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let table = page.split_once("| key |").unwrap_or_else(|| panic!("{path} has no keys")).1;
    let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    let keys = |line: &str| {
        let cell = line.split(" | ").next().unwrap_or_default();
        cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>()
    };
    rows.flat_map(keys).collect()
}

#[tokio::test]
async fn every_sink_has_a_page_with_its_keys_and_no_other() {
    let listed = |finished: &Finished| {
        let list = finished.stderr.split_once("expected one of ").unwrap_or_else(|| panic!("{finished:?}")).1;
        list.split(';').next().unwrap().trim().to_owned()
    };
    let kinds = listed(&start(&[("llm-proxy.yaml", "sinks: {a: {type: qqq}}")], &[], &[]).await);
    for kind in kinds.split(", ") {
        let text = format!("sinks: {{{kind}: {{qqq: 1}}}}");
        let keys = listed(&start(&[("llm-proxy.yaml", &text)], &[], &[]).await);
        let keys = keys.split('`').skip(1).step_by(2).map(str::to_owned).collect::<BTreeSet<_>>();
        assert_eq!(documented_keys(kind), keys, "{kind}");
    }
}

#[tokio::test]
async fn an_api_cannot_have_a_name_whose_prefix_means_something_else() {
    for name in ["health", "manage", "metrics", "upload", "v1", "v1beta", "ws"] {
        let text = format!("apis:\n  {name}:\n    dialect: openai\n    base_url: http://127.0.0.1:9\n");
        let finished = start(&[("llm-proxy.yaml", &text)], &[], &[]).await;
        stopped(name, &finished, "llm-proxy.yaml:2:3", &[&format!("\"{name}\""), "none of health"]);
    }
}

#[tokio::test]
async fn a_near_miss_of_a_variable_is_warned_of_and_started_anyway() {
    let world = World::with(|options| options.set("LISTEN_ADR", "127.0.0.1:1").set("LOG_FILE", "x")).await;
    let log = world.product.log();
    let warning = log.lines().find(|line| line.contains("LISTEN_ADR")).unwrap_or_else(|| panic!("{log}"));
    assert!(warning.contains("LISTEN_ADDR"), "{warning}");
    assert!(!log.contains("LOG_FILE"), "{log}");
}

#[tokio::test]
async fn a_taken_port_is_one_clear_line() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    for (name, other) in [("LISTEN_ADDR", "ADMIN_LISTEN_ADDR"), ("ADMIN_LISTEN_ADDR", "LISTEN_ADDR")] {
        let finished = start(&[], &[], &[(name, addr.as_str()), (other, "127.0.0.1:0")]).await;
        stopped(name, &finished, name, &[addr.as_str()]);
    }
}

#[tokio::test]
async fn a_second_process_on_the_same_data_is_refused_and_told_who_has_it() {
    let world = World::new().await;
    let data_dir = world.product.data_dir();
    let variables = [
        ("DATA_DIR", data_dir.to_str().unwrap()),
        ("LISTEN_ADDR", "127.0.0.1:0"),
        ("ADMIN_LISTEN_ADDR", "127.0.0.1:0"),
    ];
    let elsewhere = tempfile::tempdir().unwrap();
    let finished = run_binary(elsewhere.path(), &["server"], &variables).await;
    stopped("second process", &finished, "DATA_DIR", &[world.product.pid().to_string().as_str()]);
    let answer = world.ask(&Provider::OpenAi.ask(&world.token.secret)).await;
    assert_eq!(answer.status, 200, "the first one goes on");
}

#[tokio::test]
async fn nobody_else_on_the_machine_can_read_the_data() {
    let world = World::new().await;
    assert_eq!(world.ask(&Provider::OpenAi.ask(&world.token.secret)).await.status, 200);
    let mut folders = vec![world.product.data_dir()];
    let mut files = 0;
    while let Some(folder) = folders.pop() {
        let mode = std::fs::metadata(&folder).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700, "{}", folder.display());
        for entry in std::fs::read_dir(&folder).unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
                continue;
            }
            // SQLite's own files may go at any moment.
            let Ok(metadata) = entry.metadata() else { continue };
            assert_eq!(metadata.permissions().mode() & 0o777, 0o600, "{}", entry.path().display());
            files += 1;
        }
    }
    assert!(files >= 3, "database, journal and lock at least: {files}");
}

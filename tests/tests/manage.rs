//! The command line, as an admin and a script use it.

use std::collections::BTreeSet;
use std::path::Path;

use llm_proxy_tests::{Finished, Provider, Refused, World, run_binary};
use serde_json::{Value, json};

/// Runs `llm-proxy manage …` against a world.
async fn manage(world: &World, arguments: &[&str]) -> Finished {
    let admin_url = format!("http://{}", world.product.admin_addr());
    let mut all = vec!["manage"];
    all.extend_from_slice(arguments);
    all.extend_from_slice(&["--admin-url", &admin_url]);
    let variables = [
        ("MANAGEMENT_TOKEN", world.product.management_token()),
        ("OPENAI_KEY", Provider::OpenAi.key()),
        ("ANTHROPIC_KEY", Provider::Anthropic.key()),
    ];
    run_binary(&world.product.data_dir(), &all, &variables).await
}

/// What a command that must succeed wrote.
async fn done(world: &World, arguments: &[&str]) -> String {
    let finished = manage(world, arguments).await;
    assert_eq!((finished.code, finished.stderr.as_str()), (Some(0), ""), "{arguments:?}: {}", finished.stdout);
    finished.stdout
}

async fn told(world: &World, arguments: &[&str]) -> Value {
    let mut all = arguments.to_vec();
    all.extend_from_slice(&["--output", "json"]);
    serde_json::from_str(&done(world, &all).await).unwrap()
}

#[tokio::test]
async fn projects_and_tokens_are_made_listed_changed_and_revoked_from_the_command_line() {
    let world = World::new().await;
    let keys = ["--api-key-env", "OPENAI_KEY", "--provider-key", "anthropic=ANTHROPIC_KEY"];
    let project = told(&world, &[&["project", "create", "shop"][..], &keys].concat()).await;
    let project_id = project["id"].as_str().unwrap();
    assert_eq!(project["name"], "shop");
    let table = done(&world, &["project", "list"]).await;
    let row = table.lines().find(|line| line.contains(project_id)).unwrap_or_else(|| panic!("{table}"));
    assert!(table.starts_with("ID") && row.contains("shop") && row.contains("active"), "{table}");
    assert!(!table.contains(Provider::OpenAi.key()) && !table.contains(Provider::Anthropic.key()), "{table}");

    let limits = ["--duration", "7d", "--max-requests", "2", "--requests-per-minute", "60", "--model", "gpt-4o*"];
    let made = told(&world, &[&["token", "create", "--project", project_id][..], &limits].concat()).await;
    let (token, token_id) = (made["token"].as_str().unwrap(), made["id"].as_str().unwrap());
    assert!(token.starts_with("sk-lp-"), "{made}");
    assert_eq!((&made["max_requests"], &made["requests_per_minute"]), (&json!(2), &json!(60)));
    let answer = world.ask(&Provider::OpenAi.ask(token)).await;
    assert_eq!(answer.status, 200, "{}", answer.text());

    let shown = done(&world, &["token", "create", "--project", project_id, "--duration", "90m"]).await;
    assert!(shown.lines().any(|line| line.starts_with("sk-lp-")), "{shown}");
    assert!(shown.contains("not shown again"), "{shown}");

    let table = done(&world, &["token", "list", "--project", project_id]).await;
    assert_eq!(table.lines().count(), 3, "{table}");
    let row = table.lines().find(|line| line.contains(token_id)).unwrap_or_else(|| panic!("{table}"));
    assert!(row.contains("active") && row.contains("gpt-4o*"), "{table}");
    assert!(!table.contains("sk-lp-"), "a token is shown once: {table}");
    let listed = told(&world, &["token", "list", "--project", project_id]).await;
    assert_eq!(listed["data"].as_array().map(Vec::len), Some(2), "{listed}");

    let changed = told(&world, &["token", "update", token_id, "--max-requests", "none", "--any-model"]).await;
    assert_eq!((&changed["max_requests"], &changed["allowed_models"]), (&Value::Null, &Value::Null), "{changed}");
    done(&world, &["token", "revoke", token_id]).await;
    Refused::REVOKED.check("revoked", Provider::OpenAi, &world.ask(&Provider::OpenAi.ask(token)).await);
    let revoked = told(&world, &["token", "get", token_id]).await;
    assert_eq!((&revoked["is_active"], &revoked["request_count"]), (&json!(false), &json!(1)), "{revoked}");
    let counts = told(&world, &["project", "revoke-tokens", project_id]).await;
    assert_eq!((&counts["revoked_count"], &counts["already_revoked_count"]), (&json!(1), &json!(1)), "{counts}");
}

#[tokio::test]
async fn what_is_kept_of_bodies_is_chosen_shown_and_erased_from_the_command_line() {
    let world = World::new().await;
    let flags = ["--capture", "redacted", "--capture-max-bytes", "2048", "--retention-days", "30"];
    let made = told(&world, &[&["project", "create", "kept"][..], &flags].concat()).await;
    let id = made["id"].as_str().unwrap();
    assert_eq!(made["content"], json!({"capture": "redacted", "max_bytes": 2048, "retention_days": 30}), "{made}");
    let changed = told(&world, &["project", "update", id, "--capture", "full", "--retention-days", "none"]).await;
    assert_eq!(changed["content"], json!({"capture": "full", "max_bytes": 2048, "retention_days": null}), "{changed}");
    let shown = done(&world, &["project", "get", id]).await;
    assert!(shown.contains("full, up to 2048 bytes of a body, without an end"), "{shown}");
    let table = done(&world, &["project", "list"]).await;
    assert!(table.lines().any(|line| line.contains(id) && line.contains("full")), "{table}");

    let finished = manage(&world, &["content", "erase", "--project", id]).await;
    refused("nobody to ask", &finished, 1, &["for ever", "--yes"]);
    let erased = told(&world, &["content", "erase", "--project", id, "--yes"]).await;
    assert!(erased["records"].is_u64() && erased["files"].is_u64(), "{erased}");
    let finished = manage(&world, &["content", "erase", "--before", "yesterday", "--yes"]).await;
    refused("no time", &finished, 1, &["before", "RFC 3339"]);

    let sinks = told(&world, &["sink", "list"]).await;
    assert!(sinks["data"].is_array(), "{sinks}");
    assert!(done(&world, &["sink", "list"]).await.starts_with("NAME"));
}

/// The subjects of the management actions that are in the records, oldest first, each event once.
fn told_of(events: &[Value]) -> Vec<String> {
    let (mut seen, mut subjects) = (BTreeSet::new(), Vec::new());
    for event in events.iter().filter(|event| event["type"] == "admin") {
        // What a crash interrupted between the journal and the store comes twice.
        if seen.insert(event["id"].as_str().unwrap()) {
            subjects.extend(event["admin"]["resource_id"].as_str().map(str::to_owned));
        }
    }
    subjects
}

#[tokio::test]
async fn no_management_action_that_was_answered_is_lost_to_a_kill() {
    let mut world = World::new().await;
    let mut answered = vec![world.project.clone(), world.token.id.clone()];
    for round in 0..5 {
        for number in 0..3 {
            answered.push(world.project_with(&json!({"name": format!("p{round}-{number}")})).await);
        }
        // The last one is answered this very moment.
        world.product.kill9();
        world.product.restart().await;
    }
    let what = format!("{answered:?} in the records");
    let all_of_them = |events: &[Value]| {
        let found = told_of(events);
        answered.iter().all(|id| found.contains(id)).then_some(found)
    };
    let found = world.product.wait_all_events(&what, all_of_them).await;
    assert_eq!(found, answered, "each once, in their order");
}

/// One line on stderr that has these words, nothing on stdout, and this exit code.
fn refused(case: &str, finished: &Finished, code: i32, words: &[&str]) {
    assert_eq!(finished.code, Some(code), "{case}: {finished:?}");
    assert_eq!(finished.stdout, "", "{case}");
    let line = finished.stderr.strip_suffix('\n').unwrap_or_else(|| panic!("{case}: {finished:?}"));
    assert!(!line.is_empty() && !line.contains('\n'), "{case}: one line is expected: {line}");
    for word in words {
        assert!(line.contains(word), "{case}: {word:?} is missing: {line}");
    }
}

#[tokio::test]
async fn what_goes_wrong_is_one_clear_line_and_an_exit_code() {
    let world = World::new().await;
    let folder = world.product.data_dir();
    let admin_url = format!("http://{}", world.product.admin_addr());
    let management_token = world.product.management_token().to_owned();

    let wrong = [("MANAGEMENT_TOKEN", "mt-wrong-wrong-wrong-wrong")];
    let finished = run_binary(&folder, &["manage", "project", "list", "--admin-url", &admin_url], &wrong).await;
    refused("wrong management token", &finished, 1, &["not the management token", "MANAGEMENT_TOKEN"]);
    assert!(!finished.stderr.contains("mt-wrong"), "{finished:?}");

    let proxy_token = [("MANAGEMENT_TOKEN", world.token.secret.as_str())];
    let finished = run_binary(&folder, &["manage", "project", "list", "--admin-url", &admin_url], &proxy_token).await;
    refused("a proxy token", &finished, 1, &["proxy token"]);

    let elsewhere = tempfile::tempdir().unwrap();
    let finished = run_binary(elsewhere.path(), &["manage", "project", "list", "--admin-url", &admin_url], &[]).await;
    refused("no management token", &finished, 1, &["MANAGEMENT_TOKEN"]);

    let right = [("MANAGEMENT_TOKEN", management_token.as_str())];
    let down = ["manage", "project", "list", "--admin-url", "http://127.0.0.1:9"];
    refused("server down", &run_binary(&folder, &down, &right).await, 1, &["llm-proxy server", "127.0.0.1:9"]);
    let data_plane = format!("http://{}", world.product.data_addr());
    let finished = run_binary(&folder, &["manage", "project", "list", "--admin-url", &data_plane], &right).await;
    refused("the data plane's address", &finished, 1, &["not an admin listener"]);

    let nobody = "0193a5b0-7c5e-7abc-9def-0123456789ab";
    for (case, arguments, words) in [
        ("unknown project", &["project", "get", nobody][..], ["project"]),
        ("unknown project of a token", &["token", "create", "--project", nobody, "--duration", "1h"], ["project"]),
        ("unknown token", &["token", "revoke", nobody], ["token"]),
        ("taken name", &["project", "create", "scenario"], ["name"]),
    ] {
        refused(case, &manage(&world, arguments).await, 1, &words);
    }
    let create = ["token", "create", "--project", world.project.as_str(), "--duration"];
    for (case, arguments, words) in [
        ("no such command", &["projct", "list"][..], ["projct", "project"]),
        ("no such flag", &["token", "list", "--projet", "x"], ["--projet", "llm-proxy manage token list --help"]),
        ("a token for its id", &["token", "get", &world.token.secret], ["<ID>", "id"]),
        (
            "a missing flag",
            &["token", "create", "--project", nobody],
            ["not provided: --duration", "token create --help"],
        ),
        ("too long a life", &[&create[..], &["400d"]].concat(), ["--duration: found \"400d\"", "from 1m to 365d"]),
        ("a life in the past", &[&create[..], &["-1h"]].concat(), ["--duration: found \"-1h\"", "from 1m to 365d"]),
        ("no unit of time", &[&create[..], &["10x"]].concat(), ["--duration: found \"10x\"", "90m, 12h or 7d"]),
        (
            "no number",
            &["token", "update", "t", "--max-requests", "abc"],
            ["\"abc\"", "requests from 1 to 9007199254740991"],
        ),
        ("too few bytes", &["project", "update", "p", "--capture-max-bytes", "10"], ["\"10\"", "from 1024 to 524288"]),
        ("below a range", &["token", "update", "t", "--max-requests", "-1"], ["\"-1\"", "or none"]),
        ("above a range", &["token", "list", "--limit", "201"], ["\"201\"", "rows from 1 to 200"]),
    ] {
        let finished = manage(&world, arguments).await;
        refused(case, &finished, 2, &words);
    }
}

#[tokio::test]
async fn ranges_end_where_those_of_the_server_end() {
    let world = World::new().await;
    let create = ["token", "create", "--project", world.project.as_str(), "--duration"];
    let limits = ["365d", "--max-requests", "9007199254740991", "--requests-per-minute", "1000000"];
    let made = told(&world, &[&create[..], &limits].concat()).await;
    assert_eq!(made["max_requests"], 9_007_199_254_740_991_u64, "{made}");
    assert_eq!(made["requests_per_minute"], 1_000_000, "{made}");
    done(&world, &["token", "list", "--limit", "200"]).await;
    for (field, beyond) in [
        ("duration_minutes", 365 * 24 * 60 + 1),
        ("max_requests", 9_007_199_254_740_992_u64),
        ("requests_per_minute", 1_000_001),
    ] {
        let mut body = json!({"project_id": world.project, "duration_minutes": 60});
        body[field] = json!(beyond);
        let refusal = world.admin.post("/manage/tokens", &body).await.expect(400);
        assert!(refusal["detail"].as_str().unwrap().contains(field), "{refusal}");
    }
    let _ = world.admin.get("/manage/tokens?limit=201").await.expect(400);
}

#[tokio::test]
async fn version_and_help_are_answers() {
    let folder = tempfile::tempdir().unwrap();
    let here: &Path = folder.path();
    for arguments in [&["version"][..], &["--version"]] {
        let finished = run_binary(here, arguments, &[]).await;
        assert_eq!((finished.code, finished.stderr.as_str()), (Some(0), ""));
        let version = finished.stdout.trim_end().strip_prefix("llm-proxy ").unwrap_or_else(|| panic!("{finished:?}"));
        assert_eq!(version.split('.').count(), 3, "{version}");
    }
    for (arguments, words) in [
        (&["--help"][..], ["server", "demo", "manage"]),
        (&["server", "--help"], ["LISTEN_ADDR", "--data-dir", "apis:"]),
        (&["demo", "--help"], ["OPENAI_API_KEY", "--listen-addr", "--data-dir"]),
        (&["manage", "--help"], ["project", "token", "MANAGEMENT_TOKEN"]),
        (&["manage", "project", "create", "--help"], ["--capture", "redacted", "--retention-days"]),
        (&["manage", "content", "erase", "--help"], ["--before", "--event", "--yes"]),
        (&["manage", "token", "create", "--help"], ["--max-requests", "--duration", "--model"]),
    ] {
        let finished = run_binary(here, arguments, &[]).await;
        assert_eq!((finished.code, finished.stderr.as_str()), (Some(0), ""), "{arguments:?}");
        for word in words {
            assert!(finished.stdout.contains(word), "{arguments:?}: {word} is missing:\n{}", finished.stdout);
        }
    }
    let finished = run_binary(here, &[], &[]).await;
    assert_eq!((finished.code, finished.stdout.as_str()), (Some(2), ""), "nothing asked for");
    assert!(finished.stderr.contains("llm-proxy demo"), "{finished:?}");
}

//! What was kept is erased from segments, files, archives and dead letters, and from nothing else.

use std::collections::{BTreeMap, BTreeSet};

use llm_proxy_tests::{PATIENCE, Token, eventually};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common::upstream::Upstream;
use crate::disk::{files, holding};
use crate::{Scene, canary, repeat_json};

/// Every record of an exchange in the files of the file sink, those that were moved away too.
fn records(files: &BTreeMap<String, String>) -> Vec<Value> {
    let is_ours = |name: &str| name.starts_with("events") && (name.ends_with(".jsonl") || name.ends_with(".jsonl.gz"));
    let texts = files.iter().filter(|(name, _)| is_ours(name)).map(|(_, text)| text);
    // The last line may still be on its way.
    let whole = texts.flat_map(|text| text[..text.rfind('\n').map_or(0, |end| end + 1)].lines());
    let records = whole.map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")));
    records.filter(|record: &Value| record["type"] == "exchange").collect()
}

/// Somebody's exchange, of which a word is kept in each place that there is.
struct Memory {
    id: String,
    word: String,
    record: Value,
}

/// A world in which what is kept lies in segments, in files of which most are archives, and in dead letters.
struct Archive {
    scene: Scene,
    _refusing: Upstream,
    _config: TempDir,
}

impl Archive {
    async fn new() -> Self {
        let refusing = Upstream::start(|mut wire, _| async move {
            while wire.request().await.is_some() {
                let refusal = "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n";
                if wire.try_send(refusal).await.is_err() {
                    return;
                }
            }
        })
        .await;
        let sinks = format!(
            "sinks:\n  file: {{rotate_bytes: 8KiB, compress: gzip}}\n  refusing: {{type: webhook, url: 'http://{}/', \
             secret: whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw, batch: {{age: 20ms}}, \
             retry: {{first: 20ms, longest: 100ms}}}}\n",
            refusing.addr
        );
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("with-sinks.yaml");
        let scene = Scene::with(|options| {
            std::fs::write(&config, options.yaml() + &sinks).unwrap();
            options.set("CONFIG", config.display())
        })
        .await;
        Self { scene, _refusing: refusing, _config: folder }
    }

    fn files(&self) -> BTreeMap<String, String> {
        files(&self.scene.world.product.data_dir())
    }

    /// Has an exchange and waits until each place has it.
    async fn remember(&self, token: &Token) -> Memory {
        let word = canary();
        let body = format!(r#"{{"model":"gpt-4o-mini","input":"{word}","more":"{}"}}"#, "words ".repeat(500));
        let id = self.scene.echoed("to be kept", repeat_json(token), body.as_bytes()).await.id();
        let record = eventually(PATIENCE, "each place has the exchange", async || {
            let files = self.files();
            let found = holding(&files, &word);
            let is_in = |start: &str| found.iter().any(|name| name.starts_with(start));
            let record = records(&files).into_iter().find(|record| record["id"] == id.as_str())?;
            (is_in("journal/") && is_in("events") && is_in("sinks/refusing.dead")).then_some(record)
        })
        .await;
        Memory { id, word, record }
    }

    /// Erases, and returns how many records that was.
    async fn erase(&self, whose: Value) -> u64 {
        let told = self.scene.world.admin.post("/manage/content/erase", &whose).await.expect(200);
        assert!(told["files"].is_u64(), "{whose}: {told}");
        told["records"].as_u64().unwrap_or_else(|| panic!("{whose}: {told}"))
    }

    /// Checks that nothing of these is left but their numbers, and that these others are as they were.
    fn check(&self, case: &str, erased: &[&Memory], kept: &[&Memory]) {
        let files = self.files();
        let records = records(&files);
        for Memory { id, word, record } in erased {
            assert_eq!(holding(&files, word), [""; 0], "{case}: {id}");
            let mut expected = record.clone();
            expected["content"] = Value::Null;
            let mut found = records.iter().filter(|record| record["id"] == id.as_str()).peekable();
            assert!(found.peek().is_some(), "{case}: the record of {id} is gone");
            found.for_each(|record| assert_eq!(*record, expected, "{case}: nothing else is gone"));
        }
        for Memory { id, word, record } in kept {
            let found = holding(&files, word);
            for place in ["journal/", "events", "sinks/refusing.dead"] {
                let is_there = found.iter().any(|name| name.starts_with(place));
                assert!(is_there, "{case}: {id} is not in {place}, but in {found:?}");
            }
            assert!(records.contains(record), "{case}: {id} has changed");
        }
    }
}

#[tokio::test]
async fn what_was_kept_is_erased_from_every_file_by_event_by_project_and_by_age_while_traffic_goes_on() {
    let mut archive = Archive::new().await;
    let (forgotten, token) = archive.scene.keeping("forgotten", json!({"capture": "full"})).await;
    let (other, other_token) = archive.scene.keeping("other", json!({"capture": "redacted"})).await;
    let first = archive.remember(&token).await;
    let second = archive.remember(&token).await;
    let third = archive.remember(&other_token).await;
    eventually(PATIENCE, "a file is moved away and packed", async || {
        archive.files().into_keys().find(|name| name.ends_with(".jsonl.gz"))
    })
    .await;
    archive.check("before", &[], &[&first, &second, &third]);

    assert!(archive.erase(json!({"event_ids": [first.id]})).await >= 1);
    archive.check("an event", &[&first], &[&second, &third]);
    assert_eq!(archive.erase(json!({"event_ids": [first.id]})).await, 0, "there is nothing left of it");

    let during = async {
        let mut ids = Vec::new();
        for _ in 0..20 {
            let ask = repeat_json(&other_token);
            ids.push(archive.scene.echoed("during an erasure", ask, br#"{"input":"on and on"}"#).await.id());
        }
        ids
    };
    let (erased, during) = tokio::join!(archive.erase(json!({"project_id": forgotten})), during);
    assert!(erased >= 1);
    archive.check("a project", &[&first, &second], &[&third]);

    let fourth = archive.remember(&other_token).await;
    // To the millisecond, which is how finely an id tells its age.
    let received = |memory: &Memory| format!("{}Z", &memory.record["times"]["received"].as_str().unwrap()[..23]);
    assert!(received(&third) < received(&fourth));
    assert_eq!(archive.erase(json!({"project_id": forgotten, "before": received(&fourth)})).await, 0, "both must hold");
    archive.check("a project and an age", &[&first, &second], &[&third, &fourth]);
    assert!(archive.erase(json!({"project_id": other, "before": received(&fourth)})).await >= 1);
    archive.check("an age", &[&first, &second, &third], &[&fourth]);

    archive.scene.world.product.kill9();
    archive.scene.world.product.restart().await;
    let fifth = archive.remember(&token).await;
    archive.check("after a crash", &[&first, &second, &third], &[&fourth, &fifth]);
    let log = archive.scene.world.product.log();
    for line in log.lines().filter(|line| line.contains("bad_records")) {
        assert!(line.contains("\"bad_records\":0"), "the journal was damaged: {line}");
    }
    for Memory { word, .. } in [&first, &second, &third, &fourth] {
        assert!(!log.contains(word), "the log has what was said");
    }

    let mut expected: BTreeSet<String> = [&first, &second, &third, &fourth, &fifth].map(|it| it.id.clone()).into();
    expected.extend(during);
    eventually(PATIENCE, "each exchange has one record", async || {
        let ids = records(&archive.files()).into_iter().map(|record| record["id"].as_str().unwrap().to_owned());
        let ids: Vec<String> = ids.collect();
        (ids.len() == expected.len() && ids.into_iter().collect::<BTreeSet<_>>() == expected).then_some(())
    })
    .await;
}

//! The documents against the product: what they list is there, and what is there they list.
//!
//! Defaults of settings are compared beside the command line (`proxy/src/cli.rs`), the proxy's own answers beside their
//! list (`proxy/core/src/answer.rs`): only the code knows all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use llm_proxy_tests::{Provider, World, fixture, run_binary};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// What stands in backticks.
fn quoted(text: &str) -> BTreeSet<String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// The rows of the tables in a section, cell by cell. Their first cell is in backticks.
fn rows(text: &str, heading: &str) -> Vec<Vec<String>> {
    let (_, section) = text.split_once(&format!("{heading}\n")).unwrap_or_else(|| panic!("no {heading}"));
    let section = section.split("\n## ").next().unwrap();
    let cells =
        |line: &str| -> Vec<String> { line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect() };
    section.lines().filter(|line| line.starts_with("| `")).map(cells).collect()
}

/// The keys that the settings file may have where this one has a wrong one, as its error lists them.
async fn known_keys(yaml: &str) -> BTreeSet<String> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("llm-proxy.yaml"), yaml).unwrap();
    let finished = run_binary(folder.path(), &["server"], &[]).await;
    let listed = finished.stderr.split_once("expected one of ").unwrap_or_else(|| panic!("{finished:?}")).1;
    quoted(listed)
}

#[tokio::test]
async fn the_page_of_settings_has_every_key_of_the_file_and_no_other() {
    let page = read("docs/settings.md");
    let documented =
        |heading: &str| -> BTreeSet<String> { rows(&page, heading).iter().flat_map(|row| quoted(&row[0])).collect() };

    let mut keys: BTreeSet<String> = known_keys("qqq: 1\n").await.iter().map(|key| key.to_ascii_uppercase()).collect();
    assert!(keys.remove("APIS"), "{keys:?}");
    assert!(keys.remove("SINKS"), "{keys:?}");
    // Not a key of the file, which it names.
    assert!(keys.insert("CONFIG".to_owned()), "{keys:?}");
    assert_eq!(documented("\n## The process"), keys);

    let mut keys = known_keys("apis:\n  openai:\n    qqq: 1\n").await;
    assert!(keys.remove("timeouts"), "{keys:?}");
    let clocks = known_keys("apis:\n  openai:\n    timeouts: {qqq: 1s}\n").await;
    keys.extend(clocks.iter().map(|clock| format!("timeouts.{clock}")));
    assert_eq!(documented("\n## `apis:`"), keys);
}

/// Type and labels of every family in a Prometheus text.
fn families(told: &str) -> BTreeMap<String, (String, BTreeSet<String>)> {
    let mut families = BTreeMap::new();
    for line in told.lines() {
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|line| line.split_once(' ')) {
            families.insert(name.to_owned(), (kind.to_owned(), BTreeSet::new()));
            continue;
        }
        if line.starts_with('#') || line.is_empty() {
            continue;
        }
        let (sample, labels) = line.split_once('{').unwrap_or((line.split_once(' ').unwrap().0, ""));
        let family = ["_bucket", "_sum", "_count"].iter().find_map(|part| sample.strip_suffix(*part));
        let family = family.filter(|family| families.contains_key(*family)).unwrap_or(sample);
        let known = &mut families.get_mut(family).unwrap_or_else(|| panic!("no type: {line}")).1;
        // Names stand between the values, which are in quotes.
        let names = labels.split('"').step_by(2).filter_map(|piece| piece.strip_suffix('='));
        known.extend(names.map(|name| name.trim_start_matches(',').to_owned()).filter(|name| name != "le"));
    }
    families
}

#[tokio::test]
async fn the_page_of_metrics_has_every_metric_with_its_type_and_labels_and_no_other() {
    let world = World::new().await;
    let recording = fixture("openai-chat-stream-usage");
    let stream = recording.ask(&world.token.secret).with("x-mock-pace-ms", "2");
    for (ask, status) in [(stream, 200), (Provider::OpenAi.ask("nonsense"), 401)] {
        let answer = world.ask(&ask).await;
        assert_eq!(answer.status, status, "{}", answer.text());
        world.record(&answer).await;
    }

    let page = read("docs/metrics.md");
    let mut documented = BTreeMap::new();
    for row in rows(&page, "# Metrics") {
        let kind = row[1].split(' ').next().unwrap();
        for name in quoted(&row[0]) {
            documented.insert(name, (kind.to_owned(), quoted(&row[2])));
        }
    }
    assert_eq!(documented, families(&world.product.metrics().await));
}

/// Every Markdown file that is written here, by its path.
fn documents() -> BTreeMap<PathBuf, String> {
    let mut folders = vec![root().join("docs")];
    let mut paths = vec![root().join("README.md"), root().join("CHANGELOG.md"), root().join("benches/README.md")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if entry.is_dir() {
                folders.push(entry);
            } else if entry.extension().is_some_and(|extension| extension == "md") {
                paths.push(entry);
            }
        }
    }
    paths.into_iter().map(|path| (path.clone(), std::fs::read_to_string(&path).unwrap())).collect()
}

#[test]
fn links_between_documents_lead_somewhere() {
    let mut followed = 0;
    for (path, text) in documents() {
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = target.split('#').next().unwrap();
            if file.is_empty() || file.contains("://") {
                continue;
            }
            let leads_to = path.parent().unwrap().join(file);
            assert!(leads_to.exists(), "{}: {target}", path.display());
            followed += 1;
        }
    }
    assert!(followed > 20, "{followed}");
}

#[tokio::test]
async fn command_lines_in_documents_are_understood() {
    let folder = tempfile::tempdir().unwrap();
    let mut tried = 0;
    for (path, text) in documents() {
        for line in text.lines() {
            let typed = line.trim().trim_start_matches("target/release/");
            // What stands for an id has the form of one.
            let typed = typed.split(" #").next().unwrap().replace("_ID", "-ID").replace('\'', "");
            let mut words: Vec<&str> = typed.split_whitespace().collect();
            if words.first() != Some(&"llm-proxy") || words.len() < 2 {
                continue;
            }
            words.remove(0);
            if !["server", "demo", "manage", "version", "events", "dispatcher"].contains(&words[0]) {
                continue;
            }
            // Help is given instead of doing it, but only where everything before it is understood.
            words.push("--help");
            let finished = run_binary(folder.path(), &words, &[]).await;
            assert_eq!(finished.code, Some(0), "{}: {line}: {}", path.display(), finished.stderr);
            tried += 1;
        }
    }
    assert!(tried >= 5, "{tried}");
}

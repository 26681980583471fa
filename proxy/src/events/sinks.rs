//! What the files in `DATA_DIR` say of each sink: how far it has come, what it would not take, who serves it.
//!
//! The files belong to whoever serves the sink, and are only read here.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, TryLockError};
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use anyhow::{Context, Result};
use llm_proxy_plugins::dispatcher::{FOLDER, dead_letters, lowest_cursor, saved_cursors};
use llm_proxy_plugins::sinks::SinksSettings;
use llm_proxy_plugins::sinks::file::saved_cursor;

/// The file sink in tables and messages.
pub(super) const FILE: &str = "file";
/// The name of its lock.
const FILE_LOCK: &str = "events.jsonl.lock";

/// One sink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SinkState {
    /// Its name in the settings.
    pub(super) name: String,
    /// Whether it is in the settings. Another one has left its files behind.
    pub(super) is_configured: bool,
    /// The last record that it needs no more. `None`: it begins with the oldest one.
    pub(super) cursor: Option<u64>,
    /// Events that it would not take.
    pub(super) dead_letters: u64,
    /// The process that serves it now.
    pub(super) served_by: Option<String>,
}

/// All sinks of the settings, and those that have left a cursor. `journal` is the journal's id.
pub(super) fn states(data_dir: &Path, settings: &SinksSettings, journal: &str) -> Result<Vec<SinkState>> {
    let at = || format!("{} cannot be read", data_dir.display());
    let folder = data_dir.join(FOLDER);
    let mut states = Vec::new();
    let file_cursor = saved_cursor(data_dir, journal).with_context(at)?;
    if settings.file.is_some() || file_cursor.is_some() {
        states.push(SinkState {
            name: FILE.to_owned(),
            is_configured: settings.file.is_some(),
            cursor: file_cursor,
            dead_letters: 0,
            served_by: holder(&folder.join(FILE_LOCK))?,
        });
    }
    let cursors: BTreeMap<String, u64> = saved_cursors(data_dir, journal).with_context(at)?.into_iter().collect();
    let dispatched = settings.dispatched.iter().map(|sink| &sink.name);
    let configured: BTreeSet<String> = dispatched.chain(&settings.only_named).cloned().collect();
    let left_behind: Vec<&String> = cursors.keys().filter(|name| !configured.contains(*name)).collect();
    for name in configured.iter().chain(left_behind) {
        states.push(SinkState {
            name: name.clone(),
            is_configured: configured.contains(name),
            cursor: cursors.get(name).copied(),
            dead_letters: lines(&dead_letters::path(data_dir, name))?,
            served_by: holder(&folder.join(format!("{name}.lock")))?,
        });
    }
    Ok(states)
}

/// The last record of the journal that no sink of the settings needs any more, by their saved cursors.
pub(crate) fn passed(data_dir: &Path, settings: &SinksSettings, journal: &str) -> io::Result<u64> {
    let names: Vec<String> = settings.dispatched.iter().map(|sink| sink.name.clone()).collect();
    let dispatched = lowest_cursor(data_dir, journal, &names)?;
    let file = match settings.file {
        Some(_) => Some(saved_cursor(data_dir, journal)?.unwrap_or(0)),
        None => None,
    };
    // Without a sink there is nobody to wait for.
    Ok(dispatched.into_iter().chain(file).min().unwrap_or(u64::MAX))
}

fn lines(path: &Path) -> Result<u64> {
    let counted = File::open(path).and_then(|file| {
        let mut lines = BufReader::new(file).split(b'\n');
        lines.try_fold(0_u64, |count, line| line.map(|_| count.saturating_add(1)))
    });
    match counted {
        Ok(count) => Ok(count),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error).with_context(|| format!("{} cannot be read", path.display())),
    }
}

/// The process that holds the lock, as it left its id there.
fn holder(path: &Path) -> Result<Option<String>> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("{} cannot be read", path.display())),
    };
    // Shared with whoever else looks, and let go at once: held any longer it would keep a sink from being served.
    match file.try_lock_shared() {
        Ok(()) => Ok(None),
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let _ = file.read_to_string(&mut holder);
            Ok(Some(if holder.trim().is_empty() { "unknown" } else { holder.trim() }.to_owned()))
        }
        Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("{} cannot be locked", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use llm_proxy_plugins::dispatcher::ConsumerLock;

    use super::*;

    /// The file's cursor in the journal `j`.
    const FILE_AT_7: &str = "v2 j 7 100 1 2 37897c3f\n";

    #[test]
    fn every_sink_is_told_of_that_is_configured_or_has_left_a_cursor() {
        let dir = tempfile::tempdir().unwrap();
        let settings = SinksSettings::default();
        let fresh =
            SinkState { name: FILE.to_owned(), is_configured: true, cursor: None, dead_letters: 0, served_by: None };
        assert_eq!(states(dir.path(), &settings, "j").unwrap(), std::slice::from_ref(&fresh));

        let folder = dir.path().join(FOLDER);
        fs::create_dir(&folder).unwrap();
        fs::write(dir.path().join("events.cursor"), FILE_AT_7).unwrap();
        fs::write(folder.join("old.cursor"), "v1 j 5 2597906f\n").unwrap();
        fs::write(folder.join("older.cursor"), "v1 another 5 3849d886\n").unwrap();
        fs::write(dead_letters::path(dir.path(), "old"), "{}\n{}\n").unwrap();
        let lock = ConsumerLock::take(&folder, "old").unwrap();
        let old = SinkState {
            name: "old".to_owned(),
            is_configured: false,
            cursor: Some(5),
            dead_letters: 2,
            served_by: Some(std::process::id().to_string()),
        };
        let expected = [SinkState { cursor: Some(7), ..fresh }, old];
        assert_eq!(states(dir.path(), &settings, "j").unwrap(), expected);
        drop(lock);
        assert_eq!(states(dir.path(), &settings, "j").unwrap()[1].served_by, None);
        ConsumerLock::take(&folder, "old").unwrap();

        let named = SinksSettings { only_named: vec!["new".to_owned(), "old".to_owned()], ..settings };
        let states = states(dir.path(), &named, "j").unwrap();
        let told: Vec<_> = states.iter().map(|state| (state.name.as_str(), state.is_configured)).collect();
        assert_eq!(told, [(FILE, true), ("new", true), ("old", true)]);
    }

    #[test]
    fn what_no_sink_needs_is_what_the_slowest_has_passed() {
        let dir = tempfile::tempdir().unwrap();
        let tree = serde_json::json!({"lunary": {"api_key": "0d0c5a0e-6a58-4d0b-9d59-1f6f0f6f7b11"}});
        let both = llm_proxy_plugins::sinks::read(&tree, &|_| None).unwrap();
        let lunary = SinksSettings { file: None, ..both.clone() };
        let neither = SinksSettings { dispatched: Vec::new(), ..lunary.clone() };
        let passed = |settings: &SinksSettings| passed(dir.path(), settings, "j").unwrap();
        assert_eq!((passed(&both), passed(&lunary), passed(&neither)), (0, 0, u64::MAX));
        let folder = dir.path().join(FOLDER);
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("lunary.cursor"), "v1 j 9 68d45fbf\n").unwrap();
        assert_eq!((passed(&both), passed(&lunary)), (0, 9));
        fs::write(dir.path().join("events.cursor"), FILE_AT_7).unwrap();
        assert_eq!((passed(&both), passed(&lunary)), (7, 9));
        fs::write(folder.join("lunary.cursor"), "v1 other 9 6b8e18e8\n").unwrap();
        assert_eq!((passed(&both), passed(&lunary)), (0, 0));
    }
}

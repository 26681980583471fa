//! How far a sink has come, in a file of its own.
//!
//! One line of text: version, journal id, sequence number, checksum. It is replaced whole by a rename, so that a crash
//! leaves the old one or the new one.
//!
//! Whoever keeps the journal reads these files too: what may be deleted from it is what the slowest sink has passed, in
//! whichever process that is served.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::FOLDER;

/// How the names of these files end.
const SUFFIX: &str = ".cursor";

/// The cursors of all sinks in `data_dir` that have one for this journal: the sink's name and the last record that it
/// needs no more. In the order of the names.
///
/// # Errors
/// That of reading the folder or one of the files. A folder that is not there has none.
pub fn saved_cursors(data_dir: &Path, journal_id: &str) -> io::Result<Vec<(String, u64)>> {
    let dir = data_dir.join(FOLDER);
    let entries = match fs::read_dir(&dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut cursors = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        let Some(sink) = name.to_str().and_then(|name| name.strip_suffix(SUFFIX)) else { continue };
        let saved = Cursor::load(&path_in(&dir, sink))?.filter(|cursor| cursor.journal == journal_id);
        cursors.extend(saved.map(|cursor| (sink.to_owned(), cursor.seq)));
    }
    cursors.sort_unstable();
    Ok(cursors)
}

/// The last record that none of these sinks needs any more, by their saved cursors: 0 as long as one of them has none
/// for this journal, `None` where no sink is named. Cursors of sinks that are not named, since nobody configures them any
/// longer, hold nothing.
///
/// # Errors
/// That of reading one of the files.
pub fn lowest_cursor(data_dir: &Path, journal_id: &str, names: &[String]) -> io::Result<Option<u64>> {
    let dir = data_dir.join(FOLDER);
    let mut lowest = None;
    for name in names {
        let saved = Cursor::load(&path_in(&dir, name))?.filter(|cursor| cursor.journal == journal_id);
        let seq = saved.map_or(0, |cursor| cursor.seq);
        lowest = Some(lowest.map_or(seq, |lowest: u64| lowest.min(seq)));
    }
    Ok(lowest)
}

/// Where a sink with files in `dir` has its cursor.
pub(super) fn path_in(dir: &Path, sink: &str) -> PathBuf {
    dir.join(format!("{sink}{SUFFIX}"))
}

/// A place in a journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cursor {
    /// [`crate::journal::Journal::id`]: in another journal the numbers mean something else.
    pub journal: String,
    /// The last record that needs nothing more.
    pub seq: u64,
}

impl Cursor {
    /// The saved cursor; `None` if there is none, or none that can be believed.
    pub fn load(path: &Path) -> io::Result<Option<Self>> {
        match fs::read(path) {
            Ok(bytes) => Ok(Self::parse(&bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let (sealed, crc) = std::str::from_utf8(bytes).ok()?.strip_suffix('\n')?.rsplit_once(' ')?;
        if crc.len() != 8 || u32::from_str_radix(crc, 16).ok()? != crc32c::crc32c(sealed.as_bytes()) {
            return None;
        }
        let mut fields = sealed.split(' ');
        let ("v1", journal, seq) = (fields.next()?, fields.next()?, fields.next()?.parse().ok()?) else { return None };
        Some(Self { journal: journal.to_owned(), seq })
    }

    fn to_line(&self) -> String {
        let sealed = format!("v1 {} {}", self.journal, self.seq);
        let crc = crc32c::crc32c(sealed.as_bytes());
        format!("{sealed} {crc:08x}\n")
    }

    /// Replaces the saved cursor; on return it is on disk.
    pub fn save(&self, path: &Path) -> io::Result<()> {
        let next = path.with_extension("cursor.next");
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&next)?;
        file.write_all(self.to_line().as_bytes())?;
        file.sync_data()?;
        fs::rename(&next, path)?;
        sync_folder_of(path)
    }
}

/// Makes the names in the folder of `path` as durable as the files.
pub(super) fn sync_folder_of(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_sinks_that_are_named_hold_the_journal_and_one_without_a_cursor_holds_all_of_it() {
        let data_dir = tempfile::tempdir().unwrap();
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let lowest = |of: &[&str]| lowest_cursor(data_dir.path(), "ours", &names(of)).unwrap();
        assert_eq!(saved_cursors(data_dir.path(), "ours").unwrap(), []);
        assert_eq!((lowest(&[]), lowest(&["hook"])), (None, Some(0)));
        let dir = data_dir.path().join(FOLDER);
        fs::create_dir(&dir).unwrap();
        for (sink, journal, seq) in [("hook", "ours", 40), ("lunary", "ours", 70), ("other", "theirs", 5)] {
            Cursor { journal: journal.to_owned(), seq }.save(&path_in(&dir, sink)).unwrap();
        }
        fs::write(path_in(&dir, "damaged"), "v1 ours 3 00000000\n").unwrap();
        fs::write(dir.join("hook.lock"), "7\n").unwrap();
        let expected = [("hook".to_owned(), 40), ("lunary".to_owned(), 70)];
        assert_eq!(saved_cursors(data_dir.path(), "ours").unwrap(), expected);
        for (of, expected) in [
            (&["hook", "lunary"][..], Some(40)),
            (&["lunary"][..], Some(70)),
            (&["lunary", "new"][..], Some(0)),
            (&["lunary", "other"][..], Some(0)),
            (&["lunary", "damaged"][..], Some(0)),
            (&[] as &[&str], None),
        ] {
            assert_eq!(lowest(of), expected, "{of:?}");
        }
    }

    #[test]
    fn a_cursor_is_read_as_saved_and_only_as_saved() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("webhook.cursor");
        assert_eq!(Cursor::load(&path).unwrap(), None);
        for seq in [12, 13, u64::MAX] {
            let cursor = Cursor { journal: "an-id".to_owned(), seq };
            cursor.save(&path).unwrap();
            assert_eq!(Cursor::load(&path).unwrap(), Some(cursor));
        }
        let line = fs::read(&path).unwrap();
        for at in 0..line.len() {
            let mut damaged = line.clone();
            damaged[at] ^= 1;
            assert_eq!(Cursor::parse(&damaged), None, "byte {at}");
            assert_eq!(Cursor::parse(&line[..at]), None, "cut at {at}");
        }
    }
}

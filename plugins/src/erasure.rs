//! Erasing captured content: on demand by project or by event, and by age where a project keeps it only so long.
//!
//! What goes are the bodies, [`crate::event::Exchange::content`]. That an exchange took place, what it used and what it
//! cost stays, under the same id and the same number. Content lies in three places, and all of them are rewritten:
//! * the journal's segments. The one being written is ended first if there is such content in it;
//! * the file sink's files: the one being written is moved away first if there is such content in it, and those that were
//!   moved away before are rewritten in their own compression;
//! * the dead letters of every sink.
//!
//! On return none of these holds content that was asked for and recorded before the call. What was still to be
//! delivered is delivered without it from then on: consumers notice, and read again what they have in memory; so does a
//! dispatcher in another process. A call that is under way to a receiver is not taken back, and what a receiver has, it
//! has.
//!
//! Every file is replaced whole, by a rename. A crash leaves some files as they were and some as they should be; the
//! same call again does the rest. What is done later under another name, by others (a copy of `DATA_DIR`), is theirs.

mod lines;
mod message;
mod text;

use std::collections::HashSet;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use uuid::Uuid;

use crate::dispatcher::{FOLDER, dead_letters};
use crate::journal::{self, Journal, JournalError, Kind, RecordRef, Rewritten};
use crate::sinks::file::{FileSinkError, FileSinkHandle};

pub(crate) use lines::{Edit, copied, remove_copy, rewrite as rewrite_lines};
pub(crate) use message::without_content;

/// How long the file sink may take to leave its file.
const PATIENCE: Duration = Duration::from_secs(60);

/// Whose content is to be erased. All that is given must hold; at least one has to be given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Which {
    /// That of this project.
    pub project: Option<String>,
    /// That of exchanges which began before this time, in microseconds since the Unix epoch. The id of an event says
    /// when it began, to the millisecond; one that does not say so counts as old.
    pub before_us: Option<i64>,
    /// That of these events. Empty: not given.
    pub events: Vec<Uuid>,
}

/// What was erased.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Erased {
    /// Records whose content is gone. One that lies in the journal and in a file counts twice.
    pub records: u64,
    /// Files that were rewritten.
    pub files: u64,
    /// Bytes by which records became shorter, before compression.
    pub bytes: u64,
}

/// Why not everything could be erased. What could be is.
#[derive(Debug, thiserror::Error)]
pub enum ErasureError {
    /// No condition was given, which would mean everything.
    #[error("name a project, a time or events whose content is to be erased")]
    NoCondition,
    /// A segment of the journal could not be rewritten.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The file sink could not leave its file.
    #[error(transparent)]
    File(#[from] FileSinkError),
    /// The operating system refused.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl ErasureError {
    fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}

/// Erases captured content from everything in `data_dir`, and returns when it is gone. `file` is the file sink, where
/// one runs.
///
/// Blocks, and reads all of the journal, of the file sink's files and of the dead letters, one record at a time. Calls
/// wait for each other.
///
/// # Errors
/// [`ErasureError`]: the first thing that failed. Everything else has been tried, and the call may be repeated.
pub fn erase(
    data_dir: &Path,
    journal: &Journal,
    which: &Which,
    file: Option<&FileSinkHandle>,
) -> Result<Erased, ErasureError> {
    let wanted = Wanted::of(which)?;
    let folder = data_dir.join(FOLDER);
    let _turn = take_turn(&folder)?;
    let mut work = Work::default();
    work.note(erase_journal(journal, &wanted));
    if let Some(file) = file {
        work.file_sink(file, &wanted);
    }
    work.dead_letters(&folder, &wanted);
    match work.failed {
        Some(error) => Err(error),
        None => {
            let Rewritten { records, files, bytes } = work.done;
            Ok(Erased { records, files, bytes })
        }
    }
}

/// Removes the copies that a crash in the middle of [`erase`] left, before anything is served from `data_dir`.
/// `events_file` is the file sink's file, where one is configured. The journal lies in `journal_dir`.
///
/// # Errors
/// That of the first folder that cannot be read, or file that cannot be removed.
pub fn sweep(data_dir: &Path, journal_dir: &Path, events_file: Option<&Path>) -> io::Result<()> {
    journal::sweep(journal_dir)?;
    if let Some((dir, name)) = events_file.and_then(|path| Some((path.parent()?, path.file_stem()?.to_str()?))) {
        for path in copied(dir, &|copied| copied.starts_with(name))? {
            remove_copy(&path)?;
        }
    }
    dead_letters::sweep(&data_dir.join(FOLDER))
}

/// One erasure at a time, whoever asks for it.
fn take_turn(folder: &Path) -> Result<File, ErasureError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.map_err(ErasureError::at("create", folder))?;
    // No name that the lock of a sink can have.
    let path = folder.join("erasure.turn");
    let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
    let file = opened.map_err(ErasureError::at("open", &path))?;
    file.lock().map_err(ErasureError::at("lock", &path))?;
    Ok(file)
}

fn erase_journal(journal: &Journal, wanted: &Wanted<'_>) -> Result<Rewritten, ErasureError> {
    let edit = |record: &RecordRef<'_>| {
        if record.kind == Kind::Begin {
            return None;
        }
        let without = message::without_content(record.payload)?;
        wanted.describes(record.event_id, message::project_of(record.payload).as_deref()).then_some(without)
    };
    let rotated = journal.rotate_if_concerned(&edit);
    let rewritten = journal.rewrite_complete(&edit);
    // Also where it failed: what is gone from some segments must not go out from memory. Also where nothing was found:
    // a crash may have come between an earlier rewriting and this.
    journal::note_erasure(journal.folder())?;
    rotated?;
    Ok(rewritten?)
}

/// What was done so far, and what failed first.
#[derive(Default)]
struct Work {
    done: Rewritten,
    failed: Option<ErasureError>,
}

impl Work {
    fn note(&mut self, result: Result<Rewritten, ErasureError>) {
        match result {
            Ok(rewritten) => self.done.add(rewritten),
            Err(error) => {
                self.failed.get_or_insert(error);
            }
        }
    }

    fn file_sink(&mut self, file: &FileSinkHandle, wanted: &Wanted<'_>) {
        // Held throughout, so that none of the files is compressed while it is rewritten.
        let _turn = file.hold_archives();
        if let Err(error) = leave(file, wanted) {
            self.note(Err(error));
        }
        let files = match file.left_files() {
            Ok(files) => files,
            Err(error) => return self.note(Err(ErasureError::at("list the files beside", file.path())(error))),
        };
        for path in files {
            let rewritten = lines::rewrite(&path, &|line| text::event_line(line, wanted));
            self.note(rewritten.map_err(ErasureError::at("rewrite", &path)));
        }
    }

    fn dead_letters(&mut self, folder: &Path, wanted: &Wanted<'_>) {
        let files = match dead_letters::files(folder) {
            Ok(files) => files,
            Err(error) => return self.note(Err(ErasureError::at("list", folder)(error))),
        };
        for path in files {
            let rewritten = dead_letters::rewrite(&path, &|line| text::letter_line(line, wanted));
            self.note(rewritten.map_err(ErasureError::at("rewrite", &path)));
        }
    }
}

/// Has the file sink leave the file that it writes, if there is something in it that is to go. Else it stays: each file
/// that is left takes the place of an older one where only so many are kept.
fn leave(file: &FileSinkHandle, wanted: &Wanted<'_>) -> Result<(), ErasureError> {
    // What is written after this was read after the journal was rewritten.
    file.renew(PATIENCE)?;
    let is_concerned = match lines::concerns(file.path(), &|line| text::event_line(line, wanted)) {
        // Somebody has moved it away, and the sink has yet to follow.
        Err(error) if error.kind() == io::ErrorKind::NotFound => true,
        result => result.map_err(ErasureError::at("read", file.path()))?,
    };
    if is_concerned {
        file.leave(PATIENCE)?;
    }
    Ok(())
}

/// [`Which`], checked.
struct Wanted<'a> {
    project: Option<&'a str>,
    before_us: Option<i64>,
    events: HashSet<Uuid>,
}

impl<'a> Wanted<'a> {
    fn of(which: &'a Which) -> Result<Self, ErasureError> {
        if which.project.is_none() && which.before_us.is_none() && which.events.is_empty() {
            return Err(ErasureError::NoCondition);
        }
        let events = which.events.iter().copied().collect();
        Ok(Self { project: which.project.as_deref(), before_us: which.before_us, events })
    }

    /// Whether the content of this event is to go.
    fn describes(&self, id: Uuid, project: Option<&str>) -> bool {
        self.project.is_none_or(|wanted| project == Some(wanted))
            && self.before_us.is_none_or(|before_us| began_us(id).is_none_or(|began_us| began_us < before_us))
            && (self.events.is_empty() || self.events.contains(&id))
    }
}

/// When an event began, in microseconds since the Unix epoch, as a UUIDv7 says (RFC 9562 §5.7).
fn began_us(id: Uuid) -> Option<i64> {
    if id.get_version_num() != 7 {
        return None;
    }
    let (seconds, nanoseconds) = id.get_timestamp()?.to_unix();
    let seconds_us = i64::try_from(seconds).ok()?.checked_mul(1_000_000)?;
    seconds_us.checked_add(i64::from(nanoseconds.checked_div(1_000)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id_of(milliseconds: u64) -> Uuid {
        uuid::Builder::from_unix_timestamp_millis(milliseconds, &[7; 10]).into_uuid()
    }

    #[test]
    fn all_that_is_given_must_hold() {
        let (old, new) = (id_of(1_000), id_of(2_000));
        let which = |project: Option<&str>, before_us, events: &[Uuid]| Which {
            project: project.map(str::to_owned),
            before_us,
            events: events.to_vec(),
        };
        for (which, id, project, expected) in [
            (which(Some("blue"), None, &[]), old, Some("blue"), true),
            (which(Some("blue"), None, &[]), old, Some("red"), false),
            (which(Some("blue"), None, &[]), old, None, false),
            (which(None, Some(1_500_000), &[]), old, None, true),
            (which(None, Some(1_000_000), &[]), old, None, false),
            (which(None, Some(1_000_001), &[]), old, None, true),
            (which(None, Some(1_500_000), &[]), new, None, false),
            // Nobody knows how old it is.
            (which(None, Some(1_500_000), &[]), Uuid::from_u128(5), None, true),
            (which(None, None, &[old]), old, None, true),
            (which(None, None, &[old]), new, None, false),
            (which(Some("blue"), Some(1_500_000), &[old, new]), old, Some("blue"), true),
            (which(Some("blue"), Some(1_500_000), &[old, new]), new, Some("blue"), false),
            (which(Some("blue"), Some(1_500_000), &[new]), old, Some("blue"), false),
        ] {
            let wanted = Wanted::of(&which).unwrap();
            assert_eq!(wanted.describes(id, project), expected, "{which:?} of {project:?}");
        }
        assert!(matches!(Wanted::of(&Which::default()), Err(ErasureError::NoCondition)));
    }
}

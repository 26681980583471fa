//! A hand on the files of a running sink, for whoever changes those that are written no more.
//!
//! The sink's own thread is asked, because nobody else knows where a line ends and what the cursor says. It writes what it
//! has in memory and opens the journal anew: what it writes from then on was read after the wish. And it moves its file
//! away, if that is wished as well.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::Thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::{FileSinkError, Progress, archive, rotation};

/// The files of a running file sink.
#[derive(Clone)]
pub struct FileSinkHandle {
    path: PathBuf,
    archives: Arc<Mutex<()>>,
    progress: Arc<Progress>,
    thread: Thread,
}

impl FileSinkHandle {
    pub(super) fn new(path: PathBuf, archives: Arc<Mutex<()>>, progress: Arc<Progress>, thread: Thread) -> Self {
        Self { path, archives, progress, thread }
    }

    /// The file that is written.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// While this is held, no file that was moved away is compressed or deleted.
    pub(crate) fn hold_archives(&self) -> MutexGuard<'_, ()> {
        self.archives.lock()
    }

    /// Has the journal opened anew. On return everything that the sink had read of it before is in its files.
    pub(crate) fn renew(&self, patience: Duration) -> Result<(), FileSinkError> {
        self.ask(Wish::Renew, patience)
    }

    /// As [`Self::renew`], and has the file moved away: on return all that is in files which the sink writes no more.
    pub(crate) fn leave(&self, patience: Duration) -> Result<(), FileSinkError> {
        self.ask(Wish::Leave, patience)
    }

    fn ask(&self, wish: Wish, patience: Duration) -> Result<(), FileSinkError> {
        let granted = self.progress.leaving.ask(wish, patience, || self.thread.unpark());
        granted.map_err(|reason| FileSinkError::NotLeft { path: self.path.clone(), reason })
    }

    /// The files that were moved away, by us or by others, oldest first.
    pub(crate) fn left_files(&self) -> io::Result<Vec<PathBuf>> {
        let mut files = archive::siblings(&self.path, is_left)?;
        files.retain(|path| path.is_file());
        Ok(files)
    }
}

/// Whether a file of this name was moved away from `path`: by us, or by others who appended to its name.
fn is_left(path: &Path, name: &str) -> bool {
    let own_name = path.file_name().and_then(|name| name.to_str());
    let appended = own_name.and_then(|own_name| name.strip_prefix(own_name)).unwrap_or_default();
    let is_unfinished = [".tmp", ".erase"].iter().any(|suffix| name.ends_with(suffix));
    rotation::is_archive(path, name) || (appended.starts_with(['.', '-']) && !is_unfinished)
}

/// What the sink is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Wish {
    /// To write what it has in memory, and to open the journal anew.
    #[default]
    Renew,
    /// And to move its file away.
    Leave,
}

/// A wish, and what became of it.
#[derive(Default)]
pub(super) struct Leaving {
    state: Mutex<State>,
    answered: Condvar,
}

#[derive(Default)]
struct State {
    asked: u64,
    /// The largest of those that are not answered.
    wish: Wish,
    answered: u64,
    /// Why the last one was not granted.
    refusal: Option<String>,
    has_ended: bool,
}

impl Leaving {
    /// Asks the thread that [`Self::serve`]s, and waits for the answer.
    fn ask(&self, wish: Wish, patience: Duration, wake: impl FnOnce()) -> Result<(), String> {
        let now = Instant::now();
        let deadline = now.checked_add(patience).unwrap_or(now);
        let mut state = self.state.lock();
        state.asked = state.asked.saturating_add(1);
        state.wish = state.wish.max(wish);
        let number = state.asked;
        wake();
        while state.answered < number {
            if state.has_ended {
                return Err("it has ended".to_owned());
            }
            if self.answered.wait_until(&mut state, deadline).timed_out() {
                return Err(format!("it was busy for {} seconds", patience.as_secs()));
            }
        }
        state.refusal.take().map_or(Ok(()), Err)
    }

    /// Grants a wish, if there is one. `grant` says false where it has to wait.
    pub fn serve(&self, grant: impl FnOnce(Wish) -> Result<bool, FileSinkError>) {
        let (number, wish) = {
            let state = self.state.lock();
            if state.answered >= state.asked {
                return;
            }
            (state.asked, state.wish)
        };
        let refusal = match grant(wish) {
            Ok(true) => None,
            Ok(false) => return,
            Err(error) => Some(error.to_string()),
        };
        let mut state = self.state.lock();
        state.answered = number;
        if state.asked == number {
            state.wish = Wish::default();
        }
        state.refusal = refusal;
        self.answered.notify_all();
    }

    /// Whether the thread that serves is gone.
    pub fn has_ended(&self) -> bool {
        self.state.lock().has_ended
    }

    /// While this lives, wishes are served. Afterwards nobody waits for an answer.
    pub fn until_the_end(&self) -> Ended<'_> {
        Ended(self)
    }
}

/// Tells that no wish is served any more, also after a panic.
pub(super) struct Ended<'a>(&'a Leaving);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.state.lock().has_ended = true;
        self.0.answered.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn files_that_were_moved_away_are_known_by_their_names() {
        let path = Path::new("/data/events.jsonl");
        for (name, expected) in [
            ("events-20261121T162233Z.jsonl", true),
            ("events-20261121T162233Z_01.jsonl.gz", true),
            ("events-20261121T162233Z-01.jsonl.gz", true),
            ("events-20261121T162233Z.jsonl.zst", true),
            ("events.jsonl.1", true),
            ("events.jsonl-20261121.gz", true),
            ("events.jsonl", false),
            ("events-20261121T162233Z.jsonl.zst.tmp", false),
            ("events.jsonl.1.erase", false),
            ("events-20261121T162233Z.jsonl.erase", false),
            ("events.cursor", false),
            ("other.jsonl", false),
        ] {
            assert_eq!(is_left(path, name), expected, "{name}");
        }
    }

    #[test]
    fn a_wish_is_answered_refused_or_ends_with_the_sink() {
        let leaving = Leaving::default();
        let soon = Duration::from_secs(30);
        thread::scope(|scope| {
            let asking = scope.spawn(|| [Wish::Leave, Wish::Renew].map(|wish| leaving.ask(wish, soon, || {})));
            let mut wishes = Vec::new();
            while !asking.is_finished() {
                leaving.serve(|wish| {
                    wishes.push(wish);
                    match wishes.len() {
                        // Busy at first.
                        1 | 2 => Ok(false),
                        3 => Ok(true),
                        _ => Err(FileSinkError::InUse { path: PathBuf::from("x") }),
                    }
                });
                thread::yield_now();
            }
            assert_eq!(asking.join().unwrap(), [Ok(()), Err("x is in use by another writer".to_owned())]);
            assert_eq!(wishes, [Wish::Leave, Wish::Leave, Wish::Leave, Wish::Renew]);
        });
        assert_eq!(leaving.ask(Wish::Leave, Duration::ZERO, || {}), Err("it was busy for 0 seconds".to_owned()));
        drop(leaving.until_the_end());
        assert_eq!(leaving.ask(Wish::Renew, soon, || {}), Err("it has ended".to_owned()));
    }
}

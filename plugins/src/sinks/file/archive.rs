//! What becomes of files that were moved away: compressed, and the oldest deleted where only so many are to be kept.
//!
//! A thread of its own does it, so that a large file does not hold back the next events. A file is compressed beside
//! itself under a name that nobody reads, and takes the place of the original when it is whole and on disk; a crash in
//! between costs the work and no line.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use flate2::write::GzEncoder;
use parking_lot::Mutex;
use zstd::stream::write::Encoder as ZstdEncoder;

use super::cursor::{folder_of, sync_folder_of};
use super::rotation::{is_archive, is_moved_away};
use super::{Compression, FileSettings};

/// Read at once, and between two looks at the order to stop.
const PIECE_BYTES: usize = 256 << 10;
/// What was moved away by others is seen after this.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// Between two looks at the order to stop while others change the files.
const WAIT_FOR_TURN: Duration = Duration::from_millis(100);

/// The running thread.
pub(super) struct Archivist {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Archivist {
    /// Begins with what an earlier run left. `turn` is held while files are replaced, by whoever replaces them.
    pub fn start(path: &Path, settings: &FileSettings, turn: Arc<Mutex<()>>) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let thread = {
            let (path, settings, stop) = (path.to_owned(), settings.clone(), Arc::clone(&stop));
            let named = thread::Builder::new().name("file-archive".to_owned());
            named.spawn(move || {
                let mut was_well = true;
                while !stop.load(Ordering::Acquire) {
                    // The order to stop is seen soon, however long others have their turn.
                    let Some(turn) = turn.try_lock_for(WAIT_FOR_TURN) else { continue };
                    let result = tidy(&path, settings.compress, settings.keep, &stop);
                    if let Err(error) = &result
                        && was_well
                    {
                        tracing::warn!(%error, path = %path.display(), "Old files of events cannot be put in order");
                    }
                    was_well = result.is_ok();
                    drop(turn);
                    thread::park_timeout(LOOK_EVERY);
                }
            })?
        };
        Ok(Self { stop, thread: Some(thread) })
    }

    /// Tells it that there is work.
    pub fn wake(&self) {
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
    }
}

impl Drop for Archivist {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            if thread.join().is_err() {
                tracing::error!("The archive of event files has panicked; the files are untouched");
            }
        }
    }
}

/// Compresses what was moved away from `path`, and deletes all but the newest `keep` files.
fn tidy(path: &Path, compress: Compression, keep: Option<u32>, stop: &AtomicBool) -> io::Result<()> {
    if compress != Compression::None {
        for original in siblings(path, is_moved_away)? {
            compress_one(&original, compress, stop)?;
            if stop.load(Ordering::Acquire) {
                return Ok(());
            }
        }
    }
    if let Some(keep) = keep {
        let archives = siblings(path, is_archive)?;
        let surplus = archives.len().saturating_sub(usize::try_from(keep).unwrap_or(usize::MAX));
        for archive in archives.iter().take(surplus) {
            fs::remove_file(archive)?;
            tracing::info!(path = %archive.display(), "An old file of events was deleted");
        }
    }
    Ok(())
}

/// Files beside `path` with names that `is_one` knows, oldest first.
pub(super) fn siblings(path: &Path, is_one: fn(&Path, &str) -> bool) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder_of(path))? {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(|name| is_one(path, name)) {
            found.push(entry.path());
        }
    }
    found.sort_unstable();
    Ok(found)
}

fn compress_one(original: &Path, compress: Compression, stop: &AtomicBool) -> io::Result<()> {
    let named = |suffix: &str| {
        let mut name = original.as_os_str().to_owned();
        name.push(suffix);
        PathBuf::from(name)
    };
    let (suffix, temporary) = match compress {
        Compression::None => return Ok(()),
        Compression::Gzip => (".gz", ".gz.tmp"),
        Compression::Zstd => (".zst", ".zst.tmp"),
    };
    let (packed, temporary) = (named(suffix), named(temporary));
    // What a crash left would keep its mode.
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    let written = match compress {
        Compression::Zstd => {
            ZstdEncoder::new(file, 3).and_then(|mut to| Ok(copy(original, &mut to, stop)?.then(|| to.finish())))
        }
        _ => {
            let mut to = GzEncoder::new(file, flate2::Compression::default());
            copy(original, &mut to, stop).map(|is_whole| is_whole.then(|| to.finish()))
        }
    };
    let file = match written.and_then(Option::transpose) {
        Ok(Some(file)) => file,
        Ok(None) => return fs::remove_file(&temporary),
        Err(error) => {
            let _ = fs::remove_file(&temporary);
            return Err(error);
        }
    };
    file.sync_all()?;
    fs::rename(&temporary, &packed)?;
    sync_folder_of(&packed)?;
    fs::remove_file(original)
}

/// Copies all of a file. False if it was told to stop before.
fn copy(from: &Path, to: &mut impl Write, stop: &AtomicBool) -> io::Result<bool> {
    let mut from = File::open(from)?;
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        if stop.load(Ordering::Acquire) {
            return Ok(false);
        }
        match from.read(&mut piece) {
            Ok(0) => return Ok(true),
            Ok(read) => to.write_all(piece.get(..read).unwrap_or_default())?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    static GO_ON: AtomicBool = AtomicBool::new(false);

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort_unstable();
        names
    }

    fn unpacked(path: &Path) -> Vec<u8> {
        let file = File::open(path).unwrap();
        let mut bytes = Vec::new();
        if path.extension().unwrap() == "gz" {
            flate2::read::GzDecoder::new(file).read_to_end(&mut bytes).unwrap();
        } else {
            zstd::stream::read::Decoder::new(file).unwrap().read_to_end(&mut bytes).unwrap();
        }
        bytes
    }

    #[test]
    fn what_was_moved_away_is_compressed_and_nothing_else() {
        for (compress, suffix) in [(Compression::Gzip, ".gz"), (Compression::Zstd, ".zst")] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("events.jsonl");
            let content = b"{\"id\":\"a\"}\n".repeat(100_000);
            for name in ["events.jsonl", "events-20261121T162233Z.jsonl", "events-of-last-year.jsonl"] {
                fs::write(dir.path().join(name), &content).unwrap();
            }
            // What a crash left.
            fs::write(dir.path().join(format!("events-20261121T162233Z.jsonl{suffix}.tmp")), "half").unwrap();
            tidy(&path, compress, None, &GO_ON).unwrap();
            let packed = format!("events-20261121T162233Z.jsonl{suffix}");
            assert_eq!(names(dir.path()), [packed.as_str(), "events-of-last-year.jsonl", "events.jsonl"]);
            let packed = dir.path().join(packed);
            assert_eq!(unpacked(&packed), content);
            assert!(fs::metadata(&packed).unwrap().len() < content.len() as u64 / 10);
            assert_eq!(fs::metadata(&packed).unwrap().permissions().mode() & 0o777, 0o600);
        }
    }

    #[test]
    fn the_oldest_go_where_only_so_many_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.jsonl");
        for name in [
            "events-20261119T000000Z.jsonl.gz",
            "events-20261120T000000Z.jsonl",
            "events-20261121T000000Z.jsonl.zst",
            "events-20261121T000000Z_01.jsonl.zst",
            "events.jsonl",
        ] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        tidy(&path, Compression::None, None, &GO_ON).unwrap();
        assert_eq!(names(dir.path()).len(), 5);
        tidy(&path, Compression::None, Some(1), &GO_ON).unwrap();
        assert_eq!(names(dir.path()), ["events-20261121T000000Z_01.jsonl.zst", "events.jsonl"]);
    }

    #[test]
    fn told_to_stop_it_leaves_the_original_and_nothing_half_done() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.jsonl");
        fs::write(dir.path().join("events-20261121T162233Z.jsonl"), "{}\n").unwrap();
        tidy(&path, Compression::Zstd, None, &AtomicBool::new(true)).unwrap();
        assert_eq!(names(dir.path()), ["events-20261121T162233Z.jsonl"]);
    }
}

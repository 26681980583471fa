//! One process for each consumer of a journal.
//!
//! Two that deliver to the same sink would send everything twice and overwrite each other's cursor. The lock is the
//! operating system's, so that a crash leaves none behind; the file holds the process id, for whoever is refused.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The lock of one consumer in one folder, held while this lives.
#[derive(Debug)]
pub struct ConsumerLock {
    _file: File,
}

/// Why a lock was not had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody else has it.
    #[error("`{consumer}` in {dir} is run by the process with pid {holder}; stop it, or choose another DATA_DIR")]
    Held {
        /// Whose lock it is.
        consumer: String,
        /// Where it is.
        dir: PathBuf,
        /// The process that has it, as it left its id there, or `unknown`.
        holder: String,
    },
    /// The operating system refused.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl ConsumerLock {
    /// Takes the lock of `consumer` in `dir`, which must be there, and leaves our process id in it.
    ///
    /// # Errors
    /// [`LockError::Held`] names the process that has it.
    pub fn take(dir: &Path, consumer: &str) -> Result<Self, LockError> {
        let path = dir.join(format!("{consumer}.lock"));
        let at = |action| {
            let path = path.clone();
            move |source| LockError::Io { action, path, source }
        };
        let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let mut file = opened.map_err(at("open"))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let _ = file.read_to_string(&mut holder);
                let holder = if holder.trim().is_empty() { "unknown" } else { holder.trim() }.to_owned();
                return Err(LockError::Held { consumer: consumer.to_owned(), dir: dir.to_owned(), holder });
            }
            Err(TryLockError::Error(source)) => return Err(at("lock")(source)),
        }
        file.set_len(0).map_err(at("write"))?;
        file.rewind().map_err(at("write"))?;
        writeln!(file, "{}", std::process::id()).map_err(at("write"))?;
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_told_who_has_it_and_gets_it_once_the_first_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let first = ConsumerLock::take(dir.path(), "webhook").unwrap();
        ConsumerLock::take(dir.path(), "lunary").unwrap();
        let refused = ConsumerLock::take(dir.path(), "webhook").unwrap_err();
        let LockError::Held { holder, .. } = &refused else { panic!("{refused}") };
        assert_eq!(*holder, std::process::id().to_string());
        assert!(refused.to_string().starts_with("`webhook` in "), "{refused}");
        drop(first);
        ConsumerLock::take(dir.path(), "webhook").unwrap();
    }
}

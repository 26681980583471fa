//! The data directory: who may use it, and the secrets that the first start makes in it.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use llm_proxy_core::secret::Secret;
use ring::rand::{SecureRandom, SystemRandom};

/// An opened data directory, locked for one role while this lives.
pub struct DataDir {
    path: PathBuf,
    _lock: File,
}

impl DataDir {
    /// Opens the directory, making it (0700) where it is missing, and locks it for the role.
    ///
    /// # Errors
    /// When it cannot be made or used, with the file that it is about; or another process holds the role: that process is
    /// named.
    pub fn open(path: &Path, role: &str) -> Result<Self> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .with_context(|| format!("DATA_DIR: {} cannot be made", path.display()))?;
        let mode = std::fs::metadata(path)
            .with_context(|| format!("DATA_DIR: {} cannot be looked at", path.display()))?
            .permissions()
            .mode();
        if mode & 0o077 != 0 {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700)).with_context(|| {
                format!("DATA_DIR: {} is open to others, and its permissions cannot be changed", path.display())
            })?;
        }
        let lock_path = path.join(format!("{role}.lock"));
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock_path)
            .with_context(|| format!("DATA_DIR: {} cannot be opened", lock_path.display()))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                lock.read_to_string(&mut holder).unwrap_or_default();
                bail!(
                    "DATA_DIR: {} is in use by the {role} with pid {}; stop it, or choose another DATA_DIR",
                    path.display(),
                    holder.trim()
                );
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("DATA_DIR: {} cannot be locked", lock_path.display()));
            }
        }
        let written =
            lock.set_len(0).and_then(|()| lock.rewind()).and_then(|()| writeln!(lock, "{}", std::process::id()));
        written.with_context(|| format!("DATA_DIR: {} cannot be written", lock_path.display()))?;
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    /// A path within.
    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The management token: as set, else as an earlier start made it, else made now. Tells the file it is in.
    ///
    /// # Errors
    /// When the file cannot be read or made, or holds no token that a client could send.
    pub fn management_token(&self, set: Option<Secret>) -> Result<(Secret, Option<PathBuf>)> {
        if let Some(set) = set {
            return Ok((set, None));
        }
        let path = self.join("management_token");
        match std::fs::read_to_string(&path) {
            Ok(text) => match fault(text.trim()) {
                None => return Ok((Secret::new(text.trim()), Some(path))),
                Some(found) => bail!(
                    "MANAGEMENT_TOKEN: {}: found {found}, expected one line of 16 to 256 visible ASCII characters; \
                     delete the file to have a new one made",
                    path.display()
                ),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                return Err(error).with_context(|| format!("MANAGEMENT_TOKEN: {} cannot be read", path.display()));
            }
        }
        let mut octets = [0u8; 24];
        SystemRandom::new().fill(&mut octets).map_err(|_| anyhow::anyhow!("the system's random generator failed"))?;
        let token =
            Secret::new(format!("mt-{}", octets.iter().map(|octet| format!("{octet:02x}")).collect::<String>()));
        write_whole(&path, token.expose())
            .with_context(|| format!("MANAGEMENT_TOKEN: {} cannot be written", path.display()))?;
        Ok((token, Some(path)))
    }
}

/// What is wrong with a token that stands in a file. It has to go into a header field as it is.
fn fault(token: &str) -> Option<String> {
    let length = token.chars().count();
    if token.lines().nth(1).is_some() {
        Some("more than one line".to_owned())
    } else if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        Some("characters that are not visible ASCII".to_owned())
    } else if !(16..=256).contains(&length) {
        Some(format!("{length} characters"))
    } else {
        None
    }
}

/// Makes the file (0600) whole or not at all: an empty one, which a full disk would leave, is refused by every later start.
fn write_whole(path: &Path, line: &str) -> io::Result<()> {
    let beside = path.with_extension("new");
    // What an earlier start left. Nobody else is here: the directory is locked.
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
    let written = writeln!(file, "{line}").and_then(|()| file.sync_all()).and_then(|()| std::fs::rename(&beside, path));
    if written.is_err() {
        // The first error is the one to tell.
        let _ = std::fs::remove_file(&beside);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_process_in_a_role_is_told_who_has_it() {
        let folder = tempfile::tempdir().unwrap();
        let first = DataDir::open(folder.path(), "server").unwrap();
        let refused = DataDir::open(folder.path(), "server").err().unwrap().to_string();
        assert!(refused.contains(&std::process::id().to_string()), "{refused}");
        drop(first);
        DataDir::open(folder.path(), "server").unwrap();
    }

    #[test]
    fn a_made_token_is_kept_and_private() {
        let folder = tempfile::tempdir().unwrap();
        let dir = DataDir::open(folder.path(), "server").unwrap();
        let (made, path) = dir.management_token(None).unwrap();
        assert_eq!(dir.management_token(None).unwrap().0, made);
        assert_eq!(std::fs::metadata(path.unwrap()).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(!dir.join("management_token.new").exists());
        assert_eq!(dir.management_token(Some(Secret::new("given"))).unwrap().1, None);
    }

    #[test]
    fn a_token_file_holds_one_line_that_a_client_can_send() {
        let folder = tempfile::tempdir().unwrap();
        let dir = DataDir::open(folder.path(), "server").unwrap();
        let good = "0f8e2b1c9d7a6351";
        for (text, expected) in [
            (good.to_owned(), None),
            (format!("\n  {good} \r\n\n"), None),
            ("x".repeat(256), None),
            ("x".repeat(257), Some("257 characters")),
            (good.replace('1', ""), Some("14 characters")),
            (String::new(), Some("0 characters")),
            (format!("{good}\n{good}\n"), Some("more than one line")),
            (format!("{good}\r\n\r\n{good}"), Some("more than one line")),
            (format!("{good} {good}"), Some("not visible ASCII")),
            (format!("{good}\0"), Some("not visible ASCII")),
            (format!("{good}\u{e9}"), Some("not visible ASCII")),
        ] {
            std::fs::write(dir.join("management_token"), &text).unwrap();
            let read = dir.management_token(None);
            match expected {
                None => assert_eq!(read.unwrap().0.expose(), text.trim()),
                Some(expected) => {
                    let refused = read.err().unwrap().to_string();
                    assert!(refused.contains(expected) && refused.contains("management_token"), "{refused}");
                    assert!(!refused.contains('\n') && !refused.contains("0f8e2b"), "{refused}");
                }
            }
        }
    }
}

//! The data directory: who may use it, and the secrets that the first start makes in it.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
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
    /// When it cannot be made, or another process holds the role: that process is named.
    pub fn open(path: &Path, role: &str) -> Result<Self> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .with_context(|| format!("DATA_DIR: {} cannot be made", path.display()))?;
        let mode = std::fs::metadata(path)?.permissions().mode();
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
        lock.set_len(0)?;
        lock.rewind()?;
        writeln!(lock, "{}", std::process::id())?;
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    /// A path within.
    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The management token: as set, else as an earlier start made it, else made now. Tells the file it is in.
    ///
    /// # Errors
    /// When the file cannot be read or made.
    pub fn management_token(&self, set: Option<Secret>) -> Result<(Secret, Option<PathBuf>)> {
        if let Some(set) = set {
            return Ok((set, None));
        }
        let path = self.join("management_token");
        match std::fs::read_to_string(&path) {
            Ok(text) if text.trim().len() >= 16 => return Ok((Secret::new(text.trim()), Some(path))),
            Ok(_) => {
                bail!("{} holds no token of at least 16 characters; delete it to have a new one made", path.display())
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("{} cannot be read", path.display())),
        }
        let mut octets = [0u8; 24];
        SystemRandom::new().fill(&mut octets).map_err(|_| anyhow::anyhow!("the system's random generator failed"))?;
        let token =
            Secret::new(format!("mt-{}", octets.iter().map(|octet| format!("{octet:02x}")).collect::<String>()));
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .with_context(|| format!("{} cannot be made", path.display()))?;
        writeln!(file, "{}", token.expose())?;
        file.sync_all()?;
        Ok((token, Some(path)))
    }
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
        assert_eq!(dir.management_token(Some(Secret::new("given"))).unwrap().1, None);
    }
}

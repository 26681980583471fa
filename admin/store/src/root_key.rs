//! The root key: 32 octets outside the database, without which nothing sealed in it opens.
//!
//! It seals nothing itself. By HKDF-SHA256 it gives the key-encryption key and a check value; every other secret is
//! random and stored sealed, so that a new root key means re-wrapping a few rows and no token dies.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::hkdf;
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::seal::{self, KeyId, SealError, SealingKey};

const OCTETS: usize = 32;
const SALT: &[u8] = b"llm-proxy root key, version 1";
const KEK_LABEL: &[u8] = b"llm-proxy key-encryption key";
const CHECK_LABEL: &[u8] = b"llm-proxy root key check value";

/// The secret that opens the store. Its memory is wiped on drop and its `Debug` shows nothing.
#[derive(Clone)]
pub struct RootKey {
    octets: Zeroizing<[u8; OCTETS]>,
    /// Where a new key is to be kept, as long as nothing is sealed under it.
    unwritten: Option<PathBuf>,
}

/// Why there is no root key.
#[derive(Debug, thiserror::Error)]
pub enum RootKeyError {
    /// The text is not base64.
    #[error("the root key is not base64 (expected the base64 of 32 octets, 44 characters with the final `=`)")]
    NotBase64,
    /// The text decodes to another number of octets.
    #[error("the root key has {found} octets, expected 32")]
    WrongLength {
        /// Octets found.
        found: usize,
    },
    /// The file's text is one of the above.
    #[error("{}: {reason}. If this file never opened a database, delete it and start again", .path.display())]
    InFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with its text.
        reason: Box<RootKeyError>,
    },
    /// Others than the owner can read or write the file.
    #[error("{} has the mode {mode:o}, so that others can get at the root key: run chmod 600 on it", .path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file cannot be read or made.
    #[error("{action} {}: {cause}", .path.display())]
    Io {
        /// `reading` or `writing`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// No random octets.
    #[error("the system gave no random octets for a new root key")]
    Random,
}

impl RootKey {
    /// Reads a key as `ROOT_KEY` gives it: standard base64 of 32 octets, white space around it ignored.
    ///
    /// # Errors
    /// [`RootKeyError::NotBase64`] or [`RootKeyError::WrongLength`].
    pub fn from_base64(text: &str) -> Result<Self, RootKeyError> {
        let octets = Zeroizing::new(STANDARD.decode(text.trim()).map_err(|_| RootKeyError::NotBase64)?);
        let octets = <[u8; OCTETS]>::try_from(octets.as_slice())
            .map_err(|_| RootKeyError::WrongLength { found: octets.len() })?;
        Ok(Self::known(Zeroizing::new(octets)))
    }

    /// Makes a new random key.
    ///
    /// # Errors
    /// [`RootKeyError::Random`] when the system has no random octets to give.
    pub fn generate() -> Result<Self, RootKeyError> {
        Ok(Self::known(seal::random::<OCTETS>().map_err(|_| RootKeyError::Random)?))
    }

    /// Reads the key from this file, or makes a new one if there is none. Blocks on disk IO.
    ///
    /// A new key is written (mode 0600) by [`Store::open`](crate::Store::open), once the database has proven to be new:
    /// beside one that another key has sealed, it would stand where the right one belongs.
    ///
    /// # Errors
    /// Any [`RootKeyError`]; the message says what to do.
    pub fn load_or_generate(path: &Path) -> Result<Self, RootKeyError> {
        match Self::load(path)? {
            Some(loaded) => Ok(loaded),
            None => Ok(Self { unwritten: Some(path.to_owned()), ..Self::generate()? }),
        }
    }

    const fn known(octets: Zeroizing<[u8; OCTETS]>) -> Self {
        Self { octets, unwritten: None }
    }

    /// The file that a new key is for: nobody has it but this process.
    pub(crate) fn unwritten(&self) -> Option<&Path> {
        self.unwritten.as_deref()
    }

    /// This key. In place of a new one, the one that another process has written meanwhile, if any has.
    pub(crate) fn reread(&self) -> Result<Self, RootKeyError> {
        let written = self.unwritten().map(Self::load).transpose()?.flatten();
        Ok(written.unwrap_or_else(|| self.clone()))
    }

    /// As [`Self::reread`], with a new key in its file: something is about to be sealed under it.
    ///
    /// The file appears whole or not at all, and an existing one is never replaced: two first starts at once end with
    /// one key, and a crash leaves no half of one.
    pub(crate) fn kept(&self) -> Result<Self, RootKeyError> {
        if let Some(path) = self.unwritten() {
            let written = self.write_new(path);
            written.map_err(|cause| RootKeyError::Io { action: "writing", path: path.to_owned(), cause })?;
        }
        self.reread()
    }

    /// `None`: there is no such file.
    fn load(path: &Path) -> Result<Option<Self>, RootKeyError> {
        let failed = |cause| RootKeyError::Io { action: "reading", path: path.to_owned(), cause };
        let mut file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(failed)?,
        };
        let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(RootKeyError::Exposed { path: path.to_owned(), mode });
        }
        let mut text = Zeroizing::new(String::new());
        file.read_to_string(&mut text).map_err(failed)?;
        let key = Self::from_base64(&text)
            .map_err(|reason| RootKeyError::InFile { path: path.to_owned(), reason: Box::new(reason) })?;
        Ok(Some(key))
    }

    /// Writes beside the place and links into it: unlike a rename, a link never replaces a file that is there.
    fn write_new(&self, path: &Path) -> io::Result<()> {
        let mut beside = path.as_os_str().to_owned();
        beside.push(format!(".{}", Uuid::now_v7()));
        let beside = PathBuf::from(beside);
        let text = Zeroizing::new(STANDARD.encode(self.octets.as_slice()) + "\n");
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
        let linked = file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).and_then(|()| {
            match fs::hard_link(&beside, path) {
                // Another process was first. Its key counts.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
                linked => linked,
            }
        });
        let removed = fs::remove_file(&beside);
        linked.and(removed)?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder)?.sync_all()
    }

    /// The key that seals the installation's secrets. Its id is the beginning of the check value.
    pub(crate) fn key_encryption_key(&self) -> Result<SealingKey, SealError> {
        let derive = hkdf::Salt::new(hkdf::HKDF_SHA256, SALT).extract(self.octets.as_slice());
        let mut octets = Zeroizing::new([0u8; OCTETS]);
        expand(&derive, KEK_LABEL, octets.as_mut_slice())?;
        let mut check = [0u8; OCTETS];
        expand(&derive, CHECK_LABEL, check.as_mut_slice())?;
        let mut id = KeyId::default();
        id.iter_mut().zip(check).for_each(|(to, from)| *to = from);
        SealingKey::new(id, &octets)
    }
}

impl fmt::Debug for RootKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("RootKey(..)")
    }
}

fn expand(derive: &hkdf::Prk, label: &[u8], octets: &mut [u8]) -> Result<(), SealError> {
    let info = [label];
    derive.expand(&info, hkdf::HKDF_SHA256).and_then(|material| material.fill(octets)).map_err(|_| SealError::Broken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generated_key_is_kept_in_a_private_file_when_it_is_to_be_used() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("root.key");
        let made = RootKey::load_or_generate(&path).unwrap();
        assert!(!path.exists());
        assert_eq!(*made.kept().unwrap().octets, *made.octets);
        let read = RootKey::load_or_generate(&path).unwrap();
        assert_eq!(*read.octets, *made.octets);
        assert_eq!(read.unwritten(), None);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_to_string(&path).unwrap().len(), 45);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left behind");
        assert_eq!(format!("{made:?}"), "RootKey(..)");
    }

    #[test]
    fn an_existing_key_is_never_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("root.key");
        let [first, second] = [(); 2].map(|()| RootKey::load_or_generate(&path).unwrap());
        for key in [&first, &second] {
            assert_eq!(*key.kept().unwrap().octets, *first.octets);
            assert_eq!(*second.reread().unwrap().octets, *first.octets);
        }
    }

    #[test]
    fn a_file_that_is_no_private_root_key_is_refused_with_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let good = STANDARD.encode([1; 32]);
        for (text, mode, expected) in [
            ("", 0o600, "0 octets"),
            ("not base64!", 0o600, "not base64"),
            ("AAAA", 0o600, "3 octets"),
            (good.as_str(), 0o644, "chmod 600"),
            (good.as_str(), 0o660, "chmod 600"),
        ] {
            let path = folder.path().join("root.key");
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let message = RootKey::load_or_generate(&path).unwrap_err().to_string();
            assert!(message.contains(expected) && message.contains("root.key"), "{message}");
        }
        let missing = folder.path().join("no such folder").join("root.key");
        let message = RootKey::load_or_generate(&missing).unwrap().kept().unwrap_err().to_string();
        assert!(message.contains("writing") && message.contains("no such folder"), "{message}");
    }

    #[test]
    fn every_root_key_has_its_own_key_encryption_key() {
        let ids =
            [1, 2, 1].map(|octet| *RootKey::known(Zeroizing::new([octet; 32])).key_encryption_key().unwrap().id());
        assert_ne!(ids[0], ids[1]);
        assert_eq!(ids[0], ids[2]);
    }
}

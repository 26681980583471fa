//! How far the file has come, in a file of its own.
//!
//! One line of text: version, journal id, sequence number, length of the events' file, its inode, when it was begun,
//! checksum. It is replaced whole by a rename, so that a crash leaves the old one or the new one. Version 1, which
//! earlier releases wrote, has neither inode nor beginning.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// A place in a journal, and the place in the file that belongs to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cursor {
    /// [`crate::journal::Journal::id`]: in another journal the numbers mean something else.
    pub journal: String,
    /// The last record whose event is delivered.
    pub seq: u64,
    /// Length in bytes of the file that the events were written to, at that moment.
    pub length: u64,
    /// Which file that was; 0 where nobody noted it.
    pub inode: u64,
    /// When that file was begun, in seconds since the Unix epoch; 0 where nobody noted it.
    pub begun: u64,
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
        if u32::from_str_radix(crc, 16).ok()? != crc32c::crc32c(sealed.as_bytes()) {
            return None;
        }
        let mut fields = sealed.split(' ');
        let (version, journal) = (fields.next()?, fields.next()?);
        let mut number = || fields.next()?.parse::<u64>().ok();
        let (seq, length) = (number()?, number()?);
        let (inode, begun) = match version {
            "v1" => (0, 0),
            "v2" => (number()?, number()?),
            _ => return None,
        };
        Some(Self { journal: journal.to_owned(), seq, length, inode, begun })
    }

    fn to_line(&self) -> String {
        let sealed = format!("v2 {} {} {} {} {}", self.journal, self.seq, self.length, self.inode, self.begun);
        let crc = crc32c::crc32c(sealed.as_bytes());
        format!("{sealed} {crc:08x}\n")
    }

    /// Replaces the saved cursor; on return it is on disk.
    pub fn save(&self, path: &Path) -> io::Result<()> {
        let next = path.with_extension("next");
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&next)?;
        file.write_all(self.to_line().as_bytes())?;
        file.sync_data()?;
        fs::rename(&next, path)?;
        sync_folder_of(path)
    }
}

/// Makes the names in the folder of `path` as durable as the files.
pub(super) fn sync_folder_of(path: &Path) -> io::Result<()> {
    File::open(folder_of(path))?.sync_all()
}

/// The folder that `path` is in.
pub(super) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_read_as_saved_and_only_as_saved() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.cursor");
        assert_eq!(Cursor::load(&path).unwrap(), None);
        let cursor = Cursor { journal: "an-id".to_owned(), seq: 12, length: 3_456, inode: 77, begun: 1_795_204_800 };
        cursor.save(&path).unwrap();
        assert_eq!(Cursor::load(&path).unwrap(), Some(cursor));

        let line = fs::read(&path).unwrap();
        for at in 0..line.len() {
            let mut damaged = line.clone();
            damaged[at] ^= 1;
            assert_eq!(Cursor::parse(&damaged), None, "byte {at}");
            assert_eq!(Cursor::parse(&line[..at]), None, "cut at {at}");
        }
    }

    #[test]
    fn a_cursor_of_an_earlier_release_is_understood() {
        let sealed = "v1 an-id 12 3456";
        let line = format!("{sealed} {:08x}\n", crc32c::crc32c(sealed.as_bytes()));
        let expected = Cursor { journal: "an-id".to_owned(), seq: 12, length: 3_456, inode: 0, begun: 0 };
        assert_eq!(Cursor::parse(line.as_bytes()), Some(expected));
        let sealed = "v3 an-id 12 3456 7 8";
        let line = format!("{sealed} {:08x}\n", crc32c::crc32c(sealed.as_bytes()));
        assert_eq!(Cursor::parse(line.as_bytes()), None);
    }
}

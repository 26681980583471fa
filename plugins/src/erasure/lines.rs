//! Replacing files of lines, plain or compressed.
//!
//! A file is looked through first, and only one that has a line to change is written anew: beside itself, in its own
//! compression, on disk before it takes the place of the old one by a rename. A crash leaves the old file or the new
//! one, and perhaps a copy that nobody reads and the next start removes ([`copied`]). One line at a time is in memory.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use zstd::stream::read::Decoder as ZstdDecoder;
use zstd::stream::write::Encoder as ZstdEncoder;

use crate::journal::Rewritten;

/// What follows the name of a file in that of its copy.
const COPY_SUFFIX: &str = ".erase";
/// What is longer is no line of ours: an event has at most a mebibyte, which JSON can make a few times as long.
const MOST_LINE_BYTES: u64 = 32 << 20;
const BUFFER_BYTES: usize = 256 << 10;

/// What becomes of a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Edit {
    /// It stays, byte for byte.
    Keep,
    /// This comes in its place.
    Replace(Vec<u8>),
    /// It goes.
    Remove,
}

/// Rewrites the file at `path` where `edit` changes a line of it. Lines are given without their line break.
pub(crate) fn rewrite(path: &Path, edit: &dyn Fn(&[u8]) -> Edit) -> io::Result<Rewritten> {
    let mut is_changed = false;
    each_piece(path, &mut |piece| {
        is_changed = piece.is_line && edit(piece.text()) != Edit::Keep;
        Ok(!is_changed)
    })?;
    if !is_changed {
        return Ok(Rewritten::default());
    }
    let copy = copy_of(path);
    let written = write_copy(path, &copy, edit).and_then(|rewritten| {
        fs::rename(&copy, path)?;
        sync_folder_of(path)?;
        Ok(rewritten)
    });
    if written.is_err() {
        let _ = fs::remove_file(&copy);
    }
    written
}

/// Whether there is a whole line in the file at `path` that `edit` changes. Others may append to it meanwhile.
pub(super) fn concerns(path: &Path, edit: &dyn Fn(&[u8]) -> Edit) -> io::Result<bool> {
    let mut is_concerned = false;
    each_piece(path, &mut |piece| {
        is_concerned = piece.is_line && piece.bytes.ends_with(b"\n") && edit(piece.text()) != Edit::Keep;
        Ok(!is_concerned)
    })?;
    Ok(is_concerned)
}

/// The files in `dir` with names that `is_ours` knows and of which there is a copy: a crash has left it, or somebody is
/// making it.
pub(crate) fn copied(dir: &Path, is_ours: &dyn Fn(&str) -> bool) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut copied = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        let original = name.to_str().and_then(|name| name.strip_suffix(COPY_SUFFIX)).filter(|name| is_ours(name));
        copied.extend(original.map(|name| dir.join(name)));
    }
    Ok(copied)
}

/// Removes the copy of the file at `path`, if there is one.
pub(crate) fn remove_copy(path: &Path) -> io::Result<()> {
    match fs::remove_file(copy_of(path)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

fn copy_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(COPY_SUFFIX);
    PathBuf::from(name)
}

fn sync_folder_of(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

/// How a file is compressed, by the end of its name.
#[derive(Clone, Copy)]
enum Packing {
    None,
    Gzip,
    Zstd,
}

impl Packing {
    fn of(path: &Path) -> Self {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("gz") => Self::Gzip,
            Some("zst") => Self::Zstd,
            _ => Self::None,
        }
    }
}

fn write_copy(path: &Path, copy: &Path, edit: &dyn Fn(&[u8]) -> Edit) -> io::Result<Rewritten> {
    // What a crash left would keep its mode.
    match fs::remove_file(copy) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(copy)?;
    let mode = fs::metadata(path)?.permissions().mode();
    file.set_permissions(fs::Permissions::from_mode(mode & 0o777))?;
    let to = BufWriter::with_capacity(BUFFER_BYTES, file);
    let (rewritten, to) = match Packing::of(path) {
        Packing::None => copy_lines(path, to, edit)?,
        Packing::Gzip => {
            let (rewritten, to) = copy_lines(path, GzEncoder::new(to, flate2::Compression::default()), edit)?;
            (rewritten, to.finish()?)
        }
        Packing::Zstd => {
            let (rewritten, to) = copy_lines(path, ZstdEncoder::new(to, 3)?, edit)?;
            (rewritten, to.finish()?)
        }
    };
    let file = to.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.sync_all()?;
    Ok(rewritten)
}

fn copy_lines<W: Write>(path: &Path, mut to: W, edit: &dyn Fn(&[u8]) -> Edit) -> io::Result<(Rewritten, W)> {
    let mut rewritten = Rewritten { files: 1, ..Rewritten::default() };
    each_piece(path, &mut |piece| {
        let text = piece.text();
        let edit = if piece.is_line { edit(text) } else { Edit::Keep };
        match edit {
            Edit::Keep => to.write_all(piece.bytes)?,
            Edit::Remove => rewritten.note(piece.bytes.len(), 0),
            Edit::Replace(line) => {
                rewritten.note(text.len(), line.len());
                to.write_all(&line)?;
                to.write_all(piece.bytes.get(text.len()..).unwrap_or_default())?;
            }
        }
        Ok(true)
    })?;
    Ok((rewritten, to))
}

/// A line with its line break, or a part of something that is too long to be one.
struct Piece<'a> {
    bytes: &'a [u8],
    is_line: bool,
}

impl Piece<'_> {
    /// Without the line break, which the last line may lack.
    fn text(&self) -> &[u8] {
        self.bytes.strip_suffix(b"\n").unwrap_or(self.bytes)
    }
}

/// Reads a file piece by piece, until its end or until `take` has had enough.
fn each_piece(path: &Path, take: &mut dyn FnMut(&Piece<'_>) -> io::Result<bool>) -> io::Result<()> {
    let file = BufReader::with_capacity(BUFFER_BYTES, File::open(path)?);
    let mut from: Box<dyn BufRead> = match Packing::of(path) {
        Packing::None => Box::new(file),
        Packing::Gzip => Box::new(BufReader::with_capacity(BUFFER_BYTES, MultiGzDecoder::new(file))),
        Packing::Zstd => Box::new(BufReader::with_capacity(BUFFER_BYTES, ZstdDecoder::with_buffer(file)?)),
    };
    let mut bytes = Vec::new();
    let mut begins_line = true;
    loop {
        bytes.clear();
        let read = from.by_ref().take(MOST_LINE_BYTES).read_until(b'\n', &mut bytes)?;
        let ends_line = bytes.ends_with(b"\n");
        let is_line = begins_line && (ends_line || (read as u64) < MOST_LINE_BYTES);
        if read == 0 || !take(&Piece { bytes: &bytes, is_line })? {
            return Ok(());
        }
        begins_line = ends_line;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pack(name: &str, text: &[u8]) -> Vec<u8> {
        match Packing::of(Path::new(name)) {
            Packing::None => text.to_vec(),
            Packing::Gzip => {
                // Two members, as `cat a.gz b.gz` makes them.
                let (first, second) = text.split_at(text.len() / 2);
                let member = |bytes: &[u8]| {
                    let mut to = GzEncoder::new(Vec::new(), flate2::Compression::default());
                    to.write_all(bytes).unwrap();
                    to.finish().unwrap()
                };
                [member(first), member(second)].concat()
            }
            Packing::Zstd => zstd::stream::encode_all(text, 3).unwrap(),
        }
    }

    fn unpack(path: &Path) -> Vec<u8> {
        let mut text = Vec::new();
        each_piece(path, &mut |piece| {
            text.extend_from_slice(piece.bytes);
            Ok(true)
        })
        .unwrap();
        text
    }

    fn shout(line: &[u8]) -> Edit {
        match line {
            b"gone" => Edit::Remove,
            line if line.starts_with(b"loud") => Edit::Replace(b"LOUD".to_vec()),
            _ => Edit::Keep,
        }
    }

    #[test]
    fn lines_are_changed_in_the_files_own_compression_and_the_others_stay() {
        for name in ["events.jsonl", "events-1.jsonl.gz", "events-1.jsonl.zst"] {
            for (before, after, records) in [
                ("a\nloud one\nb\n", "a\nLOUD\nb\n", 1),
                ("gone\nloud\n\nlast", "LOUD\n\nlast", 2),
                ("first\nloud", "first\nLOUD", 1),
                ("gone\n", "", 1),
            ] {
                let dir = tempfile::tempdir().unwrap();
                let path = dir.path().join(name);
                fs::write(&path, pack(name, before.as_bytes())).unwrap();
                fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
                let rewritten = rewrite(&path, &shout).unwrap();
                assert_eq!((rewritten.records, rewritten.files), (records, 1), "{name}: {before:?}");
                assert_eq!(rewritten.bytes, (before.len() - after.len()) as u64, "{name}: {before:?}");
                assert_eq!(unpack(&path), after.as_bytes(), "{name}");
                assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
                assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
            }
        }
    }

    #[test]
    fn a_file_without_a_line_to_change_is_not_touched() {
        use std::os::unix::fs::MetadataExt;

        let dir = tempfile::tempdir().unwrap();
        for name in ["events.jsonl", "events-1.jsonl.gz", "events-1.jsonl.zst"] {
            let path = dir.path().join(name);
            fs::write(&path, pack(name, b"a\nb\n")).unwrap();
            let inode = fs::metadata(&path).unwrap().ino();
            assert_eq!(rewrite(&path, &shout).unwrap(), Rewritten::default());
            assert_eq!(fs::metadata(&path).unwrap().ino(), inode);
        }
    }

    #[test]
    fn a_damaged_archive_is_told_and_left_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["events-1.jsonl.gz", "events-1.jsonl.zst"] {
            let path = dir.path().join(name);
            let whole = pack(name, &b"a line of some length\nloud\n".repeat(50));
            let half = &whole[..whole.len() * 2 / 3];
            fs::write(&path, half).unwrap();
            assert!(rewrite(&path, &|_| Edit::Remove).is_err());
            assert_eq!(fs::read(&path).unwrap(), half);
            assert!(!copy_of(&path).exists());
        }
    }

    #[test]
    fn copies_that_a_crash_left_are_removed_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["events.jsonl", "events.jsonl.erase", "theirs.erase"] {
            fs::write(dir.path().join(name), "half").unwrap();
        }
        for path in copied(dir.path(), &|name| name.starts_with("events")).unwrap() {
            remove_copy(&path).unwrap();
            // Somebody was faster.
            remove_copy(&path).unwrap();
        }
        let mut left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort_unstable();
        assert_eq!(left, ["events.jsonl", "theirs.erase"]);
        assert!(copied(&dir.path().join("not-there"), &|_| true).unwrap().is_empty());
    }
}

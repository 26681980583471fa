//! `llm-proxy events dedupe`: what at-least-once delivery has written twice is taken out again.
//!
//! A line whose id stood in an earlier line goes, in the same file or in one named before it; every other line stays
//! byte for byte, also one that has no id. Of all lines, only ids are held: 16 bytes each, which a set of them makes 20
//! to 40.

use std::collections::HashSet;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use flate2::bufread::MultiGzDecoder;
use flate2::write::GzEncoder;
use serde::Deserialize;
use uuid::Uuid;

/// The longest line. Beyond it a file holds something else.
const LONGEST_LINE: u64 = 64 << 20;

#[derive(Args)]
pub(super) struct DedupeArgs {
    /// Files with one JSON object a line, oldest first; gzip and zstd are recognized
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,

    /// Replace each file by one without its duplicates, packed as it was, instead of writing all lines to standard
    /// output
    #[arg(long)]
    in_place: bool,
}

/// What became of a file's lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    kept: u64,
    removed: u64,
    /// Among those kept.
    without_id: u64,
}

#[derive(Deserialize)]
struct Identified {
    id: String,
}

/// How a file is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Packing {
    None,
    Gzip,
    Zstd,
}

/// Removes duplicates, and tells on standard error how many.
pub(super) fn run(args: &DedupeArgs, out: &mut dyn Write) -> Result<()> {
    // A name that is wrong is told before anything is written.
    for path in &args.files {
        File::open(path).with_context(|| format!("{} cannot be read", path.display()))?;
    }
    if args.in_place {
        named_once(&args.files)?;
    }
    let mut seen = HashSet::new();
    for path in &args.files {
        let counts = if args.in_place {
            in_place(path, &mut seen)?
        } else {
            let (reader, _) = unpacked(path).with_context(|| path.display().to_string())?;
            copy(reader, out, &mut seen).with_context(|| path.display().to_string())?
        };
        let Counts { kept, removed, without_id } = counts;
        let note = if without_id > 0 { format!(", of which {without_id} have no id") } else { String::new() };
        eprintln!("{}: {removed} lines removed, {kept} kept{note}", path.display());
    }
    out.flush()?;
    Ok(())
}

/// Refuses a file that is named twice, also by another name: the second time, all of its lines would be duplicates.
fn named_once(files: &[PathBuf]) -> Result<()> {
    let mut named = HashSet::new();
    for path in files {
        let metadata = std::fs::metadata(path).with_context(|| format!("{} cannot be read", path.display()))?;
        if !named.insert((metadata.dev(), metadata.ino())) {
            bail!("{} is named twice, expected each file once with --in-place", path.display());
        }
    }
    Ok(())
}

/// Replaces the file, whole and at once, by what is left of it. One without duplicates stays as it is.
fn in_place(path: &Path, seen: &mut HashSet<u128>) -> Result<Counts> {
    // Of a link, the file that it leads to.
    let path = &path.canonicalize().with_context(|| path.display().to_string())?;
    let at = |what: &str| format!("{} cannot be {what}", path.display());
    let original = File::open(path).with_context(|| at("read"))?;
    match original.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => bail!(
            "{} is being written: stop what writes it, or name only the files that it has left behind",
            path.display()
        ),
        Err(TryLockError::Error(error)) => return Err(error).with_context(|| at("locked")),
    }
    let mode = original.metadata().with_context(|| at("read"))?.permissions().mode() & 0o7777;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".deduped");
    let beside = path.with_file_name(name);
    let mut replace = || -> io::Result<Counts> {
        let (reader, packing) = unpacked(path)?;
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&beside)?;
        let (counts, file) = match packing {
            Packing::None => {
                let mut writer = BufWriter::new(file);
                let counts = copy(reader, &mut writer, seen)?;
                (counts, writer.into_inner().map_err(io::IntoInnerError::into_error)?)
            }
            Packing::Gzip => {
                let mut writer = GzEncoder::new(file, flate2::Compression::default());
                let counts = copy(reader, &mut writer, seen)?;
                (counts, writer.finish()?)
            }
            Packing::Zstd => {
                let mut writer = zstd::stream::write::Encoder::new(file, 0)?;
                let counts = copy(reader, &mut writer, seen)?;
                (counts, writer.finish()?)
            }
        };
        if counts.removed == 0 {
            std::fs::remove_file(&beside)?;
            return Ok(counts);
        }
        file.sync_all()?;
        std::fs::rename(&beside, path)?;
        File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()?;
        Ok(counts)
    };
    let replaced = replace();
    if replaced.is_err() {
        // The first error is the one to tell.
        let _ = std::fs::remove_file(&beside);
    }
    replaced.with_context(|| at("replaced"))
}

/// Copies every line that is no duplicate. The last one gets its line break where it has none.
fn copy(mut from: impl BufRead, to: &mut dyn Write, seen: &mut HashSet<u128>) -> io::Result<Counts> {
    let mut counts = Counts::default();
    let mut line = Vec::new();
    loop {
        line.clear();
        from.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line)?;
        if line.is_empty() {
            return Ok(counts);
        }
        if line.len() as u64 == LONGEST_LINE && !line.ends_with(b"\n") {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a line is longer than 64 MiB"));
        }
        match id(&line) {
            Some(id) if !seen.insert(id) => {
                counts.removed = counts.removed.saturating_add(1);
                continue;
            }
            Some(_) => {}
            None => counts.without_id = counts.without_id.saturating_add(1),
        }
        counts.kept = counts.kept.saturating_add(1);
        if !line.ends_with(b"\n") {
            line.push(b'\n');
        }
        to.write_all(&line)?;
    }
}

/// The id of the object in this line: every record has one, and it is a UUID.
fn id(line: &[u8]) -> Option<u128> {
    let Identified { id } = serde_json::from_slice(line).ok()?;
    Uuid::try_parse(&id).ok().map(|id| id.as_u128())
}

impl Packing {
    /// By the first bytes: gzip, RFC 1952 §2.3.1; Zstandard, RFC 8878 §3.1.1.
    fn of(head: &[u8]) -> Self {
        match head {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            _ => Self::None,
        }
    }
}

fn unpacked(path: &Path) -> io::Result<(Box<dyn BufRead>, Packing)> {
    let mut file = BufReader::new(File::open(path)?);
    let packing = Packing::of(file.fill_buf()?);
    let reader: Box<dyn BufRead> = match packing {
        Packing::None => Box::new(file),
        Packing::Gzip => Box::new(BufReader::new(MultiGzDecoder::new(file))),
        Packing::Zstd => Box::new(BufReader::new(zstd::stream::read::Decoder::with_buffer(file)?)),
    };
    Ok((reader, packing))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(number: u128) -> String {
        format!("{{\"id\":\"{}\",\"status\":1.0}}\n", Uuid::from_u128(number))
    }

    fn lines(numbers: &[u128]) -> String {
        numbers.iter().copied().map(line).collect()
    }

    fn packed(packing: Packing, text: &str) -> Vec<u8> {
        match packing {
            Packing::None => text.as_bytes().to_vec(),
            Packing::Gzip => {
                let mut writer = GzEncoder::new(Vec::new(), flate2::Compression::fast());
                writer.write_all(text.as_bytes()).unwrap();
                writer.finish().unwrap()
            }
            Packing::Zstd => zstd::stream::encode_all(text.as_bytes(), 1).unwrap(),
        }
    }

    fn read(path: &Path) -> (String, Packing) {
        let (mut reader, packing) = unpacked(path).unwrap();
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        (text, packing)
    }

    #[test]
    fn a_line_whose_id_was_there_before_goes_and_every_other_stays_as_it_is() {
        let text =
            format!("{}not json\n{{\"id\":1}}\n{{\"id\":\"x\"}}\n{}not json\n{}", lines(&[1, 2, 1]), line(2), "{\"i");
        let (mut out, mut seen) = (Vec::new(), HashSet::new());
        let counts = copy(text.as_bytes(), &mut out, &mut seen).unwrap();
        let expected = format!("{}not json\n{{\"id\":1}}\n{{\"id\":\"x\"}}\nnot json\n{{\"i\n", lines(&[1, 2]));
        assert_eq!(String::from_utf8(out).unwrap(), expected);
        assert_eq!(counts, Counts { kept: 7, removed: 2, without_id: 5 });
        // What earlier files held is known.
        let (mut out, more) = (Vec::new(), lines(&[3, 1]));
        assert_eq!(copy(more.as_bytes(), &mut out, &mut seen).unwrap(), Counts { kept: 1, removed: 1, without_id: 0 });
        assert_eq!(String::from_utf8(out).unwrap(), line(3));
    }

    #[test]
    fn a_file_is_replaced_in_its_own_packing_and_one_without_duplicates_is_not_touched() {
        for packing in [Packing::None, Packing::Gzip, Packing::Zstd] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("events.jsonl");
            // As a file that was written by several runs: members, and frames, one after the other.
            let content = [packed(packing, &lines(&[1, 2])), packed(packing, &lines(&[2, 3]))].concat();
            std::fs::write(&path, content).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
            let mut seen = HashSet::new();
            let counts = in_place(&path, &mut seen).unwrap();
            assert_eq!(counts, Counts { kept: 3, removed: 1, without_id: 0 }, "{packing:?}");
            assert_eq!(read(&path), (lines(&[1, 2, 3]), packing));
            assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
            let before = std::fs::read(&path).unwrap();
            assert_eq!(in_place(&path, &mut HashSet::new()).unwrap().removed, 0);
            assert_eq!(std::fs::read(&path).unwrap(), before);
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "{packing:?}: nothing is left beside it");
        }
    }

    #[test]
    fn a_file_that_is_named_twice_loses_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (path, link) = (dir.path().join("events.jsonl"), dir.path().join("link.jsonl"));
        std::fs::write(&path, lines(&[1, 2, 1])).unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        for files in [vec![path.clone(), dir.path().join("./events.jsonl")], vec![path.clone(), link]] {
            let refused = run(&DedupeArgs { files, in_place: true }, &mut Vec::<u8>::new()).unwrap_err();
            assert!(refused.to_string().contains("is named twice"), "{refused}");
            assert_eq!(read(&path).0, lines(&[1, 2, 1]));
        }
    }

    #[test]
    fn a_file_that_is_being_written_or_is_broken_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.jsonl");
        std::fs::write(&path, lines(&[1, 1])).unwrap();
        let writer = OpenOptions::new().append(true).open(&path).unwrap();
        writer.lock().unwrap();
        let refused = in_place(&path, &mut HashSet::new()).unwrap_err();
        assert!(refused.to_string().contains("is being written"), "{refused}");
        drop(writer);
        assert_eq!(in_place(&path, &mut HashSet::new()).unwrap().removed, 1);

        let mut broken = packed(Packing::Gzip, &lines(&[1, 1]));
        broken.truncate(broken.len() - 6);
        std::fs::write(&path, &broken).unwrap();
        assert!(in_place(&path, &mut HashSet::new()).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), broken);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}

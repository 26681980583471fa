//! When the file has had enough, and what it is called from then on.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use time::UtcDateTime;

/// The most names that are tried for one second.
const MOST_NAMES: u32 = 100;

/// When a new file is begun.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Rotation {
    /// Before it would be larger than this, in bytes. `None`: never for its size.
    pub bytes: Option<u64>,
    /// Once it is this old. `None`: never for its age.
    pub age: Option<Duration>,
}

impl Rotation {
    /// Whether to begin a new file now, before `more` bytes are written to the one of this length that was begun at
    /// `begun`. An empty file is never moved away, however old.
    pub fn is_due(&self, length: u64, more: u64, begun: SystemTime, now: SystemTime) -> bool {
        let is_large = self.bytes.is_some_and(|bytes| length.saturating_add(more) > bytes);
        // A clock that was set back makes no file old.
        let is_old = self.age.is_some_and(|age| now.duration_since(begun).is_ok_and(|since| since >= age));
        length > 0 && (is_large || is_old)
    }
}

/// Names for the file at `path` once it is moved away at `now`, the best one first: `events.jsonl` becomes
/// `events-20261121T162233Z.jsonl`, and where that is taken `events-20261121T162233Z_01.jsonl`. Bytewise they sort like
/// the times, as `_` comes after `.`, compressed or not.
pub(super) fn names(path: &Path, now: SystemTime) -> impl Iterator<Item = PathBuf> {
    let seconds = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let at = i64::try_from(seconds).ok().and_then(|seconds| UtcDateTime::from_unix_timestamp(seconds).ok());
    let at = at.unwrap_or(UtcDateTime::UNIX_EPOCH);
    let (year, month, day) = at.to_calendar_date();
    let (hour, minute, second) = at.as_hms();
    let stamp = format!("{year:04}{:02}{day:02}T{hour:02}{minute:02}{second:02}Z", u8::from(month));
    let (stem, extension) = parts(path);
    let folder = super::cursor::folder_of(path).to_owned();
    (0..MOST_NAMES).map(move |number| {
        let number = if number == 0 { String::new() } else { format!("_{number:02}") };
        folder.join(format!("{stem}-{stamp}{number}{extension}"))
    })
}

/// Whether a file of this name is one that was moved away from `path`, and not compressed.
pub(super) fn is_moved_away(path: &Path, name: &str) -> bool {
    stamp_of(path, name).is_some_and(|rest| rest.is_empty())
}

/// Whether a file of this name was moved away from `path`, compressed or not.
pub(super) fn is_archive(path: &Path, name: &str) -> bool {
    stamp_of(path, name).is_some_and(|rest| matches!(rest, "" | ".gz" | ".zst"))
}

/// What follows the name that [`names`] gives.
fn stamp_of<'a>(path: &Path, name: &'a str) -> Option<&'a str> {
    let (stem, extension) = parts(path);
    let (stamp, rest) = name.strip_prefix(stem.as_str())?.strip_prefix('-')?.split_at_checked(16)?;
    let is_stamp = stamp.bytes().enumerate().all(|(at, byte)| match at {
        8 => byte == b'T',
        15 => byte == b'Z',
        _ => byte.is_ascii_digit(),
    });
    let is_number = |number: &str| number.bytes().all(|byte| byte.is_ascii_digit());
    // `-`: as earlier versions called them.
    let rest = match rest.strip_prefix(['_', '-']).and_then(|rest| rest.split_at_checked(2)) {
        Some((number, rest)) if is_number(number) => rest,
        _ => rest,
    };
    rest.strip_prefix(extension.as_str()).filter(|_| is_stamp)
}

fn parts(path: &Path) -> (String, String) {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let extension = path.extension().map(|extension| format!(".{}", extension.to_string_lossy()));
    (stem, extension.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_left_before_it_grows_too_large_or_too_old() {
        let begun = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000);
        let rotation = Rotation { bytes: Some(100), age: Some(Duration::from_secs(60)) };
        for (length, more, seconds, expected) in [
            (90, 10, 0, false),
            (90, 11, 0, true),
            (0, 500, 0, false),
            (10, 0, 59, false),
            (10, 0, 60, true),
            (0, 10, 60, false),
            (u64::MAX, 1, 0, true),
        ] {
            let now = begun + Duration::from_secs(seconds);
            assert_eq!(rotation.is_due(length, more, begun, now), expected, "{length}+{more} after {seconds}s");
        }
        assert!(!rotation.is_due(10, 0, begun, begun - Duration::from_secs(500)));
        assert!(!Rotation::default().is_due(u64::MAX, 1, SystemTime::UNIX_EPOCH, begun));
    }

    #[test]
    fn names_tell_when_and_are_known_again() {
        let path = Path::new("/data/events.jsonl");
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_278_153);
        let names: Vec<_> = names(path, now).map(|name| name.display().to_string()).collect();
        assert_eq!(names[..2], ["/data/events-20261121T162233Z.jsonl", "/data/events-20261121T162233Z_01.jsonl"]);
        let packed = names.iter().flat_map(|name| [name.clone(), format!("{name}.gz")]);
        assert!(packed.is_sorted(), "in bytewise order");
        for (name, moved, archive) in [
            ("events-20261121T162233Z.jsonl", true, true),
            ("events-20261121T162233Z_07.jsonl", true, true),
            ("events-20261121T162233Z-07.jsonl", true, true),
            ("events-20261121T162233Z+07.jsonl", false, false),
            ("events-20261121T162233Z.jsonl.gz", false, true),
            ("events-20261121T162233Z_07.jsonl.zst", false, true),
            ("events-20261121T162233Z-07.jsonl.zst", false, true),
            ("events-20261121T162233Z.jsonl.zst.tmp", false, false),
            ("events.jsonl", false, false),
            ("events-2026.jsonl", false, false),
            ("events-20261121x162233Z.jsonl", false, false),
            ("events-20261121T162233Z.jsonl.1", false, false),
            ("other-20261121T162233Z.jsonl", false, false),
        ] {
            assert_eq!((is_moved_away(path, name), is_archive(path, name)), (moved, archive), "{name}");
        }
        let bare = Path::new("records");
        assert!(is_moved_away(bare, "records-20261121T162233Z"));
    }
}

//! What a file of events already holds when its writer starts again.
//!
//! The cursor is saved less often than lines are written, so after a crash the file may be ahead of it. The ids of the
//! lines there tell which events must not be written a second time.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Seek, SeekFrom};

use serde::Deserialize;

/// The end of an existing file.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// Bytes up to the end of the last complete line.
    pub length: u64,
    /// Ids of the events in the lines that were looked at, those that were asked for.
    pub ids: HashSet<String>,
}

/// Looks at the lines of `file` from byte `from` on, for ids that `is_wanted` asks for. A line that is none of ours is
/// passed over.
pub(super) fn look(file: &File, from: u64, is_wanted: impl Fn(&str) -> bool) -> io::Result<Found> {
    let mut reader = BufReader::with_capacity(256 << 10, file);
    reader.seek(SeekFrom::Start(from))?;
    let mut found = Found { length: from, ids: HashSet::new() };
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = reader.read_until(b'\n', &mut line)?;
        if !line.ends_with(b"\n") {
            return Ok(found);
        }
        found.length = found.length.saturating_add(read as u64);
        if let Ok(event) = serde_json::from_slice::<IdOnly>(&line)
            && is_wanted(&event.id)
        {
            found.ids.insert(event.id);
        }
    }
}

#[derive(Deserialize)]
struct IdOnly {
    id: String,
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn complete_lines_count_and_a_torn_one_does_not() {
        for (text, from, length, ids) in [
            ("", 0, 0, vec![]),
            ("{\"id\":\"a\"}\n{\"id\":\"b\"}\n", 0, 22, vec!["a", "b"]),
            ("{\"id\":\"a\"}\n{\"id\":\"b\"}\n", 11, 22, vec!["b"]),
            ("{\"id\":\"a\"}\n{\"id\":\"b\"}", 0, 11, vec!["a"]),
            ("{\"id\":\"a\"}\nnot ours\n\0\0\0", 0, 20, vec!["a"]),
            ("{\"id\":", 0, 0, vec![]),
        ] {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(text.as_bytes()).unwrap();
            let ids = ids.into_iter().map(str::to_owned).collect();
            assert_eq!(look(&file, from, |_| true).unwrap(), Found { length, ids }, "{text:?} from {from}");
            assert_eq!(look(&file, from, |_| false).unwrap(), Found { length, ids: HashSet::new() });
        }
    }
}

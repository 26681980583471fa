//! What stands in files, however it is packed.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use flate2::read::MultiGzDecoder;

/// The files below a folder, in order.
fn names(folder: &Path) -> BTreeSet<PathBuf> {
    let (mut found, mut folders) = (BTreeSet::new(), vec![folder.to_owned()]);
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.insert(path);
            }
        }
    }
    found
}

/// Every file below a folder, archives unpacked, by its path from there. A file that is given another name meanwhile
/// would be missed, so it is looked again then.
pub fn files(folder: &Path) -> BTreeMap<String, String> {
    loop {
        let names_before = names(folder);
        let read = names_before.iter().map(|path| {
            let bytes = std::fs::read(path).ok()?;
            let name = path.strip_prefix(folder).unwrap().display().to_string();
            let mut unpacked = Vec::new();
            let is_archive =
                name.ends_with(".gz") && MultiGzDecoder::new(&bytes[..]).read_to_end(&mut unpacked).is_ok();
            let text = String::from_utf8_lossy(if is_archive { &unpacked } else { &bytes }).into_owned();
            Some((name, text))
        });
        let read: Option<BTreeMap<String, String>> = read.collect();
        if let Some(read) = read
            && names(folder) == names_before
        {
            return read;
        }
    }
}

/// The files that have a text in them, as it is or in base64, which is how dead letters have it.
pub fn holding<'f>(files: &'f BTreeMap<String, String>, text: &str) -> Vec<&'f str> {
    let mut forms = vec![text.to_owned()];
    for shift in 0..3 {
        let encoded = STANDARD_NO_PAD.encode([&[0; 2][..shift], text.as_bytes()].concat());
        // What the neighbours have a part in is cut off: it differs with them.
        forms.push(encoded[[0, 2, 3][shift]..encoded.len() - 1].to_owned());
    }
    let holds = |held: &str| forms.iter().any(|form| held.contains(form));
    files.iter().filter(|(_, held)| holds(held)).map(|(name, _)| name.as_str()).collect()
}

#[test]
fn a_text_is_found_as_it_is_and_in_base64_wherever_it_begins() {
    let text = "canary-8f2c41d09be7";
    for (name, held) in [
        ("plain", format!("x{text}y")),
        ("at 0", STANDARD.encode(format!("abc{text}tail"))),
        ("at 1", STANDARD.encode(format!("a{text}"))),
        ("at 2", STANDARD.encode(format!("ab{text}{{"))),
    ] {
        assert_eq!(holding(&BTreeMap::from([(name.to_owned(), held)]), text), [name]);
    }
    assert!(holding(&BTreeMap::from([("other".to_owned(), "canary-8f2c41d09be8".to_owned())]), text).is_empty());
}

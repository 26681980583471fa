//! Does a form that policy takes show the same fields to every reader behind it, and does every proper form read back?
//!
//! Half of the inputs are forms as they come: whatever is taken must show two lenient readers the wanted fields with the
//! same values, and no further field that any of them could take for a wanted one. The other half are contents, out of
//! which a proper form is built: it must read back field by field, and nowhere cut pass for whole.

#![no_main]

use libfuzzer_sys::fuzz_target;
use llm_proxy_core::multipart::{LONGEST_VALUE, boundary, read};
use llm_proxy_fuzz::find;
use llm_proxy_fuzz::form::{Part, boundaries, naive, stem, tolerant};

const WANTED: [&str; 3] = ["model", "prompt", "include[]"];

fuzz_target!(|input: &[u8]| {
    match input.split_first() {
        Some((how, form)) if how & 1 == 0 => taken(form),
        Some((_, contents)) => built(contents),
        None => {}
    }
});

/// A first line with the content type, then the body.
fn taken(form: &[u8]) {
    let line_end = find(form, b"\n").unwrap_or(form.len());
    let (content_type, body) = form.split_at(line_end);
    let body = body.strip_prefix(b"\n").unwrap_or(body);
    let named = boundary(content_type);
    if let Some(named) = &named {
        assert!((1..=70).contains(&named.len()) && named.trim() == named, "{named:?}");
        let content_type = std::str::from_utf8(content_type).expect("only text names a boundary");
        for theirs in boundaries(content_type) {
            assert_eq!(&theirs, named);
        }
    }
    let boundary = named.as_deref().unwrap_or("b");
    let Ok(ours) = read(body, boundary, &WANTED) else { return };
    let ours: Vec<Part> = ours.into_iter().map(|(name, value)| (name, value.into_bytes())).collect();
    for (reader, parts) in [("tolerant", tolerant(body, boundary)), ("naive", naive(body, boundary))] {
        let resembles = |name: &str| WANTED.iter().any(|wanted| stem(wanted).eq_ignore_ascii_case(stem(name)));
        let theirs: Vec<Part> = parts.into_iter().filter(|(name, _)| resembles(name)).collect();
        assert_eq!(theirs, ours, "{reader}");
    }
    let mut names: Vec<&str> = ours.iter().map(|(name, _)| name.as_str()).collect();
    assert!(names.iter().all(|name| WANTED.contains(name)), "{names:?}");
    assert!(ours.iter().all(|(_, value)| value.len() <= LONGEST_VALUE), "{ours:?}");
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), ours.len(), "each stands there once");
}

/// Contents with a NUL between them. What a field cannot hold becomes a file.
fn built(contents: &[u8]) {
    let mut body = Vec::new();
    let mut expected: Vec<(String, String)> = Vec::new();
    let contents = contents.split(|byte| *byte == 0).filter(|content| find(content, b"--b").is_none()).take(40);
    for (at, content) in contents.enumerate() {
        let text = std::str::from_utf8(content).ok();
        let value = text.filter(|text| text.len() <= LONGEST_VALUE && !text.starts_with('\u{feff}'));
        let rest = match value {
            Some(_) if at % 2 == 0 => "\"",
            Some(_) => "\"\r\nContent-Type: text/plain; charset=utf-8",
            None => "\"; filename=\"a; b\"\r\nContent-Type: audio/mpeg",
        };
        body.extend_from_slice(format!("--b\r\nContent-Disposition: form-data; name=\"f{at}{rest}\r\n\r\n").as_bytes());
        body.extend_from_slice(content);
        body.extend_from_slice(b"\r\n");
        if let Some(value) = value {
            expected.push((format!("f{at}"), value.to_owned()));
        }
    }
    if body.is_empty() {
        return;
    }
    body.extend_from_slice(b"--b--\r\n");
    let wanted: Vec<&str> = expected.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(read(&body, "b", &wanted).as_ref(), Ok(&expected));
    // Without its last line end it is whole still.
    let whole = body.len() - 2;
    assert_eq!(read(&body[..whole], "b", &wanted).as_ref(), Ok(&expected));
    for end in (0..whole).step_by(whole.div_ceil(50)) {
        assert!(read(&body[..end], "b", &wanted).is_err(), "cut at {end}");
    }
}

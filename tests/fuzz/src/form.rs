//! Two lenient readers of `multipart/form-data`, as they stand behind the policy.
//!
//! One is tolerant in the way of mail parsers: bare LF, white space after a delimiter, folded heads, escaped and encoded
//! names, the last parameter wins. The other is naive in the way of hand-written ones: it looks for the delimiter
//! anywhere, cuts parameters at every `;` and takes the first. A form that is taken must be the same to both.

/// Name and content of a part.
pub type Part = (String, Vec<u8>);

/// What the tolerant reader finds.
pub fn tolerant(body: &[u8], boundary: &str) -> Vec<Part> {
    let delimiter = format!("--{boundary}");
    let closing = format!("{delimiter}--");
    let mut parts = Vec::new();
    let mut part: Option<Vec<u8>> = None;
    for line in body.split_inclusive(|byte| *byte == b'\n') {
        let text = line.trim_ascii_end();
        let is_closing = text == closing.as_bytes();
        if is_closing || text == delimiter.as_bytes() {
            parts.extend(part.take().and_then(|part| tolerant_part(&part)));
            if is_closing {
                break;
            }
            part = Some(Vec::new());
        } else if let Some(part) = &mut part {
            part.extend_from_slice(line);
        }
    }
    parts
}

fn tolerant_part(part: &[u8]) -> Option<Part> {
    let mut name = None;
    let mut head = String::new();
    let mut at = 0;
    for line in part.split_inclusive(|byte| *byte == b'\n') {
        at += line.len();
        if line.trim_ascii().is_empty() {
            break;
        }
        let text = String::from_utf8_lossy(line.trim_ascii_end());
        if !text.starts_with([' ', '\t']) {
            name = disposition_name(&head).or(name);
            head.clear();
        }
        head.push_str(&text);
    }
    let name = disposition_name(&head).or(name)?;
    Some((name, without_line_end(&part[at..]).to_vec()))
}

/// The field's name, where the line is a Content-Disposition.
fn disposition_name(line: &str) -> Option<String> {
    let (header, value) = line.split_once(':')?;
    if !header.trim().eq_ignore_ascii_case("content-disposition") {
        return None;
    }
    let mut name = None;
    for (parameter, value) in parameters(value) {
        match parameter.as_str() {
            "name" => name = Some(value),
            // RFC 5987: charset, language, then percent-encoded text.
            "name*" => name = Some(percent_decoded(value.rsplit('\'').next().unwrap_or(""))),
            _ => {}
        }
    }
    name
}

/// Parameters by lower-case name, their quotes and escapes undone.
pub fn parameters(value: &str) -> Vec<(String, String)> {
    let mut parameters = Vec::new();
    let mut letters = value.chars();
    let mut name = String::new();
    let mut text = String::new();
    let (mut is_quoted, mut is_value) = (false, false);
    loop {
        let letter = letters.next();
        match letter {
            Some('"') => is_quoted = !is_quoted,
            Some('\\') if is_quoted => text.extend(letters.next()),
            Some('=') if !is_quoted && !is_value => is_value = true,
            Some(';') | None if !is_quoted || letter.is_none() => {
                if is_value {
                    parameters.push((name.trim().to_ascii_lowercase(), text.trim().to_owned()));
                }
                if letter.is_none() {
                    return parameters;
                }
                name.clear();
                text.clear();
                is_value = false;
            }
            Some(letter) if is_value => text.push(letter),
            Some(letter) => name.push(letter),
            None => return parameters,
        }
    }
}

fn percent_decoded(text: &str) -> String {
    let mut decoded = Vec::new();
    let mut at = 0;
    while let Some(&byte) = text.as_bytes().get(at) {
        let digits = text.get(at + 1..at + 3).filter(|_| byte == b'%');
        let octet = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        decoded.push(octet.unwrap_or(byte));
        at += if octet.is_some() { 3 } else { 1 };
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

/// What the naive reader finds.
pub fn naive(body: &[u8], boundary: &str) -> Vec<Part> {
    let delimiter = format!("--{boundary}");
    let mut parts = Vec::new();
    let mut rest = body;
    while let Some(begin) = crate::find(rest, delimiter.as_bytes()) {
        rest = &rest[begin + delimiter.len()..];
        let end = crate::find(rest, delimiter.as_bytes()).unwrap_or(rest.len());
        if rest.starts_with(b"--") {
            break;
        }
        parts.extend(naive_part(&rest[..end]));
    }
    parts
}

fn naive_part(part: &[u8]) -> Option<Part> {
    let (head_end, width) = match (crate::find(part, b"\r\n\r\n"), crate::find(part, b"\n\n")) {
        (Some(crlf), Some(lf)) if lf < crlf => (lf, 2),
        (Some(crlf), _) => (crlf, 4),
        (None, lf) => (lf?, 2),
    };
    let head = String::from_utf8_lossy(&part[..head_end]);
    let line = head.lines().find(|line| starts_with(line, "content-disposition:"))?;
    let parameter = line.split(';').map(str::trim).find(|parameter| starts_with(parameter, "name="))?;
    let name = parameter.split_once('=')?.1.trim_matches('"').to_owned();
    Some((name, without_line_end(&part[head_end + width..]).to_vec()))
}

/// Every boundary that somebody could read in a content type.
pub fn boundaries(content_type: &str) -> Vec<String> {
    let naive = content_type
        .split(';')
        .map(str::trim)
        .filter(|parameter| starts_with(parameter, "boundary="))
        .filter_map(|parameter| parameter.split_once('='))
        .map(|(_, value)| value.trim_matches('"').to_owned());
    let tolerant = parameters(content_type)
        .into_iter()
        .filter(|(name, _)| name.split('*').next() == Some("boundary"))
        .map(|(_, value)| value);
    naive.chain(tolerant).collect()
}

/// What stands before the first bracket: `model[]` is a list called `model` to many.
pub fn stem(name: &str) -> &str {
    name.split('[').next().unwrap_or(name)
}

fn starts_with(text: &str, lower_case: &str) -> bool {
    text.to_ascii_lowercase().starts_with(lower_case)
}

fn without_line_end(bytes: &[u8]) -> &[u8] {
    bytes.strip_suffix(b"\r\n").or_else(|| bytes.strip_suffix(b"\n")).unwrap_or(bytes)
}

//! What policy reads of a `multipart/form-data` body: a few simple fields, found without trusting the rest.
//!
//! Parsers of this format forgive much, and each forgives something else: a bare LF, text before the first delimiter,
//! an escaped quote, an encoded name. A caller could show one model to us and another to the provider. So this reader
//! forgives nothing: it accepts what HTTP clients write, and refuses every body that it would have to interpret.

use memchr::memmem;

/// The longest head of a part, in bytes, its blank line included.
pub const LONGEST_HEAD: usize = 4096;
/// The longest value of a wanted field, in bytes.
pub const LONGEST_VALUE: usize = 1024;
/// The most parts of one body.
pub const MOST_PARTS: usize = 1000;
/// The most parameters of one header. More than any client writes; keeps the search for doubles short.
const MOST_PARAMETERS: usize = 8;

const WHITE: [char; 2] = [' ', '\t'];

/// A body that a policy cannot judge, and why. The text goes to the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the body is not strict multipart/form-data: {0}")]
pub struct BadMultipart(pub &'static str);

/// The boundary that a `multipart/form-data` content type names (RFC 7578 §4.1).
///
/// 1 to 70 characters of RFC 2046 §5.1.1, with no space at either end; those that are not token characters
/// (RFC 2045 §5.1) need quotes. None: another type, no boundary, two, or one that is not legal.
pub fn boundary(content_type: &[u8]) -> Option<String> {
    let (kind, parameters) = kind_and_parameters(std::str::from_utf8(content_type).ok()?)?;
    // `boundary*` and `boundary*0` (RFC 2231) would be a second boundary to those who decode them.
    let is_encoded = |(name, _): &(&str, &str)| has_prefix(name, "boundary*");
    if !kind.eq_ignore_ascii_case("multipart/form-data") || parameters.iter().any(is_encoded) {
        return None;
    }
    let (_, found) = parameters.into_iter().find(|(name, _)| name.eq_ignore_ascii_case("boundary"))?;
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"'()+_,-./:=? ".contains(&byte);
    let is_legal = (1..=70).contains(&found.len()) && found.bytes().all(legal) && found.trim_matches(' ') == found;
    is_legal.then(|| found.to_owned())
}

/// Reads the wanted fields of a whole body, in its order, as name and text. A field that is absent is left out.
///
/// # Errors
/// [`BadMultipart`] when the body is not strictly multipart, or two parsers could disagree on a wanted field: it stands
/// there twice, under a name that only resembles it, as a file, encoded, or longer than [`LONGEST_VALUE`].
pub fn read(body: &[u8], boundary: &str, wanted: &[&str]) -> Result<Vec<(String, String)>, BadMultipart> {
    let delimiter = format!("--{boundary}");
    let finder = memmem::Finder::new(delimiter.as_bytes());
    let mut rest = body
        .strip_prefix(delimiter.as_bytes())
        .ok_or(BadMultipart("it does not begin with the delimiter that Content-Type names"))?;
    let mut found: Vec<(String, String)> = Vec::new();
    for _ in 0..MOST_PARTS {
        rest = rest.strip_prefix(b"\r\n").ok_or(BadMultipart("a delimiter is not followed by CRLF and a part"))?;
        // The delimiter is looked for anywhere, not only where a line begins: lenient parsers see it after a bare LF,
        // naive ones inside a line. No client puts it into a part, so wherever else it stands is refused.
        let (part, after) = finder
            .find(rest)
            .and_then(|end| rest.split_at_checked(end))
            .ok_or(BadMultipart("the closing delimiter is missing"))?;
        let part = part.strip_suffix(b"\r\n").ok_or(BadMultipart("a delimiter is not on a line of its own"))?;
        if let Some((name, value)) = wanted_field(part, wanted)? {
            if found.iter().any(|(earlier, _)| earlier == name) {
                return Err(BadMultipart("a field that policy reads stands there twice"));
            }
            found.push((name.to_owned(), value.to_owned()));
        }
        rest = after.get(delimiter.len()..).unwrap_or(&[]);
        if let Some(epilogue) = rest.strip_prefix(b"--") {
            let is_end = matches!(epilogue, b"" | b"\r\n");
            return if is_end { Ok(found) } else { Err(BadMultipart("something follows the closing delimiter")) };
        }
    }
    Err(BadMultipart("it has more than 1,000 parts"))
}

/// Checks one part, and gives its name and text if it is wanted.
fn wanted_field<'a>(part: &'a [u8], wanted: &[&str]) -> Result<Option<(&'a str, &'a str)>, BadMultipart> {
    let window = part.get(..LONGEST_HEAD).unwrap_or(part);
    let (head, value) = memmem::find(window, b"\r\n\r\n")
        .and_then(|end| part.split_at_checked(end))
        .ok_or(BadMultipart("a part has no blank line after its head, or a head longer than 4 KiB"))?;
    let value = value.strip_prefix(b"\r\n\r\n").unwrap_or(value);
    let head = Head::parse(head)?;
    head.check(value)?;
    if !wanted.contains(&head.name) {
        // Some parsers fold case, and some take `model[]` for a list called `model`.
        let resembles = |wanted: &&str| stem(wanted).eq_ignore_ascii_case(stem(head.name));
        if wanted.iter().any(resembles) {
            return Err(BadMultipart("a name resembles a field that policy reads, but is not equal to it"));
        }
        return Ok(None);
    }
    let value = head.text(value)?;
    Ok(Some((head.name, value)))
}

/// What stands before the first bracket.
fn stem(name: &str) -> &str {
    name.split_once('[').map_or(name, |(stem, _)| stem)
}

/// The head of a part, as far as it matters.
struct Head<'a> {
    name: &'a str,
    /// Whether the disposition has no parameter but `name`: with a `filename` in any spelling it may be a file.
    is_simple: bool,
    content_type: Option<&'a str>,
    content_length: Option<&'a str>,
    transfer_encoding: Option<&'a str>,
}

impl<'a> Head<'a> {
    fn parse(head: &'a [u8]) -> Result<Self, BadMultipart> {
        // Also shuts out the encodings in which a `"` or `\` can be half of another character.
        let head = std::str::from_utf8(head).map_err(|_| BadMultipart("the head of a part is not valid UTF-8"))?;
        let (mut disposition, mut content_type, mut content_length, mut transfer_encoding) = (None, None, None, None);
        for line in head.split("\r\n") {
            // A line that continues the one before begins with white space: that is no name either.
            let (name, value) = line
                .split_once(':')
                .filter(|(name, value)| is_token(name) && !value.chars().any(|c| c.is_control() && c != '\t'))
                .ok_or(BadMultipart("the head of a part has a line that is not `name: value` and CRLF"))?;
            let seen = match name.to_ascii_lowercase().as_str() {
                "content-disposition" => &mut disposition,
                "content-type" => &mut content_type,
                "content-length" => &mut content_length,
                "content-transfer-encoding" => &mut transfer_encoding,
                _ => continue,
            };
            if seen.replace(value.trim_matches(WHITE)).is_some() {
                return Err(BadMultipart("a part has the same header twice"));
            }
        }
        let disposition = disposition.ok_or(BadMultipart("a part has no Content-Disposition"))?;
        let (name, is_simple) = name_in(disposition)?;
        Ok(Self { name, is_simple, content_type, content_length, transfer_encoding })
    }

    /// What every part must keep to, wanted or not, since it could change how the wanted ones are read.
    fn check(&self, value: &[u8]) -> Result<(), BadMultipart> {
        if self.name.eq_ignore_ascii_case("_charset_") {
            return Err(BadMultipart("a `_charset_` field changes how other fields read")); // RFC 7578 §4.6
        }
        if self.content_type.is_some_and(|kind| has_prefix(kind, "multipart/")) {
            return Err(BadMultipart("a part is itself multipart")); // deprecated, RFC 7578 §4.3
        }
        if self.content_length.is_some_and(|length| length != value.len().to_string()) {
            return Err(BadMultipart("the Content-Length of a part is not its length"));
        }
        Ok(())
    }

    /// The value of a wanted part as text.
    fn text<'v>(&self, value: &'v [u8]) -> Result<&'v str, BadMultipart> {
        if !self.is_simple {
            return Err(BadMultipart("a field that policy reads has a file name, or another parameter beside `name`"));
        }
        let is_plain = |encoding: &str| ["7bit", "8bit", "binary"].iter().any(|it| encoding.eq_ignore_ascii_case(it));
        if !self.transfer_encoding.is_none_or(is_plain) {
            return Err(BadMultipart("a field that policy reads has a Content-Transfer-Encoding"));
        }
        if value.len() > LONGEST_VALUE {
            return Err(BadMultipart("a field that policy reads is longer than 1 KiB"));
        }
        let text =
            std::str::from_utf8(value).map_err(|_| BadMultipart("a field that policy reads is not valid UTF-8"))?;
        // NUL ends a string for some; a byte order mark is dropped by some.
        if text.contains('\0') || text.starts_with('\u{feff}') {
            return Err(BadMultipart("a field that policy reads has a NUL or begins with a byte order mark"));
        }
        if self.content_type.is_some_and(|kind| !reads_as_utf8(kind, text)) {
            return Err(BadMultipart("a field that policy reads has a Content-Type other than plain UTF-8 text"));
        }
        Ok(text)
    }
}

/// The field name in a disposition, and whether it is the only parameter.
fn name_in(disposition: &str) -> Result<(&str, bool), BadMultipart> {
    let (kind, parameters) = kind_and_parameters(disposition)
        .ok_or(BadMultipart("a Content-Disposition has doubled or malformed parameters, or a value that misleads"))?;
    if !kind.eq_ignore_ascii_case("form-data") {
        return Err(BadMultipart("a part has a Content-Disposition other than form-data"));
    }
    if parameters.iter().any(|(name, _)| has_prefix(name, "name*")) {
        return Err(BadMultipart("a part has an encoded name (`name*`)"));
    }
    let &(_, name) = parameters
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case("name"))
        .ok_or(BadMultipart("a part has no name"))?;
    // What APIs call their fields. Outside of it lie the ways to write a name that only some decode: `\`, `%6d`,
    // `=?utf-8?`, `<model>`, `[model]`, white space to trim, letters that fold to ASCII.
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.:[]".contains(&byte);
    let begins_plainly = name.starts_with(|first: char| first.is_ascii_alphanumeric() || first == '_');
    if !begins_plainly || !name.bytes().all(plain) {
        return Err(BadMultipart("a name has characters other than letters, digits and `_-.:[]`"));
    }
    Ok((name, parameters.len() == 1))
}

/// Whether text of this type is the same text to those who heed its charset and those who do not.
fn reads_as_utf8(content_type: &str, text: &str) -> bool {
    let same = |charset: &str| match charset.to_ascii_lowercase().as_str() {
        "utf-8" | "utf8" => true,
        "us-ascii" | "iso-8859-1" => text.is_ascii(),
        _ => false,
    };
    kind_and_parameters(content_type).is_some_and(|(kind, parameters)| {
        kind.eq_ignore_ascii_case("text/plain")
            && parameters.iter().all(|(name, value)| name.eq_ignore_ascii_case("charset") && same(value))
    })
}

/// Splits `kind; name=token; name="quoted"`. None if malformed, if a parameter stands there twice in any case, or if
/// a quoted value ends elsewhere for those who unescape (`\"`) or who split at every `;`.
pub(crate) fn kind_and_parameters(header: &str) -> Option<(&str, Vec<(&str, &str)>)> {
    let header = header.trim_matches(WHITE);
    let (kind, mut rest) = split_word(header)?;
    let mut parameters: Vec<(&str, &str)> = Vec::new();
    loop {
        rest = rest.trim_start_matches(WHITE);
        if rest.is_empty() {
            return Some((kind, parameters));
        }
        let (name, value) = rest.strip_prefix(';')?.trim_start_matches(WHITE).split_once('=')?;
        let (value, after) = match value.strip_prefix('"') {
            Some(quoted) => {
                let (value, after) = quoted.split_once('"')?;
                let misleads = value.ends_with('\\') || (value.contains(';') && value.contains('='));
                (!misleads).then_some((value, after))?
            }
            None => split_word(value).filter(|(value, _)| is_token(value))?,
        };
        let is_double = parameters.iter().any(|(earlier, _)| earlier.eq_ignore_ascii_case(name));
        if is_double || !is_token(name) || parameters.len() >= MOST_PARAMETERS {
            return None;
        }
        parameters.push((name, value));
        rest = after;
    }
}

/// What stands before the next `;` or white space, and the rest from there.
fn split_word(text: &str) -> Option<(&str, &str)> {
    text.split_at_checked(text.find([';', ' ', '\t']).unwrap_or(text.len()))
}

/// RFC 9110 §5.6.2.
fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

fn has_prefix(text: &str, prefix: &str) -> bool {
    text.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const B: &str = "bound";

    /// A body of parts, each given as its head without the last CRLF, and its content.
    fn form(parts: &[(&str, &[u8])]) -> Vec<u8> {
        let mut body = Vec::new();
        for (head, content) in parts {
            body.extend_from_slice(format!("--{B}\r\n{head}\r\n\r\n").as_bytes());
            body.extend_from_slice(content);
            body.extend_from_slice(b"\r\n");
        }
        body.extend_from_slice(format!("--{B}--\r\n").as_bytes());
        body
    }

    fn model_of(body: &[u8]) -> Result<Option<String>, BadMultipart> {
        read(body, B, &["model"]).map(|found| found.into_iter().map(|(_, value)| value).next())
    }

    #[test]
    fn a_boundary_is_read_quoted_or_not() {
        let longest = "x".repeat(70);
        for (content_type, expected) in [
            ("multipart/form-data; boundary=abc", Some("abc")),
            ("Multipart/Form-Data;BOUNDARY=\"abc\"", Some("abc")),
            (" multipart/form-data ; charset=utf-8 ;\tboundary=a'b+c_d-e.f ", Some("a'b+c_d-e.f")),
            ("multipart/form-data; boundary=\"(a) =?,/:\"", Some("(a) =?,/:")),
            ("multipart/form-data; boundary=----WebKitFormBoundaryAbC", Some("----WebKitFormBoundaryAbC")),
            (&format!("multipart/form-data; boundary={longest}"), Some(longest.as_str())),
            (&format!("multipart/form-data; boundary={longest}x"), None),
            ("multipart/form-data", None),
            ("multipart/form-data; boundary", None),
            ("multipart/form-data; boundary=", None),
            ("multipart/form-data; boundary=\"\"", None),
            ("multipart/form-data; boundary=\"abc", None),
            ("multipart/form-data; boundary=\"abc \"", None),
            ("multipart/form-data; boundary=\" abc\"", None),
            ("multipart/form-data; boundary=\"a\\bc\"", None),
            ("multipart/form-data; boundary=\"a\"c", None),
            ("multipart/form-data; boundary=a=b", None),
            ("multipart/form-data; boundary=a,b", None),
            ("multipart/form-data; boundary=a b", None),
            ("multipart/form-data; boundary=a#b", None),
            ("multipart/form-data; boundary=\u{e4}", None),
            ("multipart/form-data; boundary = abc", None),
            ("multipart/form-data; boundary=a; boundary=b", None),
            ("multipart/form-data; boundary=a; Boundary=a", None),
            ("multipart/form-data; boundary=a; boundary*=utf-8''b", None),
            ("multipart/form-data; boundary=a, multipart/form-data; boundary=b", None),
            ("multipart/form-data; boundary=abc;", None),
            ("multipart/mixed; boundary=abc", None),
            ("multipart/form-dataset; boundary=abc", None),
            ("application/json; boundary=abc", None),
            ("", None),
        ] {
            assert_eq!(boundary(content_type.as_bytes()).as_deref(), expected, "{content_type}");
        }
        assert_eq!(boundary(b"multipart/form-data; boundary=\xFF"), None);
    }

    #[test]
    fn wanted_fields_are_read_as_clients_write_them() {
        for head in [
            "Content-Disposition: form-data; name=\"model\"",
            "content-disposition:FORM-DATA;NAME=model",
            "Content-Disposition: form-data; name=model\r\nContent-Type: text/plain; charset=utf-8",
            "Content-Type: text/plain;charset=\"UTF-8\"\r\nContent-Disposition: form-data; name=\"model\"",
            "Content-Disposition: form-data; name=\"model\"\r\nContent-Type: text/plain; charset=ISO-8859-1\r\n\
             Content-Transfer-Encoding: 8bit\r\nContent-Length: 9\r\nX-Other: anything",
        ] {
            let parts: [(&str, &[u8]); 3] = [
                (
                    "Content-Disposition: form-data; name=\"file\"; filename=\"a \\\\ b; \u{e4}.mp3\"; \
                     filename*=utf-8''a%20b.mp3\r\nContent-Type: audio/mpeg\r\nContent-Transfer-Encoding: base64",
                    b"\xFF\x00\r\n\r\n--boun\r\n",
                ),
                (head, b"whisper-1"),
                ("Content-Disposition: form-data; name=\"timestamp_granularities[]\"", b""),
            ];
            let body = form(&parts);
            assert_eq!(model_of(&body), Ok(Some("whisper-1".into())), "{head}");
            assert_eq!(model_of(&body[..body.len() - 2]), Ok(Some("whisper-1".into())), "the last CRLF is optional");
            assert_eq!(read(&body, B, &["n"]), Ok(vec![]));
        }
        let head = "Content-Disposition: form-data; name=";
        let body = form(&[(&format!("{head}n"), b"1"), (&format!("{head}model"), b" \xC3\xA4\r\n")]);
        let expected = vec![("n".to_owned(), "1".to_owned()), ("model".to_owned(), " \u{e4}\r\n".to_owned())];
        assert_eq!(read(&body, B, &["model", "n"]), Ok(expected), "in the body's order, untrimmed");
    }

    #[test]
    fn a_body_that_is_not_strictly_multipart_is_refused() {
        let part = "Content-Disposition: form-data; name=model\r\n\r\na\r\n";
        for body in [
            "".to_owned(),
            "--bound".to_owned(),
            "--bound--\r\n".to_owned(),
            "--bound\r\n--bound--\r\n".to_owned(),
            "--bound\r\n\r\n--bound--\r\n".to_owned(),
            "--bound\r\n\r\na\r\n--bound--\r\n".to_owned(),
            "--bound\r\nContent-Disposition: form-data; name=model\r\n--bound--\r\n".to_owned(),
            "--bound\r\nContent-Disposition: form-data; name=model\r\n\r\n--bound--\r\n".to_owned(),
            format!("\r\n--bound\r\n{part}--bound--\r\n"),
            format!("preamble\r\n--bound\r\n{part}--bound--\r\n"),
            format!("--other\r\n{part}--other--\r\n"),
            format!("--bound\n{part}--bound--\r\n"),
            format!("--bound \r\n{part}--bound--\r\n"),
            format!("--bound\r\n{part}--bound\r\n"),
            format!("--bound\r\n{part}--bound -- \r\n"),
            format!("--bound\r\n{part}--bound--\r\n\r\n"),
            format!("--bound\r\n{part}--bound--\n"),
            format!("--bound\r\n{part}--bound--epilogue"),
            format!("--bound\r\n{part}--bound--\r\n--bound\r\n{part}--bound--\r\n"),
            format!("--bound\r\n{part}x--bound--\r\n"),
            format!("--bound\r\n{part}\n--bound\n{part}\r\n--bound--\r\n"),
            format!("--bound\r\n{part}---bound--\r\n"),
            format!("--bound\r\n{part}--boundary\r\n{part}--bound--\r\n"),
            format!("--bound\r\n{}--bound--\r\n", part.replace("\r\n", "\n")),
            format!("--bound\r\n{}--bound--\r\n", part.replacen("\r\n", "\n", 1)),
        ] {
            assert!(model_of(body.as_bytes()).is_err(), "{}", body.escape_default());
        }
    }

    #[test]
    fn every_head_that_two_parsers_could_read_differently_is_refused() {
        for head in [
            "X-Nothing: here",
            "Content-Disposition: form-data",
            "Content-Disposition: form-data;",
            "Content-Disposition: form-data; name",
            "Content-Disposition: form-data; name=\"\"",
            "Content-Disposition: form-data; name=\"x\";",
            "Content-Disposition: form-data; name=\"x",
            "Content-Disposition: form-data; name=\"x\"y",
            "Content-Disposition: form-data; name = \"x\"",
            "Content-Disposition: form-data name=\"x\"",
            "Content-Disposition: attachment; name=\"x\"",
            "Content-Disposition: form-data; filename=\"x\"",
            "Content-Disposition: form-data; name=\"x\"; name=\"model\"",
            "Content-Disposition: form-data; name=\"x\"; NAME=\"model\"",
            "Content-Disposition: form-data; name=\"x\"; name*=utf-8''model",
            "Content-Disposition: form-data; name=\"x\"; name*0=model",
            "Content-Disposition: form-data; name=\"x\"; filename=\"\\\"; name=\\\"model\"",
            "Content-Disposition: form-data; name=\"x\"; filename=\"a\\\\\"",
            "Content-Disposition: form-data; name=\"x\"; filename=\"; name=model; y=\"",
            "Content-Disposition: form-data; name=\"x\"; a=1; b=2; c=3; d=4; e=5; f=6; g=7; h=8",
            "Content-Disposition: form-data; name=\"x\"\r\nContent-Disposition: form-data; name=\"model\"",
            "Content-Disposition: form-data; name=\"x\"\r\nContent-Type: text/plain\r\ncontent-type: text/html",
            "Content-Disposition: form-data; name=\"x\"\r\nContent-Type: Multipart/mixed; boundary=y",
            "Content-Disposition: form-data; name=\"x\"\r\nContent-Length: 2",
            "Content-Disposition: form-data; name=\"x\"\r\nContent-Length: +1",
            "Content-Disposition: form-data;\r\n name=\"x\"",
            "Content-Disposition : form-data; name=\"x\"",
            "Content-Disposition: form-data; name=\"x\"\r\nno header",
            "Content-Disposition: form-data; name=\"x\"\r\n: nameless",
            "Content-Disposition: form-data; name=\"x\"\nX-A: b",
            "Content-Disposition: form-data; name=\"x\"\rX-A: b",
            "Content-Disposition: form-data; name=\"x\"; filename=\"a\0b\"",
            "\r\nContent-Disposition: form-data; name=\"x\"",
        ] {
            assert!(model_of(&form(&[(head, b"1")])).is_err(), "{}", head.escape_default());
        }
        let mut body = form(&[("Content-Disposition: form-data; name=\"x\"; filename=\"?\"", b"1")]);
        let at = body.iter().position(|byte| *byte == b'?').unwrap();
        body[at] = 0xFF;
        assert_eq!(model_of(&body), Err(BadMultipart("the head of a part is not valid UTF-8")));
    }

    #[test]
    fn a_name_that_some_parser_could_take_for_a_wanted_one_is_refused() {
        for name in [
            "Model",
            "MODEL",
            " model",
            "model ",
            "model\t",
            "mod\\el",
            "\\model",
            "mod%65l",
            "model%22",
            "model[]",
            "model[0]",
            "Model[",
            "[model]",
            "<model>",
            "'model'",
            "=?utf-8?B?bW9kZWw=?=",
            "model\0",
            "model\r",
            "model\n",
            "_charset_",
            "_Charset_",
            "m\u{f6}del",
            "\u{feff}model",
        ] {
            let body = form(&[(&format!("Content-Disposition: form-data; name=\"{name}\""), b"a")]);
            assert!(model_of(&body).is_err(), "{}", name.escape_default());
        }
        for name in ["models", "mode", "a.model", "x[model]", "image[]", "_model", "x:model", "timestamp-1"] {
            let body = form(&[(&format!("Content-Disposition: form-data; name=\"{name}\""), b"a")]);
            assert_eq!(model_of(&body), Ok(None), "{name}");
        }
        let body = form(&[("Content-Disposition: form-data; name=\"include[]\"", b"a")]);
        assert_eq!(read(&body, B, &["include", "include[]"]), Ok(vec![("include[]".into(), "a".into())]));
    }

    #[test]
    fn a_wanted_field_is_plain_short_text_and_stands_there_once() {
        let head = "Content-Disposition: form-data; name=\"model\"";
        for (more, value) in [
            ("; filename=\"a\"", &b"a"[..]),
            ("; filename=\"\"", b"a"),
            ("; FileName*=utf-8''a", b"a"),
            ("; filename*0=a", b"a"),
            ("\r\nContent-Transfer-Encoding: base64", b"YQ=="),
            ("\r\nContent-Transfer-Encoding: quoted-printable", b"a"),
            ("\r\nContent-Transfer-Encoding:", b"a"),
            ("\r\nContent-Type: application/json", b"\"a\""),
            ("\r\nContent-Type: text/plain; charset=utf-16", b"a"),
            ("\r\nContent-Type: text/plain; charset=utf-7", b"a"),
            ("\r\nContent-Type: text/plain; charset=iso-8859-1", b"\xC3\xA4"),
            ("\r\nContent-Type:", b"a"),
            ("", b"\xFF"),
            ("", b"a\0b"),
            ("", b"\xEF\xBB\xBFa"),
            ("", &[b'a'; LONGEST_VALUE + 1]),
        ] {
            let body = form(&[(&format!("{head}{more}"), value)]);
            assert!(model_of(&body).is_err(), "{} {}", more.escape_default(), value.escape_ascii());
        }
        let twice = BadMultipart("a field that policy reads stands there twice");
        assert_eq!(model_of(&form(&[(head, b"a"), (head, b"a")])), Err(twice));
        assert_eq!(model_of(&form(&[(head, &[b'a'; LONGEST_VALUE])])), Ok(Some("a".repeat(LONGEST_VALUE))));
    }

    #[test]
    fn heads_and_parts_have_a_limit() {
        let head = "Content-Disposition: form-data; name=x\r\nX-Long: ";
        let room = LONGEST_HEAD - head.len() - 4;
        assert_eq!(model_of(&form(&[(&format!("{head}{}", "a".repeat(room)), b"1")])), Ok(None));
        assert!(model_of(&form(&[(&format!("{head}{}", "a".repeat(room + 1)), b"1")])).is_err());
        let part: (&str, &[u8]) = ("Content-Disposition: form-data; name=x", b"1");
        assert_eq!(model_of(&form(&vec![part; MOST_PARTS])), Ok(None));
        let too_many = BadMultipart("it has more than 1,000 parts");
        assert_eq!(model_of(&form(&vec![part; MOST_PARTS + 1])), Err(too_many));
    }

    #[test]
    fn a_body_cut_short_is_refused_wherever_it_is_cut() {
        let body = form(&[
            ("Content-Disposition: form-data; name=model", b"a"),
            ("Content-Disposition: form-data; name=file; filename=b", b"\r\n\r\n"),
        ]);
        // Without its last CRLF it is whole.
        for end in 0..body.len() - 2 {
            assert!(model_of(&body[..end]).is_err(), "{}", body[..end].escape_ascii());
        }
        assert!(model_of(&body[..body.len() - 1]).is_err(), "half a CRLF");
    }

    /// Contents made of what delimiters and heads are made of.
    fn content() -> impl Strategy<Value = String> {
        let piece = prop_oneof![
            Just("\r\n".to_owned()),
            Just("\r".to_owned()),
            Just("\n".to_owned()),
            Just("--".to_owned()),
            Just("-".to_owned()),
            Just("boun".to_owned()),
            Just("bound".to_owned()),
            Just("d".to_owned()),
            Just("\r\n\r\n".to_owned()),
            Just("Content-Disposition: form-data; name=\"f0\"".to_owned()),
            "[a-z\u{e4}\u{1F600} ]{0,8}",
        ];
        proptest::collection::vec(piece, 0..12)
            .prop_map(|pieces| pieces.concat())
            .prop_filter("holds the delimiter", |content| !content.contains("--bound"))
    }

    proptest! {
        #[test]
        fn any_contents_without_the_delimiter_are_read_back(
            contents in proptest::collection::vec(content(), 1..6),
            file in content(),
        ) {
            let names: Vec<String> = (0..contents.len()).map(|at| format!("f{at}")).collect();
            let heads: Vec<String> =
                names.iter().map(|name| format!("Content-Disposition: form-data; name=\"{name}\"")).collect();
            let mut parts: Vec<(&str, &[u8])> =
                heads.iter().zip(&contents).map(|(head, content)| (head.as_str(), content.as_bytes())).collect();
            parts.insert(1, ("Content-Disposition: form-data; name=\"file\"; filename=\"a\"", file.as_bytes()));
            let wanted: Vec<&str> = names.iter().map(String::as_str).collect();
            let expected: Vec<(String, String)> = names.iter().cloned().zip(contents.iter().cloned()).collect();
            prop_assert_eq!(read(&form(&parts), B, &wanted), Ok(expected));
        }

        #[test]
        fn no_bytes_upset_the_reader(
            noise in any::<Vec<u8>>(),
            boundary_text in ".{0,8}",
            at in 0usize..400,
            content_type in any::<Vec<u8>>(),
            parameters in "[a-z\"\\\\;= *\u{e4}]{0,40}",
        ) {
            let mut body = form(&[
                ("Content-Disposition: form-data; name=\"model\"\r\nContent-Type: text/plain", b"a"),
                ("Content-Disposition: form-data; name=\"file\"; filename=\"a\"", b"\x00\xFF"),
            ]);
            let at = at.min(body.len());
            body.splice(at..at, noise.iter().copied());
            let _ = model_of(&body);
            let _ = model_of(&noise);
            let _ = read(&noise, &boundary_text, &["model", ""]);
            let _ = boundary(&content_type);
            let _ = boundary(format!("multipart/form-data; boundary={parameters}").as_bytes());
            let _ = model_of(&form(&[(&format!("Content-Disposition: form-data; name={parameters}"), b"a")]));
        }
    }
}

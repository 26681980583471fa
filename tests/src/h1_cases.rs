//! The corpus of raw requests in `testdata/h1`, as the strictness scenario reads it. Its README tells the format.
//!
//! A text format of its own, because a case is bytes: every octet that is no printable ASCII is written as an escape, so
//! that none can be lost in an editor, and one line of the file is one line of the request.

use std::path::{Path, PathBuf};

/// One case.
#[derive(Clone, Debug)]
pub struct Case {
    /// The file it stands in.
    pub group: String,
    /// Its name, a sentence.
    pub name: String,
    /// The section of the RFC that it follows, and the reason.
    pub why: String,
    /// What the client does.
    pub steps: Vec<Step>,
    /// What the client is to get.
    pub want: Want,
    /// The requests that the provider is to get, in their order.
    pub seen: Vec<Seen>,
}

/// One thing that the client does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Sends this text, decoded.
    Send(String),
    /// Waits until what it sent has surely been read: nothing tells that a peer has read half a head.
    Pause,
    /// Reads answers up to one with this status.
    Await(u16),
    /// Closes its sending side.
    Shut,
}

/// What the client is to get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Want {
    /// The answers in their order, interim ones included.
    pub answers: Vec<WantedAnswer>,
    /// Whether the connection then carries another request; otherwise it closes.
    pub keeps: bool,
}

/// One answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WantedAnswer {
    /// One of these.
    pub statuses: Vec<u16>,
    /// It answers HEAD, so it has no body.
    pub to_head: bool,
}

/// One request as the provider is to get it. All texts are still encoded.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Method and target.
    pub line: String,
    /// The body.
    pub body: String,
    /// Names of fields that it must not have, in lower case.
    pub absent: Vec<String>,
    /// Fields that it must have, in this order: name, a colon, the value.
    pub present: Vec<String>,
}

/// What stands for the placeholders.
#[derive(Clone, Debug)]
pub struct Values {
    /// A token.
    pub token: String,
    /// Another token.
    pub other: String,
    /// The provider's key behind both.
    pub key: String,
}

impl Values {
    /// The bytes that a text of the corpus stands for.
    ///
    /// # Panics
    /// When the text is malformed; texts of a [`Case`] are not.
    pub fn bytes(&self, text: &str) -> Vec<u8> {
        self.decode(text).unwrap_or_else(|why| panic!("{why}: {text}"))
    }

    fn decode(&self, text: &str) -> Result<Vec<u8>, String> {
        let mut bytes = Vec::with_capacity(text.len());
        let mut rest = text;
        while let Some(first) = rest.bytes().next() {
            let taken = match first {
                b'\\' => {
                    let (octet, taken) = escape(rest)?;
                    bytes.push(octet);
                    taken
                }
                b'{' => {
                    let end = rest.find('}').ok_or("a placeholder does not end")?;
                    bytes.extend(self.placeholder(&rest[1..end])?);
                    end + 1
                }
                b' '..=b'~' => {
                    bytes.push(first);
                    1
                }
                _ => return Err("an octet outside printable ASCII is not escaped".to_owned()),
            };
            rest = &rest[taken..];
        }
        Ok(bytes)
    }

    fn placeholder(&self, inside: &str) -> Result<Vec<u8>, String> {
        let text = match inside {
            "host" => "Host: proxy.test\r\n".to_owned(),
            "auth" => format!("Authorization: Bearer {}\r\n", self.token),
            "token" => self.token.clone(),
            "other" => self.other.clone(),
            "key" => self.key.clone(),
            _ => {
                let (count, text) = inside.split_once('*').ok_or_else(|| format!("no such placeholder: {inside}"))?;
                let count: usize = count.parse().map_err(|_| format!("not a number: {count}"))?;
                return Ok(self.decode(text)?.repeat(count));
            }
        };
        Ok(text.into_bytes())
    }
}

/// The octet of the escape that a text begins with, and how long the escape is.
fn escape(text: &str) -> Result<(u8, usize), String> {
    let short = |octet| Ok((octet, 2));
    match text.as_bytes().get(1) {
        Some(b'r') => short(b'\r'),
        Some(b'n') => short(b'\n'),
        Some(b't') => short(b'\t'),
        Some(b'\\') => short(b'\\'),
        Some(b'x') => {
            let octet = text.get(2..4).and_then(|digits| u8::from_str_radix(digits, 16).ok());
            octet.map(|octet| (octet, 4)).ok_or_else(|| "\\x needs two hexadecimal digits".to_owned())
        }
        _ => Err("no such escape".to_owned()),
    }
}

/// All cases, file by file.
///
/// # Panics
/// When a file cannot be read or a case is malformed.
pub fn cases() -> Vec<Case> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/h1");
    let listing = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<PathBuf> = listing
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "txt"))
        .collect();
    files.sort();
    let mut cases = Vec::new();
    for file in files {
        let group = file.file_stem().unwrap().to_string_lossy().into_owned();
        let text = std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        cases.extend(parse(&group, &text).unwrap_or_else(|why| panic!("{}: {why}", file.display())));
    }
    cases
}

/// Reads a file: stanzas between empty lines.
fn parse(group: &str, text: &str) -> Result<Vec<Case>, String> {
    let mut cases = Vec::new();
    for stanza in text.split("\n\n") {
        let lines: Vec<&str> = stanza.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
        if let Some(first) = lines.first() {
            cases.push(read(group, &lines).map_err(|why| format!("{first}: {why}"))?);
        }
    }
    Ok(cases)
}

fn read(group: &str, lines: &[&str]) -> Result<Case, String> {
    let sample = Values { token: String::new(), other: String::new(), key: String::new() };
    let (mut name, mut why, mut want) = (None, None, None);
    let (mut steps, mut seen): (Vec<Step>, Vec<Seen>) = (Vec::new(), Vec::new());
    for &line in lines {
        if line.ends_with(' ') {
            return Err(format!("a space at the end of a line cannot be seen: {line}"));
        }
        let (word, value) = line.split_once(' ').unwrap_or((line, ""));
        let value = value.trim_start();
        if matches!(word, "send" | "seen" | "body" | "present") {
            sample.decode(value).map_err(|why| format!("{why}: {line}"))?;
        }
        match word {
            "case" => name = Some(value.to_owned()),
            "why" => why = Some(value.to_owned()),
            "want" => want = Some(wanted(value)?),
            "send" => match steps.last_mut() {
                Some(Step::Send(text)) => text.push_str(value),
                _ => steps.push(Step::Send(value.to_owned())),
            },
            "pause" => steps.push(Step::Pause),
            "shut" => steps.push(Step::Shut),
            "await" => steps.push(Step::Await(status(value)?)),
            "seen" => seen.push(Seen { line: value.to_owned(), ..Seen::default() }),
            _ => {
                let request = seen.last_mut().ok_or_else(|| format!("not understood here: {line}"))?;
                match word {
                    "body" => value.clone_into(&mut request.body),
                    "absent" => request.absent.extend(value.split(", ").map(str::to_ascii_lowercase)),
                    "present" => request.present.push(value.to_owned()),
                    _ => return Err(format!("no such word: {line}")),
                }
            }
        }
    }
    Ok(Case {
        group: group.to_owned(),
        name: name.ok_or("no `case`")?,
        why: why.ok_or("no `why`")?,
        steps,
        want: want.ok_or("no `want`")?,
        seen,
    })
}

/// `nothing`, or statuses and then `keep` or `close`.
fn wanted(value: &str) -> Result<Want, String> {
    if value == "nothing" {
        return Ok(Want { answers: Vec::new(), keeps: false });
    }
    let (answers, end) = value.rsplit_once(' ').ok_or("`want` has statuses, then `keep` or `close`")?;
    let keeps = match end {
        "keep" => true,
        "close" => false,
        _ => return Err(format!("`want` ends with `keep` or `close`, not with {end}")),
    };
    let answers = answers.split(' ').map(wanted_answer).collect::<Result<_, _>>()?;
    Ok(Want { answers, keeps })
}

/// `200`, `400|401`, `200/HEAD`.
fn wanted_answer(word: &str) -> Result<WantedAnswer, String> {
    let (statuses, to_head) = word.strip_suffix("/HEAD").map_or((word, false), |statuses| (statuses, true));
    let statuses = statuses.split('|').map(status).collect::<Result<_, _>>()?;
    Ok(WantedAnswer { statuses, to_head })
}

fn status(word: &str) -> Result<u16, String> {
    let status = word.parse::<u16>().ok().filter(|status| (100u16..600).contains(status));
    status.ok_or_else(|| format!("no status: {word:?}"))
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    #[test]
    fn texts_stand_for_the_bytes_that_they_show() {
        let values = Values { token: "t".to_owned(), other: "o".to_owned(), key: "k".to_owned() };
        for (text, bytes) in [
            (r"a\r\n\t\\\x00\xfF\x7b}", &b"a\r\n\t\\\0\xff{}"[..]),
            ("{host}{auth}", b"Host: proxy.test\r\nAuthorization: Bearer t\r\n"),
            ("{token}{other}{key}", b"tok"),
            (r"{3*a\n}{0*b}{2*c*}", b"a\na\na\nc*c*"),
            ("", b""),
        ] {
            assert_eq!(values.bytes(text), bytes, "{text}");
        }
        for text in ["\\", "\\q", "\\x1", "\\xgg", "{", "{nobody}", "{x*a}", "é", "\u{7f}"] {
            assert!(values.decode(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_stanza_is_a_case_and_what_is_not_understood_is_an_error() {
        let text = "# of the group\n\ncase  it is so\nwhy   RFC 9112 §3: so\nsend  a\\r\nsend  \\n\npause\nsend  b\n\
            await 100\nshut\nwant  100 200/HEAD 400|401 close\nseen  GET /\nbody  x\nabsent a, B\npresent c: d\n";
        let cases = parse("group", text).unwrap();
        let [case] = &cases[..] else { panic!("{cases:?}") };
        assert_eq!((case.group.as_str(), case.name.as_str()), ("group", "it is so"));
        let send = |text: &str| Step::Send(text.to_owned());
        assert_eq!(case.steps, [send("a\\r\\n"), Step::Pause, send("b"), Step::Await(100), Step::Shut]);
        let answer = |statuses: &[u16], to_head| WantedAnswer { statuses: statuses.to_vec(), to_head };
        let answers = vec![answer(&[100], false), answer(&[200], true), answer(&[400, 401], false)];
        assert_eq!(case.want, Want { answers, keeps: false });
        let [seen] = &case.seen[..] else { panic!("{case:?}") };
        assert_eq!((seen.line.as_str(), seen.body.as_str()), ("GET /", "x"));
        assert_eq!((seen.absent.join(" "), seen.present.join(" ")), ("a b".to_owned(), "c: d".to_owned()));
        for wrong in [
            "case x\nwhy y",
            "case x\nwant nothing",
            "why y\nwant nothing",
            "case x\nwhy y\nwant 200",
            "case x\nwhy y\nwant 200 maybe",
            "case x\nwhy y\nwant 20 keep",
            "case x\nwhy y\nwant nothing\nsend \\q",
            "case x\nwhy y\nwant nothing\nsend a ",
            "case x\nwhy y\nwant nothing\nbody a",
            "case x\nwhy y\nwant nothing\nsent a",
        ] {
            assert!(parse("group", wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_corpus_is_large_gives_its_reasons_and_names_each_case_once() {
        let cases = cases();
        let mut groups: BTreeMap<&str, usize> = BTreeMap::new();
        let mut names = BTreeSet::new();
        for case in &cases {
            *groups.entry(&case.group).or_default() += 1;
            assert!(names.insert(&case.name), "twice: {}", case.name);
            assert!(case.why.starts_with("RFC ") && case.why.contains('§'), "{}: {}", case.name, case.why);
            assert!(!case.want.keeps || !case.steps.contains(&Step::Shut), "{}: nothing is promised there", case.name);
        }
        assert!(cases.len() >= 600 && groups.len() == 13, "{} cases: {groups:?}", cases.len());
        assert!(groups.values().all(|count| *count >= 15), "{groups:?}");
    }
}

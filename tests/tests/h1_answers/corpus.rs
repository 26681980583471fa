//! The cases of `testdata/h1/answers.json`. `testdata/h1/ANSWERS.md` tells the form of the file.

use serde_json::{Map, Value};

/// What the provider does behind its last piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It keeps the connection open and takes whatever comes.
    Keep,
    /// It closes its side.
    Fin,
    /// It resets the connection.
    Reset,
}

/// What a provider sends, and when.
#[derive(Clone, Debug)]
pub struct Script {
    /// As soon as the connection is there.
    pub before: Vec<Vec<u8>>,
    /// Once it has the request.
    pub send: Vec<Vec<u8>>,
    /// Once the client has heard an answer.
    pub late: Vec<Vec<u8>>,
    /// Behind all that.
    pub then: Ending,
}

impl Script {
    /// All of it in one.
    pub fn bytes(&self) -> Vec<u8> {
        [&self.before, &self.send, &self.late].into_iter().flatten().flatten().copied().collect()
    }
}

/// What the client must get.
#[derive(Clone, Debug)]
pub enum Expected {
    /// An answer of the proxy's own with this code.
    Refused { code: String },
    /// This status and so much of the body, and then a break. `silent`: the break is the idle clock's.
    Cut { status: u16, body: Vec<u8>, silent: bool },
    /// This status and body, whole; `field` is a line of the head. `reusable`: the connection carries the next request.
    Passed { status: u16, body: Vec<u8>, field: Option<Vec<u8>>, reusable: bool },
}

/// One answer of a provider, and what must become of it.
#[derive(Clone, Debug)]
pub struct Case {
    pub name: String,
    /// The rule it breaks or keeps. Where that is ours, it begins with `our`.
    pub rfc: String,
    /// The method of the request that is answered so.
    pub method: String,
    /// It is about a connection that carried a request before.
    pub pooled: bool,
    pub script: Script,
    pub expected: Expected,
    /// The interim answers that the client gets before that.
    pub interim: Vec<u16>,
    /// How often the provider gets the request.
    pub asked: usize,
}

/// Every case, in the order of the file.
pub fn cases() -> Vec<Case> {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../testdata/h1/answers.json");
    let groups: Vec<Value> = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    groups.iter().flat_map(|group| group["cases"].as_array().unwrap()).map(Case::parse).collect()
}

impl Case {
    fn parse(written: &Value) -> Self {
        let mut fields: Map<String, Value> = written.as_object().unwrap().clone();
        let name = text(fields.remove("name"));
        let apart = flag(fields.remove("apart"));
        let mut pieces = |key: &str| -> Vec<Vec<u8>> {
            let pieces = fields.remove(key);
            let pieces = pieces.iter().flat_map(|pieces| pieces.as_array().unwrap()).map(piece);
            if apart { pieces.flatten().map(|octet| vec![octet]).collect() } else { pieces.collect() }
        };
        let (before, send, late) = (pieces("before"), pieces("send"), pieces("late"));
        let then = match text(fields.remove("then")).as_str() {
            "keep" => Ending::Keep,
            "fin" => Ending::Fin,
            "rst" => Ending::Reset,
            other => panic!("{name}: then {other:?}"),
        };
        let expected = match text(fields.remove("expect")).as_str() {
            "refused" => Expected::Refused { code: text(fields.remove("code")) },
            "cut" => Expected::Cut {
                status: status(&fields.remove("status").unwrap()),
                body: piece(&fields.remove("body").unwrap()),
                silent: flag(fields.remove("silent")),
            },
            "passed" => Expected::Passed {
                status: status(&fields.remove("status").unwrap()),
                body: piece(&fields.remove("body").unwrap()),
                field: fields.remove("field").as_ref().map(piece),
                reusable: flag(fields.remove("reusable")),
            },
            other => panic!("{name}: expect {other:?}"),
        };
        let case = Self {
            rfc: text(fields.remove("rfc")),
            method: fields.remove("ask").map_or_else(|| "POST".to_owned(), |method| text(Some(method))),
            pooled: flag(fields.remove("pooled")),
            script: Script { before, send, late, then },
            expected,
            interim: fields.remove("interim").iter().flat_map(|all| all.as_array().unwrap()).map(status).collect(),
            asked: fields.remove("asked").map_or(1, |times| usize::from(status(&times))),
            name,
        };
        assert!(fields.is_empty(), "{}: nobody reads {fields:?}", case.name);
        case
    }

    /// Whether the answer to it has no body whatever its head says.
    pub fn to_head(&self) -> bool {
        self.method == "HEAD"
    }

    /// Whether the connection must carry the next request; if not, it may carry none.
    pub fn is_reusable(&self) -> bool {
        matches!(self.expected, Expected::Passed { reusable: true, .. })
    }

    /// Whether one of the proxy's clocks must run out.
    pub fn waits(&self) -> bool {
        match &self.expected {
            Expected::Refused { code } => code == "upstream_timeout",
            Expected::Cut { silent, .. } => *silent,
            Expected::Passed { .. } => false,
        }
    }

    /// Whether it is played on a connection that carried a request before, or on a new one.
    pub fn is_played(&self, pooled: bool) -> bool {
        if pooled { self.script.before.is_empty() && !self.waits() } else { !self.pooled }
    }
}

/// A piece: a text, or a list of texts and of repeated texts.
fn piece(written: &Value) -> Vec<u8> {
    match written {
        Value::Array(parts) => parts.iter().flat_map(part).collect(),
        other => part(other),
    }
}

fn part(written: &Value) -> Vec<u8> {
    match written {
        Value::String(text) => octets(text),
        other => octets(other["repeat"].as_str().unwrap()).repeat(other["times"].as_u64().unwrap() as usize),
    }
}

/// Each character is one octet.
fn octets(text: &str) -> Vec<u8> {
    text.chars().map(|octet| u8::try_from(octet).expect("a character above U+00FF is no octet")).collect()
}

fn text(written: Option<Value>) -> String {
    written.as_ref().and_then(Value::as_str).expect("a text").to_owned()
}

fn flag(written: Option<Value>) -> bool {
    written.is_some_and(|flag| flag.as_bool().expect("true or false"))
}

fn status(written: &Value) -> u16 {
    written.as_u64().and_then(|number| u16::try_from(number).ok()).expect("a small number")
}

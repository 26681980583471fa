//! Does policy read of a JSON body what every other reader of it reads?
//!
//! Three readers stand beside ours. The grammar of RFC 8259, written in this crate, says on every input whether a body
//! may be taken at all, where a policy field's value stands, and whether a field or a member in it stands there twice.
//! What is compared of a value, and which models stand beside `model`, is cut out of it a second time, by looking for
//! commas and white space outside of strings. `jiter`, which shares no code with either, parses the whole; where it takes
//! what we take, both must see the same policy fields and no further one in another spelling. The model that is scanned
//! in passing must be the one that policy reads, in every split.

#![no_main]

use std::collections::BTreeSet;

use jiter::JsonValue;
use libfuzzer_sys::fuzz_target;
use llm_proxy_core::body::{BadBody, Fields, LONGEST_MODEL, ModelScan, Value, read};
use llm_proxy_core::policy::{Glob, Naming};
use llm_proxy_fuzz::json::{self, Member, Top};
use llm_proxy_fuzz::{BYTE_BY_BYTE, WHOLE, pieces};
use serde_json::{Number, Value as Parsed};

const WANTED: [&str; 6] = ["model", "n", "metadata", "topK", "models", "tools"];
/// The most arrays and objects within each other in a value that policy compares.
const DEEPEST: usize = 128;
/// The most items of a value that become globs: each is held against every item.
const MOST_GLOBS: usize = 8;

fuzz_target!(|input: &[u8]| {
    let Some((plan, text)) = input.split_first_chunk::<3>() else { return };
    let model = scanned(&pieces(text, WHOLE));
    for plan in [BYTE_BY_BYTE, plan] {
        assert_eq!(scanned(&pieces(text, plan)), model, "in pieces of {plan:?}");
    }
    let top = json::read(text);
    for naming in [Naming::Exact, Naming::Proto] {
        judged(text, top.as_ref(), naming, model.as_deref());
    }
});

fn judged(text: &[u8], top: Option<&Top<'_>>, naming: Naming, scanned: Option<&str>) {
    let fields = read(text, &WANTED, naming);
    if std::str::from_utf8(text).is_err() {
        assert_eq!(fields, Err(BadBody::NotUtf8));
        return;
    }
    let Some(top) = top else {
        assert!(matches!(fields, Err(BadBody::NotJson(_) | BadBody::Twice(_))), "this is no JSON: {fields:?}");
        return;
    };
    let members = match top {
        Top::Object(members) => &members[..],
        Top::Array | Top::Scalar => &[],
    };
    let found = Found::of(members, naming);
    let is_unreadable = found.is_unreadable || (matches!(top, Top::Scalar) && !is_value(text));
    match &fields {
        Ok(fields) => {
            assert!(!found.is_twice && !is_unreadable, "{fields:?}");
            for wanted in WANTED {
                agrees_with_the_grammar(fields, wanted, found.raw(wanted), naming);
            }
            names_the_same_models(fields, &found);
            agrees_with_jiter(fields, text, naming);
            assert_eq!(scanned, plain_model(members), "the scan finds what policy reads");
        }
        Err(BadBody::Twice(name)) => assert!(found.is_twice, "{name} stands there once"),
        Err(BadBody::NotJson(why)) => assert!(is_unreadable, "{why}"),
        Err(other) => panic!("this is not for reading to say: {other}"),
    }
}

/// What the members of a body say about the policy fields among them.
#[derive(Default)]
struct Found<'t> {
    wanted: Vec<(&'static str, &'t [u8])>,
    /// A field stands there twice, or in another spelling.
    is_twice: bool,
    /// A name or a wanted text that the grammar takes and no string can hold: half a surrogate pair.
    is_unreadable: bool,
}

impl<'t> Found<'t> {
    fn of(members: &[Member<'t>], naming: Naming) -> Self {
        let mut found = Self::default();
        for Member { name, value, .. } in members {
            let Some(name) = decoded(name) else {
                found.is_unreadable = true;
                continue;
            };
            let Some(wanted) = WANTED.into_iter().find(|wanted| folded(wanted, naming) == folded(&name, naming)) else {
                continue;
            };
            found.is_twice |= spelled(wanted, naming) != spelled(&name, naming) || found.raw(wanted).is_some();
            found.is_unreadable |= value.starts_with(b"\"") && decoded(value).is_none();
            found.wanted.push((wanted, *value));
        }
        found
    }

    fn raw(&self, wanted: &str) -> Option<&'t [u8]> {
        self.wanted.iter().find(|(name, _)| *name == wanted).map(|(_, value)| *value)
    }
}

/// A name as a reader sees it that forgives as much as any may.
fn folded(name: &str, naming: Naming) -> String {
    // Go's reader takes these two for letters of ASCII.
    let name = name.replace('\u{212A}', "k").replace('\u{17F}', "s");
    match naming {
        Naming::Exact => name.to_ascii_lowercase(),
        Naming::Proto => name.replace('_', "").to_ascii_lowercase(),
    }
}

/// A name as the provider sees it: to Proto, `top_k` is `topK`.
fn spelled(name: &str, naming: Naming) -> String {
    if naming == Naming::Exact {
        return name.to_owned();
    }
    let mut words = name.split('_');
    let mut camel = words.next().unwrap_or_default().to_owned();
    for word in words {
        let mut letters = word.chars();
        if let Some(first) = letters.next() {
            camel.push(first.to_ascii_uppercase());
            camel.push_str(letters.as_str());
        }
    }
    camel
}

fn decoded(string: &[u8]) -> Option<String> {
    serde_json::from_slice(string).ok()
}

fn is_value(text: &[u8]) -> bool {
    serde_json::from_slice::<Parsed>(text).is_ok()
}

fn agrees_with_the_grammar(fields: &Fields<'_>, wanted: &str, raw: Option<&[u8]>, naming: Naming) {
    let Some(raw) = raw else {
        assert_eq!((fields.get(wanted), fields.allows(wanted, &[])), (None, Ok(true)), "{wanted}");
        return;
    };
    let expected = match decoded(raw) {
        Some(text) => Value::Text(text.into()),
        None => Value::Json(std::str::from_utf8(raw).expect("all of it is UTF-8")),
    };
    assert_eq!(fields.get(wanted), Some(&expected), "{wanted}");
    if wanted == "model" {
        assert_eq!(fields.model(), decoded(raw).as_deref());
    }
    let items = (depth(raw) <= DEEPEST && has_no_double(raw, naming)).then(|| items(raw)).flatten();
    let own: Vec<Glob> = items.iter().flatten().take(MOST_GLOBS).map(|item| Glob::new(item)).collect();
    for globs in [&[Glob::new("*")][..], &[], &own[..]] {
        let fits = |item: &String| globs.iter().any(|glob| glob.matches(item));
        let expected = items.as_ref().map(|items| items.iter().all(fits));
        assert_eq!(fields.allows(wanted, globs).ok(), expected, "{wanted} against {globs:?}");
    }
}

/// The bytes of a JSON text that stand outside of strings, and their places. A string is its first quote here.
fn outside(text: &[u8]) -> Vec<(usize, u8)> {
    let (mut in_string, mut is_escaped) = (false, false);
    let mut bytes = Vec::new();
    for (at, byte) in text.iter().enumerate() {
        if !in_string {
            in_string = *byte == b'"';
            bytes.push((at, *byte));
        } else if is_escaped {
            is_escaped = false;
        } else {
            is_escaped = *byte == b'\\';
            in_string = *byte != b'"';
        }
    }
    bytes
}

/// How deep arrays and objects nest in a JSON text.
fn depth(text: &[u8]) -> usize {
    let (mut depth, mut deepest) = (0, 0);
    for (_, byte) in outside(text) {
        match byte {
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth -= 1,
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}

/// The items of an array.
fn elements(array: &[u8]) -> Vec<&[u8]> {
    let (mut depth, mut begin) = (0, 0);
    let mut elements = Vec::new();
    for (at, byte) in outside(array) {
        match byte {
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth -= 1,
            _ => {}
        }
        let ends = (depth == 1 && byte == b',') || depth == 0;
        if ends {
            elements.push(array[begin + 1..at].trim_ascii());
            begin = at;
        }
    }
    // Only what has no items has an empty one.
    elements.retain(|element| !element.is_empty());
    elements
}

/// Whether every object in a value, at any depth, has names that no reader takes for one.
fn has_no_double(raw: &[u8], naming: Naming) -> bool {
    match json::read(raw).expect("a part of what was read before") {
        Top::Object(members) => {
            let mut names = BTreeSet::new();
            members.iter().all(|Member { name, value, .. }| {
                decoded(name).is_some_and(|name| names.insert(folded(&name, naming))) && has_no_double(value, naming)
            })
        }
        Top::Array => elements(raw).into_iter().all(|element| has_no_double(element, naming)),
        Top::Scalar => true,
    }
}

/// The texts that a value is compared by, `None` where one cannot be decoded.
fn items(raw: &[u8]) -> Option<Vec<String>> {
    match raw.first()? {
        b'[' => {
            let items: Option<Vec<Vec<String>>> = elements(raw).into_iter().map(items).collect();
            items.map(|items| items.concat())
        }
        b'"' => decoded(raw).map(|text| vec![text]),
        b'{' => {
            let is_white = |byte: u8| matches!(byte, b' ' | b'\t' | b'\n' | b'\r');
            let white: BTreeSet<usize> =
                outside(raw).into_iter().filter(|(_, byte)| is_white(*byte)).map(|(at, _)| at).collect();
            let kept = raw.iter().enumerate().filter(|(at, _)| !white.contains(at)).map(|(_, byte)| *byte).collect();
            Some(vec![String::from_utf8(kept).expect("all of it is UTF-8")])
        }
        _ => Some(vec![String::from_utf8_lossy(raw).into_owned()]),
    }
}

fn names_the_same_models(fields: &Fields<'_>, found: &Found<'_>) {
    let mut given = Vec::new();
    let told = fields.other_models(|model| given.push(model.to_owned()));
    let expected = listed(found.raw("models")).zip(of_tools(found.raw("tools")));
    match expected {
        Some((listed, of_tools)) => assert_eq!((told, given), (Ok(()), [listed, of_tools].concat())),
        None => assert!(matches!(told, Err(BadBody::Models(_))), "{told:?}"),
    }
}

fn listed(models: Option<&[u8]>) -> Option<Vec<String>> {
    match models {
        None => Some(Vec::new()),
        Some(list) if list.starts_with(b"[") => elements(list).into_iter().map(decoded).collect(),
        Some(_) => None,
    }
}

fn of_tools(tools: Option<&[u8]>) -> Option<Vec<String>> {
    let list = match tools {
        None | Some(b"null") => return Some(Vec::new()),
        Some(list) => list,
    };
    if !list.starts_with(b"[") {
        return None;
    }
    let mut models = Vec::new();
    for tool in elements(list) {
        let members = match json::read(tool).expect("a part of what was read before") {
            Top::Object(members) => members,
            Top::Array => continue,
            Top::Scalar if is_value(tool) => continue,
            Top::Scalar => return None,
        };
        let mut has_model = false;
        for Member { name, value, .. } in members {
            let name = decoded(name)?;
            if !name.eq_ignore_ascii_case("model") {
                continue;
            }
            if name != "model" || has_model {
                return None;
            }
            has_model = true;
            if value != b"null" {
                models.push(decoded(value)?);
            }
        }
    }
    Some(models)
}

fn agrees_with_jiter(fields: &Fields<'_>, text: &[u8], naming: Naming) {
    let Ok(parsed) = JsonValue::parse(text, false) else { return };
    let members = match &parsed {
        JsonValue::Object(members) => &members[..],
        _ => &[],
    };
    for wanted in WANTED {
        let mut same = members.iter().filter(|(name, _)| folded(name, naming) == folded(wanted, naming));
        match (fields.get(wanted), same.next()) {
            (None, None) => {}
            (Some(ours), Some((name, theirs))) => {
                let is_single = spelled(name, naming) == spelled(wanted, naming) && same.next().is_none();
                assert!(is_single, "{wanted} stands there once");
                let ours = match ours {
                    Value::Text(text) => Ok(Parsed::from(&**text)),
                    Value::Json(json) => serde_json::from_str(json),
                };
                // Depth and numbers have bounds in serde_json that they have neither here nor in jiter.
                if let Ok(ours) = ours {
                    assert!(is_same(&ours, theirs), "{wanted}: {ours:?} is {theirs:?} to jiter");
                }
            }
            (ours, theirs) => panic!("{wanted}: {ours:?} is {theirs:?} to jiter"),
        }
    }
}

fn is_same(ours: &Parsed, theirs: &JsonValue<'_>) -> bool {
    match (ours, theirs) {
        (Parsed::Null, JsonValue::Null) => true,
        (Parsed::Bool(ours), JsonValue::Bool(theirs)) => ours == theirs,
        (Parsed::String(ours), JsonValue::Str(theirs)) => ours == theirs,
        (Parsed::Number(ours), JsonValue::Int(theirs)) => {
            ours.as_i64() == Some(*theirs) || is_near(ours, *theirs as f64)
        }
        (Parsed::Number(ours), JsonValue::Float(theirs)) => is_near(ours, *theirs),
        (Parsed::Array(ours), JsonValue::Array(theirs)) => {
            ours.len() == theirs.len() && ours.iter().zip(theirs.iter()).all(|(ours, theirs)| is_same(ours, theirs))
        }
        (Parsed::Object(ours), JsonValue::Object(theirs)) => {
            let last = |wanted: &String| theirs.iter().rev().find(|(name, _)| name == wanted);
            theirs.iter().all(|(name, _)| ours.contains_key(&**name))
                && ours.iter().all(|(name, ours)| last(name).is_some_and(|(_, theirs)| is_same(ours, theirs)))
        }
        _ => false,
    }
}

/// serde_json rounds the last binary digits of a fraction as it likes.
fn is_near(ours: &Number, theirs: f64) -> bool {
    ours.as_f64().is_some_and(|ours| (ours - theirs).abs() <= (ours.abs() * 1e-14).max(1e-290))
}

fn scanned(pieces: &[&[u8]]) -> Option<String> {
    let mut scan = ModelScan::default();
    for piece in pieces {
        scan.feed(piece);
    }
    scan.model().map(str::to_owned)
}

/// The model, where name and value are written without escapes and the value is not too long to take down.
fn plain_model<'t>(members: &[Member<'t>]) -> Option<&'t str> {
    let model = members.iter().find(|member| member.name == b"\"model\"")?;
    let text = std::str::from_utf8(model.value).ok()?.strip_prefix('"')?.strip_suffix('"')?;
    ((1..=LONGEST_MODEL).contains(&text.len()) && !text.contains('\\')).then_some(text)
}

//! Does policy read of a JSON body what every other reader of it reads?
//!
//! Three readers stand beside ours. The grammar of RFC 8259, written in this crate, says on every input whether a body
//! may be taken at all, and whether a policy field stands in it twice. `serde_json` parses each policy field's own bytes,
//! apart from the rest. `jiter`, which shares no code with either, parses the whole; where it takes what we take, both
//! must see the same policy fields and no further one in another letter case. The model that is scanned in passing must
//! be the one that policy reads, in every split.

#![no_main]

use jiter::JsonValue;
use libfuzzer_sys::fuzz_target;
use llm_proxy_core::body::{BadBody, Fields, LONGEST_MODEL, ModelScan, param_allowed, read};
use llm_proxy_core::policy::Glob;
use llm_proxy_fuzz::json::{self, Member, Top};
use llm_proxy_fuzz::{BYTE_BY_BYTE, WHOLE, pieces};
use serde_json::{Number, Value};

const WANTED: [&str; 3] = ["model", "n", "metadata"];
/// serde_json follows 128 levels, and how many of them a member has left depends on where it stands.
const DEEP: usize = 120;

fuzz_target!(|input: &[u8]| {
    let Some((plan, text)) = input.split_first_chunk::<3>() else { return };
    let fields = read(text, &WANTED);
    let top = json::read(text);
    let model = scanned(&pieces(text, WHOLE));
    for plan in [BYTE_BY_BYTE, plan] {
        assert_eq!(scanned(&pieces(text, plan)), model, "in pieces of {plan:?}");
    }
    if std::str::from_utf8(text).is_err() {
        assert_eq!(fields, Err(BadBody::NotUtf8));
        return;
    }
    let Some(top) = top else {
        assert!(matches!(fields, Err(BadBody::NotJson(_) | BadBody::Twice(_))), "this is no JSON: {fields:?}");
        return;
    };
    let members = match &top {
        Top::Object(members) => &members[..],
        Top::Array | Top::Scalar => &[],
    };
    let found = Found::of(members);
    let is_unreadable = found.is_unreadable || (matches!(top, Top::Scalar) && !is_value(text));
    match &fields {
        Ok(fields) => {
            assert!(!found.is_twice && !is_unreadable, "{fields:?}");
            agrees_with_serde(fields, &found.wanted);
            agrees_with_jiter(fields, text);
            assert_eq!(model.as_deref(), plain_model(members), "the scan finds what policy reads");
        }
        Err(BadBody::Twice(name)) => assert!(found.is_twice, "{name} stands there once"),
        Err(BadBody::NotJson(why)) => assert!(is_unreadable || found.is_deep, "{why}"),
        Err(BadBody::NotUtf8) => panic!("it is UTF-8"),
    }
});

/// What the members of a body say about the policy fields among them.
#[derive(Default)]
struct Found<'t> {
    wanted: Vec<(String, &'t [u8])>,
    /// A field stands there twice, or in other letters.
    is_twice: bool,
    /// A name or a wanted value that the grammar takes and no string or number can hold: half a surrogate pair, 1e999.
    is_unreadable: bool,
    is_deep: bool,
}

impl<'t> Found<'t> {
    fn of(members: &[Member<'t>]) -> Self {
        let mut found = Self::default();
        for Member { name, value, depth } in members {
            let Ok(name) = serde_json::from_slice::<String>(name) else {
                found.is_unreadable = true;
                continue;
            };
            if !WANTED.iter().any(|wanted| wanted.eq_ignore_ascii_case(&name)) {
                continue;
            }
            found.is_twice |= !WANTED.contains(&name.as_str()) || found.wanted.iter().any(|(known, _)| *known == name);
            found.is_deep |= *depth > DEEP;
            found.is_unreadable |= !is_value(value);
            found.wanted.push((name, *value));
        }
        found
    }
}

fn is_value(text: &[u8]) -> bool {
    serde_json::from_slice::<Value>(text).is_ok()
}

fn agrees_with_serde(fields: &Fields, wanted: &[(String, &[u8])]) {
    for name in WANTED {
        let raw = wanted.iter().find(|(found, _)| found == name).map(|(_, value)| *value);
        let value = raw.map(|raw| serde_json::from_slice::<Value>(raw).expect("it was parsed before"));
        assert_eq!(fields.get(name), value.as_ref(), "{name}");
        if let Some(value) = &value {
            assert!(param_allowed(value, &[Glob::new("*")]), "a star allows everything");
        }
    }
    assert_eq!(fields.model(), fields.get("model").and_then(Value::as_str));
}

fn agrees_with_jiter(fields: &Fields, text: &[u8]) {
    let Ok(parsed) = JsonValue::parse(text, false) else { return };
    let members = match &parsed {
        JsonValue::Object(members) => &members[..],
        _ => &[],
    };
    for wanted in WANTED {
        let mut same = members.iter().filter(|(name, _)| name.eq_ignore_ascii_case(wanted));
        match (fields.get(wanted), same.next()) {
            (None, None) => {}
            (Some(ours), Some((name, theirs))) => {
                assert!(name == wanted && same.next().is_none(), "{wanted} stands there once");
                assert!(is_same(ours, theirs), "{wanted}: {ours:?} is {theirs:?} to jiter");
            }
            (ours, theirs) => panic!("{wanted}: {ours:?} is {theirs:?} to jiter"),
        }
    }
}

fn is_same(ours: &Value, theirs: &JsonValue<'_>) -> bool {
    match (ours, theirs) {
        (Value::Null, JsonValue::Null) => true,
        (Value::Bool(ours), JsonValue::Bool(theirs)) => ours == theirs,
        (Value::String(ours), JsonValue::Str(theirs)) => ours == theirs,
        (Value::Number(ours), JsonValue::Int(theirs)) => {
            ours.as_i64() == Some(*theirs) || is_near(ours, *theirs as f64)
        }
        (Value::Number(ours), JsonValue::Float(theirs)) => is_near(ours, *theirs),
        (Value::Array(ours), JsonValue::Array(theirs)) => {
            ours.len() == theirs.len() && ours.iter().zip(theirs.iter()).all(|(ours, theirs)| is_same(ours, theirs))
        }
        (Value::Object(ours), JsonValue::Object(theirs)) => {
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

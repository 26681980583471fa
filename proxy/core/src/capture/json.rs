//! JSON as a tree that loses nothing a record should have: members stay in their order, numbers as they were written.
//!
//! serde_json's `Value` sorts names and rounds numbers, and reads whole texts only. A body that was longer than what is
//! kept is the beginning of a JSON text: here it is read as far as it goes, and what is open is closed. Strings borrow
//! from the text until they are changed.

mod read;

use std::borrow::Cow;
use std::fmt::Write as _;

pub(super) use read::{Parsed, is_lines, parse};

/// So many members of an object, or items of a list, are looked through for one. No provider's object has more, and a
/// stream of many events must not look through a large object for each.
pub(super) const MAX_LOOKED_THROUGH: usize = 256;

/// One JSON value.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Node<'t> {
    /// A number, `true`, `false` or `null`, as it was written.
    Bare(Cow<'t, str>),
    /// A string, decoded.
    Text(Cow<'t, str>),
    /// An array.
    List(Vec<Node<'t>>),
    /// An object.
    Object(Object<'t>),
}

/// An object's members, in their order. A name that stands twice stays twice; the first is found.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Object<'t> {
    pub(super) members: Vec<(Cow<'t, str>, Node<'t>)>,
}

impl<'t> Node<'t> {
    pub(super) const NULL: Self = Node::Bare(Cow::Borrowed("null"));

    pub(super) fn is_null(&self) -> bool {
        matches!(self, Self::Bare(word) if word == "null")
    }

    pub(super) fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn as_object(&self) -> Option<&Object<'t>> {
        match self {
            Self::Object(object) => Some(object),
            _ => None,
        }
    }

    pub(super) fn into_object(self) -> Option<Object<'t>> {
        match self {
            Self::Object(object) => Some(object),
            _ => None,
        }
    }

    /// The value on one line, without white space between its tokens.
    pub(super) fn write(&self) -> String {
        let mut out = String::new();
        self.write_to(&mut out);
        out
    }

    fn write_to(&self, out: &mut String) {
        match self {
            Self::Bare(word) => out.push_str(word),
            Self::Text(text) => write_text(text, out),
            Self::List(items) => {
                out.push('[');
                for (place, item) in items.iter().enumerate() {
                    if place > 0 {
                        out.push(',');
                    }
                    item.write_to(out);
                }
                out.push(']');
            }
            Self::Object(object) => {
                out.push('{');
                for (place, (name, value)) in object.members.iter().enumerate() {
                    if place > 0 {
                        out.push(',');
                    }
                    write_text(name, out);
                    out.push(':');
                    value.write_to(out);
                }
                out.push('}');
            }
        }
    }

    pub(super) fn into_owned(self) -> Node<'static> {
        let owned = |text: Cow<'t, str>| Cow::Owned(text.into_owned());
        match self {
            Self::Bare(word) => Node::Bare(owned(word)),
            Self::Text(text) => Node::Text(owned(text)),
            Self::List(items) => Node::List(items.into_iter().map(Node::into_owned).collect()),
            Self::Object(Object { members }) => {
                let members = members.into_iter().map(|(name, value)| (owned(name), value.into_owned())).collect();
                Node::Object(Object { members })
            }
        }
    }
}

impl<'t> Object<'t> {
    fn place(&self, name: &str) -> Option<usize> {
        self.members.iter().take(MAX_LOOKED_THROUGH).position(|(found, _)| found == name)
    }

    pub(super) fn get(&self, name: &str) -> Option<&Node<'t>> {
        self.place(name).and_then(|place| self.members.get(place)).map(|(_, value)| value)
    }

    pub(super) fn get_mut(&mut self, name: &str) -> Option<&mut Node<'t>> {
        let place = self.place(name)?;
        self.members.get_mut(place).map(|(_, value)| value)
    }

    /// Whether there is such a member and it is not null.
    pub(super) fn has(&self, name: &str) -> bool {
        self.get(name).is_some_and(|value| !value.is_null())
    }

    /// The member, if it is a string.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.get(name).and_then(Node::as_text)
    }

    /// The member, if it is a whole number that is not negative.
    pub(super) fn number(&self, name: &str) -> Option<u64> {
        match self.get(name) {
            Some(Node::Bare(word)) => word.parse().ok(),
            _ => None,
        }
    }

    /// Takes a member out.
    pub(super) fn take(&mut self, name: &str) -> Option<Node<'t>> {
        let place = self.place(name)?;
        (place < self.members.len()).then(|| self.members.remove(place).1)
    }

    /// Takes a member out that is an object.
    pub(super) fn take_object(&mut self, name: &str) -> Option<Object<'t>> {
        self.take(name).and_then(Node::into_object)
    }

    /// Sets a member, where it stands or at the end.
    pub(super) fn put(&mut self, name: impl Into<Cow<'t, str>>, value: Node<'t>) {
        let name = name.into();
        let is_full = self.members.len() >= MAX_LOOKED_THROUGH;
        match self.get_mut(&name) {
            Some(old) => *old = value,
            None if is_full => {} // it would not be found again
            None => self.members.push((name, value)),
        }
    }

    /// Sets a member that events repeat: null and the empty string never replace what is there.
    pub(super) fn settle(&mut self, name: impl Into<Cow<'t, str>>, value: Node<'t>) {
        let name = name.into();
        let says_nothing = value.is_null() || value.as_text() == Some("");
        if !(says_nothing && self.get(&name).is_some()) {
            self.put(name, value);
        }
    }

    /// Adds to a member that is a string, made if need be.
    pub(super) fn append(&mut self, name: impl Into<Cow<'t, str>>, more: Cow<'t, str>) {
        let name = name.into();
        match self.get_mut(&name) {
            Some(Node::Text(text)) if text.is_empty() => *text = more,
            Some(Node::Text(text)) => text.to_mut().push_str(&more),
            _ => self.put(name, Node::Text(more)),
        }
    }

    /// A member that is a list, made if need be.
    pub(super) fn list(&mut self, name: &'static str) -> Option<&mut Vec<Node<'t>>> {
        if !matches!(self.get(name), Some(Node::List(_))) {
            self.put(name, Node::List(Vec::new()));
        }
        match self.get_mut(name) {
            Some(Node::List(items)) => Some(items),
            _ => None,
        }
    }
}

/// The short escape of a character that has one.
fn short_escape(character: char) -> Option<&'static str> {
    Some(match character {
        '"' => "\\\"",
        '\\' => "\\\\",
        '\n' => "\\n",
        '\r' => "\\r",
        '\t' => "\\t",
        '\u{8}' => "\\b",
        '\u{c}' => "\\f",
        _ => return None,
    })
}

fn write_text(text: &str, out: &mut String) {
    out.push('"');
    for character in text.chars() {
        if let Some(escape) = short_escape(character) {
            out.push_str(escape);
        } else if character < ' ' {
            // Writing into a string cannot fail.
            let _ = write!(out, "\\u{:04x}", u32::from(character));
        } else {
            out.push(character);
        }
    }
    out.push('"');
}

/// How many bytes a character takes inside a string as [`Node::write`] writes it.
pub(super) fn written_bytes(character: char) -> usize {
    if short_escape(character).is_some() {
        2
    } else if character < ' ' {
        6
    } else {
        character.len_utf8()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_found_set_and_joined() {
        let Some(Parsed { node: Node::Object(mut object), .. }) = parse(r#"{"a":"1","n":7,"z":null}"#, false) else {
            panic!("an object");
        };
        assert_eq!(
            (object.text("a"), object.number("n"), object.has("z"), object.has("y")),
            (Some("1"), Some(7), false, false)
        );
        object.append("a", "2".into());
        object.settle("a", Node::Text("".into()));
        object.settle("n", Node::NULL);
        object.settle("z", Node::Text("3".into()));
        object.list("l").unwrap().push(Node::NULL);
        assert_eq!(Node::Object(object.clone()).write(), r#"{"a":"12","n":7,"z":"3","l":[null]}"#);
        assert_eq!(object.take("n"), Some(Node::Bare("7".into())));
        assert_eq!(object.take("n"), None);
    }
}

//! A stream and its consumer groups: the commands, and what Redis answers to them.

use std::fmt;

use redis::{Cmd, Value};
use uuid::Uuid;

use crate::sinks::redis::{fields, text};

/// The place of an entry in a stream: two numbers that only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct EntryId {
    ms: u64,
    n: u64,
}

impl EntryId {
    /// Before every entry.
    pub const FIRST: Self = Self { ms: 0, n: 0 };

    fn read(value: &Value) -> Option<Self> {
        let (ms, n) = text(value)?.split_once('-')?;
        Some(Self { ms: ms.parse().ok()?, n: n.parse().ok()? })
    }
}

impl fmt::Display for EntryId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}-{}", self.ms, self.n)
    }
}

/// One entry, as it is read.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Entry {
    pub id: EntryId,
    pub content: Content,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Content {
    /// An event, whose payload nobody has looked into.
    Event { id: Uuid, seq: u64, time_us: i64, payload: Vec<u8> },
    /// Not one of ours.
    Foreign,
    /// It was deleted, or trimmed, after it had been given to a consumer.
    Gone,
}

impl Entry {
    /// Bytes of its payload.
    pub fn bytes(&self) -> usize {
        match &self.content {
            Content::Event { payload, .. } => payload.len(),
            Content::Foreign | Content::Gone => 0,
        }
    }

    fn read(value: Value) -> Option<Self> {
        let (id, fields) = pair(value)?;
        let content = match fields {
            Value::Nil => Content::Gone,
            fields => Content::read(fields).unwrap_or(Content::Foreign),
        };
        Some(Self { id: EntryId::read(&id)?, content })
    }
}

impl Content {
    fn read(value: Value) -> Option<Self> {
        let (mut id, mut seq, mut time_us, mut found) = (None, 0, 0, None);
        let mut words = array(value)?.into_iter();
        while let (Some(key), Some(value)) = (words.next(), words.next()) {
            match text(&key)? {
                fields::ID => id = Some(Uuid::try_parse(text(&value)?).ok()?),
                fields::SEQ => seq = text(&value)?.parse().ok()?,
                fields::TIME_US => time_us = text(&value)?.parse().ok()?,
                fields::PAYLOAD => found = Some(value),
                // A later version may say more.
                _ => {}
            }
        }
        let Some(Value::BulkString(payload)) = found else { return None };
        Some(Self::Event { id: id?, seq, time_us, payload })
    }
}

/// The state of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct GroupState {
    pub name: String,
    /// Entries that were given to a consumer, and are not acknowledged.
    pub pending: u64,
    /// The last entry that was given to any consumer.
    pub delivered: EntryId,
    /// Entries that were given to nobody yet; 0 where Redis does not know.
    pub unread: u64,
}

/// A consumer of a group of a stream.
#[derive(Clone, Debug)]
pub(super) struct Consumer {
    pub stream: String,
    pub group: String,
    pub name: String,
}

impl Consumer {
    /// Makes the group, before the first entry of the stream, and the stream.
    pub fn create_group(&self) -> Cmd {
        let mut command = redis::cmd("XGROUP");
        command.arg("CREATE").arg(&self.stream).arg(&self.group).arg("0").arg("MKSTREAM");
        command
    }

    /// Entries that this consumer was given earlier and has not acknowledged.
    pub fn read_own(&self, after: EntryId, count: usize) -> Cmd {
        let mut command = self.read(count);
        command.arg("STREAMS").arg(&self.stream).arg(after.to_string());
        command
    }

    /// Entries that nobody in the group was given. Waits for one, at most `block_ms` (above zero: 0 is for ever).
    pub fn read_new(&self, count: usize, block_ms: u64) -> Cmd {
        let mut command = self.read(count);
        command.arg("BLOCK").arg(block_ms).arg("STREAMS").arg(&self.stream).arg(">");
        command
    }

    fn read(&self, count: usize) -> Cmd {
        let mut command = redis::cmd("XREADGROUP");
        command.arg("GROUP").arg(&self.group).arg(&self.name).arg("COUNT").arg(count);
        command
    }

    /// Takes over entries that have lain with any consumer for so long.
    pub fn claim(&self, idle_ms: u64, from: EntryId, count: usize) -> Cmd {
        let mut command = redis::cmd("XAUTOCLAIM");
        command.arg(&self.stream).arg(&self.group).arg(&self.name).arg(idle_ms).arg(from.to_string());
        command.arg("COUNT").arg(count);
        command
    }

    /// Says that these entries are being worked on: their time with this consumer begins anew.
    pub fn keep(&self, ids: impl IntoIterator<Item = EntryId>) -> Cmd {
        let mut command = redis::cmd("XCLAIM");
        command.arg(&self.stream).arg(&self.group).arg(&self.name).arg(0);
        for id in ids {
            command.arg(id.to_string());
        }
        command.arg("JUSTID");
        command
    }

    pub fn acknowledge(&self, ids: &[EntryId]) -> Cmd {
        let mut command = redis::cmd("XACK");
        command.arg(&self.stream).arg(&self.group);
        for id in ids {
            command.arg(id.to_string());
        }
        command
    }

    /// The groups of the stream.
    pub fn groups(&self) -> Cmd {
        let mut command = redis::cmd("XINFO");
        command.arg("GROUPS").arg(&self.stream);
        command
    }

    /// What is pending in a group.
    pub fn pending(&self, group: &str) -> Cmd {
        let mut command = redis::cmd("XPENDING");
        command.arg(&self.stream).arg(group);
        command
    }

    /// Deletes what lies before an entry, as far as it is cheap.
    pub fn trim(&self, before: EntryId) -> Cmd {
        let mut command = redis::cmd("XTRIM");
        command.arg(&self.stream).arg("MINID").arg("~").arg(before.to_string());
        command
    }
}

/// The answer to `XREADGROUP` of one stream.
pub(super) fn read_entries(answer: Value) -> Option<Vec<Entry>> {
    if answer == Value::Nil {
        return Some(Vec::new());
    }
    let mut streams = array(answer)?.into_iter();
    let (_, entries) = pair(streams.next()?)?;
    array(entries)?.into_iter().map(Entry::read).collect()
}

/// The answer to `XAUTOCLAIM`: where to go on, [`EntryId::FIRST`] at the end, and entries.
pub(super) fn read_claimed(answer: Value) -> Option<(EntryId, Vec<Entry>)> {
    let mut parts = array(answer)?.into_iter();
    let (next, entries) = (parts.next()?, parts.next()?);
    // Before version 7 an entry that is gone has nothing in its place, not even its id.
    let entries = array(entries)?.into_iter().filter(|entry| *entry != Value::Nil);
    Some((EntryId::read(&next)?, entries.map(Entry::read).collect::<Option<_>>()?))
}

/// The answer to `XINFO GROUPS`.
pub(super) fn read_groups(answer: Value) -> Option<Vec<GroupState>> {
    array(answer)?.into_iter().map(read_group).collect()
}

fn read_group(value: Value) -> Option<GroupState> {
    let (mut name, mut pending, mut delivered, mut unread) = (None, None, None, 0);
    let mut words = array(value)?.into_iter();
    while let (Some(key), Some(value)) = (words.next(), words.next()) {
        match text(&key)? {
            "name" => name = Some(text(&value)?.to_owned()),
            "pending" => pending = number(&value),
            "last-delivered-id" => delivered = EntryId::read(&value),
            "lag" => unread = number(&value).unwrap_or(0),
            _ => {}
        }
    }
    Some(GroupState { name: name?, pending: pending?, delivered: delivered?, unread })
}

/// The first pending entry, in the answer to `XPENDING`; `None` if there is none. `Err` for another answer.
pub(super) fn read_first_pending(answer: Value) -> Result<Option<EntryId>, ()> {
    let mut parts = array(answer).ok_or(())?.into_iter().skip(1);
    match parts.next() {
        Some(Value::Nil) => Ok(None),
        Some(id) => EntryId::read(&id).map(Some).ok_or(()),
        None => Err(()),
    }
}

fn array(value: Value) -> Option<Vec<Value>> {
    match value {
        Value::Array(values) => Some(values),
        _ => None,
    }
}

fn pair(value: Value) -> Option<(Value, Value)> {
    let [first, second] = <[Value; 2]>::try_from(array(value)?).ok()?;
    Some((first, second))
}

fn number(value: &Value) -> Option<u64> {
    match value {
        Value::Int(number) => u64::try_from(*number).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use redis::parse_redis_value;

    use super::*;

    const EVENT: &str = "00000000-0000-0000-0000-000000000007";

    fn id(ms: u64, n: u64) -> EntryId {
        EntryId { ms, n }
    }

    fn bulk(text: &str) -> String {
        format!("${}\r\n{text}\r\n", text.len())
    }

    fn list(items: &[String]) -> String {
        format!("*{}\r\n{}", items.len(), items.concat())
    }

    fn strings(words: &[&str]) -> String {
        list(&words.iter().map(|word| bulk(word)).collect::<Vec<_>>())
    }

    fn value(wire: &str) -> Value {
        parse_redis_value(wire.as_bytes()).unwrap()
    }

    fn an_entry(id: &str, words: &[&str]) -> String {
        list(&[bulk(id), strings(words)])
    }

    #[test]
    fn what_is_read_is_an_event_or_foreign_or_gone() {
        let nil = "*-1\r\n".to_owned();
        let entries = list(&[
            an_entry("5-0", &["id", EVENT, "seq", "12", "time_us", "-3", "payload", "\0\r\n", "later", "x"]),
            an_entry("5-1", &["id", EVENT, "payload", ""]),
            an_entry("6-0", &["a", "b"]),
            an_entry("6-1", &["id", "no id", "payload", "x"]),
            list(&[bulk("7-18446744073709551615"), nil.clone()]),
        ]);
        let read = read_entries(value(&list(&[list(&[bulk("s"), entries.clone()])]))).unwrap();
        let event = |seq, time_us, payload: &[u8]| Content::Event {
            id: EVENT.parse().unwrap(),
            seq,
            time_us,
            payload: payload.to_vec(),
        };
        let expected = [
            Entry { id: id(5, 0), content: event(12, -3, b"\0\r\n") },
            Entry { id: id(5, 1), content: event(0, 0, b"") },
            Entry { id: id(6, 0), content: Content::Foreign },
            Entry { id: id(6, 1), content: Content::Foreign },
            Entry { id: id(7, u64::MAX), content: Content::Gone },
        ];
        assert_eq!(read, expected);
        assert_eq!(read.iter().map(Entry::bytes).collect::<Vec<_>>(), [3, 0, 0, 0, 0]);
        assert_eq!(read_entries(value(&nil)), Some(Vec::new()));
        for strange in ["+OK\r\n", "*0\r\n", ":1\r\n"] {
            assert_eq!(read_entries(value(strange)), None, "{strange:?}");
        }
        let gone = "*-1\r\n".to_owned();
        let claimed = list(&[bulk("9-1"), list(&[gone, an_entry("6-0", &["a", "b"])]), strings(&["7-0"])]);
        assert_eq!(read_claimed(value(&claimed)), Some((id(9, 1), vec![expected[2].clone()])));
        assert_eq!(read_claimed(value(&list(&[bulk("0-0"), entries]))).unwrap().0, EntryId::FIRST);
    }

    #[test]
    fn the_state_of_groups_is_read_by_name() {
        let int = |number: i64| format!(":{number}\r\n");
        let group = |name: &str, lag: String| {
            list(&[
                bulk("name"),
                bulk(name),
                bulk("consumers"),
                int(1),
                bulk("pending"),
                int(4),
                bulk("last-delivered-id"),
                bulk("5-1"),
                bulk("lag"),
                lag,
            ])
        };
        let read = read_groups(value(&list(&[group("a", int(7)), group("b", "$-1\r\n".to_owned())]))).unwrap();
        let state = |name: &str, unread| GroupState { name: name.to_owned(), pending: 4, delivered: id(5, 1), unread };
        assert_eq!(read, [state("a", 7), state("b", 0)]);
        let nil = "$-1\r\n".to_owned();
        let pending = |first: String| read_first_pending(value(&list(&[int(1), first, bulk("9-9"), nil.clone()])));
        assert_eq!(pending(bulk("5-0")), Ok(Some(id(5, 0))));
        assert_eq!(pending(nil.clone()), Ok(None));
        assert_eq!(pending(bulk("x")), Err(()));
    }

    #[test]
    fn ids_are_in_the_order_of_the_stream() {
        let mut ids = [id(10, 0), id(9, 10), id(9, 9), EntryId::FIRST];
        ids.sort_unstable();
        assert_eq!(ids.map(|id| id.to_string()), ["0-0", "9-9", "9-10", "10-0"]);
    }
}

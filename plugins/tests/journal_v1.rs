//! A journal that an earlier version has written is opened, repaired, read and continued.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a test may be blunt"
)]

use std::fs;
use std::path::Path;

use llm_proxy_plugins::event::{Begin, EventType, Exchange, Message, Outcome, Source};
use llm_proxy_plugins::journal::{Journal, Kind, Options, Record, Recovered};
use tempfile::TempDir;
use uuid::Uuid;

/// `testdata/journal/v1`, to be written to. Its `make.py` tells what is in it.
fn copy() -> TempDir {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/journal/v1");
    let dir = tempfile::tempdir().unwrap();
    for first_seq in [1, 7] {
        let name = format!("{first_seq:020}.seg");
        fs::copy(source.join(&name), dir.path().join(&name)).unwrap();
    }
    dir
}

fn exchange(record: &Record) -> Exchange {
    let exchange = Exchange::decode(record.payload.as_slice()).unwrap();
    if !record.payload.is_empty() {
        assert_eq!(exchange.id, record.event_id.to_string());
    }
    exchange
}

#[test]
fn a_journal_of_version_1_is_opened_repaired_read_and_continued() {
    let dir = copy();
    let (journal, recovered) = Journal::open(dir.path(), Options::default()).unwrap();
    let expected = Recovered { torn_bytes: 20, bad_records: 1, unknown_exchanges: 1, last_seq: 9 };
    assert_eq!(recovered, expected);
    assert_eq!(journal.id(), "6c6c6d2d-7072-4f78-8079-6a6f75726e61");

    let mut reader = journal.reader(0);
    let records: Vec<_> = std::iter::from_fn(|| reader.next().unwrap()).collect();
    let heads: Vec<_> =
        records.iter().map(|record| (record.seq, record.kind, record.time_us, record.event_id.as_u128())).collect();
    let expected = [
        (1, Kind::Begin, 1001, 0xA),
        (2, Kind::End, -1002, 0xA),
        (4, Kind::Begin, 1004, 0xB),
        (6, Kind::End, 1006, 0xD),
        (7, Kind::Admin, 1007, 0xE),
        (8, Kind::End, 1008, 0xF),
        // The end that opening has written, at the time of the begin.
        (9, Kind::End, 1004, 0xB),
    ];
    assert_eq!(heads, expected);
    assert_eq!(reader.skipped(), 1);

    let begin = Begin::decode(records[0].payload.as_slice()).unwrap();
    assert_eq!((begin.project_id.as_str(), begin.api.as_str(), begin.attempt), ("project", "openai", 1));
    assert_eq!(begin.received_us, 1_700_000_000_000_000);

    let ended = exchange(&records[1]);
    assert_eq!((ended.outcome(), ended.status, ended.count), (Outcome::Finished, Some(200), 1));
    assert_eq!(ended.tags["user"], "u-1");
    let usage = ended.usage.unwrap();
    assert_eq!((usage.source(), usage.input_tokens, usage.output_tokens), (Source::Reported, Some(12), Some(34)));
    assert_eq!(usage.provider_json.as_deref(), Some(b"{\"prompt_tokens\":12}".as_slice()));

    assert_eq!(exchange(&records[3]), Exchange::default());

    let admin = exchange(&records[4]);
    assert_eq!(admin.r#type(), EventType::Admin);
    let action = admin.admin.unwrap();
    assert_eq!((action.action.as_str(), action.resource_id.as_deref()), ("token.create", Some("token")));
    assert_eq!(action.after_json.as_deref(), Some(b"{\"id\":\"token\"}".as_slice()));

    let content = exchange(&records[5]).content.unwrap();
    let (request, response) = (content.request.unwrap(), content.response.unwrap());
    assert_eq!(request.json.as_deref(), Some(b"{\"a\":\"b\"}".as_slice()));
    assert_eq!((response.bytes, response.omitted.as_deref()), (70_000, Some("too large for a record")));

    let unknown = exchange(&records[6]);
    assert_eq!((unknown.outcome(), unknown.token_id.as_deref()), (Outcome::Unknown, Some("token")));

    assert_eq!(journal.append(Kind::End, Uuid::nil(), 0, b"").unwrap(), 10);
    assert_eq!(reader.next().unwrap().unwrap().seq, 10);
    drop((journal, reader));
    let (_journal, recovered) = Journal::open(dir.path(), Options::default()).unwrap();
    assert_eq!(recovered, Recovered { bad_records: 1, last_seq: 10, ..Recovered::default() });
}

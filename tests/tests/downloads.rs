//! Files of a provider, whole and in part: every byte and every field that says what it is pass as they are.

mod common;

use std::sync::Arc;

use common::setup::{Api, Setup};
use common::upstream::Upstream;
use common::wire::Head;
use llm_proxy_tests::foreign::{Curl, Fetched, Listener};
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use serde_json::json;

const MIB: usize = 1024 * 1024;
const ETAG: &str = "\"one\"";
/// What is said of the file. It is no gzip at all, which is between the provider and the client.
const FIELDS: [(&str, &str); 5] = [
    ("content-type", "audio/mpeg"),
    ("content-encoding", "gzip"),
    ("accept-ranges", "bytes"),
    ("etag", ETAG),
    ("last-modified", "Sat, 21 Nov 2026 00:00:00 GMT"),
];

/// Eight mebibytes that nobody could make up.
fn file() -> Arc<[u8]> {
    let mut file = vec![0; 8 * MIB];
    StdRng::seed_from_u64(590).fill_bytes(&mut file);
    file.into()
}

/// A provider of one file, as RFC 9110 §13 and §14 have it; the path says how the whole of it is framed.
async fn library(file: &Arc<[u8]>) -> Upstream {
    let file = Arc::clone(file);
    Upstream::start(move |mut wire, _| {
        let file = Arc::clone(&file);
        async move {
            while let Some((asked, _)) = wire.request().await {
                let (answer, is_last) = answer(&file, &asked);
                if wire.try_send(answer).await.is_err() || is_last {
                    return;
                }
            }
        }
    })
    .await
}

/// The answer, and whether the connection ends with it.
fn answer(file: &[u8], asked: &Head) -> (Vec<u8>, bool) {
    let said: String = FIELDS.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let framed = |line: &str, fields: &str, body: &[u8]| {
        let head = format!("HTTP/1.1 {line}\r\n{fields}content-length: {}\r\n\r\n", body.len());
        [head.as_bytes(), body].concat()
    };
    let total = file.len();
    if asked.field("if-none-match") == Some(ETAG) {
        return (format!("HTTP/1.1 304 Not Modified\r\n{said}content-length: {total}\r\n\r\n").into_bytes(), false);
    }
    let range = asked.field("range").filter(|_| asked.field("if-range").is_none_or(|known| known == ETAG));
    if let Some(range) = range {
        let parts: Vec<(usize, usize)> = range.strip_prefix("bytes=").unwrap().split(',').map(part_of(total)).collect();
        let stands = |(first, last): (usize, usize)| format!("content-range: bytes {first}-{last}/{total}\r\n");
        let answer = match parts[..] {
            [(first, _)] if first >= total => {
                framed("416 Range Not Satisfiable", &format!("content-range: bytes */{total}\r\n"), b"")
            }
            [part] => framed("206 Partial Content", &(said + &stands(part)), &file[part.0..=part.1]),
            _ => {
                let mut body = Vec::new();
                for (first, last) in &parts {
                    body.extend_from_slice(format!("\r\n--PART\r\n{}\r\n", stands((*first, *last))).as_bytes());
                    body.extend_from_slice(&file[*first..=*last]);
                }
                body.extend_from_slice(b"\r\n--PART--\r\n");
                framed("206 Partial Content", "content-type: multipart/byteranges; boundary=PART\r\n", &body)
            }
        };
        return (answer, false);
    }
    let head = |framing: &str| format!("HTTP/1.1 200 OK\r\n{said}{framing}\r\n").into_bytes();
    if asked.line.contains("chunked") {
        let mut answer = head("transfer-encoding: chunked\r\n");
        for chunk in file.chunks(70_001) {
            answer.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
            answer.extend_from_slice(chunk);
            answer.extend_from_slice(b"\r\n");
        }
        answer.extend_from_slice(b"0\r\n\r\n");
        (answer, false)
    } else if asked.line.contains("close") {
        ([&head("")[..], file].concat(), true)
    } else {
        (framed("200 OK", &said, file), false)
    }
}

/// Reads `first-last` or `first-` of a file of this length.
fn part_of(total: usize) -> impl Fn(&str) -> (usize, usize) {
    move |range| {
        let (first, last) = range.trim().split_once('-').unwrap();
        (first.parse().unwrap(), last.parse().unwrap_or(total - 1))
    }
}

async fn behind(listener: &Listener, provider: &Upstream) -> Setup {
    Setup::with(&[Api::at("files", provider.addr, "")], &listener.settings()).await
}

/// The versions that curl speaks to this listener, HTTP/1.0 where its handshake need not name it.
fn ways(listener: &Listener) -> Vec<&'static str> {
    let older = if listener.is_sealed() { None } else { Some("--http1.0") };
    older.into_iter().chain(listener.ways()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_arrives_byte_for_byte_in_every_framing_and_version() {
    let file = file();
    let provider = library(&file).await;
    for listener in Listener::both() {
        let setup = behind(&listener, &provider).await;
        for way in ways(&listener) {
            for framing in ["length", "chunked", "close"] {
                let case = format!("{way}, {framing}");
                let path = format!("/files/v1/files/{framing}/content");
                let fetched = listener.curl(way, setup.proxy(), &path).bearer(&setup.token.text).fetch().await;
                assert_eq!(fetched.status, 200, "{case}: {}", fetched.heads);
                assert_eq!(fetched.version, if way.contains("http2") { "2" } else { "1.1" }, "{case}");
                assert!(fetched.body[..] == file[..], "{case}: other bytes, {} of them", fetched.body.len());
                for (name, value) in FIELDS {
                    assert_eq!(fetched.field(name), Some(value), "{case}: {}", fetched.heads);
                }
                let length = file.len().to_string();
                let told = (framing == "length").then_some(length.as_str());
                assert_eq!(fetched.field("content-length"), told, "{case}: {}", fetched.heads);

                let record = setup.only_record(&fetched.id()).await;
                for (field, expected) in [
                    ("endpoint", json!("/v1/files/{id}/content")),
                    ("outcome", json!("finished")),
                    ("reason", if framing == "close" { json!("until_close") } else { json!(null) }),
                    ("response_bytes", json!(file.len())),
                ] {
                    assert_eq!(record[field], expected, "{case}: {record}");
                }
                assert_eq!(record["usage"]["source"], "unknown", "{case}: {record}");
            }
        }
    }
}

/// What a part is judged by: everything but what belongs to the connection.
fn told(fetched: &Fetched) -> (u16, Vec<Option<&str>>, &[u8]) {
    let names = FIELDS.map(|(name, _)| name).into_iter().chain(["content-range", "content-length"]);
    (fetched.status, names.map(|name| fetched.field(name)).collect(), &fetched.body)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_is_the_providers_whatever_it_makes_of_the_conditions() {
    let file = file();
    let provider = library(&file).await;
    let beyond = format!("bytes={}-", file.len());
    let end = format!("bytes={}-", file.len() - 10);
    for listener in Listener::both() {
        let setup = behind(&listener, &provider).await;
        for way in ways(&listener) {
            for (status, length, fields) in [
                (206, 100, &[("range", "bytes=100-199")][..]),
                (206, 10, &[("range", &*end)]),
                (206, 1_000_000, &[("range", "bytes=7-1000006"), ("if-range", ETAG)]),
                (200, file.len(), &[("range", "bytes=100-199"), ("if-range", "\"another\"")]),
                (206, 196, &[("range", "bytes=0-9,100-109,8388598-")]),
                (416, 0, &[("range", &*beyond)]),
                (304, 0, &[("if-none-match", ETAG)]),
            ] {
                let case = format!("{way}, {fields:?}");
                let asked = |curl: Curl| fields.iter().fold(curl, |curl, (name, value)| curl.with(name, value));
                let through = listener.curl(way, setup.proxy(), "/files/v1/files/length/content");
                let through = asked(through.bearer(&setup.token.text)).fetch().await;
                let direct = Listener::clear().curl("--http1.1", provider.addr, "/v1/files/length/content");
                let direct = asked(direct).fetch().await;
                assert_eq!((through.status, through.body.len()), (status, length), "{case}: {}", through.heads);
                assert!(told(&through) == told(&direct), "{case}: {}instead of\n{}", through.heads, direct.heads);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_download_that_broke_off_is_taken_up_where_it_ended() {
    let file = file();
    let provider = library(&file).await;
    for listener in Listener::both() {
        let setup = behind(&listener, &provider).await;
        for way in ways(&listener) {
            let there = &file[..file.len() / 3];
            let curl = listener.curl(way, setup.proxy(), "/files/v1/files/length/content");
            let fetched = curl.bearer(&setup.token.text).resume(there).fetch().await;
            assert_eq!(fetched.status, 206, "{way}: {}", fetched.heads);
            assert_eq!(usize::try_from(fetched.received).unwrap(), file.len() - there.len(), "{way}");
            assert!(fetched.body[..] == file[..], "{way}: other bytes, {} of them", fetched.body.len());
        }
    }
}

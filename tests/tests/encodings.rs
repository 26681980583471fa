//! Codings of answers: the client gets the provider's own bytes under the provider's own field, undoes them with what it
//! has, and the proxy reads what they cost all the same, within its means.

mod common;

use std::collections::HashMap;
use std::io::Write;
use std::sync::Arc;

use brotli::CompressorWriter;
use common::setup::{Api, Setup, recorded};
use common::upstream::Upstream;
use flate2::Compression;
use flate2::write::{GzEncoder, ZlibEncoder};
use llm_proxy_tests::foreign::{Curl, Listener};
use serde_json::{Value, json};

const CHAT_PATH: &str = "/v1/chat/completions";
const ASKED: &str = r#"{"model":"gpt-4o-mini","messages":[{"role":"user","content":"hi"}]}"#;
const RECORDINGS: [&str; 2] = ["openai-chat-basic.json", "openai-chat-stream-usage.sse"];

/// What the mock calls each coding, and whether curl undoes it: of several gzip members it takes the first only.
const CODINGS: [(&str, bool); 6] =
    [("gzip", true), ("deflate", true), ("br", true), ("zstd", true), ("gzip-members", false), ("zstd-frames", true)];

/// Asks for this recording in this coding, cut anywhere.
fn coded(curl: Curl, file: &str, coding: &str) -> Curl {
    let (recording, _) = file.rsplit_once('.').unwrap();
    let curl = curl.with("x-mock-recording", recording).with("x-mock-encoding", coding);
    curl.with("x-mock-split", "random:5").json(ASKED)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn curl_undoes_every_coding_and_the_proxy_has_changed_no_byte_of_it() {
    for listener in Listener::both() {
        let setup = Setup::with(&[], &listener.settings()).await;
        for way in listener.ways() {
            for file in RECORDINGS {
                let through = || listener.curl(way, setup.proxy(), CHAT_PATH).bearer(&setup.token.text);
                let (recording, _) = file.rsplit_once('.').unwrap();
                let plain = through().with("x-mock-recording", recording).json(ASKED).fetch().await;
                let plain = setup.only_record(&plain.id()).await;
                assert_eq!(plain["usage"]["source"], "reported", "{file}: {plain}");
                for (coding, is_undone) in CODINGS {
                    let case = format!("{way}, {file}, {coding}");
                    let direct = Listener::clear().curl("--http1.1", setup.mock.addr(), CHAT_PATH);
                    let direct = coded(direct.bearer("sk-mock-openai"), file, coding).fetch().await;
                    let relayed = coded(through(), file, coding).fetch().await;
                    assert_eq!(relayed.status, 200, "{case}: {}", relayed.text());
                    assert!(relayed.body == direct.body && relayed.body != recorded(file), "{case}: other bytes");
                    let fields = ["content-encoding", "content-type", "vary"];
                    let said = fields.map(|name| (relayed.field(name), direct.field(name)));
                    assert!(said.iter().all(|(relayed, direct)| relayed == direct), "{case}: {said:?}");

                    let mut ids = vec![relayed.id()];
                    if is_undone {
                        let undone = coded(through(), file, coding).flag("--compressed").fetch().await;
                        assert_eq!(undone.body, recorded(file), "{case}: {}", undone.text());
                        let asked = setup.mock.requests().pop().unwrap();
                        let asked = String::from_utf8_lossy(asked.header("accept-encoding").unwrap()).into_owned();
                        assert!(asked.contains("br") && asked.contains("zstd"), "{case}: what curl takes is {asked}");
                        ids.push(undone.id());
                    }
                    for id in ids {
                        let record = setup.only_record(&id).await;
                        assert_eq!(record["outcome"], "finished", "{case}: {record}");
                        for field in ["usage", "model", "finish_reasons", "stream"] {
                            assert_eq!(record[field], plain[field], "{case}: {field}");
                        }
                        assert_eq!(record["response_bytes"], relayed.body.len(), "{case}: {record}");
                    }
                }
            }
        }
    }
}

/// What a bomb unfolds to, in bytes.
const UNFOLDED: usize = 128 << 20;
/// How much the process may grow by all of them.
const MOST_GROWTH: u64 = 64 << 20;

/// A proper answer, but for its size.
fn unfold(to: &mut impl Write) {
    to.write_all(br#"{"model":"gpt-4o-mini","pad":""#).unwrap();
    let piece = [b' '; 1 << 16];
    for _ in 0..UNFOLDED / piece.len() {
        to.write_all(&piece).unwrap();
    }
    to.write_all(br#"","usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}"#).unwrap();
}

fn bomb(coding: &str) -> Vec<u8> {
    match coding {
        "gzip" => {
            let mut bomb = GzEncoder::new(Vec::new(), Compression::fast());
            unfold(&mut bomb);
            bomb.finish().unwrap()
        }
        "deflate" => {
            let mut bomb = ZlibEncoder::new(Vec::new(), Compression::fast());
            unfold(&mut bomb);
            bomb.finish().unwrap()
        }
        "br" => {
            let mut bomb = CompressorWriter::new(Vec::new(), 1 << 16, 1, 22);
            unfold(&mut bomb);
            bomb.into_inner()
        }
        "zstd" => {
            let mut bomb = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
            unfold(&mut bomb);
            bomb.finish().unwrap()
        }
        other => panic!("no coding: {other}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bomb_goes_to_who_asked_for_it_and_costs_the_proxy_little() {
    const BOMBS: [&str; 4] = ["gzip", "deflate", "br", "zstd"];
    let bombs: Arc<HashMap<&str, Vec<u8>>> = Arc::new(BOMBS.map(|coding| (coding, bomb(coding))).into());
    let dropped = Arc::clone(&bombs);
    let provider = Upstream::start(move |mut wire, _| {
        let bombs = Arc::clone(&dropped);
        async move {
            while let Some((asked, _)) = wire.request().await {
                let coding = asked.field("x-coding").unwrap();
                let bomb = &bombs[coding];
                let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-encoding: ";
                wire.send(format!("{head}{coding}\r\ncontent-length: {}\r\n\r\n", bomb.len())).await;
                wire.send(bomb).await;
            }
        }
    })
    .await;
    let listener = Listener::clear();
    let setup = Setup::with(&[Api::at("bombs", provider.addr, "")], &[]).await;
    // One exchange before, so that pools and tables have their size.
    assert_eq!(setup.wire().await.ask(setup.chat().body(ASKED)).await.head.status, 200);
    let (before, _) = setup.product.memory_bytes();
    for way in listener.ways() {
        for coding in BOMBS {
            let case = format!("{way}, {coding}");
            let curl = listener.curl(way, setup.proxy(), "/bombs/v1/chat/completions").bearer(&setup.token.text);
            let fetched = curl.with("x-coding", coding).json(ASKED).fetch().await;
            assert_eq!((fetched.status, fetched.field("content-encoding")), (200, Some(coding)), "{case}");
            let sent = &bombs[coding];
            assert!(fetched.body == *sent, "{case}: {} bytes of {}", fetched.body.len(), sent.len());
            let record = setup.only_record(&fetched.id()).await;
            assert_eq!(record["outcome"], "finished", "{case}: {record}");
            let usage = &record["usage"];
            assert_eq!((&usage["source"], &usage["provider"]), (&json!("unknown"), &Value::Null), "{case}: {usage}");
        }
    }
    let (_, peak) = setup.product.memory_bytes();
    let grown = peak.saturating_sub(before);
    assert!(grown <= MOST_GROWTH, "grew by {} MiB", grown >> 20);
}

//! Forms with a model in them, behind the file as often as before it: the model is judged before the provider hears of the
//! request, and what it then gets is the form as curl wrote it.

mod common;

use std::path::Path;

use common::setup::{Api, Setup};
use common::upstream::Upstream;
use common::wire::Head;
use llm_proxy_tests::foreign::{Curl, Fetched, Listener};
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use serde_json::json;
use tokio::sync::mpsc;

const PATH: &str = "/listening/v1/audio/transcriptions";
const ANSWER: &str = r#"{"text":"hi"}"#;
/// curl waits to be asked for a form of more than a mebibyte.
const SIZES: [usize; 2] = [100_000, 3_000_000];

/// A provider that reports every request it hears, and likes all of them.
async fn listening() -> (Upstream, mpsc::UnboundedReceiver<(Head, Vec<u8>)>) {
    let (report, heard) = mpsc::unbounded_channel();
    let provider = Upstream::start(move |mut wire, _| {
        let report = report.clone();
        async move {
            while let Some(request) = wire.request().await {
                let _ = report.send(request);
                let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: ";
                wire.send(format!("{head}{}\r\n\r\n{ANSWER}", ANSWER.len())).await;
            }
        }
    })
    .await;
    (provider, heard)
}

/// A form with a file and these options of curl.
async fn send(curl: Curl, file: &Path, options: &[(&str, &str)]) -> Fetched {
    let curl = curl.option("-F", &format!("file=@{};type=audio/wav", file.display()));
    options.iter().fold(curl, |curl, (name, value)| curl.option(name, value)).fetch().await
}

/// A file that holds more line ends and dashes than most.
fn recording(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    StdRng::seed_from_u64(7).fill_bytes(&mut bytes);
    let tricky = b"\r\n--\r\ncontent-disposition: form-data; name=\"model\"\r\n\r\ngpt-4o-transcribe\r\n";
    bytes[500..500 + tricky.len()].copy_from_slice(tricky);
    bytes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_form_whose_model_is_allowed_arrives_as_curl_wrote_it() {
    let folder = tempfile::tempdir().unwrap();
    let (provider, mut heard) = listening().await;
    for listener in Listener::both() {
        let setup = Setup::with(&[Api::at("listening", provider.addr, "")], &listener.settings()).await;
        let token = setup.token_with(json!({"allowed_models": ["whisper-*"]})).await;
        for way in listener.ways() {
            for size in SIZES {
                let file = folder.path().join("spoken.wav");
                let spoken = recording(size);
                std::fs::write(&file, &spoken).unwrap();
                for options in [
                    &[("-F", "model=whisper-1")][..],
                    &[("-F", "model=whisper-1"), ("-H", "transfer-encoding: chunked")],
                    &[("-F", "language=de"), ("-F", "model=whisper-large"), ("-F", "temperature=0")],
                ] {
                    let case = format!("{way}, {size} bytes, {options:?}");
                    let curl = listener.curl(way, setup.proxy(), PATH).bearer(&token.text);
                    let answer = send(curl, &file, options).await;
                    assert_eq!((answer.status, answer.text().as_str()), (200, ANSWER), "{case}");
                    let (head, form) = heard.recv().await.unwrap();
                    assert_eq!(head.field("content-length"), Some(form.len().to_string().as_str()), "{case}: {head:?}");
                    let kind = head.field("content-type").unwrap();
                    let boundary = kind.strip_prefix("multipart/form-data; boundary=").expect(kind);
                    let mut expected = format!(
                        "--{boundary}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"spoken.wav\"\r\n\
                         Content-Type: audio/wav\r\n\r\n"
                    )
                    .into_bytes();
                    expected.extend_from_slice(&spoken);
                    for (_, field) in options.iter().filter(|(name, _)| *name == "-F") {
                        let (name, value) = field.split_once('=').unwrap();
                        let part = "Content-Disposition: form-data";
                        let part = format!("\r\n--{boundary}\r\n{part}; name=\"{name}\"\r\n\r\n{value}");
                        expected.extend_from_slice(part.as_bytes());
                    }
                    expected.extend_from_slice(format!("\r\n--{boundary}--\r\n").as_bytes());
                    assert!(form == expected, "{case}: another form of {} bytes", form.len());
                    let record = setup.only_record(&answer.id()).await;
                    let model = record["model_requested"].as_str();
                    assert!(model.is_some_and(|model| model.starts_with("whisper-")), "{case}: {record}");
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_form_that_may_not_pass_the_provider_hears_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("spoken.wav");
    let (provider, mut heard) = listening().await;
    let picky = "param_whitelist: {model: [whisper-*], response_format: [json]}";
    let apis = [Api::at("listening", provider.addr, ""), Api::at("picky", provider.addr, picky)];
    for listener in Listener::both() {
        let setup = Setup::with(&apis, &listener.settings()).await;
        let token = setup.token_with(json!({"allowed_models": ["whisper-*"]})).await;
        for way in listener.ways() {
            for size in SIZES {
                std::fs::write(&file, recording(size)).unwrap();
                for (path, options, status, code) in [
                    (PATH, &[("-F", "model=gpt-4o-transcribe")][..], 403, "model_not_allowed"),
                    (PATH, &[], 403, "model_not_allowed"),
                    (PATH, &[("-F", "model=whisper-1"), ("-F", "model=gpt-4o-transcribe")], 400, "invalid_request"),
                    (PATH, &[("-F", "model=whisper-1;filename=a")], 400, "invalid_request"),
                    (PATH, &[("-F", "model=whisper-1"), ("-H", "content-encoding: gzip")], 415, "unsupported_body"),
                    (PATH, &[("-F", "model=whisper-1"), ("-H", "content-type: text/plain")], 415, "unsupported_body"),
                    (
                        "/picky/v1/audio/transcriptions",
                        &[("-F", "model=whisper-1"), ("-F", "response_format=srt")],
                        403,
                        "param_not_allowed",
                    ),
                ] {
                    let case = format!("{way}, {size} bytes, {path} {options:?}");
                    let curl = listener.curl(way, setup.proxy(), path).bearer(&token.text);
                    let answer = send(curl, &file, options).await;
                    assert_eq!(answer.status, status, "{case}: {}", answer.text());
                    assert_eq!(answer.json()["error"]["code"], code, "{case}: {}", answer.text());
                    let record = setup.only_record(&answer.id()).await;
                    let told = (&record["outcome"], &record["reason"], &record["request_bytes"]);
                    assert_eq!(told, (&json!("refused"), &json!(code), &json!(0)), "{case}: {record}");
                }
            }
        }
    }
    assert_eq!(provider.connections(), 0, "a connection was made");
    assert!(heard.try_recv().is_err(), "a request was sent");
}

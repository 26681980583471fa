//! Kill -9 at random moments under load: what a client saw end is on record exactly once, and no quota is overshot.

mod common;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::setup::{Api, Setup, eventually};
use common::upstream::Upstream;
use common::wire::{Ask, Wire};
use rand::Rng;
use serde_json::json;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// How long a start after a crash may take.
const RESTART: Duration = Duration::from_secs(5);
const MAX_REQUESTS: u64 = 600;
const CLIENTS: usize = 6;

fn kills() -> usize {
    std::env::var("TORTURE_KILLS").ok().map_or(8, |count| count.parse().expect("TORTURE_KILLS is a number"))
}

/// Asks again and again until told to stop, over whatever connections there are, and returns the ids of the exchanges
/// that it saw end.
async fn ask_on(at: std::net::SocketAddr, requests: Vec<Vec<u8>>, stop: Arc<AtomicBool>) -> Vec<String> {
    let mut ended = Vec::new();
    let mut wire: Option<Wire> = None;
    for request in requests.iter().cycle() {
        if stop.load(Ordering::SeqCst) {
            break;
        }
        let Some(open) = &mut wire else {
            match TcpStream::connect(at).await {
                Ok(stream) => wire = Some(Wire::of(stream)),
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
            continue;
        };
        let answer = match open.try_send(request).await {
            Ok(()) => open.try_answer().await,
            Err(_) => None,
        };
        match answer {
            Some(answer) if answer.whole => {
                // Whoever has used up the quota is refused at once, and would only fill the log.
                if answer.head.status == 429 {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                ended.push(answer.head.id());
            }
            _ => wire = None,
        }
    }
    ended
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_under_load_loses_no_exchange_that_a_client_saw_end_and_overshoots_no_quota() {
    let served = Arc::new(AtomicU64::new(0));
    let counting = Arc::clone(&served);
    let counted = Upstream::start(move |mut wire, _| {
        let served = Arc::clone(&counting);
        async move {
            while wire.request().await.is_some() {
                served.fetch_add(1, Ordering::SeqCst);
                if wire.try_send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").await.is_err() {
                    return;
                }
            }
        }
    })
    .await;
    let fallen = Arc::new(AtomicU64::new(0));
    let falling = Arc::clone(&fallen);
    let hole = Upstream::start(move |mut wire, _| {
        let fallen = Arc::clone(&falling);
        async move {
            if wire.request().await.is_some() {
                fallen.fetch_add(1, Ordering::SeqCst);
                std::future::pending().await
            }
        }
    })
    .await;
    let apis = [Api::at("counted", counted.addr, ""), Api::at("hole", hole.addr, "")];
    let mut setup = Setup::with(&apis, &[]).await;
    let limited = setup.token_with(json!({"max_requests": MAX_REQUESTS})).await;
    let hanging = setup.token_with(json!({})).await;
    let chat = |body: &str| setup.chat().body(body);
    let free = vec![
        chat(r#"{"model":"gpt-4o-mini","messages":[]}"#),
        chat(r#"{"model":"gpt-4o-mini","messages":[],"stream":true}"#),
        setup.chat().with("x-mock-split", "random:7").body(r#"{"model":"gpt-4o-mini","messages":[],"stream":true}"#),
        setup.chat().body(r#"{"model":"does-not-exist","messages":[]}"#),
    ];
    let quota = vec![Ask::post("/counted/v1/files").bearer(&limited.text).body("{}")];

    let mut ended = Vec::new();
    let mut hung = 0;
    for round in 0..kills() {
        let stop = Arc::new(AtomicBool::new(false));
        let mut clients = JoinSet::new();
        for client in 0..CLIENTS {
            let requests = if client % 3 == 0 { quota.clone() } else { free.clone() };
            clients.spawn(ask_on(setup.proxy(), requests, Arc::clone(&stop)));
        }
        // One exchange that is certainly begun and certainly not ended.
        let mut wire = setup.wire().await;
        wire.send(Ask::post("/hole/v1/files").bearer(&hanging.text).body("{}")).await;
        hung += 1;
        eventually("the provider has the request", || fallen.load(Ordering::SeqCst) == hung).await;

        let moment = rand::rng().random_range(20..400);
        tokio::time::sleep(Duration::from_millis(moment)).await;
        setup.kill9();
        stop.store(true, Ordering::SeqCst);
        drop(wire);
        ended.extend(clients.join_all().await.concat());

        let began = Instant::now();
        setup.restart().await;
        assert!(
            began.elapsed() <= RESTART,
            "round {round}, killed after {moment} ms: ready after {:?}",
            began.elapsed()
        );
        assert!(served.load(Ordering::SeqCst) <= MAX_REQUESTS, "round {round}: the quota was overshot");
    }

    // What is left of the quota is used up, and not a request more.
    let mut wire = setup.wire().await;
    loop {
        let answer = wire.ask(&quota[0]).await;
        if answer.head.status == 429 {
            assert_eq!(answer.code(), "insufficient_quota");
            break;
        }
        assert_eq!(answer.head.status, 200, "{}", answer.text());
        ended.push(answer.head.id());
    }
    let (_, token) = setup.manage("GET", &format!("/manage/tokens/{}", limited.id), serde_json::Value::Null).await;
    let (served, recorded) = (served.load(Ordering::SeqCst), token["request_count"].as_u64().unwrap());
    assert!(served <= recorded && recorded <= MAX_REQUESTS, "served {served}, recorded {recorded} of {MAX_REQUESTS}");

    assert!(ended.len() > kills(), "there was hardly any load: {} exchanges", ended.len());
    let last = ended.last().unwrap().clone();
    setup.only_record(&last).await;
    let mut records: HashMap<String, u64> = HashMap::new();
    let mut unknown = 0;
    for record in setup.records() {
        *records.entry(record["id"].as_str().unwrap().to_owned()).or_default() += 1;
        if record["token_id"] == hanging.id.as_str() {
            assert_eq!(record["outcome"], "unknown", "{record}");
            unknown += 1;
        }
    }
    let lost: Vec<_> = ended.iter().filter(|id| !records.contains_key(*id)).collect();
    assert!(lost.is_empty(), "{} of {} exchanges have no record: {lost:?}", lost.len(), ended.len());
    let twice: Vec<_> = records.iter().filter(|(_, count)| **count > 1).collect();
    assert!(twice.is_empty(), "written twice: {twice:?}");
    assert_eq!(unknown, hung, "begun and not ended: one record each, with the outcome unknown");
}

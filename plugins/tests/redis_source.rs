//! Sinks fed from a stream in a real Redis server: restarts on either side, consumers that die, streams that vanish.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a test may be blunt"
)]

mod common;
#[path = "common/redis.rs"]
mod redis_server;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{Bench, PATIENCE, brisk, finished, job, no_authorities, now_us, wait_for};
use futures::FutureExt;
use futures::future::BoxFuture;
use llm_proxy_plugins::dispatcher::{
    Backoff, Event, Fault, Filter, Health, Job, Limits, Outcome, Policy, Sample, Sink,
};
use llm_proxy_plugins::event::{Exchange, Message};
use llm_proxy_plugins::redis_source::{RedisDispatcher, RedisSourceSettings};
use redis_server::{Server, wait};
use serde_json::json;
use uuid::Uuid;

const STREAM: &str = "llm-proxy:events";

/// What a sink was given and took, and what it does with the next batch.
#[derive(Default)]
struct Recorder {
    taken: Mutex<Vec<Uuid>>,
    /// It answers nothing.
    is_stuck: AtomicBool,
    /// It answers that it is out of order.
    is_down: AtomicBool,
    poison: Mutex<BTreeSet<Uuid>>,
}

impl Recorder {
    fn taken(&self) -> Vec<Uuid> {
        self.taken.lock().unwrap().clone()
    }

    fn count(&self) -> usize {
        self.taken.lock().unwrap().len()
    }

    fn is_stuck(&self, is_stuck: bool) {
        self.is_stuck.store(is_stuck, Ordering::SeqCst);
    }

    fn is_down(&self, is_down: bool) {
        self.is_down.store(is_down, Ordering::SeqCst);
    }

    fn outcome(&self, event: &Event) -> Outcome {
        assert_eq!(event.exchange.id, event.id.to_string());
        if self.is_down.load(Ordering::SeqCst) {
            return Outcome::Retry { after: None, fault: Fault::Sink, reason: "out of order".to_owned() };
        }
        if self.poison.lock().unwrap().contains(&event.id) {
            return Outcome::Poison { reason: "not this one".to_owned() };
        }
        self.taken.lock().unwrap().push(event.id);
        Outcome::Delivered
    }
}

struct Recording(Arc<Recorder>);

impl Sink for Recording {
    fn deliver<'a>(&'a self, batch: &'a [&'a Event]) -> BoxFuture<'a, Vec<Outcome>> {
        async move {
            // Long enough for a stop, or a kill, to come in between.
            tokio::time::sleep(Duration::from_millis(10)).await;
            if self.0.is_stuck.load(Ordering::SeqCst) {
                std::future::pending::<()>().await;
            }
            batch.iter().map(|event| self.0.outcome(event)).collect()
        }
        .boxed()
    }
}

fn feeds(name: &str, recorder: &Arc<Recorder>) -> Job {
    let policy = Policy {
        limits: Limits { events: 20, bytes: 1 << 20, age: Duration::from_millis(10) },
        backoff: Backoff { first: Duration::from_millis(10), longest: Duration::from_millis(50) },
        ..Policy::default()
    };
    Job { name: name.to_owned(), sink: Box::new(Recording(Arc::clone(recorder))), policy }
}

fn settings(server: &Server, consumer: &str) -> RedisSourceSettings {
    RedisSourceSettings::new(server.url().parse().unwrap(), no_authorities(), consumer)
}

fn serve(server: &Server, jobs: Vec<Job>, data_dir: &Path) -> RedisDispatcher {
    RedisDispatcher::start(jobs, &settings(server, "a"), data_dir).unwrap()
}

/// Puts so many events into the stream, as the sink does.
fn add(server: &Server, events: usize) -> Vec<Uuid> {
    let ids: Vec<Uuid> = (0..events).map(|_| Uuid::now_v7()).collect();
    let mut pipe = redis::pipe();
    for (seq, id) in ids.iter().enumerate() {
        let exchange = Exchange { id: id.to_string(), ..finished() };
        pipe.cmd("XADD").arg(STREAM).arg("*").arg("id").arg(id.to_string()).arg("seq").arg(seq + 1);
        pipe.arg("time_us").arg(now_us()).arg("payload").arg(exchange.encode_to_vec()).ignore();
    }
    pipe.exec(&mut server.connect().unwrap()).unwrap();
    ids
}

/// Entries that a sink's group has given out and not got back; -1 while there is no such group.
fn pending(server: &Server, sink: &str) -> i64 {
    type Summary = (i64, redis::Value, redis::Value, redis::Value);
    let group = format!("llm-proxy:{sink}");
    server.try_ask::<Summary>(&["XPENDING", STREAM, &group]).map_or(-1, |summary| summary.0)
}

fn set(ids: &[Uuid]) -> BTreeSet<Uuid> {
    ids.iter().copied().collect()
}

#[test]
fn events_go_from_the_journal_of_one_host_to_a_sink_of_another() {
    let (here, there, server) = (Bench::new(), tempfile::tempdir().unwrap(), Server::start());
    let shipper = here.serve(vec![job("redis", brisk(json!({"url": server.url()})))]);
    let recorder = Arc::new(Recorder::default());
    let dispatcher = serve(&server, vec![feeds("log", &recorder)], there.path());
    let expected = here.append(200);
    wait_for(&shipper, |stats| stats.delivered == 200);
    wait("everything to arrive", || recorder.count() == 200);
    let drained = dispatcher.drain(PATIENCE);
    assert_eq!((drained[0].sink.as_str(), drained[0].remaining), ("log", 0));
    assert_eq!(recorder.taken(), expected);
    assert_eq!(pending(&server, "log"), 0);
}

#[test]
fn a_server_that_comes_late_and_is_killed_in_the_middle_costs_nothing() {
    let (there, mut server) = (tempfile::tempdir().unwrap(), Server::start());
    let recorder = Arc::new(Recorder::default());
    let mut expected = add(&server, 100);
    server.kill();
    let dispatcher = serve(&server, vec![feeds("log", &recorder)], there.path());
    let stats = || dispatcher.books()[0].stats(now_us());
    wait("it to be missed", || stats().health == Health::Retrying);
    server.restart();
    for round in 1..=3 {
        expected.extend(add(&server, 200));
        wait("some of it", || recorder.count() > (round - 1) * 200 + 50);
        server.kill();
        server.restart();
        wait("all of it", || recorder.count() >= expected.len());
    }
    // The process has lived, so it knows what it has delivered.
    wait("all acknowledgements", || pending(&server, "log") == 0);
    assert_eq!(recorder.count(), expected.len());
    assert_eq!(set(&recorder.taken()), set(&expected));
    assert_eq!((stats().dead, stats().taken, stats().delivered), (0, 700, 700));
}

#[test]
fn a_stream_or_a_group_that_is_deleted_is_made_anew_and_read_from_its_beginning() {
    let (there, server) = (tempfile::tempdir().unwrap(), Server::start());
    let recorder = Arc::new(Recorder::default());
    let dispatcher = serve(&server, vec![feeds("log", &recorder)], there.path());
    let mut expected = add(&server, 30);
    wait("the first", || recorder.count() == 30);
    server.ask::<()>(&["DEL", STREAM]);
    expected.extend(add(&server, 30));
    wait("the stream's successor", || set(&recorder.taken()) == set(&expected));
    server.ask::<()>(&["XGROUP", "DESTROY", STREAM, "llm-proxy:log"]);
    wait("the group's successor", || recorder.count() >= 90);
    expected.extend(add(&server, 30));
    wait("what comes then", || set(&recorder.taken()) == set(&expected));
    assert_eq!(dispatcher.drain(PATIENCE)[0].remaining, 0);
    assert_eq!(pending(&server, "log"), 0);
}

#[test]
fn what_a_consumer_was_given_is_its_own_while_it_lives_and_anothers_once_it_is_dead() {
    let (here, there, server) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), Server::start());
    let idle = Duration::from_secs(2);
    let named = |consumer: &str| RedisSourceSettings { idle, ..settings(&server, consumer) };
    let (stuck, healthy) = (Arc::new(Recorder::default()), Arc::new(Recorder::default()));
    stuck.is_stuck(true);
    let expected = add(&server, 20);
    let first = RedisDispatcher::start(vec![feeds("log", &stuck)], &named("a"), here.path()).unwrap();
    wait("the first to be at it", || pending(&server, "log") == 20);
    let second = RedisDispatcher::start(vec![feeds("log", &healthy)], &named("b"), there.path()).unwrap();
    let until = Instant::now() + idle + Duration::from_millis(1_500);
    wait("the time after which they count as abandoned", || Instant::now() > until);
    assert_eq!(healthy.count(), 0);
    drop(first);
    wait("the second to take over", || healthy.count() == 20);
    assert_eq!(set(&healthy.taken()), set(&expected));
    assert_eq!(second.drain(PATIENCE)[0].remaining, 0);
    assert_eq!((pending(&server, "log"), stuck.count()), (0, 0));
}

#[test]
fn after_a_restart_a_consumer_goes_on_with_what_it_was_given() {
    let (there, server) = (tempfile::tempdir().unwrap(), Server::start());
    let (stuck, healthy) = (Arc::new(Recorder::default()), Arc::new(Recorder::default()));
    stuck.is_stuck(true);
    let mut expected = add(&server, 50);
    let before = serve(&server, vec![feeds("log", &stuck)], there.path());
    wait("it to be at it", || pending(&server, "log") >= 20);
    let drained = before.drain(Duration::ZERO);
    assert!(drained[0].remaining >= 20);
    expected.extend(add(&server, 10));
    let after = serve(&server, vec![feeds("log", &healthy)], there.path());
    wait("all of it", || healthy.count() == 60);
    assert_eq!(healthy.taken(), expected);
    assert_eq!(after.drain(PATIENCE)[0].remaining, 0);
}

#[test]
fn the_end_waits_for_what_is_at_hand_and_leaves_the_rest() {
    const EVENTS: usize = 2_000;
    let (there, server) = (tempfile::tempdir().unwrap(), Server::start());
    let recorder = Arc::new(Recorder::default());
    let expected = add(&server, EVENTS);
    let dispatcher = serve(&server, vec![feeds("log", &recorder)], there.path());
    wait("some of it", || recorder.count() > 0);
    assert_eq!(dispatcher.drain(PATIENCE)[0].remaining, 0);
    assert_eq!(pending(&server, "log"), 0);
    assert!(recorder.count() < EVENTS);
    let dispatcher = serve(&server, vec![feeds("log", &recorder)], there.path());
    wait("the rest", || recorder.count() >= EVENTS);
    drop(dispatcher);
    assert_eq!(recorder.taken(), expected);
}

#[test]
fn what_no_sink_can_take_is_put_aside_and_what_is_left_out_is_done_with() {
    let (bench, server) = (Bench::new(), Server::start());
    let recorder = Arc::new(Recorder::default());
    let ids = add(&server, 60);
    recorder.poison.lock().unwrap().insert(ids[7]);
    server.ask::<()>(&["XADD", STREAM, "*", "somebody", "else"]);
    let id = Uuid::now_v7().to_string();
    server.ask::<()>(&["XADD", STREAM, "*", "id", &id, "seq", "77", "payload", "\u{1}"]);
    let mut nothing = feeds("nothing", &Arc::new(Recorder::default()));
    nothing.policy.filter = Filter { sample: Sample::new(0.0).unwrap(), ..Filter::default() };
    let dispatcher = serve(&server, vec![feeds("log", &recorder), nothing], bench.dir.path());
    let stats = |sink: usize| dispatcher.books()[sink].stats(now_us());
    wait("all but one", || recorder.count() == 59);
    wait("everything to be done with", || {
        stats(0).unreadable == 2 && (stats(1).left_out, stats(1).unreadable) == (60, 2)
    });
    wait("all acknowledgements", || pending(&server, "log") == 0 && pending(&server, "nothing") == 0);
    assert_eq!((stats(0).dead, stats(0).taken, stats(0).delivered, stats(1).taken), (1, 60, 59, 0));
    assert!(!recorder.taken().contains(&ids[7]));
    let dead = bench.dead("log");
    assert_eq!(dead.len(), 3);
    let of = |wanted: &str| dead.iter().find(|letter| letter["id"] == wanted).unwrap();
    let letter = of(&ids[7].to_string());
    assert_eq!((&letter["seq"], &letter["reason"]), (&json!(8), &json!("not this one")));
    assert_eq!(letter["record"]["id"], ids[7].to_string());
    assert_eq!((&of(&id)["seq"], &of(&id)["record"]), (&json!(77), &json!(null)));
    assert!(of(&Uuid::nil().to_string())["reason"].as_str().unwrap().contains("holds no event"));
}

#[test]
fn a_sink_that_is_down_holds_back_no_other_and_nothing_it_needs_is_trimmed() {
    const EVENTS: usize = 1_000;
    let (there, server) = (tempfile::tempdir().unwrap(), Server::start());
    let (quick, down) = (Arc::new(Recorder::default()), Arc::new(Recorder::default()));
    down.is_down(true);
    let expected = add(&server, EVENTS);
    let dispatcher = serve(&server, vec![feeds("quick", &quick), feeds("down", &down)], there.path());
    let stats = |sink: usize| dispatcher.books()[sink].stats(now_us());
    let length = || server.ask::<usize>(&["XLEN", STREAM]);
    wait("the quick one to be through", || quick.count() == EVENTS);
    // It has looked at the stream once before it read it, and here it has done so again after it was through.
    wait("the quick one to look at the stream", || stats(0).lag_records == 0);
    assert_eq!((length(), down.count()), (EVENTS, 0));
    assert_eq!(stats(1).health, Health::Down);
    down.is_down(false);
    wait("the other one to be through", || down.count() == EVENTS);
    // Entries lie in blocks of a hundred, which are freed as a whole.
    wait("the stream to be trimmed", || length() < EVENTS / 5);
    assert_eq!(quick.taken(), expected);
    // While it was down, one after the other was tried; whichever got through first was the first.
    assert_eq!(down.taken().into_iter().collect::<BTreeSet<_>>(), expected.into_iter().collect());
    assert_eq!(down.count(), EVENTS);
    assert_eq!(stats(1).dead, 0);
}

#[test]
fn a_sink_that_somebody_else_serves_from_here_is_refused() {
    let (there, server) = (tempfile::tempdir().unwrap(), Server::start());
    let recorder = Arc::new(Recorder::default());
    let _first = serve(&server, vec![feeds("log", &recorder)], there.path());
    let second = RedisDispatcher::start(vec![feeds("log", &recorder)], &settings(&server, "b"), there.path());
    let refused = second.map(|_| ()).unwrap_err().to_string();
    assert!(refused.contains(&format!("pid {}", std::process::id())), "{refused}");
}

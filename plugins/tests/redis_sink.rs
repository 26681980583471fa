//! The Redis sink against real Redis servers: killed, full, locked, behind TLS, behind a Sentinel, and in a cluster.

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
use std::sync::Arc;

use common::{Bench, PATIENCE, brisk, client_tls, job, job_with, stats, texts, wait_for};
use llm_proxy_plugins::dispatcher::Health;
use llm_proxy_plugins::event::{Exchange, Message};
use redis_server::{Server, free_port, start_cluster, start_replica, tls_arguments, wait};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use serde_json::json;
use uuid::Uuid;

const STREAM: &str = "llm-proxy:events";
/// What a batch of [`brisk`] has at most.
const BATCH: usize = 20;

/// An entry as any reader sees it.
struct Entry {
    id: String,
    seq: String,
    exchange: Exchange,
}

/// All entries of the stream, oldest first.
fn entries(server: &Server) -> Vec<Entry> {
    type Words = (String, Vec<(Vec<u8>, Vec<u8>)>);
    let found: Vec<Words> = server.ask(&["XRANGE", STREAM, "-", "+"]);
    let entry = |(_, fields): Words| {
        let field = |name: &str| {
            let found = fields.iter().find(|(key, _)| key == name.as_bytes());
            found.unwrap_or_else(|| panic!("no field {name}")).1.clone()
        };
        let text = |name: &str| String::from_utf8(field(name)).unwrap();
        assert!(text("time_us").parse::<i64>().unwrap() > 0);
        let exchange = Exchange::decode(field("payload").as_slice()).unwrap();
        Entry { id: text("id"), seq: text("seq"), exchange }
    };
    found.into_iter().map(entry).collect()
}

fn ids(server: &Server) -> BTreeSet<String> {
    entries(server).into_iter().map(|entry| entry.id).collect()
}

#[test]
fn every_event_is_an_entry_once_and_in_order() {
    let (bench, server) = (Bench::new(), Server::start());
    let before = bench.append(150);
    let dispatcher = bench.serve(vec![job("redis", brisk(json!({"url": server.url()})))]);
    let during = bench.append(150);
    assert_eq!(dispatcher.drain(PATIENCE)[0].remaining, 0);
    let found = entries(&server);
    let expected: Vec<_> = [before, during].concat().iter().map(Uuid::to_string).collect();
    assert_eq!(found.iter().map(|entry| entry.id.clone()).collect::<Vec<_>>(), expected);
    let seqs: Vec<u64> = found.iter().map(|entry| entry.seq.parse().unwrap()).collect();
    assert!(seqs.is_sorted() && seqs[0] > 0);
    for entry in &found {
        assert_eq!((&entry.exchange.id, entry.exchange.status), (&entry.id, Some(200)));
    }
}

#[test]
fn a_server_that_is_killed_in_the_middle_costs_no_event_and_repeats_a_batch_at_most() {
    const KILLS: usize = 4;
    let (bench, mut server) = (Bench::new(), Server::start());
    let dispatcher = bench.serve(vec![job("redis", brisk(json!({"url": server.url(), "timeout": "1s"})))]);
    let mut expected = Vec::new();
    for round in 1..=KILLS {
        expected.extend(bench.append(300));
        let delivered = wait_for(&dispatcher, |stats| stats.delivered > (round as u64 - 1) * 310 + 20);
        server.kill();
        expected.extend(bench.append(10));
        let failing = wait_for(&dispatcher, |stats| stats.health != Health::Delivering || stats.waiting == 0);
        assert!(failing.delivered >= delivered.delivered);
        server.restart();
        wait_for(&dispatcher, |stats| stats.delivered == expected.len() as u64);
    }
    let stats = stats(&dispatcher);
    assert_eq!((stats.dead, stats.waiting, stats.taken), (0, 0, expected.len() as u64));
    drop(dispatcher);
    let found = entries(&server);
    assert_eq!(found.iter().map(|entry| entry.id.clone()).collect::<BTreeSet<_>>(), texts(&expected));
    let repeated = found.len() - expected.len();
    assert!(repeated <= KILLS * BATCH, "{repeated} repeated");
}

#[test]
fn a_server_that_has_no_room_is_waited_for_however_long() {
    let (bench, server) = (Bench::new(), Server::start());
    let limit = |bytes: &str| server.ask::<()>(&["CONFIG", "SET", "maxmemory", bytes]);
    limit("1000");
    let settings = brisk(json!({"url": server.url(), "max_attempts": "1"}));
    let dispatcher = bench.serve(vec![job("redis", settings)]);
    let expected = bench.append(60);
    let full = wait_for(&dispatcher, |stats| stats.health == Health::Down);
    assert_eq!((full.delivered, full.dead), (0, 0));
    let reason = dispatcher.books()[0].last_error().unwrap();
    assert!(reason.contains("OOM"), "{reason}");
    limit("0");
    wait_for(&dispatcher, |stats| stats.delivered == 60);
    assert_eq!(stats(&dispatcher).dead, 0);
    assert_eq!(ids(&server), texts(&expected));
}

#[test]
fn who_is_not_let_in_loses_nothing_and_users_and_databases_are_used() {
    let (bench, server) = (Bench::new(), Server::start());
    let url = format!("redis://shipper:p%40ss@127.0.0.1:{}/3", server.port);
    let dispatcher = bench.serve(vec![job("redis", brisk(json!({"url": url, "stream": "other"})))]);
    bench.append(30);
    let refused = wait_for(&dispatcher, |stats| stats.health == Health::Down);
    assert_eq!((refused.delivered, refused.dead), (0, 0));
    let reason = dispatcher.books()[0].last_error().unwrap();
    assert!(reason.contains("does not let us in") && !reason.contains("p@ss"), "{reason}");
    server.ask::<()>(&["ACL", "SETUSER", "shipper", "on", ">p@ss", "~other", "+xadd", "+select", "+client"]);
    wait_for(&dispatcher, |stats| stats.delivered == 30);
    assert!(!server.ask::<bool>(&["EXISTS", "other"]));
    assert!(server.info("keyspace", "db3").starts_with("keys=1,"));
}

#[test]
fn tls_is_spoken_and_verified() {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let tls_port = free_port();
    let (certificate, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    let arguments = tls_arguments(dir.path(), &certificate, &key, tls_port);
    let server = Server::start_with(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(made.cert.der().to_vec())).unwrap();
    let trusting = Arc::new(client_tls(roots));
    let settings = |host: &str| brisk(json!({"url": format!("rediss://{host}:{tls_port}")}));

    let bench = Bench::new();
    let expected = bench.append(40);
    // Another name than the certificate's, and nobody who vouches for it.
    for job in [job_with("redis", settings("127.0.0.1"), &trusting), job("redis", settings("localhost"))] {
        let dispatcher = bench.serve(vec![job]);
        let refused = wait_for(&dispatcher, |stats| stats.health == Health::Down);
        assert_eq!(refused.delivered, 0);
        let reason = dispatcher.books()[0].last_error().unwrap();
        assert!(reason.contains("certificate"), "{reason}");
    }
    let dispatcher = bench.serve(vec![job_with("redis", settings("localhost"), &trusting)]);
    wait_for(&dispatcher, |stats| stats.delivered == 40);
    assert_eq!(ids(&server), texts(&expected));
}

#[test]
fn after_a_failover_events_go_to_the_master_that_the_sentinel_names() {
    let mut master = Server::start_locked("pw", &[]);
    let replica = start_replica(&master);
    let sentinel = Server::start_sentinel("main", &master);
    let bench = Bench::new();
    let url = format!("redis+sentinel://:pw@127.0.0.1:{},127.0.0.1:{}/main", free_port(), sentinel.port);
    let dispatcher = bench.serve(vec![job("redis", brisk(json!({"url": url})))]);
    let mut expected = bench.append(50);
    wait_for(&dispatcher, |stats| stats.delivered == 50);
    assert_eq!(master.ask::<u64>(&["XLEN", STREAM]), 50);
    // What a replica has not got yet is lost with its master, and nobody promises otherwise.
    wait("the replica to have it all", || replica.try_ask(&["XLEN", STREAM]).is_ok_and(|found: u64| found == 50));
    wait("the Sentinel to know the replica", || {
        let answer: Vec<Vec<String>> = sentinel.ask(&["SENTINEL", "REPLICAS", "main"]);
        answer.len() == 1
    });
    master.kill();
    expected.extend(bench.append(50));
    wait_for(&dispatcher, |stats| stats.delivered == 100);
    assert_eq!(replica.info("replication", "role"), "master");
    assert_eq!(ids(&replica), texts(&expected));
    assert_eq!(stats(&dispatcher).dead, 0);
}

#[test]
fn in_a_cluster_the_node_that_has_the_stream_is_found() {
    let nodes = start_cluster();
    let bench = Bench::new();
    let expected = bench.append(50);
    let has_it: Vec<&Server> = nodes.iter().filter(|node| node.try_ask::<u64>(&["XLEN", STREAM]).is_ok()).collect();
    assert_eq!(has_it.len(), 1);
    let other = nodes.iter().find(|node| node.port != has_it[0].port).unwrap();
    let url = format!("redis+cluster://127.0.0.1:{},127.0.0.1:{}", free_port(), other.port);
    let dispatcher = bench.serve(vec![job("redis", brisk(json!({"url": url})))]);
    wait_for(&dispatcher, |stats| stats.delivered == 50);
    assert_eq!(ids(has_it[0]), texts(&expected));
}

//! What a provider answers, however malformed, reaches nobody but who asked: each answer of `testdata/h1/answers.json`
//! is refused, cut or passed as the file says, requests that follow it get their own answers, and a connection on which
//! anything was irregular carries no further request. Then the same answers damaged at random.

#[path = "h1_answers/corpus.rs"]
mod corpus;
#[path = "h1_answers/lane.rs"]
mod lane;
#[path = "h1_answers/mutants.rs"]
mod mutants;
#[path = "h1_answers/reader.rs"]
mod reader;
#[path = "h1_answers/report.rs"]
mod report;
#[path = "h1_answers/stage.rs"]
mod stage;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use corpus::{Case, Ending, Expected, cases};
use lane::{Heard, Lane, check_given_up, check_used_again, lanes};
use llm_proxy_tests::{Answer, Provider, Refused, eventually};
use mutants::{Bases, Mutant};
use reader::{Reading, read};
use report::{Fault, Report, panicked};
use serde_json::Value;
use tokio::task::JoinSet;

/// The record that an answer must have left.
struct Expectation {
    name: String,
    id: String,
    outcome: &'static str,
    reason: Option<String>,
    response_bytes: usize,
}

impl Expectation {
    fn new(name: &str, case: &Case, answer: &Answer) -> Self {
        let (outcome, reason) = match &case.expected {
            Expected::Refused { .. } if case.waits() => ("timeout", Some("first_byte".to_owned())),
            Expected::Refused { code } => ("upstream_unreachable", Some(code.clone())),
            Expected::Cut { silent: true, .. } => ("timeout", None),
            Expected::Cut { .. } => ("upstream_cut", None),
            Expected::Passed { .. } => ("finished", None),
        };
        let is_ours = matches!(case.expected, Expected::Refused { .. });
        let response_bytes = if is_ours { 0 } else { answer.body.len() };
        Self { name: name.to_owned(), id: answer.id(), outcome, reason, response_bytes }
    }

    fn fault(&self, records: &[Value]) -> Option<Fault> {
        let is_right = |record: &Value| {
            record["outcome"] == self.outcome
                && record["response_bytes"] == self.response_bytes
                && self.reason.as_ref().is_none_or(|reason| record["reason"] == *reason)
        };
        let (outcome, reason) = (self.outcome, &self.reason);
        let wanted = format!("{outcome}, {reason:?}, {} bytes", self.response_bytes);
        match records {
            [record] if is_right(record) => None,
            [record] => Some(Fault::Unexpected(format!("its record is not {wanted}: {record}"))),
            other => Some(Fault::Unexpected(format!("it has {} records", other.len()))),
        }
    }
}

/// What is wrong with what the client heard.
fn check_answer(case: &Case, provider: Provider, heard: &Heard) -> Vec<Fault> {
    let Some(answer) = &heard.answer else { return vec![Fault::Unexpected("no answer's head came".to_owned())] };
    let mut faults = Vec::new();
    if heard.interim != case.interim {
        faults.push(Fault::Unexpected(format!("interim answers {:?}, not {:?}", heard.interim, case.interim)));
    }
    let is_right = match &case.expected {
        Expected::Refused { code } => {
            let refused = match code.as_str() {
                "upstream_invalid" => Refused::UPSTREAM_INVALID,
                "upstream_unreachable" => Refused::UNREACHABLE,
                "upstream_timeout" => Refused::TIMEOUT,
                other => panic!("nobody refuses an answer with {other}"),
            };
            let is_right = answer.status == refused.status && answer.complete;
            if is_right && !case.to_head() {
                refused.check(&case.name, provider, answer);
            }
            is_right
        }
        Expected::Cut { status, body, .. } => !answer.complete && answer.status == *status && answer.body == *body,
        Expected::Passed { status, body, field, .. } => {
            let line = field.as_ref().map(|field| [&b"\r\n"[..], field, b"\r\n"].concat());
            let has_line = |line: Vec<u8>| answer.raw_head.windows(line.len()).any(|found| found == line);
            answer.complete && answer.status == *status && answer.body == *body && line.is_none_or(has_line)
        }
    };
    if !is_right {
        let Answer { status, complete, raw_head, body, .. } = answer;
        let (head, body) = (shortened(raw_head), shortened(body));
        faults.push(Fault::Unexpected(format!("the client got {status}, whole: {complete}, {head} {body}")));
    }
    faults
}

/// As much of some bytes as a message can bear.
fn shortened(bytes: &[u8]) -> String {
    bytes[..bytes.len().min(300)].escape_ascii().to_string()
}

/// Tries one case.
async fn judge(lane: Arc<Lane>, case: Arc<Case>, pooled: bool) -> (Vec<Fault>, Option<Expectation>) {
    let mut client = lane.connect().await;
    if pooled {
        lane.canary(&mut client).await.unwrap();
    }
    let (heard, connections) = lane.play(&mut client, &case.method, case.script.clone()).await;
    let mut faults = check_answer(&case, lane.provider, &heard);
    if connections.first().is_some_and(|connection| connection.was_pooled() != pooled) {
        faults.push(Fault::Unexpected("its request came on another connection than it should".to_owned()));
    }
    let asked: usize = connections.iter().map(|connection| connection.times_asked()).sum();
    if asked != case.asked {
        faults.push(Fault::Unexpected(format!("the provider got the request {asked} times")));
    }
    if !case.is_reusable() {
        faults.extend(check_given_up(&connections).await);
    }
    faults.extend(lane.canaries(client, &heard).await);
    faults.extend(check_used_again(&connections, case.is_reusable()));
    let name = played_name(&case, pooled);
    (faults, heard.answer.map(|answer| Expectation::new(&name, &case, &answer)))
}

fn played_name(case: &Case, pooled: bool) -> String {
    format!("{} ({})", case.name, if pooled { "pooled connection" } else { "new connection" })
}

async fn judge_all(lane: Arc<Lane>, cases: Vec<Arc<Case>>) -> (Report, Vec<Expectation>) {
    let (mut report, mut expectations) = (Report::default(), Vec::new());
    for case in cases {
        for pooled in [false, true].into_iter().filter(|pooled| case.is_played(*pooled)) {
            let name = played_name(&case, pooled);
            match tokio::spawn(judge(Arc::clone(&lane), Arc::clone(&case), pooled)).await {
                Ok((faults, expectation)) => {
                    report.add(&name, faults);
                    expectations.extend(expectation);
                }
                Err(error) => report.add(&name, [panicked(error)]),
            }
            // The next case begins with an empty pool.
            if lane.stage.dismiss().await > 0 {
                report.add(&name, [Fault::Reused("the proxy keeps a connection that its provider has closed")]);
            }
        }
    }
    (report, expectations)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_malformed_answer_poisons_the_next_and_no_irregular_connection_is_used_again() {
    let (world, lanes) = lanes().await;
    let mut shares = vec![Vec::new(); lanes.len()];
    for (index, case) in cases().into_iter().enumerate() {
        let lane = if case.waits() { Provider::ALL.len() } else { index % Provider::ALL.len() };
        shares[lane].push(Arc::new(case));
    }
    let mut judging = JoinSet::new();
    for (lane, share) in lanes.into_iter().zip(shares) {
        judging.spawn(judge_all(lane, share));
    }
    let (mut report, mut expectations) = (Report::default(), Vec::new());
    while let Some(judged) = judging.join_next().await {
        let (found, left) = judged.unwrap();
        report.merge(found);
        expectations.extend(left);
    }

    let records = eventually(Duration::from_secs(5), "every answer has its record", async || {
        let mut records: HashMap<String, Vec<Value>> = HashMap::new();
        for record in world.product.events() {
            records.entry(record["id"].as_str().unwrap().to_owned()).or_default().push(record);
        }
        expectations.iter().all(|expected| records.contains_key(&expected.id)).then_some(records)
    });
    let records = records.await;
    for expected in &expectations {
        report.add(&expected.name, expected.fault(&records[&expected.id]));
    }
    report.check();
}

/// Whether an answer is the proxy's own: nobody else knows its id.
fn is_ours(answer: &Answer) -> bool {
    let own = ["x-request-id", "request-id"].into_iter().find_map(|name| answer.header(name));
    answer.status >= 500 && own.is_some() && own == answer.header("x-llm-proxy-request-id")
}

/// Tries one mutant, for safety only: what the client takes for a whole answer is what a strict reader reads. Whether
/// any such answer passed, and what is wrong.
async fn judge_mutant(lane: Arc<Lane>, mutant: Mutant) -> (bool, Vec<Fault>) {
    let Mutant { method, script } = mutant;
    let reading = read(&script.bytes(), script.then, method == "HEAD");
    let ends = script.then != Ending::Keep;
    let mut client = lane.connect().await;
    let (heard, connections) = lane.play(&mut client, method, script).await;
    let mut faults = Vec::new();
    let passed = heard.answer.as_ref().filter(|answer| answer.complete && !is_ours(answer));
    if let Some(answer) = passed {
        let is_read_alike = match &reading {
            Reading::Whole { status, body, .. } => (*status, body) == (answer.status, &answer.body),
            _ => false,
        };
        if !is_read_alike {
            let (status, body) = (answer.status, shortened(&answer.body));
            faults.push(Fault::Unexpected(format!("the client got {status} {body:?}, a strict reader {reading:?}")));
        }
    }
    let has_passed = passed.is_some();
    let is_over = ends || !matches!(reading, Reading::Whole { behind: 0, .. });
    if is_over {
        faults.extend(check_given_up(&connections).await);
    }
    faults.extend(lane.canaries(client, &heard).await);
    if is_over {
        faults.extend(check_used_again(&connections, false));
    }
    (has_passed, faults)
}

async fn judge_mutants(lane: Arc<Lane>, bases: Arc<Bases>, seeds: Vec<u64>) -> (usize, Report) {
    let (mut passed, mut report) = (0, Report::default());
    for seed in seeds {
        let mutant = bases.mutant(seed);
        let pieces: Vec<String> = mutant.script.send.iter().map(|piece| piece.escape_ascii().to_string()).collect();
        let name = format!("H1_SEED={seed} H1_ANSWER_MUTANTS=1: {} {pieces:?} {:?}", mutant.method, mutant.script.then);
        match tokio::spawn(judge_mutant(Arc::clone(&lane), mutant)).await {
            Ok((has_passed, faults)) => {
                passed += usize::from(has_passed);
                report.add(&name, faults);
            }
            Err(error) => {
                report.add(&name, [panicked(error)]);
                lane.stage.dismiss().await;
            }
        }
    }
    (passed, report)
}

/// A number from the environment.
fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_damage_to_an_answer_poisons_the_next_or_makes_another_answer_of_it() {
    let (count, seed) = (setting("H1_ANSWER_MUTANTS", 1000), setting("H1_SEED", rand::random::<u32>().into()));
    println!("H1_SEED={seed} H1_ANSWER_MUTANTS={count}");
    let (_world, lanes) = lanes().await;
    let bases = Arc::new(Bases::new(&cases()));
    let mut judging = JoinSet::new();
    for (index, lane) in lanes.into_iter().take(Provider::ALL.len()).enumerate() {
        let seeds = (0..count).skip(index).step_by(Provider::ALL.len()).map(|number| seed.wrapping_add(number));
        judging.spawn(judge_mutants(lane, Arc::clone(&bases), seeds.collect()));
    }
    let (mut passed, mut report) = (0, Report::default());
    while let Some(judged) = judging.join_next().await {
        let (of_lane, found) = judged.unwrap();
        passed += of_lane;
        report.merge(found);
    }
    report.check();
    // Damage that always shows would prove nothing about damage that does not.
    assert!(count < 100 || passed > 0, "no mutant passed");
}

#[test]
fn the_strict_reader_reads_every_answer_as_the_corpus_says() {
    let cases = cases();
    assert!(cases.len() >= 110);
    let names: HashSet<&str> = cases.iter().map(|case| case.name.as_str()).collect();
    assert_eq!(names.len(), cases.len(), "names are unique");
    for case in &cases {
        assert!(case.rfc.contains("RFC "), "{}: {:?} names no section", case.name, case.rfc);
        // Rules of our own are narrower than what can be read in one way only.
        if case.rfc.starts_with("our ") {
            continue;
        }
        let is_as_expected = match (&case.expected, read(&case.script.bytes(), case.script.then, case.to_head())) {
            (Expected::Refused { .. }, Reading::None) => true,
            (Expected::Cut { status, body, .. }, Reading::Broken { status: found, body: got }) => {
                (*status, body) == (found, &got)
            }
            (Expected::Passed { status, body, .. }, Reading::Whole { status: found, body: got, .. }) => {
                (*status, body) == (found, &got)
            }
            _ => false,
        };
        assert!(is_as_expected, "{}", case.name);
    }
}

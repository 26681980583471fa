//! Requests that two parties could read in two ways, byte by byte (`testdata/h1`), and random changes of them.
//!
//! The judge is a provider that keeps what it gets and has it read by one strict reader and several lenient ones. A case
//! is *safe* when they all see exactly the requests that the case allows, and *conforming* when the client, too, gets the
//! answers that it should. A *desync* is two readers that disagree, or an answer that went to somebody else: after each
//! case a canary asks on a new connection and, where it lives, on the same one, and must get its own answer.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use llm_proxy_tests::h1_cases::{Case, Seen, Step, Values, cases};
use llm_proxy_tests::h1_client::{Answered, Client};
use llm_proxy_tests::h1_mutants::mutant;
use llm_proxy_tests::h1_readers::Message;
use llm_proxy_tests::h1_upstream::Recorder;
use llm_proxy_tests::{PATIENCE, Product, ProductOptions, metric};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::sleep;

/// Clients at work at the same time. Each has tokens and a provider key of its own, which tell its requests from others.
const LANES: usize = 8;
/// After this a piece has surely been read, and the next one comes as another.
const PAUSE: Duration = Duration::from_millis(20);
/// A mutant that gets no octet for so long waits for more of itself, or is over.
const QUIET: Duration = Duration::from_millis(30);
/// How many mutants are tried unless `H1_MUTANTS` says otherwise.
const MUTANTS: u64 = 3000;

/// The APIs that the cases speak of, and what is particular to each.
const APIS: [(&str, &str); 7] = [
    ("openai", ""),
    ("anthropic", ""),
    ("gemini", ""),
    ("azure", ""),
    ("held", "dialect: openai\nparam_whitelist: {kind: [plain]}\n"),
    ("small", "dialect: openai\nmax_request_bytes: 1KiB\n"),
    ("listed", "dialect: openai\nallowed_endpoints: ['/v1/models', '/v1/models/*']\n"),
];
/// Nothing here takes long: what waits for more than this is stuck.
const CLOCKS: &str = "timeouts: {connect: 5s, first_byte: 5s, idle: 5s}";

/// One client after another, and what it may do.
struct Lane {
    number: usize,
    proxy: SocketAddr,
    recorder: Arc<Recorder>,
    values: Values,
    canaries: usize,
    /// Method and target of the canaries that the provider was to get since the last look.
    served: Vec<Vec<u8>>,
}

/// What was found wrong, in words.
#[derive(Debug, Default)]
struct Verdict {
    /// Two parties saw two things.
    desyncs: Vec<String>,
    /// The provider got what it should not.
    harms: Vec<String>,
    /// The client got something else than it should.
    oddities: Vec<String>,
}

impl Verdict {
    fn is_safe(&self) -> bool {
        self.desyncs.is_empty() && self.harms.is_empty()
    }

    fn is_conforming(&self) -> bool {
        self.is_safe() && self.oddities.is_empty()
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (kind, found) in [("desync", &self.desyncs), ("unsafe", &self.harms), ("odd", &self.oddities)] {
            for what in found {
                write!(to, "\n    {kind}: {what:.1500}")?;
            }
        }
        Ok(())
    }
}

/// The product before the recording provider, and the lanes.
async fn stage() -> (Product, Arc<Recorder>, Vec<Lane>) {
    let recorder = Arc::new(Recorder::start().await);
    let mut options = ProductOptions::new(recorder.addr()).set("HEAD_TIMEOUT", "2s");
    for (name, yaml) in APIS {
        options = options.api(name, &format!("{yaml}{CLOCKS}"));
    }
    let product = Product::start(options).await;
    let admin = product.admin();
    let mut lanes = Vec::new();
    for number in 0..LANES {
        let key = format!("key-of-lane-{number}");
        let keys: Vec<Value> = APIS.iter().map(|(api, _)| json!({"api": api, "key": key})).collect();
        let project = json!({"name": format!("lane-{number}"), "provider_keys": keys});
        let project = admin.post("/manage/projects", &project).await.expect(201);
        let mut tokens = Vec::new();
        for _ in 0..2 {
            let token = json!({"project_id": project["id"], "duration_minutes": 60});
            let token = admin.post("/manage/tokens", &token).await.expect(201);
            tokens.push(token["token"].as_str().unwrap().to_owned());
        }
        let [token, other]: [String; 2] = tokens.try_into().unwrap();
        lanes.push(Lane {
            number,
            proxy: product.data_addr(),
            recorder: Arc::clone(&recorder),
            values: Values { token, other, key },
            canaries: 0,
            served: Vec::new(),
        });
    }
    (product, recorder, lanes)
}

/// What must hold at the end, whatever was sent.
async fn check_the_rest(product: &Product, recorder: &Recorder) {
    assert_eq!(recorder.faults(), Vec::<String>::new(), "faults that nobody was named for");
    assert_eq!(recorder.untaken(), Vec::<String>::new(), "requests with a key that is nobody's");
    assert_eq!(metric(&product.metrics().await, "llm_proxy_panics_total", &[]), 0.0, "panics");
}

impl Lane {
    /// All that a case sends.
    fn bytes(&self, case: &Case) -> Vec<u8> {
        let sent = case.steps.iter().map(|step| match step {
            Step::Send(text) => self.values.bytes(text),
            _ => Vec::new(),
        });
        sent.flatten().collect()
    }

    /// A request that is nobody else's, and its method and target at the provider.
    fn new_canary(&mut self) -> (Vec<u8>, Vec<u8>) {
        self.canaries += 1;
        let target = format!("/v1/models/canary-{}-{}", self.number, self.canaries);
        let request = format!(
            "GET /openai{target} HTTP/1.1\r\nHost: proxy.test\r\nAuthorization: Bearer {}\r\n\r\n",
            self.values.token
        );
        (request.into_bytes(), format!("GET {target}").into_bytes())
    }

    /// Asks for a canary's own answer. Somebody else's is a desync, none is an error.
    async fn ask_canary(&mut self, client: &mut Client, verdict: &mut Verdict) -> Result<(), String> {
        let (request, line) = self.new_canary();
        self.served.push(line.clone());
        client.send(&request).await;
        match client.answer(false).await? {
            Some(answer) if answer.status == 200 && answer.body == line => {}
            Some(answer) => {
                verdict.desyncs.push(format!("a canary got {} {}", answer.status, answer.body.escape_ascii()));
            }
            None => return Err("a canary got no answer".to_owned()),
        }
        Ok(())
    }

    /// The same on a new connection.
    async fn ask_new_canary(&mut self, verdict: &mut Verdict) {
        let asked = match Client::connect(self.proxy).await {
            Ok(mut client) => self.ask_canary(&mut client, verdict).await,
            Err(why) => Err(why),
        };
        if let Err(why) = asked {
            verdict.harms.push(format!("on a new connection: {why}"));
        }
    }

    /// The requests that the provider got since the last look, without the canaries that it was to get.
    fn arrived(&mut self) -> Vec<Message> {
        let served = std::mem::take(&mut self.served);
        let all = self.recorder.take(&self.values.key);
        all.into_iter().filter(|request| !served.contains(&request.line())).collect()
    }

    /// Plays a case and judges it.
    async fn judge(&mut self, case: &Case) -> Verdict {
        let faults_before = self.recorder.faults().len();
        let (mut verdict, mut answers) = (Verdict::default(), Vec::new());
        if let Err(why) = self.play(case, &mut answers, &mut verdict).await {
            verdict.oddities.push(why);
        }
        self.ask_new_canary(&mut verdict).await;
        self.judge_answers(case, &answers, &mut verdict);
        let requests = self.arrived();
        if requests.len() != case.seen.len() {
            let lines: Vec<String> = requests.iter().map(|found| found.line().escape_ascii().to_string()).collect();
            let what = format!("the provider got {} requests instead of {}: {lines:?}", lines.len(), case.seen.len());
            let kind = if lines.len() > case.seen.len() { &mut verdict.harms } else { &mut verdict.oddities };
            kind.push(what);
        }
        for (request, seen) in requests.iter().zip(&case.seen) {
            self.judge_request(request, seen, &mut verdict);
        }
        verdict.desyncs.extend(self.faults_since(faults_before));
        verdict
    }

    /// The provider's new faults that name this lane's key. What names none is found at the end.
    fn faults_since(&self, known: usize) -> impl Iterator<Item = String> {
        self.recorder.faults().into_iter().skip(known).filter(move |fault| fault.contains(&self.values.key))
    }

    /// Does what the case's client does, and looks whether the connection then lives or ends as it should.
    async fn play(&mut self, case: &Case, answers: &mut Vec<Answered>, verdict: &mut Verdict) -> Result<(), String> {
        let mut client = Client::connect(self.proxy).await?;
        let mut is_shut = false;
        for step in &case.steps {
            match step {
                Step::Send(text) => client.send(&self.values.bytes(text)).await,
                Step::Pause => sleep(PAUSE).await,
                Step::Await(status) => {
                    while answers.last().is_none_or(|answer| answer.status != *status)
                        && read_next(&mut client, case, answers).await?
                    {}
                }
                Step::Shut => {
                    client.shut().await;
                    is_shut = true;
                }
            }
        }
        while answers.len() < case.want.answers.len() && read_next(&mut client, case, answers).await? {}
        if case.want.keeps {
            return self.ask_canary(&mut client, verdict).await;
        }
        if !is_shut {
            if answers.last().is_some_and(|answer| !answer.says_close) {
                verdict.oddities.push("the last answer does not say close".to_owned());
            }
            // Whatever follows must go nowhere: the provider is to get no such request.
            let (request, _) = self.new_canary();
            client.send(&request).await;
            client.shut().await;
        }
        match client.answer(false).await? {
            Some(answer) => Err(format!("{} {} came where a close was due", answer.status, answer.body.escape_ascii())),
            None => Ok(()),
        }
    }

    /// The statuses are as wanted, and each answer of the provider belongs to its request.
    fn judge_answers(&self, case: &Case, answers: &[Answered], verdict: &mut Verdict) {
        let wanted = &case.want.answers;
        let fits = answers.iter().zip(wanted).all(|(answer, wanted)| wanted.statuses.contains(&answer.status));
        if !fits || answers.len() != wanted.len() {
            let got: Vec<String> = answers.iter().map(|a| format!("{} {:.200}", a.status, show(&a.body))).collect();
            let wanted: Vec<&[u16]> = wanted.iter().map(|wanted| &wanted.statuses[..]).collect();
            verdict.oddities.push(format!("the client got {got:?} instead of {wanted:?}"));
        }
        let passed: Vec<&Answered> = answers.iter().filter(|answer| answer.status == 200).collect();
        if passed.len() != case.seen.len() {
            return;
        }
        for (answer, seen) in passed.iter().zip(&case.seen) {
            if !answer.body.is_empty() && answer.body != self.values.bytes(&seen.line) {
                verdict.desyncs.push(format!("the answer to {:.80} is {}", seen.line, show(&answer.body)));
            }
        }
    }

    /// The provider got what the client sent, less what is not for it.
    fn judge_request(&self, request: &Message, seen: &Seen, verdict: &mut Verdict) {
        let (line, body) = (self.values.bytes(&seen.line), self.values.bytes(&seen.body));
        if (&request.line(), &request.body) != (&line, &body) {
            let (got_line, got_body) = (show(&request.line()), show(&request.body));
            verdict.harms.push(format!("the provider got {got_line:.200} with the body \"{got_body:.400}\""));
        }
        let host = self.recorder.addr().to_string();
        if request.values("host").collect::<Vec<_>>() != [host.as_bytes()] {
            verdict.harms.push("the provider got another Host than its own".to_owned());
        }
        let holds = |text: &[u8], secret: &str| text.windows(secret.len()).any(|found| found == secret.as_bytes());
        let is_secret = |text: &[u8]| holds(text, &self.values.token) || holds(text, &self.values.other);
        if is_secret(&request.target) || request.fields.iter().any(|(_, value)| is_secret(value)) {
            verdict.harms.push("the provider got a token".to_owned());
        }
        for name in &seen.absent {
            if request.values(name).next().is_some() {
                verdict.harms.push(format!("the provider got the field {name}"));
            }
        }
        let mut fields = request.fields.iter();
        for field in &seen.present {
            let (name, value) = field.split_once(':').unwrap_or((field.as_str(), ""));
            let (name, value) = (name.to_ascii_lowercase(), self.values.bytes(value.trim_start()));
            if !fields.any(|(found, given)| *found == name && *given == value) {
                verdict.harms.push(format!("the provider did not get {field}, or not in this order"));
            }
        }
    }

    /// Sends a mutant and looks whether anybody is worse off. Tells how many requests the provider got of it.
    async fn endure(&mut self, mutant: &[u8]) -> (usize, Verdict) {
        let faults_before = self.recorder.faults().len();
        let mut verdict = Verdict::default();
        match Client::connect(self.proxy).await {
            Ok(mut client) => {
                client.send(mutant).await;
                if !client.drained(QUIET).await {
                    client.shut().await;
                    if !client.drained(PATIENCE).await {
                        verdict.harms.push("the connection stays open though its client has closed".to_owned());
                    }
                }
            }
            Err(why) => verdict.harms.push(why),
        }
        self.ask_new_canary(&mut verdict).await;
        let arrived = self.arrived().len();
        verdict.desyncs.extend(self.faults_since(faults_before));
        (arrived, verdict)
    }
}

/// Reads the next answer of a case. `false`: there is none any more.
async fn read_next(client: &mut Client, case: &Case, answers: &mut Vec<Answered>) -> Result<bool, String> {
    let to_head = case.want.answers.get(answers.len()).is_some_and(|wanted| wanted.to_head);
    let answer = client.answer(to_head).await?;
    let is_one = answer.is_some();
    answers.extend(answer);
    Ok(is_one)
}

fn show(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

/// A number from the environment.
fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_case_of_the_corpus_reaches_the_provider_as_one_request_or_not_at_all_and_is_answered_as_it_says() {
    let (product, recorder, lanes) = stage().await;
    let (cases, next) = (Arc::new(cases()), Arc::new(AtomicUsize::new(0)));
    let mut running = JoinSet::new();
    for mut lane in lanes {
        let (cases, next) = (Arc::clone(&cases), Arc::clone(&next));
        running.spawn(async move {
            let mut verdicts = Vec::new();
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(case) = cases.get(index) else { return verdicts };
                verdicts.push((index, lane.judge(case).await));
            }
        });
    }
    let mut verdicts: Vec<(usize, Verdict)> = running.join_all().await.into_iter().flatten().collect();
    verdicts.sort_by_key(|(index, _)| *index);
    assert_eq!(verdicts.len(), cases.len());
    let count = |counts: fn(&Verdict) -> bool| verdicts.iter().filter(|(_, verdict)| counts(verdict)).count();
    let summary = format!(
        "{} cases: {} safe, {} conforming, {} desyncs",
        cases.len(),
        count(Verdict::is_safe),
        count(Verdict::is_conforming),
        verdicts.iter().map(|(_, verdict)| verdict.desyncs.len()).sum::<usize>()
    );
    println!("testdata/h1: {summary}");
    let failing = verdicts.iter().filter(|(_, verdict)| !verdict.is_conforming()).map(|(index, verdict)| {
        let Case { group, name, why, .. } = &cases[*index];
        format!("\n{group}: {name} ({why}){verdict}")
    });
    let failing: String = failing.collect();
    assert!(failing.is_empty(), "{summary}{failing}");
    check_the_rest(&product, &recorder).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_mutant_of_the_corpus_is_read_in_two_ways_or_spoils_the_answer_of_another() {
    let (product, recorder, lanes) = stage().await;
    let mutants = setting("H1_MUTANTS").unwrap_or(MUTANTS);
    let seed = setting("H1_SEED").unwrap_or_else(rand::random);
    println!("testdata/h1: H1_SEED={seed} H1_MUTANTS={mutants}");
    let (cases, next) = (Arc::new(cases()), Arc::new(AtomicU64::new(0)));
    let mut running = JoinSet::new();
    for mut lane in lanes {
        let (cases, next) = (Arc::clone(&cases), Arc::clone(&next));
        running.spawn(async move {
            // What passes is changed more often: what is refused mostly stays refused.
            let weighted = cases.iter().flat_map(|case| {
                let weight = if case.seen.is_empty() { 1 } else { 4 };
                std::iter::repeat_n(lane.bytes(case), weight)
            });
            let requests: Vec<Vec<u8>> = weighted.filter(|request| !request.is_empty()).collect();
            let (mut arrived, mut failing) = (0, Vec::new());
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= mutants {
                    return (arrived, failing);
                }
                let bytes = mutant(seed, number, &requests);
                let (got, verdict) = lane.endure(&bytes).await;
                arrived += got;
                if !verdict.is_safe() {
                    failing.push(format!("\nmutant {number}: {:.2000}{verdict}", show(&bytes)));
                }
            }
        });
    }
    let (arrived, failing): (Vec<usize>, Vec<Vec<String>>) = running.join_all().await.into_iter().unzip();
    let (arrived, failing) = (arrived.iter().sum::<usize>(), failing.concat());
    let summary = format!("H1_SEED={seed}: {mutants} mutants, {} unsafe, {arrived} requests arrived", failing.len());
    println!("testdata/h1: {summary}");
    assert!(failing.is_empty(), "{summary}{}", failing.concat());
    // A judge that is never asked finds nothing.
    assert!(mutants < 100 || arrived > 0, "{summary}");
    check_the_rest(&product, &recorder).await;
}

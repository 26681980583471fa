//! Where answers are tried: an API of the product with a provider and a pool of its own.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use llm_proxy_tests::{Answer, Ask, Provider, Raw, World};

use super::corpus::Script;
use super::report::Fault;
use super::stage::{CASE, Connection, Stage};

/// The path of the API whose clocks run out after a second. The others keep the usual ones.
const HASTY: &str = "/hasty/v1/chat/completions";

/// One API, on which one answer is tried at a time.
pub struct Lane {
    pub stage: Stage,
    pub provider: Provider,
    path: &'static str,
    token: String,
    proxy: SocketAddr,
}

/// A lane in each dialect, and behind them the hasty one.
pub async fn lanes() -> (World, Vec<Arc<Lane>>) {
    let mut stages = Vec::new();
    for _ in 0..=Provider::ALL.len() {
        stages.push(Stage::start().await);
    }
    let base = |index: usize| format!("base_url: http://{}", stages[index].addr);
    let world = World::with(|options| {
        let usual = Provider::ALL.into_iter().enumerate();
        let options = usual.fold(options, |options, (index, provider)| options.api(provider.name(), &base(index)));
        let clocks = "timeouts: {connect: 1s, first_byte: 1s, idle: 1s}";
        options.api("hasty", &format!("dialect: openai\n{clocks}\n{}", base(Provider::ALL.len())))
    })
    .await;
    world.set_keys([("hasty".to_owned(), Provider::OpenAi.key())]).await;
    let paths = Provider::ALL.into_iter().map(|provider| (provider, provider.path()));
    let lane = |(stage, (provider, path))| {
        let (token, proxy) = (world.token.secret.clone(), world.product.data_addr());
        Arc::new(Lane { stage, provider, path, token, proxy })
    };
    let lanes = stages.into_iter().zip(paths.chain([(Provider::OpenAi, HASTY)])).map(lane).collect();
    (world, lanes)
}

impl Lane {
    pub async fn connect(&self) -> Raw {
        Raw::connect(self.proxy).await
    }

    fn ask(&self, method: &str) -> Ask {
        self.provider.at(method, self.path, &self.token)
    }

    /// Has a script played to one request. What the client heard, and on which connections the request came.
    pub async fn play(&self, client: &mut Raw, method: &str, script: Script) -> (Heard, Vec<Arc<Connection>>) {
        let play = self.stage.prepare(script);
        let ask = self.ask(method).with(CASE, "1");
        let ask = if method == "POST" { ask.json(r#"{"marker":"the case"}"#) } else { ask };
        client.write(&ask.bytes()).await;
        let heard = Heard::listen(client, method == "HEAD").await;
        play.heard.raise();
        assert!(play.asked.soon().await, "the request never came to the provider");
        let connections = self.stage.asked();
        for connection in &connections {
            assert!(connection.played.soon().await, "the proxy neither takes the answer nor closes");
        }
        (heard, connections)
    }

    /// Asks for a regular answer, which tells whose it is.
    pub async fn canary(&self, client: &mut Raw) -> Result<(), String> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let own = format!(r#"{{"marker":"canary {}"}}"#, NEXT.fetch_add(1, Ordering::Relaxed));
        if client.try_write(&self.ask("POST").json(&own).bytes()).await.is_err() {
            return Err("its connection was closed".to_owned());
        }
        match Heard::listen(client, false).await {
            Heard { answer: Some(answer), interim }
                if answer.status == 200 && answer.complete && answer.text() == own && interim.is_empty() =>
            {
                Ok(())
            }
            Heard { answer: Some(answer), interim } => {
                Err(format!("{interim:?} {} {:?} in place of {own}", answer.status, answer.text()))
            }
            Heard { answer: None, .. } => Err("no answer".to_owned()),
        }
    }

    /// Two more requests: the first from where the last one came, if that connection lives.
    pub async fn canaries(&self, client: Raw, heard: &Heard) -> Vec<Fault> {
        let mut first = if heard.client_lives() { client } else { self.connect().await };
        let mut second = self.connect().await;
        let mut faults = Vec::new();
        for (which, client) in [("the next answer", &mut first), ("the one behind it", &mut second)] {
            if let Err(wrong) = self.canary(client).await {
                faults.push(Fault::Poisoned(format!("{which}: {wrong}")));
            }
        }
        faults
    }
}

/// What a client heard.
pub struct Heard {
    pub interim: Vec<u16>,
    /// The final answer, if the connection brought the head of one.
    pub answer: Option<Answer>,
}

impl Heard {
    async fn listen(client: &mut Raw, to_head: bool) -> Self {
        let mut interim = Vec::new();
        loop {
            match client.try_read_head().await {
                Ok(head) if head.status >= 200 => {
                    return Self { interim, answer: Some(client.read_body(head, to_head).await) };
                }
                Ok(head) => interim.push(head.status),
                Err(_) => return Self { interim, answer: None },
            }
        }
    }

    fn client_lives(&self) -> bool {
        self.answer.as_ref().is_some_and(|answer| answer.complete && !answer.says_close())
    }
}

/// Waits until the proxy has closed connections that may carry nothing more. Asked before the next request comes: what a
/// provider sends behind a whole answer is on its way for a while, and no client of HTTP/1.1 can know of it then.
pub async fn check_given_up(connections: &[Arc<Connection>]) -> Vec<Fault> {
    let mut faults = Vec::new();
    for connection in connections {
        if !connection.closed.soon().await {
            faults.push(Fault::Reused("its connection stays open"));
        }
    }
    faults
}

/// What is wrong with connections that the next request must have used, or may not have.
pub fn check_used_again(connections: &[Arc<Connection>], reusable: bool) -> Option<Fault> {
    match (reusable, connections.iter().any(|connection| connection.was_used_again())) {
        (true, false) => Some(Fault::Unexpected("its connection was regular and carried no other request".to_owned())),
        (false, true) => Some(Fault::Reused("another request came on its connection")),
        _ => None,
    }
}

//! Clients that ask on and on, each exchange under a name of its own, and remember what they saw of it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use llm_proxy_tests::World;
use serde_json::json;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::common::wire::{Ask, Wire};

/// Between two exchanges of a client. With it the mock provider, which remembers a thousand, forgets none between two
/// looks.
const PAUSE: Duration = Duration::from_millis(15);
/// Before another try to connect.
const CONNECT_PAUSE: Duration = Duration::from_millis(5);
/// Who asks for what.
const CLIENTS: [Wish; 6] = [Wish::Json, Wish::Stream, Wish::Json, Wish::Stream, Wish::Forbidden, Wish::Json];

/// What a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// An answer in one piece.
    Json,
    /// One in many, with time between them.
    Stream,
    /// One that its token does not allow.
    Forbidden,
}

impl Wish {
    /// The status of its answer.
    pub fn status(self) -> u16 {
        if self == Self::Forbidden { 403 } else { 200 }
    }

    fn request(self, token: &str, name: &str) -> Vec<u8> {
        let ask = Ask::post("/openai/v1/chat/completions").json_type().bearer(token).with("x-request-id", name);
        match self {
            Self::Json | Self::Forbidden => ask.body(r#"{"model":"gpt-4o-mini","messages":[]}"#),
            Self::Stream => {
                ask.with("x-mock-pace-ms", 2).body(r#"{"model":"gpt-4o-mini","messages":[],"stream":true}"#)
            }
        }
    }
}

/// One exchange, as far as its client knows of it.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// What the client called it, and nothing else ever.
    pub name: String,
    /// What it asked for.
    pub wish: Wish,
    /// The answer, if it came whole.
    pub seen: Option<Seen>,
}

/// A whole answer.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The proxy's id of the exchange.
    pub id: String,
    /// Its status.
    pub status: u16,
}

/// What clients identify themselves with.
pub struct Tokens {
    all: String,
    none: String,
}

impl Tokens {
    /// The world's, and one that allows no model that is asked for.
    pub async fn of(world: &World) -> Self {
        let none = world.token_with(json!({"allowed_models": ["none-of-these"]})).await;
        Self { all: world.token.secret.clone(), none: none.secret }
    }
}

/// All clients, at work.
pub struct Load {
    stop: Arc<AtomicBool>,
    clients: JoinSet<Vec<Attempt>>,
}

impl Load {
    /// Sets them to work. `round` tells their exchanges from those of other rounds.
    pub fn start(at: SocketAddr, tokens: &Tokens, round: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut clients = JoinSet::new();
        for (number, wish) in CLIENTS.into_iter().enumerate() {
            let token = if wish == Wish::Forbidden { &tokens.none } else { &tokens.all };
            let client = Client { at, wish, token: token.clone(), name: format!("kill-{round}-{number}") };
            clients.spawn(client.ask_on(Arc::clone(&stop)));
        }
        Self { stop, clients }
    }

    /// Lets them finish what they are at, and returns what all of them have done.
    pub async fn end(self) -> Vec<Attempt> {
        self.stop.store(true, Ordering::SeqCst);
        self.clients.join_all().await.concat()
    }
}

struct Client {
    at: SocketAddr,
    wish: Wish,
    token: String,
    name: String,
}

impl Client {
    async fn ask_on(self, stop: Arc<AtomicBool>) -> Vec<Attempt> {
        let mut attempts: Vec<Attempt> = Vec::new();
        let mut kept: Option<Wire> = None;
        while !stop.load(Ordering::SeqCst) {
            let mut wire = match kept.take() {
                Some(wire) => wire,
                None => match TcpStream::connect(self.at).await {
                    Ok(stream) => Wire::of(stream),
                    Err(_) => {
                        sleep(CONNECT_PAUSE).await;
                        continue;
                    }
                },
            };
            let name = format!("{}-{}", self.name, attempts.len());
            let answer = match wire.try_send(self.wish.request(&self.token, &name)).await {
                Ok(()) => wire.try_answer().await,
                Err(_) => None,
            };
            let whole = answer.filter(|answer| answer.whole);
            if let Some(answer) = &whole {
                assert_eq!(answer.head.status, self.wish.status(), "{name}: {}", answer.text());
                if !answer.head.says_close() {
                    kept = Some(wire);
                }
            }
            let seen = whole.map(|answer| Seen { id: answer.head.id(), status: answer.head.status });
            attempts.push(Attempt { name, wish: self.wish, seen });
            sleep(PAUSE).await;
        }
        attempts
    }
}

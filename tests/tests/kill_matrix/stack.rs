//! Everything that may be killed, in the three arrangements in which the product brings events to a sink.

use std::path::{Path, PathBuf};
use std::time::Duration;

use llm_proxy_tests::{World, binary};
use tempfile::TempDir;

use crate::process::Process;
use crate::receiver::{Receiver, SECRET};
use crate::redis::Redis;

/// Events in a batch, of each sink: what a kill may repeat. Small, so that a batch too many shows.
const BATCH: u64 = 20;
/// How long a process may take to its end.
const END: Duration = Duration::from_secs(30);

/// Who is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victim {
    /// `llm-proxy server`.
    Server,
    /// `llm-proxy dispatcher`.
    Dispatcher,
    /// The Redis server between the two.
    Redis,
    /// Who receives the events.
    Sink,
}

/// An arrangement, running.
pub struct Stack {
    pub world: World,
    pub receiver: Receiver,
    dispatcher: Option<Process>,
    redis: Option<Redis>,
    /// Batches that a kill can repeat.
    hops: u64,
    folder: TempDir,
}

impl Stack {
    /// A server that brings events to its sinks itself.
    pub async fn inside() -> Self {
        let (receiver, folder) = (Receiver::start().await, tempfile::tempdir().unwrap());
        let (world, _) = server(&hook(&receiver), "inside", folder.path()).await;
        Self { world, receiver, dispatcher: None, redis: None, hops: 1, folder }
    }

    /// A server, and a dispatcher that reads its journal.
    pub async fn outside() -> Self {
        let (receiver, folder) = (Receiver::start().await, tempfile::tempdir().unwrap());
        let (world, settings) = server(&hook(&receiver), "outside", folder.path()).await;
        let variables = vec![("DATA_DIR", text(&world.product.data_dir())), ("CONFIG", text(&settings))];
        let dispatcher = Some(dispatcher(&[], variables, folder.path()));
        Self { world, receiver, dispatcher, redis: None, hops: 1, folder }
    }

    /// A server whose events go to Redis, and a dispatcher, as on another host, that reads them there.
    pub async fn over_redis() -> Self {
        let (receiver, folder) = (Receiver::start().await, tempfile::tempdir().unwrap());
        let redis = Redis::start().await;
        let url = redis.url();
        let (world, _) = server(&format!("  redis: {{url: '{url}', {}}}\n", pace()), "inside", folder.path()).await;
        let settings = folder.path().join("dispatcher.yaml");
        std::fs::write(&settings, format!("sinks:\n  file: none\n{}", hook(&receiver))).unwrap();
        let data_dir = folder.path().join("data");
        let variables = vec![("DATA_DIR", text(&data_dir)), ("CONFIG", text(&settings)), ("REDIS_URL", url)];
        let flags = ["--from", "redis", "--consumer", "kill-matrix"];
        let dispatcher = Some(dispatcher(&flags, variables, folder.path()));
        // One on the way to Redis, one on the way from it.
        Self { world, receiver, dispatcher, redis: Some(redis), hops: 2, folder }
    }

    /// Who can be killed here.
    pub fn victims(&self) -> Vec<Victim> {
        let dispatcher = self.dispatcher.as_ref().map(|_| Victim::Dispatcher);
        let redis = self.redis.as_ref().map(|_| Victim::Redis);
        [Victim::Server, Victim::Sink].into_iter().chain(dispatcher).chain(redis).collect()
    }

    /// The most records that may come to the receiver again for so many kills: a batch each, and the one more that a
    /// dispatcher reads to judge another.
    pub fn most_repeats(&self, kills: u64) -> u64 {
        kills * self.hops * (BATCH + 1)
    }

    /// Kills it without a word.
    pub async fn kill(&mut self, victim: Victim) {
        match victim {
            Victim::Server => self.world.product.kill9(),
            Victim::Dispatcher => self.dispatcher.as_mut().unwrap().kill9(),
            Victim::Redis => self.redis.as_mut().unwrap().kill9(),
            Victim::Sink => self.receiver.kill().await,
        }
    }

    /// Starts it again.
    pub async fn revive(&mut self, victim: Victim) {
        match victim {
            Victim::Server => self.world.product.restart().await,
            Victim::Dispatcher => self.dispatcher.as_mut().unwrap().restart(),
            Victim::Redis => self.redis.as_mut().unwrap().restart().await,
            Victim::Sink => self.receiver.revive().await,
        }
    }

    /// Where the file sink writes.
    pub fn file(&self) -> PathBuf {
        self.world.product.data_dir().join("events.jsonl")
    }

    /// Asks server and dispatcher to stop, and checks that they end as they should, and have given nothing up.
    pub async fn end(&mut self) {
        let ended = self.world.product.sigterm(END).await;
        assert!(ended.success(), "the server ends with {ended}");
        assert!(!self.world.product.log().contains("panicked"), "the server has panicked");
        if let Some(dispatcher) = &mut self.dispatcher {
            let ended = dispatcher.sigterm(END).await;
            assert!(ended.success(), "the dispatcher ends with {ended}");
            assert!(!dispatcher.log().contains("panicked"), "the dispatcher has panicked");
        }
        for data_dir in [self.world.product.data_dir(), self.folder.path().join("data")] {
            for sink in ["hook", "redis"] {
                let letters = std::fs::read_to_string(data_dir.join(format!("sinks/{sink}.dead.jsonl")));
                assert_eq!(letters.unwrap_or_default(), "", "{sink} has given events up");
            }
        }
    }
}

/// Batches and retries of every sink here. After a kill it goes on at once.
fn pace() -> String {
    format!("batch: {{events: {BATCH}, age: 20ms}}, retry: {{first: 20ms, longest: 200ms}}, timeout: 2s")
}

fn hook(receiver: &Receiver) -> String {
    format!("  hook: {{type: webhook, url: 'http://{}/hook', secret: {SECRET}, {}}}\n", receiver.addr(), pace())
}

/// A server with these sinks beside the file, and its settings.
async fn server(sinks: &str, place: &str, folder: &Path) -> (World, PathBuf) {
    let settings = folder.join("server.yaml");
    let world = World::with(|options| {
        std::fs::write(&settings, format!("{}sinks:\n{sinks}", options.yaml())).unwrap();
        options.set("CONFIG", settings.display()).set("DISPATCHER", place)
    })
    .await;
    (world, settings)
}

fn dispatcher(flags: &[&str], mut variables: Vec<(&'static str, String)>, folder: &Path) -> Process {
    variables.push(("LOG_FORMAT", "json".to_owned()));
    let arguments = [&["dispatcher"][..], flags].concat();
    Process::start("dispatcher", binary(), &arguments, variables, folder).unwrap()
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

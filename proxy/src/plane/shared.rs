//! The connections of HTTP/2 to one API's provider, each of which carries many exchanges.
//!
//! Whoever wants to ask takes a [`Place`] on a connection that has room, the oldest first, so that those that are not
//! needed any more fall idle and are closed. Where none has room a new one is made, and those who come meanwhile wait
//! for it: one connection being made is enough for as many of them as the provider's connections carry. A hundred first
//! requests end up on one connection; if it then says that it takes four streams, the others make as many more as they
//! need. What one attempt failed of, all who waited for it failed of.
//!
//! A provider that has chosen HTTP/1.1 is known to speak that until it chooses otherwise, and nobody waits for anybody:
//! there, each exchange needs a connection of its own, and Pingora's pool has them.
//!
//! No new exchange goes to a connection that was told to go (GOAWAY), has died, or has carried `MOST_CARRIED`. What
//! runs on it runs on.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio::time::{Instant, sleep};

use super::clocks::after;
use super::drain::Drain;
use super::race::Lost;
use super::upstream::POOL_IDLE;
use crate::http2::{Event, Line, STREAMS_OF_A_LINE};

/// Exchanges of one connection over its life. What `h2` counts over that life (frames without content, answers that break
/// the protocol) ends a connection with all that run on it, and must not add up for ever; and a provider that has moved
/// is found where it is now.
const MOST_CARRIED: usize = 1000;
/// How often a connection is looked at that may have been idle for too long.
const CHECK: Duration = Duration::from_secs(5);

/// The connections to one provider.
#[derive(Default)]
pub struct Lines {
    state: Mutex<State>,
    /// Something has changed for those who wait.
    changed: Notify,
}

#[derive(Default)]
struct State {
    /// Those that take new exchanges, the oldest first.
    shared: Vec<Shared>,
    speaks_http1: bool,
    /// Connections being made.
    making: usize,
    /// Who waits for one of them.
    waiting: usize,
    /// How many streams a connection carries, as the last one said. 0: nobody has said yet.
    carries: usize,
    /// Attempts that have failed.
    failures: u64,
    last_failure: Option<Lost>,
    next_id: u64,
}

/// A connection, for those who want a place on it.
struct Shared {
    id: u64,
    sender: SendRequest<Bytes>,
    /// Exchanges on it.
    running: usize,
    /// Exchanges that it has had.
    carried: usize,
    /// How many it takes at once; `None` until the provider has said so, and then it takes the first.
    takes: Option<usize>,
    /// When the last one ended.
    idle_since: Instant,
}

/// What there is for somebody who wants to ask.
pub enum Entry<'l> {
    /// Room on a connection that is there.
    Place(Place, SendRequest<Bytes>),
    /// The provider speaks HTTP/1.1.
    Alone,
    /// A new connection is wanted.
    Make(Making),
    /// One that is being made will have room.
    Wait(Waiting<'l>),
}

/// One exchange's place on a connection, until it is dropped.
pub struct Place {
    lines: Arc<Lines>,
    line: u64,
}

/// The duty to make a connection. Dropped without a word, it is somebody else's turn.
pub struct Making(Arc<Lines>);

/// Waits for a connection that somebody else makes.
pub struct Waiting<'l> {
    lines: &'l Lines,
    changed: Notified<'l>,
    failures: u64,
    _counted: Counted<'l>,
}

struct Counted<'l>(&'l Lines);

impl Lines {
    /// A place on a connection that is there. `refused`: one that has just refused this exchange.
    pub fn place(self: &Arc<Self>, refused: Option<u64>) -> Option<(Place, SendRequest<Bytes>)> {
        let (line, sender) = self.state.lock().take_place(refused)?;
        Some((Place { lines: Arc::clone(self), line }, sender))
    }

    /// The same, and what to do where there is none.
    pub fn enter(self: &Arc<Self>, refused: Option<u64>) -> Entry<'_> {
        let mut state = self.state.lock();
        if let Some((line, sender)) = state.take_place(refused) {
            return Entry::Place(Place { lines: Arc::clone(self), line }, sender);
        }
        if state.speaks_http1 {
            return Entry::Alone;
        }
        if state.is_room_coming() {
            state.waiting = state.waiting.saturating_add(1);
            return Entry::Wait(Waiting {
                lines: self,
                // Made under the lock: nothing that happens from here on is missed.
                changed: self.changed.notified(),
                failures: state.failures,
                _counted: Counted(self),
            });
        }
        state.making = state.making.saturating_add(1);
        Entry::Make(Making(Arc::clone(self)))
    }

    /// The duty to make a connection, whoever else does.
    pub fn make(self: &Arc<Self>) -> Making {
        let mut state = self.state.lock();
        state.making = state.making.saturating_add(1);
        Making(Arc::clone(self))
    }

    /// A provider says how many streams a connection takes.
    fn settle(&self, line: u64, takes: usize) {
        let mut state = self.state.lock();
        if let Some(shared) = state.shared.iter_mut().find(|shared| shared.id == line) {
            shared.takes = Some(takes);
            state.carries = takes.clamp(1, STREAMS_OF_A_LINE);
        }
        // Also where it is gone already: who waits for it has to look elsewhere.
        self.changed.notify_waiters();
    }

    /// A connection takes nothing new any more.
    fn retire(&self, line: u64) {
        let mut state = self.state.lock();
        state.shared.retain(|shared| shared.id != line);
        self.changed.notify_waiters();
    }

    fn retire_if_idle(&self, line: u64) {
        let is_idle = |shared: &Shared| shared.running == 0 && shared.idle_since.elapsed() >= POOL_IDLE;
        self.state.lock().shared.retain(|shared| shared.id != line || !is_idle(shared));
    }
}

impl State {
    fn take_place(&mut self, refused: Option<u64>) -> Option<(u64, SendRequest<Bytes>)> {
        self.shared.retain_mut(Shared::is_open);
        let has_room = |shared: &&mut Shared| shared.has_room() && Some(shared.id) != refused;
        let shared = self.shared.iter_mut().find(has_room)?;
        shared.running = shared.running.saturating_add(1);
        shared.carried = shared.carried.saturating_add(1);
        let (line, sender) = (shared.id, shared.sender.clone());
        self.shared.retain(|shared| shared.carried < MOST_CARRIED);
        Some((line, sender))
    }

    /// Whether connections are on their way that will carry one more than those who wait for them. One that stands, and
    /// of which nobody knows yet what it takes, is on its way, too.
    fn is_room_coming(&self) -> bool {
        let unsettled = || self.shared.iter().filter(|shared| shared.takes.is_none());
        let coming = self.making.saturating_add(unsettled().count());
        let carries = if self.carries == 0 { STREAMS_OF_A_LINE } else { self.carries };
        let running: usize = unsettled().map(|shared| shared.running).sum();
        // Whoever makes one will be on it.
        let wanted = self.waiting.saturating_add(self.making).saturating_add(running);
        wanted < coming.saturating_mul(carries)
    }
}

impl Shared {
    /// Whether new streams may be opened: no GOAWAY has come, and the connection lives.
    fn is_open(&mut self) -> bool {
        // Never has to wait: that would be for streams of this very handle, and it opens none.
        matches!(self.sender.poll_ready(&mut Context::from_waker(Waker::noop())), Poll::Ready(Ok(())))
    }

    fn has_room(&self) -> bool {
        self.running < self.takes.unwrap_or(1).min(STREAMS_OF_A_LINE)
    }
}

impl Making {
    /// It speaks HTTP/2: the first place on it, and whoever waits gets the others.
    pub fn speaks_http2(self, sender: SendRequest<Bytes>, line: Line, drain: Drain) -> (Place, SendRequest<Bytes>) {
        let id = {
            let mut state = self.0.state.lock();
            state.speaks_http1 = false;
            state.next_id = state.next_id.saturating_add(1);
            let id = state.next_id;
            state.shared.push(Shared {
                id,
                sender: sender.clone(),
                running: 1,
                carried: 1,
                takes: None,
                idle_since: Instant::now(),
            });
            id
        };
        tokio::spawn(tend(Arc::clone(&self.0), id, line, drain));
        (Place { lines: Arc::clone(&self.0), line: id }, sender)
    }

    /// It speaks HTTP/1.1, and so will the next.
    pub fn speaks_http1(self) {
        self.0.state.lock().speaks_http1 = true;
    }

    /// There is none. Who came too late to it has time left, perhaps; any other failure will be everybody's.
    pub fn failed(self, lost: &Lost) {
        if let Lost::Failed(_) = lost {
            let mut state = self.0.state.lock();
            state.failures = state.failures.saturating_add(1);
            state.last_failure = Some(lost.clone());
        }
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.making = state.making.saturating_sub(1);
        self.0.changed.notify_waiters();
    }
}

impl Waiting<'_> {
    /// Waits until it is worth to look for a place again.
    ///
    /// # Errors
    /// What the connections that were being made failed of, where no other is.
    pub async fn over(self) -> Result<(), Lost> {
        self.changed.await;
        let state = self.lines.state.lock();
        match &state.last_failure {
            Some(lost) if state.failures != self.failures && state.making == 0 => Err(lost.clone()),
            _ => Ok(()),
        }
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.waiting = state.waiting.saturating_sub(1);
    }
}

impl Place {
    /// The connection that it is on.
    pub fn line(&self) -> u64 {
        self.line
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.lines.state.lock();
        if let Some(shared) = state.shared.iter_mut().find(|shared| shared.id == self.line) {
            shared.running = shared.running.saturating_sub(1);
            shared.idle_since = Instant::now();
            self.lines.changed.notify_one();
        }
    }
}

/// Drives a connection to its end.
async fn tend(lines: Arc<Lines>, id: u64, mut line: Line, drain: Drain) {
    let clock = sleep(CHECK);
    tokio::pin!(clock);
    let mut is_leaving = false;
    loop {
        tokio::select! {
            biased;
            event = line.next() => match event {
                Event::Takes(streams) => lines.settle(id, streams),
                Event::Over(None) => break,
                Event::Over(Some(error)) => {
                    tracing::debug!(%error, "a provider's HTTP/2 connection ended");
                    break;
                }
                Event::Silent => {
                    tracing::warn!("a provider's HTTP/2 connection is silent, and answers no PING: it is given up");
                    break;
                }
            },
            // It says goodbye when nobody has a place on it any more.
            () = drain.stopping(), if !is_leaving => {
                is_leaving = true;
                lines.retire(id);
            }
            () = &mut clock => {
                lines.retire_if_idle(id);
                clock.as_mut().reset(after(Instant::now(), CHECK));
            }
        }
    }
    lines.retire(id);
}

#[cfg(test)]
mod tests {
    use h2::server::{Builder, SendResponse};
    use http::{Request, Response};
    use tokio::sync::mpsc;
    use tokio::task::JoinHandle;
    use tokio::time::timeout;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(5);

    /// A provider's end of a connection.
    struct Served {
        task: JoinHandle<()>,
        /// Tells it to send GOAWAY.
        leave: mpsc::UnboundedSender<()>,
        asked: mpsc::UnboundedReceiver<SendResponse<Bytes>>,
    }

    /// Makes the connection that is wanted, to a provider that takes so many streams, and the first place on it.
    async fn make(making: Making, takes: u32, drain: &Drain) -> (Place, SendRequest<Bytes>, Served) {
        let (ours, theirs) = tokio::io::duplex(1 << 20);
        let (leave, mut leaving) = mpsc::unbounded_channel();
        let (tell, asked) = mpsc::unbounded_channel();
        let task = tokio::spawn(async move {
            let mut builder = Builder::new();
            builder.max_concurrent_streams(takes);
            let mut connection = builder.handshake::<_, Bytes>(theirs).await.unwrap();
            loop {
                tokio::select! {
                    asked = connection.accept() => match asked {
                        Some(Ok((_, respond))) => drop(tell.send(respond)),
                        _ => return,
                    },
                    Some(()) = leaving.recv() => connection.graceful_shutdown(),
                }
            }
        });
        let (sender, line) = Line::open(Box::new(ours)).await.unwrap();
        let (place, sender) = making.speaks_http2(sender, line, drain.clone());
        (place, sender, Served { task, leave, asked })
    }

    fn wanted(lines: &Arc<Lines>) -> Making {
        match lines.enter(None) {
            Entry::Make(making) => making,
            _ => panic!("no connection is wanted"),
        }
    }

    /// A place, as soon as there is one.
    async fn place(lines: &Arc<Lines>) -> (Place, SendRequest<Bytes>) {
        loop {
            match lines.enter(None) {
                Entry::Place(place, sender) => return (place, sender),
                Entry::Wait(waiting) => timeout(PATIENCE, waiting.over()).await.unwrap().unwrap(),
                Entry::Make(_) | Entry::Alone => panic!("there is no place, and none is coming"),
            }
        }
    }

    /// Opens a stream without a body.
    fn ask(sender: &mut SendRequest<Bytes>) -> h2::client::ResponseFuture {
        let request = Request::get("https://provider.test/").body(()).unwrap();
        sender.send_request(request, true).unwrap().0
    }

    async fn eventually(is_so: impl Fn() -> bool) {
        let waiting = async {
            while !is_so() {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, waiting).await.unwrap();
    }

    #[tokio::test]
    async fn a_hundred_at_once_share_one_connection_and_one_more_needs_another() {
        let (lines, drain) = (Arc::new(Lines::default()), Drain::default());
        let making = wanted(&lines);
        let others: Vec<_> = (1..STREAMS_OF_A_LINE)
            .map(|_| {
                let lines = Arc::clone(&lines);
                tokio::spawn(async move { place(&lines).await })
            })
            .collect();
        eventually(|| lines.state.lock().waiting == STREAMS_OF_A_LINE - 1).await;
        let another = wanted(&lines);
        let (first, _sender, _served) = make(making, 1000, &drain).await;
        let mut places = vec![first];
        for other in others {
            places.push(timeout(PATIENCE, other).await.unwrap().unwrap().0);
        }
        assert!(places.iter().all(|place| place.line() == places[0].line()));
        assert!(matches!(lines.enter(None), Entry::Wait(_)), "the other one is on its way");
        drop(another);
        drop(wanted(&lines));
        let left = places.pop().unwrap().line();
        let (again, _) = place(&lines).await;
        assert_eq!(again.line(), left);
    }

    #[tokio::test]
    async fn a_provider_that_takes_few_streams_gets_as_many_connections_as_it_wants() {
        let (lines, drain) = (Arc::new(Lines::default()), Drain::default());
        let (first, _sender, _served) = make(wanted(&lines), 2, &drain).await;
        let (second, _) = place(&lines).await;
        assert_eq!(first.line(), second.line());
        // A third, and one who waits with it; a fifth makes one more.
        let making = wanted(&lines);
        let waiting = lines.enter(None);
        assert!(matches!(waiting, Entry::Wait(_)));
        let (third, _sender, _other) = make(making, 2, &drain).await;
        assert_ne!(third.line(), first.line());
        assert!(matches!(lines.enter(None), Entry::Make(_)));
        let Entry::Wait(waiting) = waiting else { unreachable!() };
        timeout(PATIENCE, waiting.over()).await.unwrap().unwrap();
        // One that has refused an exchange is not asked again for it.
        let (fourth, _) = place(&lines).await;
        drop(second);
        assert!(matches!(lines.enter(Some(first.line())), Entry::Make(_)));
        drop(fourth);
        match lines.enter(Some(first.line())) {
            Entry::Place(place, _) => assert_eq!(place.line(), third.line()),
            _ => panic!("the other one has room"),
        }
    }

    #[tokio::test]
    async fn a_connection_that_was_told_to_go_or_is_dead_takes_nobody_more_and_what_runs_runs_on() {
        let (lines, drain) = (Arc::new(Lines::default()), Drain::default());
        let (_first, mut sender, mut served) = make(wanted(&lines), 100, &drain).await;
        let running = ask(&mut sender);
        let mut respond = timeout(PATIENCE, served.asked.recv()).await.unwrap().unwrap();
        served.leave.send(()).unwrap();
        eventually(|| matches!(lines.enter(None), Entry::Make(_))).await;
        respond.send_response(Response::new(()), true).unwrap();
        assert_eq!(timeout(PATIENCE, running).await.unwrap().unwrap().status(), 200);

        let (_second, mut sender, mut served) = make(wanted(&lines), 100, &drain).await;
        let running = ask(&mut sender);
        let _respond = timeout(PATIENCE, served.asked.recv()).await.unwrap().unwrap();
        served.task.abort();
        assert!(timeout(PATIENCE, running).await.unwrap().is_err());
        eventually(|| matches!(lines.enter(None), Entry::Make(_))).await;
    }

    #[tokio::test]
    async fn those_who_wait_share_a_failure_and_take_over_from_who_left() {
        let lines = Arc::new(Lines::default());
        let making = wanted(&lines);
        let (Entry::Wait(one), Entry::Wait(other)) = (lines.enter(None), lines.enter(None)) else {
            panic!("one connection is enough")
        };
        making.failed(&Lost::Failed("refused".to_owned()));
        for waiting in [one, other] {
            let failed = timeout(PATIENCE, waiting.over()).await.unwrap();
            assert!(matches!(failed, Err(Lost::Failed(why)) if why == "refused"));
        }
        let making = wanted(&lines);
        let Entry::Wait(waiting) = lines.enter(None) else { panic!("one connection is enough") };
        drop(making);
        timeout(PATIENCE, waiting.over()).await.unwrap().unwrap();
        let making = wanted(&lines);
        let Entry::Wait(waiting) = lines.enter(None) else { panic!("one connection is enough") };
        making.failed(&Lost::TooLate);
        timeout(PATIENCE, waiting.over()).await.unwrap().unwrap();

        let making = wanted(&lines);
        let Entry::Wait(waiting) = lines.enter(None) else { panic!("one connection is enough") };
        making.speaks_http1();
        timeout(PATIENCE, waiting.over()).await.unwrap().unwrap();
        assert!(matches!(lines.enter(None), Entry::Alone) && matches!(lines.enter(None), Entry::Alone));
        let (_place, _sender, _served) = make(lines.make(), 100, &Drain::default()).await;
        assert!(!matches!(lines.enter(None), Entry::Alone), "it has chosen otherwise");
        assert_eq!(lines.state.lock().waiting, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_closes_that_is_idle_for_long_or_has_carried_enough_or_when_the_process_stops() {
        let (lines, drain) = (Arc::new(Lines::default()), Drain::default());
        let (first, _, served) = make(wanted(&lines), 100, &drain).await;
        tokio::time::sleep(2 * POOL_IDLE).await;
        assert!(matches!(lines.enter(None), Entry::Place(..)), "it was not idle");
        drop(first);
        tokio::time::sleep(POOL_IDLE - CHECK).await;
        assert!(!served.task.is_finished());
        let began = Instant::now();
        timeout(4 * CHECK, served.task).await.expect("it closes").unwrap();
        assert!(began.elapsed() <= 3 * CHECK, "{:?}", began.elapsed());

        let (first, sender, served) = make(wanted(&lines), 100, &drain).await;
        for _ in 1..MOST_CARRIED {
            drop(place(&lines).await);
        }
        assert!(matches!(lines.enter(None), Entry::Make(_)), "it takes one more");
        tokio::time::sleep(CHECK).await;
        assert!(!served.task.is_finished());
        drop((first, sender));
        timeout(CHECK, served.task).await.expect("it closes").unwrap();

        let (running, mut sender, mut served) = make(wanted(&lines), 100, &drain).await;
        let answer = ask(&mut sender);
        let mut respond = timeout(PATIENCE, served.asked.recv()).await.unwrap().unwrap();
        drain.stop();
        eventually(|| matches!(lines.enter(None), Entry::Make(_))).await;
        assert!(!served.task.is_finished());
        respond.send_response(Response::new(()), true).unwrap();
        assert_eq!(timeout(PATIENCE, answer).await.unwrap().unwrap().status(), 200);
        drop((running, sender, respond));
        timeout(CHECK, served.task).await.expect("it closes").unwrap();
    }
}

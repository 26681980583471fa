//! Connections of HTTP/1.1 to one provider that wait for their next exchange.
//!
//! Not Pingora's pool: that one spawns a task for each connection each time it waits, and a connection asked for while
//! its task is about to let go of it is lost. Here one task for a provider waits for all of them, woken when one has
//! something to read (its end, or bytes nobody asked for), and what is taken is looked at once more.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use parking_lot::Mutex;
use pingora_core::protocols::Stream;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::Notify;
use tokio::task::unconstrained;
use tokio::time::{Instant, sleep_until};

use super::clocks::after;

/// The most that wait for one provider; the one that has waited longest makes room.
const MOST: usize = 1024;

/// The waiting connections to one provider.
pub struct Idle {
    state: Mutex<State>,
    /// How long one may wait.
    patience: Duration,
    bell: Arc<Bell>,
    waker: Waker,
    is_watched: AtomicBool,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Waiting>,
    /// The watching task will look again when the one that waits longest has waited too long.
    is_timed: bool,
}

struct Waiting {
    stream: Stream,
    to: SocketAddr,
    since: Instant,
}

/// Rung when a waiting connection has something to read.
#[derive(Default)]
struct Bell(Notify);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.0.notify_one();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.notify_one();
    }
}

impl Idle {
    /// `patience` is how long a connection may wait.
    pub fn new(patience: Duration) -> Self {
        let bell = Arc::new(Bell::default());
        let waker = Waker::from(Arc::clone(&bell));
        Self { state: Mutex::default(), patience, bell, waker, is_watched: AtomicBool::new(false) }
    }

    /// The connection that has waited least, to one of these addresses.
    pub fn take(&self, addresses: impl Iterator<Item = SocketAddr> + Clone) -> Option<(Stream, SocketAddr)> {
        loop {
            let mut found = {
                let waiting = &mut self.state.lock().waiting;
                let at = waiting.iter().rposition(|one| addresses.clone().any(|address| address == one.to))?;
                waiting.remove(at)?
            };
            if found.since.elapsed() < self.patience && is_quiet(&mut found.stream, Waker::noop()) {
                return Some((found.stream, found.to));
            }
        }
    }

    /// Has a connection wait on which everything is said.
    pub fn put(self: &Arc<Self>, mut stream: Stream, to: SocketAddr) {
        let mut state = self.state.lock();
        // Under the lock: what rings from here on is found by whoever looks.
        if !is_quiet(&mut stream, &self.waker) {
            return;
        }
        let displaced = if state.waiting.len() >= MOST { state.waiting.pop_front() } else { None };
        state.waiting.push_back(Waiting { stream, to, since: Instant::now() });
        let is_timed = state.is_timed;
        drop(state);
        drop(displaced);
        if !self.is_watched.swap(true, Ordering::Relaxed) {
            tokio::spawn(watch(Arc::downgrade(self), Arc::clone(&self.bell)));
        } else if !is_timed {
            self.bell.0.notify_one();
        }
    }

    /// Closes those that have ended, said something, or waited too long. When the next will have waited too long.
    fn sweep(&self) -> Option<Instant> {
        let mut over = Vec::new();
        let mut state = self.state.lock();
        let mut kept = VecDeque::with_capacity(state.waiting.len());
        for mut one in state.waiting.drain(..) {
            let stays = one.since.elapsed() < self.patience && is_quiet(&mut one.stream, &self.waker);
            if stays { kept.push_back(one) } else { over.push(one) }
        }
        let due = kept.front().map(|oldest| after(oldest.since, self.patience));
        state.waiting = kept;
        state.is_timed = due.is_some();
        drop(state);
        // Closing takes its time: nobody has to wait for it.
        drop(over);
        due
    }
}

/// Runs as long as the provider is there.
async fn watch(idle: std::sync::Weak<Idle>, bell: Arc<Bell>) {
    loop {
        let Some(due) = idle.upgrade().map(|idle| idle.sweep()) else { return };
        tokio::select! {
            () = bell.0.notified() => {}
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
        }
    }
}

/// Whether there is nothing to read: not even the end. `waker` is woken when that changes.
fn is_quiet(stream: &mut Stream, waker: &Waker) -> bool {
    let mut octet = [0];
    // However much the task has done already: an answer that nobody looked for would be none.
    let looking =
        unconstrained(poll_fn(|context| Pin::new(&mut *stream).poll_read(context, &mut ReadBuf::new(&mut octet))));
    pin!(looking).poll(&mut Context::from_waker(waker)).is_pending()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(55);

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    fn put(idle: &Arc<Idle>, port: u16) -> DuplexStream {
        let (ours, theirs) = duplex(64);
        idle.put(Box::new(ours), address(port));
        theirs
    }

    fn take(idle: &Idle, ports: &[u16]) -> Option<u16> {
        idle.take(ports.iter().copied().map(address)).map(|(_, to)| to.port())
    }

    /// Lets the watching task do what it has to.
    async fn settle() {
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn the_last_to_come_is_the_first_to_go_and_only_where_it_leads_there() {
        let idle = Arc::new(Idle::new(PATIENCE));
        let _others: Vec<DuplexStream> = [1, 2, 1, 3].map(|port| put(&idle, port)).into();
        assert_eq!(take(&idle, &[]), None);
        assert_eq!(take(&idle, &[4]), None);
        assert_eq!(take(&idle, &[1, 2]), Some(1));
        assert_eq!(take(&idle, &[1, 2]), Some(2));
        assert_eq!(take(&idle, &[1, 2, 3]), Some(3));
        assert_eq!((take(&idle, &[1]), take(&idle, &[1])), (Some(1), None));
    }

    #[tokio::test]
    async fn what_has_ended_or_said_something_is_closed_at_once_and_never_taken() {
        let idle = Arc::new(Idle::new(PATIENCE));
        let (ended, mut talks, _quiet) = (put(&idle, 1), put(&idle, 1), put(&idle, 1));
        settle().await;
        drop(ended);
        talks.write_all(b"HTTP/1.1 408").await.unwrap();
        settle().await;
        assert_eq!(idle.state.lock().waiting.len(), 1, "nobody waits for what is over");
        assert_eq!(talks.write_all(b"x").await.unwrap_err().kind(), std::io::ErrorKind::BrokenPipe);
        assert_eq!((take(&idle, &[1]), take(&idle, &[1])), (Some(1), None));

        // Also where nobody has had the time to look.
        let gone = put(&idle, 1);
        drop(gone);
        assert_eq!(take(&idle, &[1]), None);
        let (ours, theirs) = duplex(64);
        drop(theirs);
        idle.put(Box::new(ours), address(1));
        assert!(idle.state.lock().waiting.is_empty(), "what is over already does not begin to wait");
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_waits_longer_than_it_may() {
        let idle = Arc::new(Idle::new(PATIENCE));
        for _ in 0..2 {
            let _first = put(&idle, 1);
            tokio::time::sleep(Duration::from_secs(30)).await;
            let _second = put(&idle, 2);
            tokio::time::sleep(Duration::from_secs(26)).await;
            assert_eq!(idle.state.lock().waiting.iter().map(|one| one.to.port()).collect::<Vec<_>>(), [2]);
            tokio::time::sleep(Duration::from_secs(30)).await;
            assert!(idle.state.lock().waiting.is_empty());
        }
    }

    #[tokio::test]
    async fn the_oldest_makes_room() {
        let idle = Arc::new(Idle::new(PATIENCE));
        let _others: Vec<DuplexStream> = (0..=MOST).map(|index| put(&idle, u16::try_from(index).unwrap())).collect();
        assert_eq!(idle.state.lock().waiting.len(), MOST);
        assert_eq!((take(&idle, &[0]), take(&idle, &[1])), (None, Some(1)));
    }
}

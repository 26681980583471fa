//! One consumer of a group: what it has read and not acknowledged, and the connection that it does so over.
//!
//! Redis remembers what it has given to whom. So a connection that breaks costs nothing: the next one first says what
//! is settled, then asks for everything that this consumer was given before and does not hold, and only then for
//! more. The same happens after a restart. What a consumer that died was given is taken over once it has lain idle;
//! what is held here is kept from others by saying so from time to time.
//!
//! A stream or group that is gone is made anew, and read from its beginning: events may come twice then, with equal
//! ids, and none is passed over.
//!
//! Readers trim, because they know what every group has done with: entries before the oldest one that any group still
//! needs. A group that has stopped holds the stream back until somebody deletes it; when Redis is full because of
//! that, it refuses events, which then wait in the journals that they come from.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::{Cmd, Value};
use rustls::ClientConfig;

use super::stream::{
    Consumer, Entry, EntryId, GroupState, read_claimed, read_entries, read_first_pending, read_groups,
};
use crate::dispatcher::Limits;
use crate::sinks::redis::{Link, RedisFault, RedisUrl, within};

/// The longest wait for an answer, and for a connection.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Between two looks at what all groups have done with.
const TRIM_EVERY: Duration = Duration::from_secs(5);
/// What an event is taken to need before one was seen.
const USUAL_BYTES: usize = 4 << 10;

pub(super) struct Inbox {
    url: RedisUrl,
    tls: Arc<ClientConfig>,
    consumer: Consumer,
    limits: Limits,
    idle: Duration,
    /// A third of it.
    keep_every: Duration,
    link: Option<Link>,
    has_group: bool,
    /// Where reading again what was given to us earlier goes on; `None` once that is done.
    own_after: Option<EntryId>,
    /// Read, and not handed on.
    waiting: VecDeque<Entry>,
    /// Read, and not known to be acknowledged.
    known: HashSet<EntryId>,
    /// Settled, and not known to be acknowledged.
    settled: Vec<EntryId>,
    claim_from: EntryId,
    next_claim: Instant,
    next_keep: Instant,
    next_trim: Instant,
    /// Of the largest events seen lately.
    usual_bytes: usize,
    /// Entries that the group has yet to do with, when it was last looked at.
    lag: u64,
}

impl Inbox {
    pub fn new(url: RedisUrl, tls: Arc<ClientConfig>, consumer: Consumer, limits: Limits, idle: Duration) -> Self {
        let now = Instant::now();
        Self {
            url,
            tls,
            consumer,
            limits,
            idle,
            keep_every: idle.checked_div(3).unwrap_or(idle),
            link: None,
            has_group: false,
            own_after: None,
            waiting: VecDeque::new(),
            known: HashSet::new(),
            settled: Vec::new(),
            claim_from: EntryId::FIRST,
            next_claim: now,
            next_keep: now,
            next_trim: now,
            usual_bytes: USUAL_BYTES,
            lag: 0,
        }
    }

    /// The next entry that was read.
    pub fn pop(&mut self) -> Option<Entry> {
        self.waiting.pop_front()
    }

    /// Whether something was read and not handed on.
    pub fn holds_more(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Whether something is settled and not acknowledged.
    pub fn owes(&self) -> bool {
        !self.settled.is_empty()
    }

    /// Entries that Redis gives again after a restart.
    pub fn unacknowledged(&self) -> usize {
        self.known.len()
    }

    /// Entries that the group has yet to do with, when it was last looked at.
    pub fn lag(&self) -> u64 {
        self.lag
    }

    /// Notes an entry to be acknowledged.
    pub fn settle(&mut self, id: EntryId) {
        self.settled.push(id);
    }

    /// Says to Redis what is settled.
    ///
    /// # Errors
    /// It is said again later.
    pub async fn acknowledge(&mut self) -> Result<(), RedisFault> {
        let acknowledged = self.try_acknowledge().await;
        self.judge(acknowledged)
    }

    /// Does what is due, and with `room` for more, reads: on return there may be entries, or it is time to look again.
    ///
    /// # Errors
    /// Nothing is lost, and the next call begins with a new connection.
    pub async fn tend(&mut self, room: bool, until: Instant) -> Result<(), RedisFault> {
        let tended = self.try_tend(room, until).await;
        self.judge(tended)
    }

    /// Keeps others from taking over what is held here, for as long as this is awaited: it never ends by itself.
    pub async fn keep(&self) {
        loop {
            tokio::time::sleep(self.keep_every).await;
            if let Some(link) = self.link.as_ref().filter(|_| !self.known.is_empty()) {
                // What fails here fails again where it is noticed.
                let _ = within(TIMEOUT, link.ask(&self.consumer.keep(self.known.iter().copied()))).await;
            }
        }
    }

    fn judge(&mut self, outcome: Result<(), RedisFault>) -> Result<(), RedisFault> {
        let Err(fault) = outcome else { return Ok(()) };
        // `UNBLOCKED` comes to whoever waits at a stream that is deleted.
        if fault.has_code("NOGROUP") || fault.has_code("UNBLOCKED") {
            let Consumer { stream, group, .. } = &self.consumer;
            tracing::warn!(
                stream,
                group,
                "The stream or the group is gone from Redis; what comes is read from the beginning"
            );
            // What is held here is still delivered. If it comes again before that, it is recognised.
            self.has_group = false;
            self.own_after = None;
            return Ok(());
        }
        self.link = None;
        // The next one may be to another server.
        self.has_group = false;
        Err(fault)
    }

    async fn try_tend(&mut self, room: bool, until: Instant) -> Result<(), RedisFault> {
        self.try_acknowledge().await?;
        if !self.has_group {
            self.create_group().await?;
        }
        let now = Instant::now();
        if self.next_keep <= now && !self.known.is_empty() {
            self.next_keep = now.checked_add(self.keep_every).unwrap_or(now);
            self.ask(&self.consumer.keep(self.known.iter().copied())).await?;
        }
        if self.next_trim <= now {
            self.next_trim = now.checked_add(TRIM_EVERY).unwrap_or(now);
            self.trim().await?;
        }
        if !room || !self.waiting.is_empty() {
            tokio::time::sleep_until(until.into()).await;
            return Ok(());
        }
        match self.own_after {
            Some(after) => self.read_own(after).await,
            None if self.next_claim <= now => self.claim(now).await,
            None => self.read_new(until).await,
        }
    }

    async fn try_acknowledge(&mut self) -> Result<(), RedisFault> {
        if self.settled.is_empty() {
            return Ok(());
        }
        self.ask(&self.consumer.acknowledge(&self.settled)).await?;
        for id in self.settled.drain(..) {
            self.known.remove(&id);
        }
        Ok(())
    }

    async fn create_group(&mut self) -> Result<(), RedisFault> {
        match self.ask(&self.consumer.create_group()).await {
            Ok(_) => {}
            Err(fault) if fault.has_code("BUSYGROUP") => {}
            Err(fault) => return Err(fault),
        }
        self.has_group = true;
        Ok(())
    }

    /// Reads again what this consumer was given earlier, a page at a time.
    async fn read_own(&mut self, after: EntryId) -> Result<(), RedisFault> {
        let answer = self.ask(&self.consumer.read_own(after, self.count())).await?;
        let entries = read_entries(answer).ok_or(RedisFault::Strange { command: "XREADGROUP" })?;
        self.own_after = entries.last().map(|last| last.id);
        self.take(entries);
        Ok(())
    }

    async fn read_new(&mut self, until: Instant) -> Result<(), RedisFault> {
        let block = until.saturating_duration_since(Instant::now());
        let block_ms = u64::try_from(block.as_millis()).unwrap_or(u64::MAX).max(1);
        let command = self.consumer.read_new(self.count(), block_ms);
        let answer = self.ask_for(&command, TIMEOUT.saturating_add(block)).await?;
        self.take(read_entries(answer).ok_or(RedisFault::Strange { command: "XREADGROUP" })?);
        Ok(())
    }

    /// Takes over what has lain idle with others.
    async fn claim(&mut self, now: Instant) -> Result<(), RedisFault> {
        let idle_ms = u64::try_from(self.idle.as_millis()).unwrap_or(u64::MAX);
        let answer = self.ask(&self.consumer.claim(idle_ms, self.claim_from, self.count())).await?;
        let (next, entries) = read_claimed(answer).ok_or(RedisFault::Strange { command: "XAUTOCLAIM" })?;
        self.claim_from = next;
        if next == EntryId::FIRST {
            self.next_claim = now.checked_add(self.keep_every).unwrap_or(now);
        }
        self.take(entries);
        Ok(())
    }

    fn take(&mut self, entries: Vec<Entry>) {
        let largest = entries.iter().map(Entry::bytes).max().unwrap_or(self.usual_bytes);
        self.usual_bytes = largest.max(self.usual_bytes / 2);
        // What is held here comes again after the connection broke.
        self.waiting.extend(entries.into_iter().filter(|entry| self.known.insert(entry.id)));
    }

    /// How many entries to ask for: about a batch.
    fn count(&self) -> usize {
        let fits = self.limits.bytes.checked_div(self.usual_bytes).unwrap_or(usize::MAX);
        fits.min(self.limits.events).max(1)
    }

    /// Deletes what every group has done with.
    async fn trim(&mut self) -> Result<(), RedisFault> {
        match self.try_trim().await {
            // Somebody may not want us to, or the stream is gone, which reading finds out.
            Err(fault) if fault.is_answer() => {
                tracing::debug!(stream = self.consumer.stream, %fault, "A stream in Redis cannot be trimmed");
                Ok(())
            }
            outcome => outcome,
        }
    }

    async fn try_trim(&mut self) -> Result<(), RedisFault> {
        let answer = self.ask(&self.consumer.groups()).await?;
        let groups = read_groups(answer).ok_or(RedisFault::Strange { command: "XINFO" })?;
        let ours = groups.iter().find(|group| group.name == self.consumer.group);
        self.lag = ours.map_or(0, |group| group.unread.saturating_add(group.pending));
        let mut oldest: Option<EntryId> = None;
        for group in &groups {
            let needed = self.oldest_needed(group).await?;
            oldest = Some(oldest.map_or(needed, |oldest| oldest.min(needed)));
        }
        if let Some(oldest) = oldest.filter(|oldest| *oldest > EntryId::FIRST) {
            self.ask(&self.consumer.trim(oldest)).await?;
        }
        Ok(())
    }

    /// The oldest entry that a group still needs, or the last one that it has done with.
    async fn oldest_needed(&mut self, group: &GroupState) -> Result<EntryId, RedisFault> {
        if group.pending == 0 {
            return Ok(group.delivered);
        }
        let answer = self.ask(&self.consumer.pending(&group.name)).await?;
        let first = read_first_pending(answer).map_err(|()| RedisFault::Strange { command: "XPENDING" })?;
        Ok(first.unwrap_or(group.delivered))
    }

    async fn ask(&mut self, command: &Cmd) -> Result<Value, RedisFault> {
        self.ask_for(command, TIMEOUT).await
    }

    async fn ask_for(&mut self, command: &Cmd, limit: Duration) -> Result<Value, RedisFault> {
        let link = match &mut self.link {
            Some(link) => link,
            None => {
                let link = within(TIMEOUT, Link::open(&self.url, &self.consumer.stream, &self.tls)).await?;
                self.has_group = false;
                self.own_after = Some(EntryId::FIRST);
                self.link.insert(link)
            }
        };
        within(limit, link.ask(command)).await
    }
}

#[cfg(test)]
mod tests {
    use rustls::RootCertStore;
    use rustls::crypto::ring::default_provider;

    use super::super::stream::Content;
    use super::*;

    fn inbox(limits: Limits) -> Inbox {
        let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()));
        let builder = builder.with_safe_default_protocol_versions().unwrap();
        let tls = builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth();
        let name = || "x".to_owned();
        let consumer = Consumer { stream: name(), group: name(), name: name() };
        Inbox::new("redis://a".parse().unwrap(), Arc::new(tls), consumer, limits, Duration::from_secs(60))
    }

    fn entry(bytes: usize) -> Entry {
        let content = Content::Event { id: uuid::Uuid::nil(), seq: 1, time_us: 0, payload: vec![0; bytes] };
        Entry { id: EntryId::FIRST, content }
    }

    #[test]
    fn about_a_batch_is_asked_for_however_large_events_are() {
        let mut inbox = inbox(Limits { events: 500, bytes: 1 << 20, age: Duration::ZERO });
        assert_eq!(inbox.count(), 256);
        for (bytes, expected) in [(700, 500), (64 << 10, 16), (2 << 20, 1), (100, 1), (100, 2)] {
            inbox.take(vec![entry(bytes)]);
            assert_eq!(inbox.count(), expected, "after {bytes} bytes");
        }
    }

    #[test]
    fn an_entry_that_is_held_is_not_taken_twice() {
        let mut inbox = inbox(Limits { events: 500, bytes: 1 << 20, age: Duration::ZERO });
        inbox.take(vec![entry(1)]);
        inbox.take(vec![entry(1)]);
        let taken = inbox.pop().unwrap();
        assert_eq!((inbox.unacknowledged(), inbox.holds_more(), inbox.owes()), (1, false, false));
        inbox.settle(taken.id);
        inbox.take(vec![entry(1)]);
        assert_eq!((inbox.unacknowledged(), inbox.holds_more(), inbox.owes()), (1, false, true));
    }

    #[test]
    fn a_lost_group_is_no_failure_and_costs_nothing_that_is_held() {
        for code in ["NOGROUP", "UNBLOCKED"] {
            let mut inbox = inbox(Limits { events: 500, bytes: 1 << 20, age: Duration::ZERO });
            (inbox.has_group, inbox.own_after) = (true, Some(EntryId::FIRST));
            inbox.take(vec![entry(1)]);
            let gone = RedisFault::Refused { code: code.to_owned(), text: String::new() };
            assert!(inbox.judge(Err(gone)).is_ok(), "{code}");
            assert!(!inbox.has_group && inbox.own_after.is_none() && inbox.holds_more());
            let other = RedisFault::Refused { code: "READONLY".to_owned(), text: String::new() };
            assert!(inbox.judge(Err(other)).is_err());
        }
    }
}

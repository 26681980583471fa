//! A closed-loop load generator: each connection sends its next request when the last answer is whole. Requests are
//! bytes made beforehand and answers are read only as far as finding their end needs, so that little of the CPU
//! measured beside it is its own.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use memchr::memmem;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::body::{Body, Framing, Step};

/// A request that takes longer counts as an error.
const REQUEST_LIMIT: Duration = Duration::from_secs(120);
/// Before another try to connect, so that a dead server costs no CPU.
const CONNECT_PAUSE: Duration = Duration::from_millis(10);
const READ_BYTES: usize = 64 * 1024;
const MAX_HEADERS: usize = 128;

/// When a load run ends.
#[derive(Clone, Copy, Debug)]
pub enum Until {
    /// After that many requests over all connections, failed ones included.
    Requests(u64),
    /// When that much time has passed; exchanges under way are finished.
    Elapsed(Duration),
}

/// A run of equal requests.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Where to.
    pub addr: SocketAddr,
    /// Head and body, as they go on the wire.
    pub request: Bytes,
    /// Connections at once, each with one request at a time.
    pub connections: usize,
    /// When to end.
    pub until: Until,
    /// Whether a connection carries more than one request.
    pub keep_alive: bool,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct LoadReport {
    /// Answers read to their end, by status.
    pub statuses: BTreeMap<u16, u64>,
    /// Exchanges without a whole answer.
    pub errors: u64,
    /// Body bytes received.
    pub body_bytes: u64,
    /// From the first request to the last answer.
    pub elapsed: Duration,
    /// From the first byte of a request to the last of its answer.
    pub latencies: Latencies,
}

impl LoadReport {
    /// Answers read to their end.
    pub fn answered(&self) -> u64 {
        self.statuses.values().sum()
    }

    /// Answers per second.
    pub fn rate(&self) -> f64 {
        self.answered() as f64 / self.elapsed.as_secs_f64().max(f64::MIN_POSITIVE)
    }
}

/// Many streams at once.
#[derive(Clone, Debug)]
pub struct StreamOptions {
    /// Where to.
    pub addr: SocketAddr,
    /// Head and body, as they go on the wire.
    pub request: Bytes,
    /// Streams at once, each on its own connection.
    pub streams: usize,
    /// How often each of them is repeated on its connection.
    pub rounds: u32,
}

/// What came of them.
#[derive(Clone, Debug, Default)]
pub struct StreamReport {
    /// Streams read to their end with status 200.
    pub finished: u64,
    /// All others.
    pub errors: u64,
    /// Server-sent events received.
    pub events: u64,
    /// Body bytes received.
    pub body_bytes: u64,
    /// From the first stream's request to the last one's end.
    pub elapsed: Duration,
    /// From request to first event.
    pub first_event: Latencies,
    /// Between reads that completed at least one event each.
    pub gaps: Latencies,
}

/// Measured times, for quantiles.
#[derive(Clone, Debug, Default)]
pub struct Latencies {
    sorted: Vec<Duration>,
}

impl Latencies {
    fn of(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        Self { sorted: times }
    }

    /// How many were measured.
    pub fn count(&self) -> usize {
        self.sorted.len()
    }

    /// The time that a share `q` (0 to 1) of them does not exceed; zero if nothing was measured.
    pub fn quantile(&self, q: f64) -> Duration {
        let rank = (self.sorted.len() as f64 * q.clamp(0.0, 1.0)).ceil() as usize;
        self.sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
    }
}

/// One answer, whole.
#[derive(Clone, Debug)]
pub struct Reply {
    /// Its status.
    pub status: u16,
    /// Its head as received.
    pub head: Bytes,
    /// Its body, without chunk framing.
    pub body: Vec<u8>,
}

/// Sends one request on its own connection. An answer cut short is [`ErrorKind::UnexpectedEof`].
pub async fn fetch(addr: SocketAddr, request: &[u8]) -> io::Result<Reply> {
    let mut client = Client::connect(addr).await?;
    let mut body = Vec::new();
    let answered = client.exchange(request, |piece| body.extend_from_slice(piece)).await?;
    Ok(Reply { status: answered.status, head: answered.head, body })
}

/// Runs a load and reports it.
pub async fn load(options: &LoadOptions) -> LoadReport {
    let began = Instant::now();
    let left = Arc::new(AtomicU64::new(match options.until {
        Until::Requests(requests) => requests,
        Until::Elapsed(_) => u64::MAX,
    }));
    let deadline = match options.until {
        Until::Requests(_) => None,
        Until::Elapsed(time) => began.checked_add(time),
    };
    let mut tasks = JoinSet::new();
    for _ in 0..options.connections {
        tasks.spawn(one_loader(options.clone(), left.clone(), deadline));
    }
    let mut report = LoadReport::default();
    let mut times = Vec::new();
    while let Some(tally) = tasks.join_next().await {
        let Ok(tally) = tally else { continue };
        for (status, count) in tally.statuses {
            let total = report.statuses.entry(status).or_default();
            *total = total.saturating_add(count);
        }
        report.errors = report.errors.saturating_add(tally.errors);
        report.body_bytes = report.body_bytes.saturating_add(tally.body_bytes);
        times.extend(tally.times);
    }
    report.elapsed = began.elapsed();
    report.latencies = Latencies::of(times);
    report
}

/// Opens all streams at once, reads them to their end and reports them.
pub async fn stream(options: &StreamOptions) -> StreamReport {
    let began = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..options.streams {
        tasks.spawn(one_streamer(options.clone()));
    }
    let mut report = StreamReport::default();
    let (mut first_event, mut gaps) = (Vec::new(), Vec::new());
    while let Some(tally) = tasks.join_next().await {
        let Ok(tally) = tally else { continue };
        report.finished = report.finished.saturating_add(tally.finished);
        report.errors = report.errors.saturating_add(tally.errors);
        report.events = report.events.saturating_add(tally.events);
        report.body_bytes = report.body_bytes.saturating_add(tally.body_bytes);
        first_event.extend(tally.first_event);
        gaps.extend(tally.gaps);
    }
    report.elapsed = began.elapsed();
    report.first_event = Latencies::of(first_event);
    report.gaps = Latencies::of(gaps);
    report
}

#[derive(Default)]
struct LoadTally {
    statuses: BTreeMap<u16, u64>,
    errors: u64,
    body_bytes: u64,
    times: Vec<Duration>,
}

async fn one_loader(options: LoadOptions, left: Arc<AtomicU64>, deadline: Option<Instant>) -> LoadTally {
    let mut tally = LoadTally::default();
    let mut client = None;
    loop {
        let is_over = deadline.is_some_and(|deadline| Instant::now() >= deadline);
        let take_one = |left: u64| left.checked_sub(1);
        if is_over || left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take_one).is_err() {
            return tally;
        }
        let began = Instant::now();
        let mut body_bytes = 0_u64;
        let count = |piece: &[u8]| body_bytes = body_bytes.saturating_add(piece.len() as u64);
        match limited(once(&mut client, options.addr, &options.request, count)).await {
            Ok(answered) => {
                let total = tally.statuses.entry(answered.status).or_default();
                *total = total.saturating_add(1);
                tally.times.push(began.elapsed());
                if !options.keep_alive || !answered.keep_alive {
                    client = None;
                }
            }
            Err(_) => {
                tally.errors = tally.errors.saturating_add(1);
                if client.take().is_none() {
                    tokio::time::sleep(CONNECT_PAUSE).await;
                }
            }
        }
        tally.body_bytes = tally.body_bytes.saturating_add(body_bytes);
    }
}

#[derive(Default)]
struct StreamTally {
    finished: u64,
    errors: u64,
    events: u64,
    body_bytes: u64,
    first_event: Vec<Duration>,
    gaps: Vec<Duration>,
}

async fn one_streamer(options: StreamOptions) -> StreamTally {
    let mut tally = StreamTally::default();
    let mut client = None;
    for _ in 0..options.rounds {
        let mut last = Instant::now();
        let mut is_first = true;
        let mut ends = EventEnds::default();
        let seen = |piece: &[u8]| {
            tally.body_bytes = tally.body_bytes.saturating_add(piece.len() as u64);
            let events = ends.count(piece);
            if events == 0 {
                return;
            }
            tally.events = tally.events.saturating_add(events);
            let now = Instant::now();
            let times = if is_first { &mut tally.first_event } else { &mut tally.gaps };
            times.push(now.duration_since(last));
            is_first = false;
            last = now;
        };
        match limited(once(&mut client, options.addr, &options.request, seen)).await {
            Ok(answered) if answered.status == 200 => {
                tally.finished = tally.finished.saturating_add(1);
                if !answered.keep_alive {
                    client = None;
                }
            }
            _ => {
                tally.errors = tally.errors.saturating_add(1);
                client = None;
            }
        }
    }
    tally
}

async fn limited(exchange: impl Future<Output = io::Result<Answered>>) -> io::Result<Answered> {
    match tokio::time::timeout(REQUEST_LIMIT, exchange).await {
        Ok(answered) => answered,
        Err(_) => Err(ErrorKind::TimedOut.into()),
    }
}

/// One exchange on the kept connection, or on a new one if there is none.
async fn once(
    client: &mut Option<Client>,
    addr: SocketAddr,
    request: &[u8],
    on_piece: impl FnMut(&[u8]),
) -> io::Result<Answered> {
    let client = match client {
        Some(client) => client,
        None => client.insert(Client::connect(addr).await?),
    };
    client.exchange(request, on_piece).await
}

/// Counts empty lines, whether lines end with LF or CRLF.
#[derive(Default)]
struct EventEnds {
    at_line_start: bool,
}

impl EventEnds {
    fn count(&mut self, piece: &[u8]) -> u64 {
        let mut ends = 0_u64;
        for byte in piece {
            match byte {
                b'\n' if self.at_line_start => {
                    ends = ends.saturating_add(1);
                    self.at_line_start = false;
                }
                b'\n' => self.at_line_start = true,
                b'\r' => {}
                _ => self.at_line_start = false,
            }
        }
        ends
    }
}

struct Answered {
    status: u16,
    head: Bytes,
    keep_alive: bool,
}

struct Client {
    stream: TcpStream,
    buffer: BytesMut,
}

impl Client {
    async fn connect(addr: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(addr).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: BytesMut::with_capacity(READ_BYTES) })
    }

    /// Sends a request and reads its answer to the end, interim answers skipped.
    async fn exchange(&mut self, request: &[u8], mut on_piece: impl FnMut(&[u8])) -> io::Result<Answered> {
        self.stream.write_all(request).await?;
        let (answered, framing) = loop {
            let (answered, framing) = self.head().await?;
            if answered.status >= 200 {
                break (answered, framing);
            }
        };
        let mut body = Body::new(framing);
        loop {
            match body.step(&mut self.buffer) {
                Ok(Step::Data(length)) => {
                    on_piece(self.buffer.get(..length).unwrap_or_default());
                    self.buffer.advance(length);
                }
                Ok(Step::Done) => return Ok(answered),
                Ok(Step::More) => {
                    if self.fill().await? == 0 {
                        return match framing {
                            Framing::UntilClose => Ok(answered),
                            _ => Err(ErrorKind::UnexpectedEof.into()),
                        };
                    }
                }
                Err(_) => return Err(ErrorKind::InvalidData.into()),
            }
        }
    }

    async fn head(&mut self) -> io::Result<(Answered, Framing)> {
        loop {
            if let Some(end) = memmem::find(&self.buffer, b"\r\n\r\n") {
                let head = self.buffer.split_to(end.saturating_add(4));
                return read_head(Bytes::copy_from_slice(&head)).ok_or_else(|| ErrorKind::InvalidData.into());
            }
            if self.fill().await? == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
    }

    async fn fill(&mut self) -> io::Result<usize> {
        if self.buffer.capacity().saturating_sub(self.buffer.len()) < READ_BYTES / 16 {
            self.buffer.reserve(READ_BYTES);
        }
        self.stream.read_buf(&mut self.buffer).await
    }
}

fn read_head(head: Bytes) -> Option<(Answered, Framing)> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut fields);
    if !response.parse(&head).ok()?.is_complete() {
        return None;
    }
    let status = response.code?;
    let mut framing = Framing::UntilClose;
    let mut keep_alive = response.version? == 1;
    for field in response.headers.iter() {
        if field.name.eq_ignore_ascii_case("content-length") && framing != Framing::Chunked {
            framing = Framing::Length(std::str::from_utf8(field.value).ok()?.parse().ok()?);
        } else if field.name.eq_ignore_ascii_case("transfer-encoding") {
            framing = Framing::Chunked;
        } else if field.name.eq_ignore_ascii_case("connection") && field.value.eq_ignore_ascii_case(b"close") {
            keep_alive = false;
        }
    }
    if status < 200 || matches!(status, 204 | 304) {
        framing = Framing::Length(0);
    }
    keep_alive &= framing != Framing::UntilClose;
    Some((Answered { status, head, keep_alive }, framing))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mock::{Mock, MockOptions};

    fn request(fields: &str, body: &str) -> Bytes {
        Bytes::from(format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: mock\r\nauthorization: Bearer sk-mock-openai\r\n{fields}\
             content-length: {}\r\n\r\n{body}",
            body.len()
        ))
    }

    #[tokio::test]
    async fn a_load_counts_what_the_mock_counts() {
        let mock = Mock::start(MockOptions::default()).await.unwrap();
        for keep_alive in [true, false] {
            mock.reset();
            let report = load(&LoadOptions {
                addr: mock.addr(),
                request: request("", r#"{"model":"m","messages":[]}"#),
                connections: 4,
                until: Until::Requests(100),
                keep_alive,
            })
            .await;
            assert_eq!((report.answered(), report.errors), (100, 0));
            assert_eq!(report.statuses.get(&200), Some(&100));
            assert_eq!(report.latencies.count(), 100);
            let stats = mock.stats();
            assert_eq!((stats.requests, stats.answer_bytes), (100, report.body_bytes));
        }
    }

    #[tokio::test]
    async fn streams_are_counted_by_event() {
        let mock = Mock::start(MockOptions::default()).await.unwrap();
        let body = r#"{"model":"m","messages":[],"stream":true,"stream_options":{"include_usage":true}}"#;
        let once = fetch(mock.addr(), &request("", body)).await.unwrap();
        let options =
            StreamOptions { addr: mock.addr(), request: request("x-mock-pace-ms: 2\r\n", body), streams: 5, rounds: 2 };
        let report = stream(&options).await;
        assert_eq!((report.finished, report.errors), (10, 0));
        assert_eq!(report.events, 10 * EventEnds::default().count(&once.body));
        assert_eq!(report.first_event.count(), 10);
        assert!(report.gaps.quantile(0.5) >= Duration::from_millis(1));
    }

    #[test]
    fn quantiles_are_measured_values() {
        let times = Latencies::of((1..=100).rev().map(Duration::from_millis).collect());
        for (q, expected) in [(0.0, 1), (0.5, 50), (0.99, 99), (1.0, 100)] {
            assert_eq!(times.quantile(q), Duration::from_millis(expected));
        }
        assert_eq!(Latencies::default().quantile(0.5), Duration::ZERO);
    }
}

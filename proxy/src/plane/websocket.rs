//! A WebSocket after its handshake: both directions pass frame for frame, judged and metered on their way.
//!
//! Bytes go on as they came. What is decided beside that (which models a client names, what the provider reports, where a
//! frame ends) is decided in `llm_proxy_core::websocket`. Each direction holds one read at most, and reads the next only
//! when that is written: a slow peer slows the other one down.

use std::time::Duration;

use bytes::BytesMut;
use llm_proxy_core::answer::Refusal;
use llm_proxy_core::http1::answer_head::AnswerHead;
use llm_proxy_core::routing::Api;
use llm_proxy_core::websocket::frames::{Event, Follower, MAX_MESSAGE_BYTES, Sender, close_frame};
use llm_proxy_core::websocket::handshake::{Upgrade, is_handshake_field};
use llm_proxy_core::websocket::models;
use llm_proxy_core::websocket::realtime::Session;
use llm_proxy_plugins::event::Outcome;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, sleep_until, timeout};

use super::clocks::after;
use super::exchange::Turn;
use super::relay::write;
use super::settle::{self, Exchange, now_us};
use super::state::CutReason;
use super::stop::{Stop, cut_name};
use super::tokens::Known;
use super::upstream::Connection;
use super::{clean, forward, judge};
use crate::client::Client;
use crate::http1;

/// Room for one read.
const READ: usize = 16 * 1024;
/// How long the last frame to each side may take to leave, and what the client then gets to read it.
const LAST_FRAME: Duration = Duration::from_millis(100);

/// Close codes (RFC 6455 §7.4.1).
mod code {
    pub const GOING_AWAY: u16 = 1001;
    pub const PROTOCOL_ERROR: u16 = 1002;
    pub const POLICY: u16 = 1008;
    pub const TOO_BIG: u16 = 1009;
    pub const INTERNAL: u16 = 1011;
}

/// How a socket ends.
#[derive(Debug)]
enum End {
    /// One side said goodbye, and the connection is over.
    Closed,
    /// The client left without a word.
    ClientGone,
    /// The provider left without a word.
    ProviderGone,
    /// The provider's bytes are no frames.
    ProviderBroken,
    /// Something took the right to run away.
    Cut(CutReason),
    /// The token's time is over.
    Expired,
    /// A clock ran out.
    TimedOut(&'static str),
    /// A message of the client is against the rules: close code, and why.
    Refused(u16, &'static str),
}

impl End {
    /// Close code and reason for the client, where we are the ones who end it.
    fn told(&self) -> Option<(u16, &'static str)> {
        Some(match self {
            Self::Closed | Self::ClientGone => return None,
            Self::ProviderGone => (code::INTERNAL, "upstream_cut"),
            Self::ProviderBroken => (code::INTERNAL, "upstream_invalid"),
            Self::Cut(CutReason::Shutdown) => (code::GOING_AWAY, "shutdown"),
            Self::Cut(reason) => (code::POLICY, cut_name(*reason)),
            Self::Expired => (code::POLICY, "token_expired"),
            Self::TimedOut(clock) => (code::INTERNAL, clock),
            Self::Refused(code, why) => (*code, why),
        })
    }

    fn recorded(&self) -> (Outcome, Option<&'static str>) {
        match self {
            Self::Closed => (Outcome::Finished, None),
            Self::ClientGone => (Outcome::ClientGone, None),
            Self::ProviderGone => (Outcome::UpstreamCut, Some("upstream_cut")),
            Self::ProviderBroken => (Outcome::UpstreamCut, Some("upstream_invalid")),
            Self::Cut(reason) => (settle::outcome_of_cut(*reason), Some(cut_name(*reason))),
            Self::Expired => (Outcome::Revoked, Some("token_expired")),
            Self::TimedOut(clock) => (Outcome::Timeout, Some(clock)),
            Self::Refused(_, why) => (Outcome::Refused, Some(why)),
        }
    }
}

/// What a socket is judged by while it runs.
pub struct Rules<'a> {
    /// The handshake that was asked for.
    pub upgrade: &'a Upgrade<'a>,
    /// The token's holder.
    pub known: &'a Known,
    /// The API.
    pub api: &'a Api,
}

/// Passes a 101 on and carries the socket to its end. Settles the exchange.
///
/// # Errors
/// [`Stop`]: a malformed 101, and always in the end, since a socket's connection carries nothing else.
pub async fn carry(
    turn: Turn<'_>,
    client: &mut Client,
    exchange: &mut Exchange<'_>,
    provider: &mut Connection,
    rules: &Rules<'_>,
) -> Result<(), Stop> {
    // Only a head of HTTP/1.1 can ask for it.
    let Some(client) = client.http1() else { return Err(Refusal::UpstreamInvalid.into()) };
    let Some(answer) = provider.http.answer() else { return Err(Refusal::UpstreamInvalid.into()) };
    let protocol =
        rules.upgrade.check_answer(answer.fields().map(|(_, name, value)| (name, value))).map_err(|bad| {
            tracing::warn!(%bad, "a provider gave no usable answer head");
            Refusal::UpstreamInvalid
        })?;
    exchange.note_answer(answer);
    put_switch(client, exchange, answer, rules.upgrade, protocol);
    write(client.flush(), turn, Instant::now()).await?;
    exchange.session = Some(Session::new(exchange.dialect));

    let (early, client_io) = client.tunnel();
    let (mut client_in, mut client_out) = tokio::io::split(client_io);
    let mut up = Lane::new(Sender::Client, early);
    let Some((early, provider_io)) = provider.http.tunnel() else { return Err(Refusal::UpstreamInvalid.into()) };
    let (mut provider_in, mut provider_out) = tokio::io::split(provider_io);
    let mut down = Lane::new(Sender::Server, early);

    let end = run(
        turn,
        exchange,
        rules,
        (&mut up, &mut client_in, &mut provider_out),
        (&mut down, &mut provider_in, &mut client_out),
    )
    .await;
    let (outcome, reason) = end.recorded();
    exchange.settle(outcome, reason.map(Into::into));
    say_goodbye(&end, (&mut up, &mut provider_out), (&mut down, &mut client_out, &mut client_in)).await;
    Err(Stop::Ended)
}

fn put_switch(
    client: &mut http1::Client,
    exchange: &Exchange<'_>,
    answer: &AnswerHead,
    upgrade: &Upgrade<'_>,
    protocol: Option<&str>,
) {
    let accept = upgrade.accept();
    let passed = forward::answer_fields(answer, &exchange.id.field, &[]).filter(|(name, _)| !is_handshake_field(name));
    let ours = [(&b"sec-websocket-accept"[..], accept.as_bytes())];
    let protocol = protocol.map(|protocol| (&b"sec-websocket-protocol"[..], protocol.as_bytes()));
    client.put_switch(ours.into_iter().chain(protocol).chain(passed));
}

/// One direction.
struct Lane {
    follower: Follower,
    /// Read and not yet judged.
    read: BytesMut,
    /// Judged and not yet written.
    ready: BytesMut,
    /// Something was written and not flushed, or is still to be written.
    is_dirty: bool,
    /// Nothing more comes.
    is_over: bool,
    /// A frame of ours may stand behind what was passed on: it ended with a frame, and none of them said goodbye.
    takes_frame: bool,
}

impl Lane {
    fn new(sender: Sender, early: BytesMut) -> Self {
        Self {
            follower: Follower::new(sender, MAX_MESSAGE_BYTES),
            read: early,
            ready: BytesMut::new(),
            is_dirty: false,
            is_over: false,
            takes_frame: true,
        }
    }

    fn may_read(&self) -> bool {
        !self.is_dirty && !self.is_over
    }

    /// What was read goes on.
    fn pass(&mut self) {
        self.is_dirty = !self.read.is_empty();
        self.takes_frame = self.follower.is_at_boundary() && !self.follower.is_closing();
        std::mem::swap(&mut self.read, &mut self.ready);
    }
}

/// Reads once; `false` at the end. Cancel safe.
async fn fill(from: &mut (impl AsyncRead + Unpin), read: &mut BytesMut) -> bool {
    read.reserve(READ);
    matches!(from.read_buf(read).await, Ok(read) if read > 0)
}

/// Writes all that is ready, and flushes. Cancel safe: what has not gone stays ready.
async fn push(to: &mut (impl AsyncWrite + Unpin), ready: &mut BytesMut) -> std::io::Result<()> {
    while !ready.is_empty() {
        if to.write_buf(ready).await? == 0 {
            return Err(std::io::ErrorKind::WriteZero.into());
        }
    }
    to.flush().await
}

async fn run<R, W, R2, W2>(
    turn: Turn<'_>,
    exchange: &mut Exchange<'_>,
    rules: &Rules<'_>,
    (up, client_in, provider_out): (&mut Lane, &mut R, &mut W),
    (down, provider_in, client_out): (&mut Lane, &mut R2, &mut W2),
) -> End
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
    R2: AsyncRead + Unpin,
    W2: AsyncWrite + Unpin,
{
    let mut progress = Instant::now();
    let clock = sleep_until(turn.idle_deadline(progress));
    let left = u64::try_from(rules.known.holder.expires_at_us.saturating_sub(now_us())).unwrap_or(0);
    let expiry = sleep_until(after(Instant::now(), Duration::from_micros(left)));
    tokio::pin!(clock, expiry);
    // A client must say which model it wants before anything else, where the dialect has that in its first message.
    let mut has_named = exchange.model_requested.is_some();
    loop {
        if !up.read.is_empty() && !up.is_dirty {
            exchange.request_bytes = exchange.request_bytes.saturating_add(length(&up.read));
            if let Err(end) = judge_client(up, exchange, rules, &mut has_named) {
                return end;
            }
            up.pass();
        }
        if !down.read.is_empty() && !down.is_dirty {
            exchange.note_piece(down.read.len());
            if let Err(end) = meter_provider(down, exchange) {
                return end;
            }
            down.pass();
        }
        let both_said_goodbye = down.follower.is_closing() && up.follower.is_closing();
        if both_said_goodbye && !down.is_dirty && !up.is_dirty {
            return End::Closed;
        }
        if down.is_over && !down.is_dirty {
            return if down.follower.is_closing() { End::Closed } else { End::ProviderGone };
        }
        if up.is_over && !up.is_dirty {
            return if up.follower.is_closing() { End::Closed } else { End::ClientGone };
        }
        tokio::select! {
            biased;
            reason = turn.cut.cut() => return End::Cut(reason),
            () = &mut expiry => return End::Expired,
            written = push(client_out, &mut down.ready), if down.is_dirty => match written {
                Ok(()) => down.is_dirty = false,
                Err(_) => return End::ClientGone,
            },
            written = push(provider_out, &mut up.ready), if up.is_dirty => match written {
                Ok(()) => up.is_dirty = false,
                // Its last words may still be there to be read.
                Err(_) => {
                    up.ready.clear();
                    (up.is_dirty, up.is_over) = (false, false);
                }
            },
            more = fill(provider_in, &mut down.read), if down.may_read() => {
                down.is_over = !more;
                progress = Instant::now();
            }
            more = fill(client_in, &mut up.read), if up.may_read() => {
                up.is_over = !more;
                progress = Instant::now();
            }
            () = &mut clock => {
                if turn.idle_deadline(progress) <= Instant::now() {
                    return End::TimedOut(turn.fired("idle"));
                }
                clock.as_mut().reset(turn.idle_deadline(progress));
            }
        }
    }
}

fn length(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

/// Judges what the client says. What is against the rules is not passed on.
fn judge_client(
    lane: &mut Lane,
    exchange: &mut Exchange<'_>,
    rules: &Rules<'_>,
    has_named: &mut bool,
) -> Result<(), End> {
    let has_rules = rules.known.allowed_models.is_some() || !rules.api.param_whitelist.is_empty();
    let mut input = &lane.read[..];
    loop {
        let event = lane.follower.next_event(&mut input);
        match event.map_err(|_| End::Refused(code::PROTOCOL_ERROR, "invalid_request"))? {
            None => return Ok(()),
            Some(Event::Close { .. }) => {}
            Some(Event::LongMessage { .. }) if has_rules => {
                return Err(End::Refused(code::TOO_BIG, "request_too_large"));
            }
            Some(Event::LongMessage { .. }) => {}
            Some(Event::Message { .. }) if !has_rules && *has_named => {}
            Some(Event::Message { payload, .. }) => match models::named(rules.api.dialect, payload) {
                Ok(named) => {
                    for model in &named {
                        judge::socket_model(model, rules.api, rules.known)
                            .map_err(|refusal| End::Refused(code::POLICY, settle::reason(&refusal)))?;
                        exchange.model_requested.get_or_insert_with(|| clean::text(model, 256));
                    }
                    *has_named |= !named.is_empty();
                    if has_rules && !*has_named {
                        return Err(End::Refused(code::POLICY, "model_not_allowed"));
                    }
                }
                Err(_) if has_rules => return Err(End::Refused(code::POLICY, "invalid_request")),
                // Only the record would have liked to know; the provider will say what is wrong with it.
                Err(_) => *has_named = true,
            },
        }
    }
}

/// Reads what the provider reports. Its goodbye is the end of the exchange: the record is written before it passes.
fn meter_provider(lane: &mut Lane, exchange: &mut Exchange<'_>) -> Result<(), End> {
    let mut input = &lane.read[..];
    loop {
        let event = lane.follower.next_event(&mut input).map_err(|_| End::ProviderBroken)?;
        match (event, &mut exchange.session) {
            (None, _) => return Ok(()),
            (Some(Event::Message { payload, .. }), Some(session)) => session.message(payload),
            (Some(Event::LongMessage { start, .. }), Some(session)) => session.long_message(start),
            (Some(Event::Close { .. }), _) => exchange.settle(Outcome::Finished, None),
            (Some(_), None) => {}
        }
    }
}

/// Tells both sides why, where a frame of ours can stand, and gives the client a moment to read it.
async fn say_goodbye(
    end: &End,
    (up, provider_out): (&mut Lane, &mut (impl AsyncWrite + Unpin)),
    (down, client_out, client_in): (&mut Lane, &mut (impl AsyncWrite + Unpin), &mut (impl AsyncRead + Unpin)),
) {
    if let Some((code, reason)) = end.told().filter(|_| down.takes_frame) {
        down.ready.extend_from_slice(&close_frame(code, reason, None));
    }
    let to_client = timeout(LAST_FRAME, async {
        push(client_out, &mut down.ready).await?;
        client_out.shutdown().await
    });
    let to_provider = timeout(LAST_FRAME, async {
        if up.takes_frame {
            up.ready.extend_from_slice(&close_frame(code::GOING_AWAY, "", Some(rand::random())));
        }
        push(provider_out, &mut up.ready).await?;
        provider_out.shutdown().await
    });
    let (written, _) = tokio::join!(to_client, to_provider);
    if matches!(written, Ok(Ok(()))) {
        // Closing with bytes unread would reset the connection, and take the last frame with it.
        let mut sink = [0u8; 1024];
        let _ = timeout(LAST_FRAME, async { while matches!(client_in.read(&mut sink).await, Ok(read) if read > 0) {} })
            .await;
    }
}

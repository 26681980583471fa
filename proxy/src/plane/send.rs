//! A request on its way to the provider: a connection, head and body, until the head of the final answer is here.
//!
//! It is said again once at most, over another connection, and only where the provider cannot have begun it: the
//! connection was dead before, or the provider says itself that it has not looked at it (RFC 9113 §6.8, §8.7).

use std::time::Duration;

use llm_proxy_core::answer::Refusal;
use llm_proxy_core::http1::answer_head::{AnswerHead, AnswerName, Asked};
use llm_proxy_core::http1::call::Framing;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::clocks::{after, earlier};
use super::exchange::Turn;
use super::forward::{self, Destination};
use super::reply;
use super::settle::Exchange;
use super::state::Permit;
use super::stop::{Stop, Tear};
use super::upload::{STALLED, Upload};
use super::upstream::{ConnectError, Connection, Wanted};
use crate::client::Client;
use crate::http1::{Fault, Step};
use crate::provider::Provider;

/// The most interim answers of one exchange: a provider that sends no others is none.
const MOST_INTERIM: u32 = 16;
/// How long an answer may take that stands behind a failed write.
const EARLY_ANSWER: Duration = Duration::from_secs(1);

/// Connects, sends head and body, and waits for the head of the final answer.
///
/// # Errors
/// [`Stop`].
pub async fn send(
    turn: Turn<'_>,
    client: &mut Client,
    exchange: &mut Exchange<'_>,
    upload: &mut Upload,
    to: &Destination<'_>,
    permit: Option<Permit>,
) -> Result<Connection, Stop> {
    let mut permit = permit;
    let mut wanted = Wanted { to_switch: to.switch.is_some(), ..Wanted::default() };
    loop {
        let mut provider = connect(turn, client, upload, wanted).await?;
        put_head(turn, &mut provider.http, upload, to)?;
        // What came while we waited for a permit or a connection must not reach the provider any more.
        if turn.cut.is_cut() {
            return Err(Stop::Cut(turn.cut.reason()));
        }
        exchange.record_begin();
        if exchange.waits_for_disk() {
            tokio::select! {
                biased;
                recorded = exchange.begin_on_disk() => recorded?,
                reason = turn.cut.cut() => return Err(Stop::Cut(reason)),
            }
        }
        if let Some(permit) = permit.take() {
            permit.spend();
        }
        match send_once(turn, client, exchange, upload, &mut provider).await {
            Err(Attempt::Unserved) if !wanted.again => {
                wanted = Wanted { again: true, refused: provider.line(), ..wanted };
                upload.rewind();
                exchange.request_bytes = 0;
            }
            Err(Attempt::Unserved) => return Err(Refusal::UpstreamUnreachable.into()),
            Err(Attempt::Stop(stop)) => return Err(stop),
            Ok(()) => {
                upload.forget();
                return Ok(provider);
            }
        }
    }
}

/// Why one try at a provider gave no answer's head.
enum Attempt {
    /// The provider cannot have begun it, and it can be said again.
    Unserved,
    /// It is final.
    Stop(Stop),
}

impl<T: Into<Stop>> From<T> for Attempt {
    fn from(stop: T) -> Self {
        Self::Stop(stop.into())
    }
}

fn put_head(turn: Turn<'_>, provider: &mut Provider, upload: &mut Upload, to: &Destination<'_>) -> Result<(), Refusal> {
    let asked = match turn.call.method() {
        "HEAD" => Asked::Head,
        _ if to.switch.is_some() => Asked::Switch,
        _ => Asked::Ordinary,
    };
    match provider {
        Provider::Http1(provider) => provider.put_head(forward::request_head(turn.call, to), to.framing, asked),
        Provider::Http2(provider) => {
            let request = forward::request(turn.call, to)
                .map_err(|error| Refusal::InvalidRequest(format!("the head: {error}").into()))?;
            provider.put_head(request, to.has_body(), asked);
            upload.keep_what_is_put();
        }
    }
    Ok(())
}

async fn connect(turn: Turn<'_>, client: &mut Client, upload: &mut Upload, wanted: Wanted) -> Result<Connection, Stop> {
    let connecting = turn.upstream.connect(turn.gateway, wanted);
    tokio::pin!(connecting);
    loop {
        tokio::select! {
            biased;
            connected = &mut connecting => return connected.map_err(|error| {
                tracing::warn!(%error, "no connection to a provider");
                Stop::Refuse(match error {
                    ConnectError::TimedOut(..) => Refusal::UpstreamTimeout("connect"),
                    ConnectError::Failed(..) => Refusal::UpstreamUnreachable,
                })
            }),
            reason = turn.cut.cut() => return Err(Stop::Cut(reason)),
            () = turn.total_passed() => return Err(Refusal::UpstreamTimeout("total").into()),
            from_client = upload.next(client), if upload.has_room() => { from_client?; }
        }
    }
}

async fn send_once(
    turn: Turn<'_>,
    client: &mut Client,
    exchange: &mut Exchange<'_>,
    upload: &mut Upload,
    provider: &mut Connection,
) -> Result<(), Attempt> {
    let mut interim = 0;
    upload.put(&mut provider.http);
    let clock = sleep_until(deadline(turn, upload));
    tokio::pin!(clock);
    loop {
        tokio::select! {
            biased;
            step = provider.http.next_head() => match step {
                Ok(Step::Sent) => {
                    exchange.note_sent(upload, &provider.http);
                    upload.put(&mut provider.http);
                    clock.as_mut().reset(deadline(turn, upload));
                }
                Ok(Step::Unsendable) => return early_answer(turn, exchange, upload, provider).await,
                Ok(Step::Came(())) if is_interim(provider) && interim < MOST_INTERIM => {
                    interim = interim.saturating_add(1);
                    forward_interim(turn, client, provider).await?;
                }
                Ok(Step::Came(())) if is_interim(provider) => return Err(Refusal::UpstreamInvalid.into()),
                Ok(Step::Came(())) => {
                    exchange.note_first_byte();
                    return Ok(());
                }
                Err(Fault::Closed | Fault::Io(_)) if is_stale(turn, provider, upload) => {
                    return Err(Attempt::Unserved);
                }
                Err(Fault::Unprocessed(why)) if !provider.http.has_begun() && upload.can_repeat() => {
                    tracing::debug!(%why, "a provider has not looked at a request");
                    return Err(Attempt::Unserved);
                }
                Err(fault) => return Err(unreadable(&fault).into()),
            },
            reason = turn.cut.cut() => return Err(Stop::Cut(reason).into()),
            () = &mut clock => return Err(too_late(turn, upload, provider).into()),
            from_client = upload.next(client), if upload.has_room() => {
                from_client?;
                // A client that goes on sending makes no good for a provider that takes nothing.
                let is_waited_for = !provider.http.has_output();
                upload.put(&mut provider.http);
                if is_waited_for {
                    clock.as_mut().reset(deadline(turn, upload));
                }
            }
        }
    }
}

/// When whoever is waited for has made no progress for too long. The provider need not answer before it has the body:
/// until then the time between bytes counts, and its own begins with the last of them.
fn deadline(turn: Turn<'_>, upload: &Upload) -> Instant {
    let patience = if upload.sent_all { turn.upstream.timeouts.first_byte } else { turn.idle() };
    earlier(after(Instant::now(), patience), turn.total)
}

fn too_late(turn: Turn<'_>, upload: &Upload, provider: &Connection) -> Refusal {
    match turn.fired("first_byte") {
        "first_byte" if provider.http.has_output() => Refusal::UpstreamTimeout("idle"),
        "first_byte" if upload.waits_for_client() => Refusal::InvalidRequest(STALLED.into()),
        clock => Refusal::UpstreamTimeout(clock),
    }
}

/// The connection takes no more: an answer may be there all the same (a 413, say), even behind a reset.
async fn early_answer(
    turn: Turn<'_>,
    exchange: &mut Exchange<'_>,
    upload: &mut Upload,
    provider: &mut Connection,
) -> Result<(), Attempt> {
    upload.discard_rest();
    let patience = after(Instant::now(), EARLY_ANSWER);
    loop {
        match timeout_at(patience, provider.http.next_head()).await {
            Ok(Ok(Step::Sent | Step::Unsendable)) => {}
            Ok(Ok(Step::Came(()))) if is_interim(provider) => {}
            Ok(Ok(Step::Came(()))) => {
                exchange.note_first_byte();
                return Ok(());
            }
            _ if is_stale(turn, provider, upload) && turn.call.framing == Framing::None => {
                return Err(Attempt::Unserved);
            }
            _ => return Err(Refusal::UpstreamUnreachable.into()),
        }
    }
}

/// Whether a connection that failed was dead when it came from the pool. A request that went out whole may have been
/// begun all the same, and is repeated only where that does no harm (RFC 9110 §9.2.2).
fn is_stale(turn: Turn<'_>, provider: &Connection, upload: &Upload) -> bool {
    let may_repeat = matches!(turn.call.method(), "GET" | "HEAD" | "OPTIONS" | "PUT" | "DELETE");
    provider.reused && !upload.sent_any && !provider.http.has_begun() && (may_repeat || !upload.sent_all)
}

fn is_interim(provider: &Connection) -> bool {
    provider.http.answer().is_some_and(AnswerHead::is_interim)
}

/// What a failure to read an answer's head is.
fn unreadable(fault: &Fault) -> Refusal {
    tracing::warn!(%fault, "a provider gave no usable answer head");
    if matches!(fault, Fault::Invalid(_)) { Refusal::UpstreamInvalid } else { Refusal::UpstreamUnreachable }
}

/// Passes the links of 103 Early Hints on (RFC 8297); 100 was for us.
async fn forward_interim(turn: Turn<'_>, client: &mut Client, provider: &Connection) -> Result<(), Stop> {
    let Some(hints) = provider.http.answer().filter(|hints| hints.status() == 103) else { return Ok(()) };
    let links = hints.all(AnswerName::Link).map(|link| (&b"link"[..], link));
    tokio::select! {
        biased;
        written = reply::patient(client.write_interim(103, links)) => written.map_err(|_| Stop::ClientGone),
        reason = turn.cut.cut() => Err(Stop::Torn(Tear::Cut(reason))),
    }
}

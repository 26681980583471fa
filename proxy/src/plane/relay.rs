//! The provider's answer on its way to the client: each piece as it comes, untouched, metered as it passes.

use std::borrow::Cow;
use std::task::Poll;

use bytes::Bytes;
use futures::FutureExt;
use llm_proxy_core::answer::Refusal;
use llm_proxy_core::http1::answer_head::{AnswerHead, AnswerName, BodyFraming};
use llm_proxy_core::inject::Hider;
use llm_proxy_core::usage::{Answer, Meter};
use llm_proxy_plugins::event::Outcome;
use tokio::time::{Instant, sleep_until};

use super::exchange::Turn;
use super::forward;
use super::settle::Exchange;
use super::stop::{Stop, Tear};
use super::upload::Upload;
use super::upstream::Connection;
use crate::client::Client;
use crate::http1::{Fault, Outgoing, Step};

/// What happened on the provider's side before anybody waited for it.
type Ready = Option<Result<Step<Option<Bytes>>, Fault>>;

/// Passes the answer on, and settles the exchange at its end.
///
/// # Errors
/// [`Stop`].
pub async fn relay(
    turn: Turn<'_>,
    client: &mut Client,
    exchange: &mut Exchange<'_>,
    upload: &mut Upload,
    provider: &mut Connection,
    cors_fields: &[(&'static str, Cow<'static, str>)],
) -> Result<(), Stop> {
    let Some(answer) = provider.http.answer() else { return Err(Refusal::UpstreamInvalid.into()) };
    begin_answer(exchange, answer);
    if !upload.sent_all && exchange.status.is_some_and(|status| status >= 300) {
        upload.discard_rest();
    }
    let framing = forward::answer_framing(turn.call, answer, exchange.hider.is_some());
    if exchange.is_stopping() || (!upload.sent_all && !client.rest_is_small()) {
        client.close_after();
    }
    client.put_head(answer.status(), forward::answer_fields(answer, &exchange.id.field, cors_fields), framing);

    let mut progress = Instant::now();
    let clock = sleep_until(turn.idle_deadline(progress));
    tokio::pin!(clock);
    let mut next: Ready = match framing {
        Outgoing::NoBody(_) => Some(Ok(Step::Came(None))),
        // An answer that is here already goes out with its head, in one write.
        _ => provider.http.next_piece().now_or_never(),
    };
    if !has_come(&next) {
        write(client.flush(), turn, progress).await?;
    }
    loop {
        // An answer that never pauses must not outrun a cut.
        if turn.cut.is_cut() {
            return Err(Stop::Cut(turn.cut.reason()));
        }
        if turn.total.is_some_and(|total| total <= progress) {
            return Err(Refusal::UpstreamTimeout("total").into());
        }
        let step = match next.take() {
            Some(step) => step,
            None => tokio::select! {
                biased;
                step = provider.http.next_piece() => step,
                reason = turn.cut.cut() => return Err(Stop::Cut(reason)),
                () = &mut clock => {
                    if turn.idle_deadline(progress) <= Instant::now() {
                        return Err(Refusal::UpstreamTimeout(turn.fired("idle")).into());
                    }
                    // Re-armed only when it fires: a piece need not touch the timer.
                    clock.as_mut().reset(turn.idle_deadline(progress));
                    continue;
                }
                from_client = upload.next(client), if upload.has_room() => {
                    from_client?;
                    upload.put(&mut provider.http);
                    continue;
                }
            },
        };
        let piece = match step {
            Ok(Step::Came(Some(piece))) => piece,
            Ok(Step::Came(None)) => break,
            Ok(Step::Sent) => {
                progress = Instant::now();
                exchange.note_sent(upload, &provider.http);
                upload.put(&mut provider.http);
                continue;
            }
            Ok(Step::Unsendable) => {
                upload.discard_rest();
                continue;
            }
            Err(fault) => return Err(broken_answer(&fault)),
        };
        progress = Instant::now();
        exchange.note_piece(piece.len());
        if let Some(bodies) = &mut exchange.bodies {
            bodies.note_piece(&piece);
        }
        if let Some(meter) = &mut exchange.meter {
            meter.observe(&piece);
        }
        next = provider.http.next_piece().now_or_never();
        match &next {
            // The record of the end is in the file before the client can see the end: here by counting.
            Some(Ok(Step::Came(None))) if matches!(framing, Outgoing::Length(_)) => {
                exchange.settle(Outcome::Finished, until_close(provider))
            }
            _ if exchange.meter.as_ref().is_some_and(Meter::is_over) => exchange.settle(Outcome::Finished, None),
            _ => {}
        }
        match &mut exchange.hider {
            None => write(client.write_body(&piece), turn, progress).await?,
            Some(hider) => {
                let mut seen = Vec::with_capacity(piece.len());
                hider.feed(&piece, &mut seen);
                write(client.write_body(&seen), turn, progress).await?;
            }
        }
        // What is here already may share a write with this piece; whatever has to be waited for may not hold it up.
        if !has_come(&next) {
            write(client.flush(), turn, progress).await?;
        }
    }
    exchange.settle(Outcome::Finished, until_close(provider));
    if let Some(hider) = exchange.hider.take() {
        let mut rest = Vec::new();
        hider.finish(&mut rest);
        write(client.write_body(&rest), turn, progress).await?;
    }
    client.end_body();
    write(client.flush(), turn, progress).await
}

/// Takes note of the answer's head, and starts metering its body.
fn begin_answer(exchange: &mut Exchange<'_>, answer: &AnswerHead) {
    exchange.note_answer(answer);
    if let Some(bodies) = &mut exchange.bodies {
        bodies.note_answer(answer);
    }
    let head = Answer {
        dialect: exchange.dialect,
        status: answer.status(),
        content_type: answer.get(AnswerName::ContentType).unwrap_or(b""),
        content_encoding: answer.get(AnswerName::ContentEncoding).unwrap_or(b""),
    };
    let meter = Meter::new(&head, exchange.endpoint);
    let is_plain = head.content_encoding.is_empty() || head.content_encoding.eq_ignore_ascii_case(b"identity");
    let is_readable = (200..300).contains(&head.status) && is_plain && meter.is_event_stream();
    exchange.hider = (exchange.hides_usage && is_readable).then(Hider::default);
    exchange.meter = Some(meter);
}

/// An answer that ends with its connection cannot be told from one that was cut: the record says so.
fn until_close(provider: &Connection) -> Option<Cow<'static, str>> {
    let answer = provider.http.answer()?;
    (answer.framing() == BodyFraming::UntilClose).then_some("until_close".into())
}

/// Whether more of the answer is here, or its end: then what has been put for the client need not go alone.
fn has_come(next: &Ready) -> bool {
    matches!(next, Some(Ok(Step::Came(_)) | Err(_)))
}

fn broken_answer(fault: &Fault) -> Stop {
    tracing::warn!(%fault, "a provider's answer broke off");
    Stop::Refuse(Refusal::UpstreamCut)
}

/// A write to the client. A cut may end it, and so may a client that takes nothing for as long as a provider may say
/// nothing, or the clock of the whole exchange.
pub(super) async fn write(
    writing: impl Future<Output = std::io::Result<()>>,
    turn: Turn<'_>,
    progress: Instant,
) -> Result<(), Stop> {
    tokio::pin!(writing);
    // Nearly every write is done at once, and need not pay for a timer.
    if let Poll::Ready(written) = futures::poll!(&mut writing) {
        return written.map_err(|_| Stop::ClientGone);
    }
    tokio::select! {
        biased;
        written = &mut writing => written.map_err(|_| Stop::ClientGone),
        reason = turn.cut.cut() => Err(Stop::Torn(Tear::Cut(reason))),
        () = sleep_until(turn.idle_deadline(progress)) => Err(match turn.fired("idle") {
            "total" => Stop::Torn(Tear::TotalPassed),
            _ => Stop::ClientGone,
        }),
    }
}

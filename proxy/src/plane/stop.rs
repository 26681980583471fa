//! What ends an exchange early, and how the client is told.

use std::time::Duration;

use llm_proxy_core::answer::Refusal;
use llm_proxy_core::http1::call::{Call, Framing, Name};
use llm_proxy_core::usage::Meter;
use llm_proxy_plugins::event::Outcome;
use tokio::time::timeout;

use super::settle::{self, Exchange};
use super::state::CutReason;
use super::upload::{ClientFault, STALLED};
use super::{Gateway, cors, reply};
use crate::client::Client;
use crate::http1::Outgoing;

/// How long the last event of a broken answer may take to leave, and what the client then gets to read it before the
/// connection ends: some clients throw away what they have not read yet when they see the end (undici does).
const LAST_EVENT: Duration = Duration::from_millis(100);

/// The answer broke off, or nobody is there to read one: the connection must end without a clean close.
pub struct Broken;

/// What ends an exchange early.
pub enum Stop {
    /// We answer instead of the provider, or, where its answer has begun, break it off.
    Refuse(Refusal),
    /// The client left.
    ClientGone,
    /// Something took the right to run away.
    Cut(CutReason),
    /// The exchange ends in the middle of a write to the client: nothing may follow it.
    Torn(Tear),
    /// The same on a WebSocket, where all is said and settled: the connection ends.
    Ended,
    /// All is said: the answer we gave ourselves is out.
    Answered,
}

/// What may end an exchange in the middle of a write.
#[derive(Clone, Copy)]
pub enum Tear {
    /// Something took the right to run away.
    Cut(CutReason),
    /// The clock of the whole exchange has run out.
    TotalPassed,
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Self::Refuse(refusal)
    }
}

impl From<ClientFault> for Stop {
    fn from(fault: ClientFault) -> Self {
        match fault {
            ClientFault::Gone => Self::ClientGone,
            ClientFault::Refused(refusal) => Self::Refuse(refusal),
        }
    }
}

/// Ends an exchange that did not finish: an answer where one can still be given, else a visible break.
///
/// # Errors
/// [`Broken`] when the connection must not be closed cleanly.
pub async fn end(
    gateway: &Gateway,
    client: &mut Client,
    call: &Call,
    exchange: &mut Exchange<'_>,
    stop: Stop,
) -> Result<(), Broken> {
    let torn = matches!(stop, Stop::Torn(_));
    let (refusal, outcome, reason) = match stop {
        Stop::Answered => return Ok(()),
        Stop::Ended => return Err(Broken),
        Stop::ClientGone => {
            exchange.settle(Outcome::ClientGone, None);
            return Err(Broken);
        }
        Stop::Refuse(refusal) => {
            let outcome = settle::outcome_of_refusal(&refusal);
            (refusal, outcome, None)
        }
        Stop::Cut(reason) | Stop::Torn(Tear::Cut(reason)) => {
            (cut_refusal(reason), settle::outcome_of_cut(reason), Some(cut_name(reason)))
        }
        Stop::Torn(Tear::TotalPassed) => (Refusal::UpstreamTimeout("total"), Outcome::Timeout, None),
    };
    let has_stalled = matches!(&refusal, Refusal::InvalidRequest(why) if why == STALLED);
    let is_urgent = reason.is_some() || has_stalled || matches!(refusal, Refusal::UpstreamTimeout(_));
    if is_urgent && !client.body_is_over() {
        // Told at once, whatever the client still has to send.
        client.close_after();
    }
    if client.answer().is_some() || torn {
        break_off(client, exchange, &refusal, outcome, reason, torn).await;
        return Err(Broken);
    }
    match reason {
        Some(reason) => {
            exchange.status = Some(refusal.status());
            exchange.settle(outcome, Some(reason.into()));
        }
        None => exchange.refused(&refusal),
    }
    let broken_body = matches!(refusal, Refusal::InvalidRequest(_)) && call.framing == Framing::Chunked;
    if gateway.drain.is_stopping() || broken_body {
        client.close_after();
    }
    let origin = call.value_of(Name::Origin).and_then(|origin| std::str::from_utf8(origin).ok());
    let readable = match (origin, exchange.api.and_then(|index| gateway.routes.apis().get(index))) {
        (Some(origin), Some(api)) if cors::origin(call, api).is_ok() => Some(origin),
        _ => None,
    };
    let cors_fields: Vec<_> = readable.map(cors::fields).into_iter().flatten().collect();
    reply::refuse(client, exchange.dialect, exchange.id.text(), &refusal, cors_fields).await.map_err(|_| Broken)
}

/// The head is out: what can still be said is an event in the stream, and then only the break.
async fn break_off(
    client: &mut Client,
    exchange: &mut Exchange<'_>,
    refusal: &Refusal,
    outcome: Outcome,
    reason: Option<&'static str>,
    torn: bool,
) {
    // In an answer of announced length an event could make up the missing bytes, and the break would look clean.
    let counted = matches!(client.answer(), Some(Outgoing::Length(_)));
    let at_boundary = !torn && !counted && exchange.meter.as_ref().is_some_and(Meter::at_event_boundary);
    let event = refusal.event(exchange.dialect, exchange.endpoint, exchange.id.text());
    exchange.settle(outcome, Some(reason.unwrap_or_else(|| settle::reason(refusal)).into()));
    if torn {
        return;
    }
    // Bounded: a client that does not read must not hold up the cut.
    let mut held = Vec::new();
    if let Some(hider) = exchange.hider.take() {
        hider.finish(&mut held);
    }
    let writing = async {
        client.write_body(&held).await?;
        if at_boundary {
            client.write_body(&event).await?;
        }
        client.flush().await
    };
    if matches!(timeout(LAST_EVENT, writing).await, Ok(Ok(()))) && at_boundary {
        let _ = timeout(LAST_EVENT, client.left()).await;
    }
}

const fn cut_refusal(reason: CutReason) -> Refusal {
    match reason {
        CutReason::Revoked => Refusal::TokenRevoked,
        CutReason::ProjectInactive => Refusal::ProjectInactive,
        CutReason::Shutdown => Refusal::Overloaded,
    }
}

/// What the record, and a WebSocket's close frame, say of a cut.
pub const fn cut_name(reason: CutReason) -> &'static str {
    match reason {
        CutReason::Revoked => "token_revoked",
        CutReason::ProjectInactive => "project_inactive",
        CutReason::Shutdown => "shutdown",
    }
}

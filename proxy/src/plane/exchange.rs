//! The life of one request, in the order it happens.
//!
//! ingress → authenticate → route → admit → forward → relay → settle. Every way out settles the [`Exchange`] once;
//! every wait can be ended by the client leaving, the token being revoked, and the clock that rules it.

use std::borrow::Cow;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures::FutureExt;
use llm_proxy_core::answer::Refusal;
use llm_proxy_core::routing::{Api, Hints, Route};
use llm_proxy_core::target::Target;
use llm_proxy_core::token::TokenDigest;
use llm_proxy_core::usage::{Answer, Meter};
use llm_proxy_plugins::event::Outcome;
use pingora_core::protocols::http::ServerSession;
use pingora_http::ResponseHeader;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::clocks::{after, earlier};
use super::credentials::{self, Remembered};
use super::forward::{self, AnswerFraming, Destination};
use super::judge::{self, BodyRule};
use super::settle::{self, Exchange};
use super::state::{CutReason, NoPermit, Permit, TooFast, Watch};
use super::tokens::{Known, Unavailable};
use super::upload::{ClientFault, Upload, WriteFault, read_whole};
use super::upstream::{ConnectError, Connection, Upstream};
use super::{Gateway, clean, cors, reply};
use crate::call::{Call, Framing, Name};
use crate::edge::Guard;
use crate::http1::{AnswerHead, BodyFraming, Fault};

/// The most interim answers of one exchange: a provider that sends no others is none.
const MOST_INTERIM: u32 = 16;

/// The answer broke off, or nobody is there to read one: the connection must end without a clean close.
pub struct Broken;

/// What ends an exchange early.
enum Stop {
    /// We answer instead of the provider, or, where its answer has begun, break it off.
    Refuse(Refusal),
    /// The client left.
    ClientGone,
    /// Something took the right to run away.
    Cut(CutReason),
    /// The same in the middle of a write to the client: nothing may follow it.
    Torn(CutReason),
    /// All is said: the answer we gave ourselves is out.
    Answered,
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

/// Carries one request to its provider and the answer back.
///
/// # Errors
/// [`Broken`] when the connection must not be closed cleanly.
pub async fn run(
    gateway: &Gateway,
    client: &mut ServerSession,
    call: &Call,
    remembered: &mut Remembered,
) -> Result<(), Broken> {
    let mut exchange = Exchange::begin(gateway, call);
    match carry(gateway, client, call, remembered, &mut exchange).await {
        Ok(()) | Err(Stop::Answered) => Ok(()),
        Err(stop) => end(gateway, client, call, exchange, stop).await,
    }
}

async fn carry(
    gateway: &Gateway,
    client: &mut ServerSession,
    call: &Call,
    remembered: &mut Remembered,
    exchange: &mut Exchange<'_>,
) -> Result<(), Stop> {
    let target = Target::new(call.target());
    if is_health(call, &target) {
        return answer_health(gateway, client, exchange).await;
    }
    let hints = hints(call);
    let routed = gateway.routes.route(&target, hints);
    if let Ok(Some(route)) = &routed {
        exchange.routed(route);
    } else {
        exchange.dialect = gateway.routes.likely_dialect(&target, hints);
    }
    if cors::is_preflight(call) {
        return preflight(gateway, client, call, exchange).await;
    }

    let (token, forms) = credentials::find(call, &target, exchange.dialect).map_err(|_| Refusal::InvalidApiKey)?;
    let digest = remembered.digest(&gateway.pepper, &token).map_err(|_| Refusal::InvalidApiKey)?;
    let known = authenticate(gateway, &digest).await?;
    exchange.known = Some(Arc::clone(&known));
    let cut = known.state.watch();

    let route = routed.map_err(|bad| Refusal::InvalidRequest(bad.to_string().into()))?.ok_or(Refusal::UnknownRoute)?;
    let (Some(api), Some(upstream)) = (gateway.routes.apis().get(route.api), gateway.upstreams.get(route.api)) else {
        return Err(Refusal::UnknownRoute.into());
    };

    judge::liveness(&known, exchange.received_us())?;
    judge::shape(call, api, &route)?;
    let origin = cors::origin(call, api).map_err(|_| Refusal::OriginNotAllowed)?;
    let key = judge::provider_key(&known, api)?;
    if call.content_length().is_some_and(|length| length > upstream.max_request_bytes) {
        return Err(Refusal::TooLarge(upstream.max_request_bytes).into());
    }
    let rule = judge::body_rule(call, api, &known, &route)?;
    if call.expects_continue && rule != BodyRule::Pass {
        invite_body(client).await?;
    }
    let mut upload = match rule {
        BodyRule::Pass => Upload::streamed(call, upstream.max_request_bytes),
        _ => judged_body(gateway, client, call, exchange, upstream, api, &known, &route, &rule, &cut).await?,
    };
    known
        .state
        .check_rate()
        .map_err(|TooFast { limit, retry_after_ms }| Refusal::RateLimited { limit, retry_after_ms })?;
    let permit = permit(gateway, &known).await?;
    if call.expects_continue && rule == BodyRule::Pass {
        invite_body(client).await?;
    }

    let placement = forms.placement(exchange.dialect);
    let outgoing_target = outgoing_target(&route, forms.query(&target, exchange.dialect));
    let to = Destination {
        authority: &upstream.authority,
        target: &outgoing_target,
        placement: &placement,
        key,
        framing: upload.framing,
    };
    let mut provider = send(gateway, client, call, exchange, upstream, &mut upload, &to, permit, &cut).await?;

    let cors_fields: Vec<(&'static str, Cow<'static, str>)> = origin.map(cors::fields).into_iter().flatten().collect();
    relay(client, call, exchange, upstream, &mut upload, &mut provider, &cors_fields, &cut).await?;

    if upload.sent_all {
        provider.release(&gateway.connector);
    }
    Ok(())
}

fn hints(call: &Call) -> Hints {
    let mut hints = Hints { is_post: call.method() == "POST", ..Hints::default() };
    for field in call.fields() {
        match field.kind {
            Name::XGoogApiKey => hints.has_goog_api_key = true,
            Name::AnthropicVersion => hints.has_anthropic_version = true,
            _ => {}
        }
    }
    hints
}

async fn authenticate(gateway: &Gateway, digest: &TokenDigest) -> Result<Arc<Known>, Refusal> {
    match gateway.tokens.find(digest).await {
        Ok(Some(known)) => Ok(known),
        Ok(None) => Err(Refusal::InvalidApiKey),
        Err(Unavailable) => Err(Refusal::StoreUnavailable),
    }
}

async fn permit(gateway: &Gateway, known: &Known) -> Result<Option<Permit>, Refusal> {
    let Some(max) = known.holder.max_requests else { return Ok(None) };
    match known.state.permit(&gateway.tokens).await {
        Ok(permit) => Ok(Some(permit)),
        Err(NoPermit::UsedUp) => Err(Refusal::QuotaUsedUp(max)),
        Err(NoPermit::Unavailable) => Err(Refusal::StoreUnavailable),
    }
}

/// Sends `100 Continue`: the request is admitted as far as its head goes, so the body may come.
async fn invite_body(client: &mut ServerSession) -> Result<(), Stop> {
    // Pingora would take the 100 for an answer before the body's end, and mark the connection for close.
    client.set_close_on_response_before_downstream_finish(false);
    let written = client.write_continue_response().await;
    client.set_close_on_response_before_downstream_finish(true);
    written.map_err(|_| Stop::ClientGone)
}

#[expect(clippy::too_many_arguments, reason = "one step of the exchange; a struct for it would only rename the list")]
async fn judged_body(
    gateway: &Gateway,
    client: &mut ServerSession,
    call: &Call,
    exchange: &mut Exchange<'_>,
    upstream: &Upstream,
    api: &Api,
    known: &Known,
    route: &Route,
    rule: &BodyRule,
    cut: &Watch,
) -> Result<Upload, Stop> {
    let waiting = Instant::now();
    let limit = upstream.max_held_bytes.min(upstream.max_request_bytes);
    let (whole, hold) = tokio::select! {
        biased;
        read = read_whole(client, call, limit, &gateway.held, upstream.timeouts.idle) => read?,
        reason = cut.cut() => return Err(Stop::Cut(reason)),
    };
    exchange.waited_for_client = waiting.elapsed();
    if let Some(model) = judge::body(rule, &whole, api, known, route)? {
        exchange.model_requested = Some(model);
    }
    Ok(Upload::held(whole, hold))
}

fn outgoing_target(route: &Route, query: Option<Cow<'_, str>>) -> String {
    match query {
        Some(query) => format!("{}?{query}", route.upstream_path),
        None => route.upstream_path.clone(),
    }
}

/// Connects, sends head and body, and waits for the head of the final answer.
#[expect(clippy::too_many_arguments, reason = "one step of the exchange; a struct for it would only rename the list")]
async fn send(
    gateway: &Gateway,
    client: &mut ServerSession,
    call: &Call,
    exchange: &mut Exchange<'_>,
    upstream: &Upstream,
    upload: &mut Upload,
    to: &Destination<'_>,
    permit: Option<Permit>,
    cut: &Watch,
) -> Result<Connection, Stop> {
    let mut permit = permit;
    let mut fresh = false;
    loop {
        let mut provider = connect(gateway, client, upstream, upload, cut, fresh).await?;
        let may_repeat = provider.reused && !fresh;
        provider.http.put_head(forward::request_head(call, to), to.framing, call.method() == "HEAD");
        exchange.record_begin();
        if let Some(permit) = permit.take() {
            permit.spend();
        }
        let idle = upstream.timeouts.idle;
        match send_once(client, call, exchange, upstream, upload, &mut provider, cut, idle).await {
            Err(Attempt::Stale) if may_repeat && !upload.sent_any => fresh = true,
            Err(Attempt::Stale) => return Err(Refusal::UpstreamUnreachable.into()),
            Err(Attempt::Stop(stop)) => return Err(stop),
            Ok(()) => return Ok(provider),
        }
    }
}

/// Why one try at a provider gave no answer's head.
enum Attempt {
    /// The connection was dead before the provider can have begun.
    Stale,
    /// It is final.
    Stop(Stop),
}

impl<T: Into<Stop>> From<T> for Attempt {
    fn from(stop: T) -> Self {
        Self::Stop(stop.into())
    }
}

async fn connect(
    gateway: &Gateway,
    client: &mut ServerSession,
    upstream: &Upstream,
    upload: &mut Upload,
    cut: &Watch,
    fresh: bool,
) -> Result<Connection, Stop> {
    let connecting = upstream.connect(&gateway.connector, fresh);
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
            reason = cut.cut() => return Err(Stop::Cut(reason)),
            from_client = upload.next(client), if upload.has_room() => { from_client?; }
        }
    }
}

#[expect(clippy::too_many_arguments, reason = "one step of the exchange; a struct for it would only rename the list")]
async fn send_once(
    client: &mut ServerSession,
    call: &Call,
    exchange: &mut Exchange<'_>,
    upstream: &Upstream,
    upload: &mut Upload,
    provider: &mut Connection,
    cut: &Watch,
    idle: Duration,
) -> Result<(), Attempt> {
    let clock = sleep_until(after(Instant::now(), upstream.timeouts.first_byte));
    tokio::pin!(clock);
    let total = upstream.timeouts.total.map(|total| after(exchange.received().into(), total));
    let mut interim = 0;
    loop {
        if upload.has_queued() || provider.http.has_output() {
            let before = exchange.request_bytes;
            let outcome = tokio::select! {
                biased;
                outcome = upload.write_queued(&mut provider.http, idle, &mut exchange.request_bytes) => outcome,
                reason = cut.cut() => return Err(Stop::Cut(reason).into()),
            };
            if exchange.request_bytes > before {
                clock.as_mut().reset(after(Instant::now(), upstream.timeouts.first_byte));
            }
            if exchange.model_requested.is_none() {
                exchange.model_requested = upload.scan.model().map(|model| clean::text(model, 256));
            }
            if let Err(fault) = outcome {
                return early_answer(call, exchange, upload, provider, fault).await;
            }
        }
        let deadline = earlier(clock.deadline(), total);
        if deadline != clock.deadline() {
            clock.as_mut().reset(deadline);
        }
        tokio::select! {
            biased;
            reason = cut.cut() => return Err(Stop::Cut(reason).into()),
            read = provider.http.read_head() => match read {
                Ok(()) if is_interim(provider) && interim < MOST_INTERIM => {
                    interim = interim.saturating_add(1);
                    forward_interim(client, call, provider).await?;
                }
                Ok(()) if is_interim(provider) => return Err(Refusal::UpstreamInvalid.into()),
                Ok(()) => {
                    exchange.note_first_byte();
                    return Ok(());
                }
                Err(Fault::Closed | Fault::Io(_)) if provider.reused && !upload.sent_any => return Err(Attempt::Stale),
                Err(fault) => return Err(unreadable(&fault).into()),
            },
            from_client = upload.next(client) => from_client?,
            () = &mut clock => {
                let name = if total.is_some_and(|total| total <= Instant::now()) { "total" } else { "first_byte" };
                return Err(Refusal::UpstreamTimeout(name).into());
            }
        }
    }
}

/// The body could not be written on: an answer may be there all the same (a 413, say), even behind a reset.
async fn early_answer(
    call: &Call,
    exchange: &mut Exchange<'_>,
    upload: &mut Upload,
    provider: &mut Connection,
    fault: WriteFault,
) -> Result<(), Attempt> {
    upload.discard_rest();
    let patience = after(Instant::now(), Duration::from_secs(1));
    loop {
        match timeout_at(patience, provider.http.read_head()).await {
            Ok(Ok(())) if is_interim(provider) => {}
            Ok(Ok(())) => {
                exchange.note_first_byte();
                return Ok(());
            }
            _ if fault == WriteFault::TooSlow => return Err(Refusal::UpstreamTimeout("idle").into()),
            _ if provider.reused && !upload.sent_any && call.framing == Framing::None => return Err(Attempt::Stale),
            _ => return Err(Refusal::UpstreamUnreachable.into()),
        }
    }
}

fn is_interim(provider: &Connection) -> bool {
    provider.http.answer().is_some_and(AnswerHead::is_interim)
}

/// What a failure to read an answer's head is.
fn unreadable(fault: &Fault) -> Refusal {
    tracing::warn!(%fault, "a provider gave no usable answer head");
    if matches!(fault, Fault::Invalid(_)) { Refusal::UpstreamInvalid } else { Refusal::UpstreamUnreachable }
}

/// Passes 103 Early Hints on; 100 was for us.
async fn forward_interim(client: &mut ServerSession, call: &Call, provider: &Connection) -> Result<(), Stop> {
    let Some(hints) = provider.http.answer() else { return Ok(()) };
    if hints.status() != 103 || call.version == crate::call::Version::Http10 {
        return Ok(());
    }
    let mut head = ResponseHeader::build_no_case(103, Some(4)).map_err(|_| Refusal::Internal)?;
    for link in hints.all("link") {
        head.append_header(http::header::LINK, link).map_err(|_| Refusal::UpstreamInvalid)?;
    }
    client.write_response_header(Box::new(head)).await.map_err(|_| Stop::ClientGone)
}

/// Passes the answer on: each piece as it comes, untouched, metered on its way.
#[expect(clippy::too_many_arguments, reason = "one step of the exchange; a struct for it would only rename the list")]
async fn relay(
    client: &mut ServerSession,
    call: &Call,
    exchange: &mut Exchange<'_>,
    upstream: &Upstream,
    upload: &mut Upload,
    provider: &mut Connection,
    cors_fields: &[(&'static str, Cow<'static, str>)],
    cut: &Watch,
) -> Result<(), Stop> {
    let framing = begin_answer(call, exchange, provider)?;
    if !upload.sent_all && exchange.status.is_some_and(|status| status >= 300) {
        upload.discard_rest();
    }
    // Looked at before the head is written: a whole answer that is here already goes out in one write.
    let mut next =
        if framing == AnswerFraming::NoBody { Some(Ok(None)) } else { provider.http.read_body().now_or_never() };
    let Some(answer) = provider.http.answer() else { return Err(Refusal::UpstreamInvalid.into()) };
    let head = forward::answer_head(call, answer, framing).map_err(|_| Refusal::UpstreamInvalid)?;
    if let Some(stream) = client.stream() {
        // What is not whole yet must not wait in a buffer for its rest.
        let is_whole = provider.http.body_is_over() || matches!(next, Some(Ok(None)));
        if !is_whole {
            Guard::flush_each_write(stream);
        }
        Guard::add_fields(stream, forward::answer_fields(answer, &exchange.id.field, cors_fields));
    }
    if framing == AnswerFraming::UntilClose || exchange.is_stopping() {
        client.set_keepalive(None);
    }
    if framing == AnswerFraming::NoBody {
        exchange.settle(Outcome::Finished, None);
    }
    let idle = upstream.timeouts.idle;
    let total = upstream.timeouts.total.map(|total| after(exchange.received().into(), total));
    write(client.write_response_header(head), cut, earlier(after(Instant::now(), idle), total)).await?;

    let mut progress = Instant::now();
    let clock = sleep_until(earlier(after(progress, idle), total));
    tokio::pin!(clock);
    loop {
        // An answer that never pauses must not outrun a cut.
        if cut.is_cut() {
            return Err(Stop::Cut(cut.reason()));
        }
        let read = match next.take() {
            Some(read) => read,
            None => tokio::select! {
                biased;
                read = provider.http.read_body() => read,
                reason = cut.cut() => return Err(Stop::Cut(reason)),
                from_client = upload.next(client) => {
                    pump_late(from_client, exchange, upload, provider, idle, cut).await?;
                    continue;
                }
                () = &mut clock => {
                    let now = Instant::now();
                    if total.is_some_and(|total| total <= now) {
                        return Err(Stop::Refuse(Refusal::UpstreamTimeout("total")));
                    }
                    if after(progress, idle) <= now {
                        return Err(Stop::Refuse(Refusal::UpstreamTimeout("idle")));
                    }
                    // Re-armed only when it fires: a piece need not touch the timer.
                    clock.as_mut().reset(earlier(after(progress, idle), total));
                    continue;
                }
            },
        };
        let piece = match read {
            Ok(Some(piece)) => piece,
            Ok(None) => break,
            Err(fault) => return Err(broken_answer(&fault)),
        };
        progress = Instant::now();
        exchange.note_piece(piece.len());
        if let Some(meter) = &mut exchange.meter {
            meter.observe(&piece);
        }
        next = provider.http.read_body().now_or_never();
        if matches!(next, Some(Ok(None))) {
            // The record of the end is in the file before the client can see the end.
            exchange.settle(Outcome::Finished, until_close(provider));
        } else if exchange.meter.as_ref().is_some_and(Meter::is_over) {
            exchange.settle(Outcome::Finished, None);
        }
        write(client.write_response_body(piece, false), cut, earlier(after(progress, idle), total)).await?;
    }
    exchange.settle(Outcome::Finished, until_close(provider));
    Ok(())
}

/// Takes note of the answer's head, and starts metering its body.
fn begin_answer(call: &Call, exchange: &mut Exchange<'_>, provider: &Connection) -> Result<AnswerFraming, Refusal> {
    let Some(answer) = provider.http.answer() else { return Err(Refusal::UpstreamInvalid) };
    exchange.status = Some(answer.status());
    exchange.provider_request_id =
        forward::provider_request_id(exchange.dialect, answer).map(|id| clean::text(id, 256));
    let head = Answer {
        dialect: exchange.dialect,
        status: answer.status(),
        content_type: answer.get("content-type").unwrap_or(b""),
        content_encoding: answer.get("content-encoding").unwrap_or(b""),
    };
    exchange.meter = Some(Meter::new(&head, exchange.endpoint));
    Ok(forward::answer_framing(call, answer))
}

/// An answer that ends with its connection cannot be told from one that was cut: the record says so.
fn until_close(provider: &Connection) -> Option<Cow<'static, str>> {
    let answer = provider.http.answer()?;
    (answer.framing() == BodyFraming::UntilClose).then_some("until_close".into())
}

/// A piece of the request while the answer already comes.
async fn pump_late(
    from_client: Result<(), ClientFault>,
    exchange: &mut Exchange<'_>,
    upload: &mut Upload,
    provider: &mut Connection,
    idle: Duration,
    cut: &Watch,
) -> Result<(), Stop> {
    match from_client {
        Ok(()) => {}
        Err(ClientFault::Gone) => return Err(Stop::ClientGone),
        Err(ClientFault::Refused(refusal)) => return Err(Stop::Refuse(refusal)),
    }
    if !upload.has_queued() {
        return Ok(());
    }
    tokio::select! {
        biased;
        reason = cut.cut() => Err(Stop::Cut(reason)),
        written = upload.write_queued(&mut provider.http, idle, &mut exchange.request_bytes) => {
            if written.is_err() {
                upload.discard_rest();
            }
            Ok(())
        }
    }
}

fn broken_answer(fault: &Fault) -> Stop {
    tracing::warn!(%fault, "a provider's answer broke off");
    Stop::Refuse(Refusal::UpstreamCut)
}

/// A write to the client. A cut may end it, and so may a client that takes nothing for as long as a provider may say
/// nothing.
async fn write<T>(
    writing: impl Future<Output = pingora_core::Result<T>>,
    cut: &Watch,
    until: Instant,
) -> Result<(), Stop> {
    tokio::pin!(writing);
    // Nearly every write is done at once, and need not pay for a timer.
    if let Poll::Ready(written) = futures::poll!(&mut writing) {
        return written.map(|_| ()).map_err(|_| Stop::ClientGone);
    }
    tokio::select! {
        biased;
        written = &mut writing => written.map(|_| ()).map_err(|_| Stop::ClientGone),
        reason = cut.cut() => Err(Stop::Torn(reason)),
        () = sleep_until(until) => Err(Stop::ClientGone),
    }
}

/// Ends an exchange that did not finish: an answer where one can still be given, else a visible break.
async fn end(
    gateway: &Gateway,
    client: &mut ServerSession,
    call: &Call,
    mut exchange: Exchange<'_>,
    stop: Stop,
) -> Result<(), Broken> {
    let head_is_out = client.response_written().is_some_and(|head| !head.status.is_informational());
    let torn = matches!(stop, Stop::Torn(_));
    let (refusal, outcome, reason) = match stop {
        Stop::Answered => return Ok(()),
        Stop::ClientGone => {
            exchange.settle(Outcome::ClientGone, None);
            return Err(Broken);
        }
        Stop::Refuse(refusal) => {
            let outcome = settle::outcome_of_refusal(&refusal);
            (refusal, outcome, None)
        }
        Stop::Cut(reason) | Stop::Torn(reason) => {
            (cut_refusal(reason), settle::outcome_of_cut(reason), Some(cut_name(reason)))
        }
    };
    if head_is_out || torn {
        // In an answer of announced length an event could make up the missing bytes, and the break would look clean.
        let counted =
            client.response_written().is_some_and(|head| head.headers.contains_key(http::header::CONTENT_LENGTH));
        let at_boundary = !torn && !counted && exchange.meter.as_ref().is_some_and(Meter::at_event_boundary);
        let event = refusal.event(exchange.dialect, exchange.endpoint, exchange.id.text());
        exchange.settle(outcome, Some(reason.unwrap_or_else(|| settle::reason(&refusal)).into()));
        if at_boundary {
            // Bounded: a client that does not read must not hold up the cut.
            let writing = client.write_response_body(event.into(), false);
            let _ = tokio::time::timeout(Duration::from_millis(100), writing).await;
        }
        return Err(Broken);
    }
    let origin = call.value_of(Name::Origin).and_then(|origin| std::str::from_utf8(origin).ok());
    let readable = match (origin, exchange.api.and_then(|index| gateway.routes.apis().get(index))) {
        (Some(origin), Some(api)) if cors::origin(call, api).is_ok() => Some(origin),
        _ => None,
    };
    let cors_fields: Vec<_> = readable.map(cors::fields).into_iter().flatten().collect();
    match reason {
        Some(reason) => {
            exchange.status = Some(refusal.status());
            exchange.settle(outcome, Some(reason.into()));
        }
        None => exchange.refused(&refusal),
    }
    if gateway.drain.is_stopping() {
        client.set_keepalive(None);
    }
    if matches!(refusal, Refusal::InvalidRequest(_)) && call.framing == Framing::Chunked {
        client.set_keepalive(None);
    }
    reply::refuse(client, call, exchange.dialect, exchange.id.text(), &refusal, &cors_fields).await.map_err(|_| Broken)
}

const fn cut_refusal(reason: CutReason) -> Refusal {
    match reason {
        CutReason::Revoked => Refusal::TokenRevoked,
        CutReason::ProjectInactive => Refusal::ProjectInactive,
        CutReason::Shutdown => Refusal::Overloaded,
    }
}

const fn cut_name(reason: CutReason) -> &'static str {
    match reason {
        CutReason::Revoked => "token_revoked",
        CutReason::ProjectInactive => "project_inactive",
        CutReason::Shutdown => "shutdown",
    }
}

fn is_health(call: &Call, target: &Target<'_>) -> bool {
    matches!(call.method(), "GET" | "HEAD") && matches!(target.path, "/health" | "/health/live" | "/health/ready")
}

async fn answer_health(gateway: &Gateway, client: &mut ServerSession, exchange: &mut Exchange<'_>) -> Result<(), Stop> {
    // Health checks are no exchanges: nothing to record.
    exchange.forget();
    let ready = !gateway.drain.is_stopping();
    let body: &'static [u8] = if ready { br#"{"status":"ok"}"# } else { br#"{"status":"stopping"}"# };
    let mut head =
        ResponseHeader::build_no_case(if ready { 200 } else { 503 }, Some(4)).map_err(|_| Refusal::Internal)?;
    head.append_header("content-type", "application/json").map_err(|_| Refusal::Internal)?;
    head.append_header("content-length", body.len()).map_err(|_| Refusal::Internal)?;
    let writing = async {
        client.write_response_header(Box::new(head)).await?;
        client.write_response_body(bytes::Bytes::from_static(body), true).await
    };
    reply::patient(writing).await.map_err(|_| Stop::ClientGone)?;
    Err(Stop::Answered)
}

async fn preflight(
    gateway: &Gateway,
    client: &mut ServerSession,
    call: &Call,
    exchange: &mut Exchange<'_>,
) -> Result<(), Stop> {
    let api = exchange.api.and_then(|index| gateway.routes.apis().get(index)).ok_or(Refusal::UnknownRoute)?;
    let origin = cors::origin(call, api).ok().flatten().ok_or(Refusal::OriginNotAllowed)?;
    exchange.forget();
    reply::patient(cors::answer_preflight(client, call, api, origin, exchange.id.text()))
        .await
        .map_err(|_| Stop::ClientGone)?;
    Err(Stop::Answered)
}

//! The life of one request, in the order it happens.
//!
//! ingress → authenticate → route → admit → forward → relay → settle. Every way out settles the [`Exchange`] once;
//! every wait can be ended by the client leaving, the token being revoked, and the clock that rules it.

use std::borrow::Cow;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use llm_proxy_core::answer::Refusal;
use llm_proxy_core::http1::answer_head::AnswerHead;
use llm_proxy_core::http1::call::{Call, Name};
use llm_proxy_core::inject;
use llm_proxy_core::routing::{Hints, Route};
use llm_proxy_core::target::Target;
use llm_proxy_core::token::TokenDigest;
use llm_proxy_core::websocket::handshake::{self, BadUpgrade, Upgrade};
use llm_proxy_plugins::event::Outcome;
use tokio::time::{Instant, sleep_until};

use super::bodies::Bodies;
use super::clocks::{after, earlier};
use super::credentials::{self, Remembered};
use super::forward::Destination;
use super::held::Hold;
use super::judge::{self, BodyRule};
use super::relay::relay;
use super::send::send;
use super::settle::Exchange;
use super::state::{NoPermit, Permit, TooFast, Watch};
use super::stop::{Broken, Stop, end};
use super::tokens::{Known, Unavailable};
use super::upload::{Upload, read_whole};
use super::upstream::Upstream;
use super::websocket::{self, Rules};
use super::{Gateway, cors, reply};
use crate::client::Client;
use crate::downstream::Caller;

/// What stands fixed for one exchange once it is known where it goes.
#[derive(Clone, Copy)]
pub struct Turn<'a> {
    /// What exchanges decide with.
    pub gateway: &'a Gateway,
    /// The request's head.
    pub call: &'a Call,
    /// The provider.
    pub upstream: &'a Upstream,
    /// What can end it from outside.
    pub cut: &'a Watch,
    /// When the clock of the whole exchange runs out.
    pub total: Option<Instant>,
}

impl Turn<'_> {
    /// The clock between bytes.
    pub fn idle(&self) -> Duration {
        self.upstream.timeouts.idle
    }

    /// When an answer that made progress at this moment is silent for too long, or takes too long as a whole.
    pub fn idle_deadline(&self, progress: Instant) -> Instant {
        earlier(after(progress, self.idle()), self.total)
    }

    /// Waits for the clock of the whole exchange. Cancel safe.
    pub async fn total_passed(&self) {
        match self.total {
            Some(total) => sleep_until(total).await,
            None => std::future::pending().await,
        }
    }

    /// The name of the clock that has run out, where it is either this one or the total.
    pub fn fired(&self, other: &'static str) -> &'static str {
        if self.total.is_some_and(|total| total <= Instant::now()) { "total" } else { other }
    }
}

/// Carries one request to its provider and the answer back.
///
/// # Errors
/// [`Broken`] when the connection must not be closed cleanly.
pub async fn run(
    gateway: &Gateway,
    client: &mut Client,
    call: &Call,
    caller: Option<&Caller>,
    remembered: &mut Remembered,
) -> Result<(), Broken> {
    let mut exchange = Exchange::begin(gateway, call, caller);
    let carried = AssertUnwindSafe(carry(gateway, client, call, remembered, &mut exchange)).catch_unwind().await;
    match carried {
        Ok(Ok(()) | Err(Stop::Answered)) => Ok(()),
        Ok(Err(stop)) => end(gateway, client, call, &mut exchange, stop).await,
        Err(_panic) => {
            ::metrics::counter!("llm_proxy_panics_total").increment(1);
            panicked(client, &mut exchange).await
        }
    }
}

/// A panic is a fault of ours, in one exchange: it gets its 500 where that can still be told, and its record.
async fn panicked(client: &mut Client, exchange: &mut Exchange<'_>) -> Result<(), Broken> {
    let is_told = client.answer().is_none();
    if is_told {
        exchange.status = Some(Refusal::Internal.status());
    }
    exchange.settle(Outcome::Unknown, Some("panic".into()));
    if !is_told {
        return Err(Broken);
    }
    client.close_after();
    reply::refuse(client, exchange.dialect, exchange.id.text(), &Refusal::Internal, Vec::new())
        .await
        .map_err(|_| Broken)
}

async fn carry(
    gateway: &Gateway,
    client: &mut Client,
    call: &Call,
    remembered: &mut Remembered,
    exchange: &mut Exchange<'_>,
) -> Result<(), Stop> {
    let target = Target::new(call.target());
    if is_health(call, &target) {
        return answer_health(gateway, client, exchange, target.path).await;
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

    let upgrade = asked_upgrade(call);
    let asked = upgrade.as_ref().ok().and_then(Option::as_ref);
    let (token, forms) =
        credentials::find(call, &target, exchange.dialect, asked).map_err(|_| Refusal::InvalidApiKey)?;
    let digest = remembered.digest(&gateway.pepper, &token).map_err(|_| Refusal::InvalidApiKey)?;
    let edition = gateway.tokens.edition();
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
    let upgrade = upgrade.map_err(|bad| match bad {
        BadUpgrade::Version => Refusal::WebSocketVersion,
        BadUpgrade::Malformed(_) => Refusal::InvalidRequest(bad.to_string().into()),
    })?;
    let rule = match &upgrade {
        Some(_) => {
            exchange.model_requested = judge::socket(&target, api, &known, &route)?;
            BodyRule::Pass
        }
        None => judge::body_rule(call, api, &known, &route)?,
    };
    let asks_usage = upgrade.is_none() && judge::asks_usage(call, api, &route, upstream.max_held_bytes);
    let reads_body = rule != BodyRule::Pass || asks_usage;
    // Told before anybody is asked to send it.
    let held = upstream.max_held_bytes.min(upstream.max_request_bytes);
    if reads_body && call.content_length().is_some_and(|length| length > held) {
        return Err(Refusal::TooLarge(held).into());
    }
    if call.expects_continue && reads_body {
        invite_body(client).await?;
    }
    let total = upstream.timeouts.total.map(|total| after(exchange.received().into(), total));
    let turn = Turn { gateway, call, upstream, cut: &cut, total };
    if upgrade.is_none() {
        exchange.bodies = Bodies::of(known.holder.content, call, &gateway.held);
    }
    let copy = exchange.bodies.as_ref().and_then(|bodies| bodies.request());
    let mut upload = if reads_body {
        let (mut body, hold) = whole_body(turn, client, exchange, held).await?;
        if let Some(copy) = &copy {
            copy.push(&body);
            copy.end();
        }
        if let Some(model) = judge::body(&rule, &body, api, &known, &route)? {
            exchange.model_requested = Some(model);
        }
        if asks_usage && let inject::Asked::Changed(changed) = inject::ask(&body) {
            body = changed.into();
            exchange.hides_usage = true;
        }
        let mut upload = Upload::held(body.clone(), hold);
        if exchange.model_requested.is_none() {
            upload.scan.feed(&body);
        }
        upload
    } else {
        Upload::streamed(call, upstream.max_request_bytes)
    };
    upload.copy_to(copy);
    known
        .state
        .check_rate()
        .map_err(|TooFast { limit, retry_after_ms }| Refusal::RateLimited { limit, retry_after_ms })?;
    // A limit that came while the body was read holds already.
    let changed = gateway.tokens.edition() != edition;
    let limited = if changed { authenticate(gateway, &digest).await? } else { Arc::clone(&known) };
    let permit = permit(gateway, &limited).await?;
    if call.expects_continue && !reads_body {
        invite_body(client).await?;
    }

    let switch = upgrade.as_ref().map(|upgrade| (upgrade.key(), upgrade.offer(exchange.dialect, &key.secret())));
    let placement = forms.placement(exchange.dialect);
    let stray = forms.stray(call, &token);
    let outgoing_target = outgoing_target(&route, forms.query(&target, exchange.dialect, stray));
    let offered = switch.as_ref().and_then(|(_, offer)| offer.protocols.as_ref());
    let strays = |token: &str| {
        outgoing_target.contains(token) || offered.is_some_and(|protocols| protocols.expose().contains(token))
    };
    if stray.is_some_and(strays) {
        let why = "the path, or a subprotocol, holds the llm-proxy token: send it as the key only";
        return Err(Refusal::InvalidRequest(why.into()).into());
    }
    let to = Destination {
        authority: &upstream.authority,
        target: &outgoing_target,
        placement: &placement,
        stray,
        key,
        framing: upload.framing,
        wants_identity: exchange.hides_usage,
        switch: switch.as_ref().map(|(key, offer)| (*key, offer)),
    };
    let mut provider = send(turn, client, exchange, &mut upload, &to, permit).await?;

    if let Some(upgrade) = upgrade.as_ref().filter(|_| provider.http.answer().is_some_and(AnswerHead::is_switch)) {
        let rules = Rules { upgrade, known: &known, api };
        return websocket::carry(turn, client, exchange, &mut provider, &rules).await;
    }
    let cors_fields: Vec<_> = origin.map(cors::fields).into_iter().flatten().collect();
    relay(turn, client, exchange, &mut upload, &mut provider, &cors_fields).await?;

    if upload.sent_all {
        provider.release();
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

/// The WebSocket that the request asks for, if it does.
fn asked_upgrade(call: &Call) -> Result<Option<Upgrade<'_>>, BadUpgrade> {
    if call.value_of(Name::Upgrade).is_none() {
        return Ok(None);
    }
    let fields = call.fields().iter().map(|field| (call.name(field), call.value(field)));
    handshake::judge(call.method(), call.version, call.framing, fields)
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
async fn invite_body(client: &mut Client) -> Result<(), Stop> {
    reply::patient(client.write_continue()).await.map_err(|_| Stop::ClientGone)
}

/// Reads a body whole that must be judged or asked for usage.
async fn whole_body(
    turn: Turn<'_>,
    client: &mut Client,
    exchange: &mut Exchange<'_>,
    limit: u64,
) -> Result<(Bytes, Hold), Stop> {
    let waiting = Instant::now();
    let (whole, hold) = tokio::select! {
        biased;
        read = read_whole(client, turn.call, limit, &turn.gateway.held, turn.idle()) => read?,
        reason = turn.cut.cut() => return Err(Stop::Cut(reason)),
        () = turn.total_passed() => return Err(Refusal::UpstreamTimeout("total").into()),
    };
    exchange.waited_for_client = waiting.elapsed();
    Ok((whole, hold))
}

fn outgoing_target(route: &Route, query: Option<Cow<'_, str>>) -> String {
    match query {
        Some(query) => format!("{}?{query}", route.upstream_path),
        None => route.upstream_path.clone(),
    }
}

fn is_health(call: &Call, target: &Target<'_>) -> bool {
    matches!(call.method(), "GET" | "HEAD") && matches!(target.path, "/health" | "/health/live" | "/health/ready")
}

/// Health checks are no exchanges: nothing is recorded.
async fn answer_health(
    gateway: &Gateway,
    client: &mut Client,
    exchange: &mut Exchange<'_>,
    path: &str,
) -> Result<(), Stop> {
    exchange.forget();
    // A process that drains is alive: a supervisor must not kill it for that.
    let is_stopping = gateway.drain.is_stopping() && path != "/health/live";
    let (status, body): (u16, &[u8]) =
        if is_stopping { (503, br#"{"status":"stopping"}"#) } else { (200, br#"{"status":"ok"}"#) };
    let fields = [("content-type", Cow::Borrowed("application/json"))];
    reply::send(client, status, &fields, body).await.map_err(|_| Stop::ClientGone)?;
    Err(Stop::Answered)
}

async fn preflight(
    gateway: &Gateway,
    client: &mut Client,
    call: &Call,
    exchange: &mut Exchange<'_>,
) -> Result<(), Stop> {
    let api = exchange.api.and_then(|index| gateway.routes.apis().get(index)).ok_or(Refusal::UnknownRoute)?;
    let origin = cors::origin(call, api).ok().flatten().ok_or(Refusal::OriginNotAllowed)?;
    exchange.forget();
    let fields = cors::preflight_fields(call, api, origin, exchange.id.text());
    reply::send(client, 204, &fields, b"").await.map_err(|_| Stop::ClientGone)?;
    Err(Stop::Answered)
}

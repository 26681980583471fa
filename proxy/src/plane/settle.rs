//! Settling: however an exchange ends, it ends in exactly one terminal record.
//!
//! [`Exchange`] gathers the facts while a request is carried, and settles when told the outcome or, failing that, when
//! dropped: an early return, a cancelled task and a panic all pass through here.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use http::HeaderValue;
use llm_proxy_core::answer::Refusal;
use llm_proxy_core::capture::{self, Policy};
use llm_proxy_core::dialect::Dialect;
use llm_proxy_core::http1::answer_head::AnswerHead;
use llm_proxy_core::http1::call::{Call, Name};
use llm_proxy_core::inject::Hider;
use llm_proxy_core::routing::Route;
use llm_proxy_core::usage::{Asked, Ended as AnswerEnded, Meter, Metered, Number, Source, Usage};
use llm_proxy_core::websocket::realtime::Session;
use llm_proxy_plugins::event::{self, Message, Outcome};
use llm_proxy_plugins::journal::{Kind, Mode};
use tokio::time::timeout;
use uuid::Uuid;

use super::Gateway;
use super::bodies::{self, Bodies};
use super::gaps::Gaps;
use super::metrics;
use super::state::CutReason;
use super::tokens::Known;
use super::upload::Upload;
use crate::downstream::Caller;
use crate::provider::Provider;

/// Room for nearly every `begin`, in bytes, and for nearly every `end` without content.
const BEGIN_BYTES: usize = 384;
const END_BYTES: usize = 1_024;
/// The longest wait for a disk that does not answer.
const DISK_PATIENCE: Duration = Duration::from_secs(5);

/// What a refusal is, in the record.
pub const fn outcome_of_refusal(refusal: &Refusal) -> Outcome {
    match refusal {
        Refusal::UpstreamUnreachable | Refusal::UpstreamInvalid => Outcome::UpstreamUnreachable,
        Refusal::UpstreamCut => Outcome::UpstreamCut,
        Refusal::UpstreamTimeout(_) | Refusal::HeadTimeout => Outcome::Timeout,
        Refusal::Overloaded => Outcome::Shed,
        _ => Outcome::Refused,
    }
}

/// What a cut is, in the record.
pub const fn outcome_of_cut(reason: CutReason) -> Outcome {
    match reason {
        CutReason::Revoked | CutReason::ProjectInactive => Outcome::Revoked,
        CutReason::Shutdown => Outcome::Shed,
    }
}

/// The id of an exchange: UUIDv7, in both forms it is sent in.
pub struct ExchangeId {
    /// The id.
    pub uuid: Uuid,
    /// Its text, as a field value.
    pub field: HeaderValue,
}

impl ExchangeId {
    /// Makes the id of an exchange received at this time.
    pub fn new(received_us: i64) -> Self {
        let random: [u8; 10] = rand::random();
        let millis = u64::try_from(received_us / 1000).unwrap_or(0);
        let uuid = uuid::Builder::from_unix_timestamp_millis(millis, &random).into_uuid();
        let mut text = [0u8; uuid::fmt::Hyphenated::LENGTH];
        let field = HeaderValue::from_bytes(uuid.hyphenated().encode_lower(&mut text).as_bytes())
            .unwrap_or_else(|_| HeaderValue::from_static(""));
        Self { uuid, field }
    }

    /// The id as text.
    pub fn text(&self) -> &str {
        self.field.to_str().unwrap_or("")
    }
}

/// Microseconds since the epoch.
pub fn now_us() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}

/// The facts of one exchange, and the duty to record them.
pub struct Exchange<'a> {
    gateway: &'a Gateway,
    call: &'a Call,
    /// Who calls, where that is recorded.
    caller: Option<&'a Caller>,
    /// Its id.
    pub id: ExchangeId,
    received: Instant,
    received_us: i64,
    /// The dialect that our own answers speak.
    pub dialect: Dialect,
    /// Which API, once routed.
    pub api: Option<usize>,
    /// The endpoint's template, once routed.
    pub endpoint: &'static str,
    /// The token's holder, once authenticated.
    pub known: Option<Arc<Known>>,
    /// The model asked for, where it is known.
    pub model_requested: Option<String>,
    /// The status the client saw.
    pub status: Option<u16>,
    /// Body bytes forwarded to the provider.
    pub request_bytes: u64,
    /// Body bytes relayed to the client.
    pub response_bytes: u64,
    /// Which try at the provider this is.
    pub attempt: u32,
    /// The provider's id of this request.
    pub provider_request_id: Option<String>,
    /// Reads the answer as it passes.
    pub meter: Option<Meter>,
    /// The provider was asked for usage in the client's place.
    pub hides_usage: bool,
    /// Takes the usage that nobody asked for out of the answer.
    pub hider: Option<Hider>,
    /// Reads the provider's side of a WebSocket, in place of an answer.
    pub session: Option<Session>,
    /// Both bodies, where the project lets them be kept.
    pub bodies: Option<Box<Bodies>>,
    /// The pauses of the answer's stream.
    pub gaps: Gaps,
    /// Time spent waiting for the client's body before the first byte went out.
    pub waited_for_client: Duration,
    forwarded: Option<Duration>,
    first_byte: Option<Duration>,
    first_chunk: Option<Duration>,
    last_byte: Option<Duration>,
    /// The code of the refusal it ended with, for counting where there is no record.
    refused_with: &'static str,
    /// Where in the journal it begins.
    begun: Option<u64>,
    settled: bool,
}

impl<'a> Exchange<'a> {
    /// Begins an exchange whose head has just been received.
    pub fn begin(gateway: &'a Gateway, call: &'a Call, caller: Option<&'a Caller>) -> Self {
        let received_us = now_us();
        Self {
            gateway,
            call,
            caller,
            id: ExchangeId::new(received_us),
            received: Instant::now(),
            received_us,
            dialect: Dialect::OpenAi,
            api: None,
            endpoint: "other",
            known: None,
            model_requested: None,
            status: None,
            request_bytes: 0,
            response_bytes: 0,
            attempt: 0,
            provider_request_id: None,
            meter: None,
            hides_usage: false,
            hider: None,
            session: None,
            bodies: None,
            gaps: Gaps::default(),
            waited_for_client: Duration::ZERO,
            forwarded: None,
            first_byte: None,
            first_chunk: None,
            last_byte: None,
            refused_with: "none",
            begun: None,
            settled: false,
        }
    }

    /// It is known where the request goes.
    pub fn routed(&mut self, route: &Route) {
        self.api = Some(route.api);
        self.dialect = self.gateway.routes.apis().get(route.api).map_or(self.dialect, |api| api.dialect);
        self.endpoint = route.endpoint.template;
        self.model_requested = route.path_model.as_deref().map(|model| super::clean::text(model, 256));
    }

    /// When the head was received, by the monotonic clock.
    pub fn received(&self) -> Instant {
        self.received
    }

    /// When it was received, in microseconds since the epoch.
    pub fn received_us(&self) -> i64 {
        self.received_us
    }

    /// Writes `begin`: in the file before the first byte goes to the provider. Where the journal cannot take it (a full
    /// disk), the request goes on and the journal counts what it dropped: in mode `durable` the log is not the outage.
    pub fn record_begin(&mut self) {
        self.attempt = self.attempt.saturating_add(1);
        self.forwarded.get_or_insert_with(|| self.received.elapsed());
        if self.attempt > 1 {
            return;
        }
        let holder = self.known.as_deref().map(|known| &known.holder);
        let client_address = self.client_address();
        let begin = event::BeginParts {
            id: self.id.text(),
            project_id: holder.map_or("", |holder| &holder.project_id),
            token_id: holder.map_or("", |holder| &holder.token_id),
            api: self.api_name().unwrap_or_default(),
            dialect: self.dialect.name(),
            endpoint: self.endpoint,
            method: self.call.method(),
            model_requested: self.model_requested.as_deref(),
            received_us: self.received_us,
            attempt: self.attempt,
            client_address: client_address.as_deref(),
        };
        let mut payload = Vec::with_capacity(BEGIN_BYTES);
        begin.encode(&mut payload);
        if let Ok(seq) = self.gateway.append(Kind::Begin, self.id.uuid, self.received_us, &payload) {
            self.gateway.begun.lock().insert(seq);
            self.begun = Some(seq);
        }
    }

    /// Whether the journal wants `begin` to be on disk before anything goes to the provider.
    pub fn waits_for_disk(&self) -> bool {
        self.gateway.journal.mode() == Mode::Strict
    }

    /// Waits until it is. Cancel safe.
    ///
    /// # Errors
    /// [`Refusal::Unrecorded`], where it cannot be brought there.
    pub async fn begin_on_disk(&self) -> Result<(), Refusal> {
        let seq = self.begun.ok_or(Refusal::Unrecorded)?;
        match timeout(DISK_PATIENCE, self.gateway.journal.on_disk(seq)).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => self.gateway.refused_by_disk(&error),
            Err(_) => self.gateway.refused_by_disk(&"it does not answer"),
        }
        Err(Refusal::Unrecorded)
    }

    /// The connection has sent what it had of the request.
    pub fn note_sent(&mut self, upload: &mut Upload, provider: &Provider) {
        self.request_bytes = self.request_bytes.saturating_add(upload.note_sent(provider));
        if self.model_requested.is_none() {
            self.model_requested = upload.scan.model().map(|model| super::clean::text(model, 256));
        }
    }

    /// The head of the provider's answer is here, to be passed on.
    pub fn note_answer(&mut self, answer: &AnswerHead) {
        self.status = Some(answer.status());
        let id = super::forward::provider_request_id(self.dialect, answer);
        self.provider_request_id = id.map(|id| super::clean::text(id, 256));
    }

    /// The first byte of the provider's answer is here.
    pub fn note_first_byte(&mut self) {
        self.first_byte.get_or_insert_with(|| self.received.elapsed());
    }

    /// A piece of the answer's body is here.
    pub fn note_piece(&mut self, bytes: usize) {
        let now = self.received.elapsed();
        match self.last_byte {
            Some(last) => self.gaps.count(now.saturating_sub(last)),
            None => self.first_chunk = Some(now),
        }
        self.last_byte = Some(now);
        self.response_bytes = self.response_bytes.saturating_add(u64::try_from(bytes).unwrap_or(u64::MAX));
    }

    /// This was no exchange after all (a health check, a preflight): nothing is recorded.
    pub fn forget(&mut self) {
        self.settled = true;
    }

    /// Whether the process is on its way to its end.
    pub fn is_stopping(&self) -> bool {
        self.gateway.drain.is_stopping()
    }

    /// Ends a refused exchange.
    pub fn refused(&mut self, refusal: &Refusal) {
        self.status = Some(refusal.status());
        self.refused_with = refusal.code();
        if let Refusal::ModelNotAllowed(Some(model)) = refusal {
            self.model_requested.get_or_insert_with(|| super::clean::text(model, 256));
        }
        self.settle(outcome_of_refusal(refusal), Some(reason(refusal).into()));
    }

    /// Ends the exchange: usage, cost, record and metrics. The first call counts, later ones do nothing.
    pub fn settle(&mut self, outcome: Outcome, reason: Option<Cow<'static, str>>) {
        if std::mem::replace(&mut self.settled, true) {
            return;
        }
        // A fault in the counting costs the numbers, not the record.
        let weighed = catch_unwind(AssertUnwindSafe(|| self.weigh(outcome)));
        let Weighed { stream, metered, cost } = weighed.unwrap_or_else(|_panic| {
            ::metrics::counter!("llm_proxy_panics_total").increment(1);
            Weighed::default()
        });
        if self.known.is_none() {
            // Not authenticated: counted and sampled, so that junk cannot fill the disk.
            self.gateway.metrics.refused(self.refused_with);
            let what = Refused { outcome, reason: reason.clone(), status: self.status.unwrap_or(0) };
            let Some(count) = self.gateway.sampler.admit(self.received, what) else { return };
            self.record_end(outcome, reason, Weighed { stream, ..Weighed::default() }, count);
            return;
        }
        self.record_end(outcome, reason, Weighed { stream, metered, cost }, 1);
        self.runs_no_more();
    }

    /// Its begin need not be kept any longer.
    fn runs_no_more(&mut self) {
        if let Some(seq) = self.begun.take() {
            self.gateway.begun.lock().remove(&seq);
        }
    }

    /// What is kept of the bodies. A fault in making it costs the content, not the record.
    fn content(&mut self, outcome: Outcome) -> Option<event::Content> {
        let bodies = self.bodies.take()?;
        let made = catch_unwind(AssertUnwindSafe(|| bodies.content(self.call, outcome == Outcome::Finished)));
        made.inspect_err(|_panic| ::metrics::counter!("llm_proxy_panics_total").increment(1)).ok()
    }

    /// What the client says of itself for the record, as far as its project lets that be kept. A fault in reading it
    /// costs the tags, not the record.
    fn tags(&self) -> BTreeMap<String, String> {
        let Some(known) = self.known.as_ref().filter(|_| bodies::tells(self.call)) else { return BTreeMap::new() };
        let read = || capture::tags(known.holder.content.capture, bodies::told(self.call));
        catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_panic| {
            ::metrics::counter!("llm_proxy_panics_total").increment(1);
            BTreeMap::new()
        })
    }

    /// The client's id of this request, unless its project lets nothing of the kind be kept.
    fn client_request_id(&self) -> Option<String> {
        let keeps_nothing = self.known.as_ref().is_some_and(|known| known.holder.content.capture == Policy::None);
        let id = self.call.value_of(Name::ClientRequestId).filter(|_| !keeps_nothing)?;
        Some(super::clean::text(std::str::from_utf8(id).ok()?, 256))
    }

    /// Ends the metering, and tells the metrics.
    fn weigh(&mut self, outcome: Outcome) -> Weighed {
        let ended = if outcome == Outcome::Finished { AnswerEnded::Whole } else { AnswerEnded::Cut };
        let asked = Asked {
            endpoint: self.endpoint,
            model: self.model_requested.as_deref(),
            request_bytes: self.request_bytes,
        };
        let (stream, metered) = match (self.session.take(), self.meter.take()) {
            (Some(session), _) => (Some(true), Some(session.finish())),
            (None, Some(meter)) => (Some(meter.is_event_stream()), Some(meter.finish(ended, &asked))),
            (None, None) => (None, None),
        };
        let cost = metered.as_ref().and_then(|metered| {
            self.gateway.prices.cost(
                self.dialect,
                metered.model.as_deref(),
                self.model_requested.as_deref(),
                &metered.usage,
            )
        });
        self.measure(outcome, metered.as_ref(), cost.as_deref());
        Weighed { stream, metered, cost }
    }

    fn client_address(&self) -> Option<String> {
        self.caller.map(|caller| caller.of_call(self.call))
    }

    fn api_name(&self) -> Option<&'a str> {
        self.api.and_then(|index| self.gateway.routes.apis().get(index)).map(|api| &*api.name)
    }

    fn measure(&self, outcome: Outcome, metered: Option<&Metered>, cost: Option<&str>) {
        let api = self.api_name().unwrap_or("none");
        let index = self.api.and_then(|index| u16::try_from(index).ok()).unwrap_or(u16::MAX);
        let duration = self.received.elapsed();
        self.gateway.metrics.ended(&metrics::Ended {
            api: (index, api),
            endpoint: self.endpoint,
            status: self.status.unwrap_or(0),
            outcome,
            overhead: self.forwarded.map(|forwarded| forwarded.saturating_sub(self.waited_for_client)),
            first_chunk: self.first_chunk,
            duration,
            gaps: &self.gaps,
        });
        if let Some(metered) = metered {
            self.gateway.metrics.used((index, api), metered, cost);
        }
    }

    /// Writes `end`. A function of its own, so that what it costs can be counted.
    #[inline(never)]
    fn record_end(&mut self, outcome: Outcome, reason: Option<Cow<'static, str>>, weighed: Weighed, count: u64) {
        let Weighed { stream, metered, cost } = weighed;
        let content = self.content(outcome);
        let tags = self.tags();
        let (client_address, client_request_id) = (self.client_address(), self.client_request_id());
        let chunks = metered.as_ref().map(|metered| metered.chunks);
        let (usage, model, finish_reasons) = match metered {
            Some(metered) => (Some(usage_record(metered.usage)), metered.model, metered.finish_reasons),
            None => (None, None, Vec::new()),
        };
        let micros = |time: Option<Duration>| time.map(|time| u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
        let holder = self.known.as_deref().map(|known| &known.holder);
        let end = event::ExchangeParts {
            id: self.id.text(),
            project_id: holder.map(|holder| &*holder.project_id),
            token_id: holder.map(|holder| &*holder.token_id),
            api: self.api_name(),
            dialect: Some(self.dialect.name()),
            endpoint: Some(self.endpoint),
            method: Some(self.call.method()),
            model_requested: self.model_requested.as_deref(),
            model: model.as_deref(),
            stream,
            status: self.status.map(u32::from),
            outcome,
            reason: reason.as_deref(),
            usage: usage.as_ref(),
            usd: cost.as_deref(),
            prices: self.gateway.prices.version(),
            times: event::Times {
                received_us: Some(self.received_us),
                forwarded_us: micros(self.forwarded),
                first_byte_us: micros(self.first_byte),
                first_chunk_us: micros(self.first_chunk),
                last_byte_us: micros(self.last_byte),
            },
            chunks,
            request_bytes: self.request_bytes,
            response_bytes: self.response_bytes,
            finish_reasons: &finish_reasons,
            client_request_id: client_request_id.as_deref(),
            provider_request_id: self.provider_request_id.as_deref(),
            attempt: (self.attempt > 0).then_some(self.attempt),
            count,
            tags: &tags,
            client_address: client_address.as_deref(),
            content: content.as_ref(),
        };
        let mut payload = Vec::with_capacity(END_BYTES);
        end.encode(&mut payload);
        let _ = self.gateway.append(Kind::End, self.id.uuid, self.received_us, &payload);
    }
}

/// What the metering found out.
#[derive(Default)]
struct Weighed {
    stream: Option<bool>,
    metered: Option<Metered>,
    cost: Option<String>,
}

/// What the record says of a refusal: the name of the clock that ran out, else its code.
pub const fn reason(refusal: &Refusal) -> &'static str {
    match refusal {
        Refusal::UpstreamTimeout(clock) => clock,
        Refusal::HeadTimeout => "head",
        other => other.code(),
    }
}

/// What is kept of a refusal that has no record of its own.
#[derive(Debug)]
pub struct Refused {
    outcome: Outcome,
    reason: Option<Cow<'static, str>>,
    status: u16,
}

/// Records the refusals that no later one will stand for: as many as the last of them.
pub fn record_rest(gateway: &Gateway) {
    let Some((last, count)) = gateway.sampler.rest() else { return };
    let received_us = now_us();
    let id = ExchangeId::new(received_us);
    let record = event::Exchange {
        id: id.text().to_owned(),
        r#type: event::EventType::Exchange.into(),
        schema: 1,
        status: (last.status > 0).then(|| u32::from(last.status)),
        outcome: last.outcome.into(),
        reason: last.reason.map(Cow::into_owned),
        times: Some(event::Times { received_us: Some(received_us), ..Default::default() }),
        count,
        ..Default::default()
    };
    let _ = gateway.append(Kind::End, id.uuid, received_us, &record.encode_to_vec());
}

/// Records a head that never became a call: counted, and sampled.
pub fn record_unparsed(gateway: &Gateway, id: &ExchangeId, refusal: &Refusal, caller: Option<&Caller>) {
    gateway.metrics.refused(refusal.code());
    let what = Refused {
        outcome: outcome_of_refusal(refusal),
        reason: Some(reason(refusal).into()),
        status: refusal.status(),
    };
    let Some(count) = gateway.sampler.admit(Instant::now(), what) else { return };
    let received_us = now_us();
    let record = event::Exchange {
        id: id.text().to_owned(),
        r#type: event::EventType::Exchange.into(),
        schema: 1,
        status: Some(u32::from(refusal.status())),
        outcome: outcome_of_refusal(refusal).into(),
        reason: Some(reason(refusal).to_owned()),
        times: Some(event::Times { received_us: Some(received_us), ..Default::default() }),
        client_address: caller.map(Caller::of_connection),
        count,
        ..Default::default()
    };
    let _ = gateway.append(Kind::End, id.uuid, received_us, &record.encode_to_vec());
}

fn source(source: Source) -> event::Source {
    match source {
        Source::Reported => event::Source::Reported,
        Source::Estimated => event::Source::Estimated,
        Source::Unknown => event::Source::Unknown,
    }
}

fn usage_record(usage: Usage) -> event::Usage {
    let overall = usage.source();
    let numbers: [(&str, Option<Number>); 7] = [
        ("input_tokens", usage.input_tokens),
        ("output_tokens", usage.output_tokens),
        ("cache_read_input_tokens", usage.cache_read_input_tokens),
        ("cache_creation_input_tokens", usage.cache_creation_input_tokens),
        ("reasoning_output_tokens", usage.reasoning_output_tokens),
        ("audio_input_tokens", usage.audio_input_tokens),
        ("audio_output_tokens", usage.audio_output_tokens),
    ];
    let differs = numbers.iter().any(|(_, number)| number.is_some_and(|number| number.source != overall));
    let sources = numbers
        .iter()
        .filter(|_| differs)
        .filter_map(|(name, number)| number.map(|number| ((*name).to_owned(), source(number.source).into())))
        .collect();
    let tokens = |number: Option<Number>| number.map(|number| number.tokens);
    event::Usage {
        source: source(overall).into(),
        sources,
        input_tokens: tokens(usage.input_tokens),
        output_tokens: tokens(usage.output_tokens),
        cache_read_input_tokens: tokens(usage.cache_read_input_tokens),
        cache_creation_input_tokens: tokens(usage.cache_creation_input_tokens),
        reasoning_output_tokens: tokens(usage.reasoning_output_tokens),
        audio_input_tokens: tokens(usage.audio_input_tokens),
        audio_output_tokens: tokens(usage.audio_output_tokens),
        provider_json: usage.provider.map(|provider| provider.into_string().into_bytes()),
    }
}

impl Drop for Exchange<'_> {
    fn drop(&mut self) {
        if !self.settled {
            let (outcome, reason) = if std::thread::panicking() {
                (Outcome::Unknown, "panic")
            } else {
                // The task was dropped while it waited: the connection is gone.
                (Outcome::ClientGone, "dropped")
            };
            self.settle(outcome, Some(reason.into()));
        }
        // Also where settling itself broke off: what is kept for it would be kept until the process ends.
        self.runs_no_more();
    }
}

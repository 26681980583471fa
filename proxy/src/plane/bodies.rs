//! The bodies of one exchange, copied as they pass, where its project lets them be kept.
//!
//! An exchange whose project keeps none has none of this. The copies count in the budget of held bodies, and leave half
//! of it to these: where they have no room left, the exchange goes on and its record says that nothing was kept. What
//! becomes of the copies is decided in `llm_proxy_core::capture`, before anything of them reaches a disk.

use std::sync::Arc;

use llm_proxy_core::capture::{self, Capture, Keeper, Omit, Policy};
use llm_proxy_core::http1::answer_head::{AnswerHead, AnswerName};
use llm_proxy_core::http1::call::{Call, Field, Name};
use llm_proxy_plugins::event::{Body, CapturePolicy, Content};
use llm_proxy_store::ContentPolicy;
use parking_lot::Mutex;

use super::held::{HeldBytes, Hold};

/// What stands in a record in place of a copy that there was no memory for.
const NO_MEMORY: &str = "the memory for held bodies was used up";

/// Both bodies of one exchange.
pub struct Bodies {
    capture: Capture,
    request: Option<Copy>,
    response: Option<Shared>,
    answer_type: Option<String>,
    answer_coding: Option<String>,
}

/// A copy that grows while somebody else passes the body on.
#[derive(Clone)]
pub struct Copy(Arc<Mutex<Shared>>);

struct Shared {
    keeper: Keeper,
    hold: Hold,
    is_starved: bool,
    /// The body came to its end.
    is_over: bool,
}

impl Shared {
    fn new(capture: Capture, budget: &HeldBytes) -> Self {
        Self { keeper: capture.keeper(), hold: budget.hold(), is_starved: false, is_over: false }
    }

    fn push(&mut self, piece: &[u8]) {
        let before = self.keeper.held_bytes();
        self.keeper.push(piece);
        let grown = self.keeper.held_bytes().saturating_sub(before);
        if grown > 0 && !self.hold.grow_if_spare(u64::try_from(grown).unwrap_or(u64::MAX)) {
            self.is_starved = true;
        }
        if self.is_starved {
            // The bytes go, what was counted stays.
            self.keeper.let_go();
        }
    }

    /// The body as the record has it.
    fn body(&mut self, made: impl FnOnce(&Keeper) -> Option<capture::Body>) -> Option<Body> {
        if self.is_starved {
            let bytes = self.keeper.bytes();
            return Some(Body { bytes, truncated: true, omitted: Some(NO_MEMORY.to_owned()), ..Body::default() });
        }
        if !self.is_over {
            self.keeper.break_off();
        }
        made(&self.keeper).map(record)
    }
}

impl Copy {
    /// Takes the next piece of the body.
    pub fn push(&self, piece: &[u8]) {
        self.0.lock().push(piece);
    }

    /// The body has come to its end.
    pub fn end(&self) {
        self.0.lock().is_over = true;
    }
}

impl Bodies {
    /// The copies of an exchange of this project; `None` where it keeps none, or the client asks for none.
    pub fn of(policy: ContentPolicy, call: &Call, budget: &HeldBytes) -> Option<Box<Self>> {
        if !policy.capture.keeps_bodies() {
            return None;
        }
        let most = usize::try_from(policy.max_bytes).unwrap_or(usize::MAX);
        let capture = Capture::new(policy.capture, most).ok()?;
        let Omit { request, response } = capture::omit(told(call));
        let copy = |is_omitted: bool| (!is_omitted).then(|| Shared::new(capture, budget));
        Some(Box::new(Self {
            capture,
            request: copy(request).map(|shared| Copy(Arc::new(Mutex::new(shared)))),
            response: copy(response),
            answer_type: None,
            answer_coding: None,
        }))
    }

    /// Where the request's body is copied to.
    pub fn request(&self) -> Option<Copy> {
        self.request.clone()
    }

    /// The head of the provider's answer is here.
    pub fn note_answer(&mut self, answer: &AnswerHead) {
        let text = |name| answer.get(name).and_then(|value| std::str::from_utf8(value).ok()).map(str::to_owned);
        self.answer_type = text(AnswerName::ContentType);
        self.answer_coding = text(AnswerName::ContentEncoding);
    }

    /// A piece of the answer's body is here.
    pub fn note_piece(&mut self, piece: &[u8]) {
        if let Some(response) = &mut self.response {
            response.push(piece);
        }
    }

    /// What the record has of both. `is_whole`: the answer came to its end.
    pub fn content(mut self, call: &Call, is_whole: bool) -> Content {
        let text = |name| call.value_of(name).and_then(|value| std::str::from_utf8(value).ok());
        let request = self.request.as_ref().and_then(|copy| {
            let (kind, coding) = (text(Name::ContentType), text(Name::ContentEncoding));
            copy.0.lock().body(|keeper| capture::request_body(self.capture, kind, coding, keeper))
        });
        let response = self.response.as_mut().and_then(|copy| {
            copy.is_over = is_whole;
            let (kind, coding) = (self.answer_type.as_deref(), self.answer_coding.as_deref());
            copy.body(|keeper| capture::response_body(self.capture, kind, coding, keeper))
        });
        Content { policy: policy_record(self.capture.policy()).into(), request, response }
    }
}

/// Whether the client says anything for the record. Nearly none does.
pub fn tells(call: &Call) -> bool {
    call.fields().iter().any(is_told)
}

/// What it says.
pub fn told(call: &Call) -> impl Iterator<Item = (&str, &[u8])> {
    let fields = call.fields().iter().filter(|field| is_told(field));
    fields.filter_map(|field| Some((std::str::from_utf8(call.name(field)).ok()?, call.value(field))))
}

const fn is_told(field: &Field) -> bool {
    matches!(field.kind, Name::Ours | Name::Helicone)
}

const fn policy_record(policy: Policy) -> CapturePolicy {
    match policy {
        Policy::None => CapturePolicy::None,
        Policy::Metadata => CapturePolicy::Metadata,
        Policy::Redacted => CapturePolicy::Redacted,
        Policy::Full => CapturePolicy::Full,
    }
}

fn record(body: capture::Body) -> Body {
    let capture::Body { content_type, bytes, truncated, json, text, sha256, omitted } = body;
    Body { content_type, bytes, truncated, json, text, sha256, omitted }
}

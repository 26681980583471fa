//! The events that the journal holds: message types generated from `proto/`, their names, and their JSON form.
//!
//! The schema is protobuf because it lives for years on disks and in queues: fields are numbered, an old reader skips
//! what it does not know. Closed sets are enums there, so that the request path writes a number instead of allocating
//! a name; sinks that speak JSON get the names.
//!
//! Decoding drops the fields that this version does not know. So whoever carries an event on, to a queue, a file of
//! dead letters, another process, carries the bytes it came as ([`crate::dispatcher::Event::payload`]) and never
//! encodes it anew: what a later version wrote into it is then still there for a reader that knows it.

mod begin_key;
mod end_key;
mod json;
mod parts;
mod wire;

use std::fmt;

use uuid::Uuid;

pub use begin_key::BeginKey;
pub use end_key::{EndKey, TOKEN_CLASSES};
pub use generated::{
    AdminAction, Begin, Body, CapturePolicy, Content, Cost, EventType, Exchange, Outcome, Source, Times, Usage,
};
pub use json::{append_json_line, to_json_line};
pub use parts::{BeginParts, ExchangeParts};
/// Encoding and decoding of the message types.
pub use prost::Message;

mod generated {
    #![allow(missing_docs, clippy::all)]
    include!(concat!(env!("OUT_DIR"), "/llm_proxy.event.v1.rs"));
}

/// The version of the record, its `schema` field.
pub const SCHEMA: u32 = 1;

/// The `reason` of an exchange that a crash left without its end.
pub const REASON_CRASHED: &str = "process ended before the exchange did";

impl Outcome {
    /// All outcomes.
    pub const ALL: [Self; 10] = [
        Self::Unknown,
        Self::Finished,
        Self::Refused,
        Self::ClientGone,
        Self::UpstreamUnreachable,
        Self::UpstreamCut,
        Self::Timeout,
        Self::Revoked,
        Self::OverBudget,
        Self::Shed,
    ];

    /// The name used in records and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Finished => "finished",
            Self::Refused => "refused",
            Self::ClientGone => "client_gone",
            Self::UpstreamUnreachable => "upstream_unreachable",
            Self::UpstreamCut => "upstream_cut",
            Self::Timeout => "timeout",
            Self::Revoked => "revoked",
            Self::OverBudget => "over_budget",
            Self::Shed => "shed",
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl Source {
    /// The name used in records and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Reported => "reported",
            Self::Estimated => "estimated",
        }
    }
}

impl EventType {
    /// The name used in records.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Exchange => "exchange",
            Self::Admin => "admin",
        }
    }
}

impl CapturePolicy {
    /// All policies, from the one that keeps least.
    pub const ALL: [Self; 4] = [Self::None, Self::Metadata, Self::Redacted, Self::Full];

    /// The name used in records, settings and the management API.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Metadata => "metadata",
            Self::Redacted => "redacted",
            Self::Full => "full",
        }
    }

    /// The policy of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|policy| policy.name() == name)
    }
}

impl fmt::Display for CapturePolicy {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl Exchange {
    /// The record of what an administrator did, under an id of its own. `time_us` is when, in microseconds since the
    /// Unix epoch; `project_id` and `token_id` are what it was done to, or belongs to. The rest is of the request that
    /// asked for it: `status` as it was answered, `endpoint` as a template.
    #[allow(clippy::too_many_arguments, reason = "a record has many fields, and one place makes this one")]
    pub fn of_admin(
        id: Uuid,
        time_us: i64,
        action: AdminAction,
        project_id: Option<String>,
        token_id: Option<String>,
        client_address: Option<String>,
        status: u16,
        method: &str,
        endpoint: &str,
    ) -> Self {
        Self {
            id: id.to_string(),
            r#type: EventType::Admin.into(),
            schema: SCHEMA,
            project_id,
            token_id,
            endpoint: Some(endpoint.to_owned()),
            method: Some(method.to_owned()),
            status: Some(status.into()),
            outcome: Outcome::Finished.into(),
            times: Some(Times { received_us: Some(time_us), ..Times::default() }),
            count: 1,
            client_address,
            admin: Some(action),
            ..Self::default()
        }
    }

    /// What is known of an exchange when only its begin is: the outcome is [`Outcome::Unknown`], the reason
    /// [`REASON_CRASHED`].
    pub fn found_unended(begin: Begin) -> Self {
        Self {
            id: begin.id,
            schema: SCHEMA,
            project_id: some_text(begin.project_id),
            token_id: some_text(begin.token_id),
            api: some_text(begin.api),
            dialect: some_text(begin.dialect),
            endpoint: some_text(begin.endpoint),
            method: some_text(begin.method),
            model_requested: begin.model_requested,
            reason: Some(REASON_CRASHED.to_owned()),
            times: Some(Times {
                received_us: (begin.received_us != 0).then_some(begin.received_us),
                ..Times::default()
            }),
            attempt: (begin.attempt != 0).then_some(begin.attempt),
            client_address: begin.client_address,
            count: 1,
            ..Self::default()
        }
    }
}

/// A plain protobuf string cannot be absent, only empty.
fn some_text(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_survives_encoding_and_absent_stays_absent() {
        let exchange = Exchange {
            id: "0199aa00-0000-7000-8000-000000000001".to_owned(),
            status: Some(0),
            usage: Some(Usage { input_tokens: Some(0), provider_json: Some(b"{}".to_vec()), ..Usage::default() }),
            outcome: Outcome::ClientGone.into(),
            ..Exchange::default()
        };
        let decoded = Exchange::decode(exchange.encode_to_vec().as_slice()).unwrap();
        assert_eq!(decoded, exchange);
        assert_eq!(decoded.outcome(), Outcome::ClientGone);
        let usage = decoded.usage.unwrap();
        assert_eq!((usage.input_tokens, usage.output_tokens), (Some(0), None));
    }

    #[test]
    fn an_unended_exchange_keeps_what_its_begin_knew() {
        let begin = Begin {
            id: "id".to_owned(),
            project_id: "project".to_owned(),
            api: "openai".to_owned(),
            received_us: 7,
            client_address: Some("192.0.2.0/24".to_owned()),
            ..Begin::default()
        };
        let exchange = Exchange::found_unended(begin);
        assert_eq!(exchange.outcome(), Outcome::Unknown);
        assert_eq!(exchange.project_id.as_deref(), Some("project"));
        assert_eq!(exchange.token_id, None);
        assert_eq!(exchange.client_address.as_deref(), Some("192.0.2.0/24"));
        assert_eq!(exchange.attempt, None);
        assert_eq!(exchange.times.unwrap().received_us, Some(7));
        assert_eq!(exchange.count, 1);
    }

    #[test]
    fn what_an_administrator_did_is_an_event_of_its_own_type() {
        let action = AdminAction {
            action: "token.create".to_owned(),
            actor: "management_token".to_owned(),
            resource: "token".to_owned(),
            resource_id: Some("t1".to_owned()),
            after_json: Some(b"{}".to_vec()),
            ..AdminAction::default()
        };
        let some = |text: &str| Some(text.to_owned());
        let (project, token) = (some("p1"), some("t1"));
        let id = Uuid::from_u128(7);
        let event = Exchange::of_admin(
            id,
            42,
            action.clone(),
            project,
            token,
            some("192.0.2.7"),
            201,
            "POST",
            "/manage/tokens",
        );
        let decoded = Exchange::decode(event.encode_to_vec().as_slice()).unwrap();
        assert_eq!(decoded, event);
        assert_eq!((decoded.r#type(), decoded.outcome()), (EventType::Admin, Outcome::Finished));
        assert_eq!((decoded.id, decoded.schema, decoded.count), (id.to_string(), SCHEMA, 1));
        assert_eq!((decoded.project_id.as_deref(), decoded.token_id.as_deref()), (Some("p1"), Some("t1")));
        assert_eq!((decoded.method.as_deref(), decoded.endpoint.as_deref()), (Some("POST"), Some("/manage/tokens")));
        assert_eq!((decoded.status, decoded.client_address.as_deref()), (Some(201), Some("192.0.2.7")));
        assert_eq!(decoded.times.unwrap().received_us, Some(42));
        assert_eq!(decoded.admin, Some(action));
        // Nothing of an exchange.
        assert_eq!((decoded.api, decoded.usage, decoded.content, decoded.attempt), (None, None, None, None));
    }

    #[test]
    fn an_event_of_a_later_version_is_read_as_far_as_it_is_known() {
        let body = Body { bytes: 5, text: Some("hello".to_owned()), ..Body::default() };
        let content = Content { policy: CapturePolicy::Full.into(), request: Some(body), response: None };
        let known = Exchange { id: "an-id".to_owned(), content: Some(content), ..Exchange::default() };
        // Field 900, a text, at the end of the message; field 29 once more, with a field 900 in it, which is merged.
        let later = [known.encode_to_vec().as_slice(), b"\xa2\x38\x03new", b"\xea\x01\x06\xa2\x38\x03new"].concat();
        assert_eq!(Exchange::decode(later.as_slice()).unwrap(), known);
    }

    #[test]
    fn every_policy_has_its_own_name_and_is_found_by_it() {
        for policy in CapturePolicy::ALL {
            assert_eq!(CapturePolicy::from_name(policy.name()), Some(policy));
        }
        assert_eq!(CapturePolicy::ALL.map(CapturePolicy::name), ["none", "metadata", "redacted", "full"]);
        for name in ["", "Full", "all"] {
            assert_eq!(CapturePolicy::from_name(name), None, "{name:?}");
        }
        // What a project has that says nothing, and what an unknown number is read as: no content.
        assert_eq!(CapturePolicy::default(), CapturePolicy::Metadata);
        assert_eq!(Content { policy: 99, ..Content::default() }.policy(), CapturePolicy::Metadata);
    }

    #[test]
    fn every_outcome_has_its_own_name() {
        let names: std::collections::BTreeSet<_> = Outcome::ALL.iter().map(|outcome| outcome.name()).collect();
        assert_eq!(names.len(), Outcome::ALL.len());
        for (index, outcome) in Outcome::ALL.into_iter().enumerate() {
            assert_eq!(i32::from(outcome), i32::try_from(index).unwrap());
        }
    }
}

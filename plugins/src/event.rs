//! The events that the journal holds: message types generated from `proto/`, their names, and their JSON form.
//!
//! The schema is protobuf because it lives for years on disks and in queues: fields are numbered, an old reader skips
//! what it does not know. Closed sets are enums there, so that the request path writes a number instead of allocating
//! a name; sinks that speak JSON get the names.

mod begin_key;
mod end_key;
mod json;
mod wire;

use std::fmt;

pub use begin_key::BeginKey;
pub use end_key::{EndKey, TOKEN_CLASSES};
pub use generated::{Begin, Cost, EventType, Exchange, Outcome, Source, Times, Usage};
pub use json::{append_json_line, to_json_line};
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

impl Exchange {
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
    fn every_outcome_has_its_own_name() {
        let names: std::collections::BTreeSet<_> = Outcome::ALL.iter().map(|outcome| outcome.name()).collect();
        assert_eq!(names.len(), Outcome::ALL.len());
        for (index, outcome) in Outcome::ALL.into_iter().enumerate() {
            assert_eq!(i32::from(outcome), i32::try_from(index).unwrap());
        }
    }
}

//! The records of a chat completion, as an exchange of every day leaves them.

use llm_proxy_plugins::event::{Begin, Cost, EventType, Exchange, Outcome, SCHEMA, Source, Times, Usage};
use uuid::Uuid;

/// The id of the exchange.
pub const ID: Uuid = Uuid::from_u128(0x01a1_ffbe_c2b4_795f_b946_965d_0fe8_866f);
/// When it was received, in microseconds since the epoch.
pub const RECEIVED_US: i64 = 1_795_292_054_196_592;

const PROJECT_ID: &str = "01a1ffbe-ac15-7097-a7fa-5f6508e51984";
const TOKEN_ID: &str = "01a1ffbe-acd4-7090-974a-743fdea8f0ea";
/// With white space, as OpenAI sends it.
const PROVIDER_USAGE: &str = r#"{
    "prompt_tokens": 12,
    "completion_tokens": 5,
    "total_tokens": 17,
    "prompt_tokens_details": {
      "cached_tokens": 0,
      "audio_tokens": 0
    },
    "completion_tokens_details": {
      "reasoning_tokens": 0,
      "audio_tokens": 0,
      "accepted_prediction_tokens": 0,
      "rejected_prediction_tokens": 0
    }
  }"#;

/// What stands in the journal before its first byte goes to the provider.
pub fn begin() -> Begin {
    Begin {
        id: ID.to_string(),
        project_id: PROJECT_ID.to_owned(),
        token_id: TOKEN_ID.to_owned(),
        api: "openai".to_owned(),
        dialect: "openai".to_owned(),
        endpoint: "/v1/chat/completions".to_owned(),
        method: "POST".to_owned(),
        model_requested: Some("gpt-4o-mini".to_owned()),
        received_us: RECEIVED_US,
        attempt: 1,
        ..Begin::default()
    }
}

/// What ends it.
pub fn end() -> Exchange {
    Exchange {
        id: ID.to_string(),
        r#type: EventType::Exchange.into(),
        schema: SCHEMA,
        project_id: Some(PROJECT_ID.to_owned()),
        token_id: Some(TOKEN_ID.to_owned()),
        api: Some("openai".to_owned()),
        dialect: Some("openai".to_owned()),
        endpoint: Some("/v1/chat/completions".to_owned()),
        method: Some("POST".to_owned()),
        model_requested: Some("gpt-4o-mini".to_owned()),
        model: Some("gpt-4o-mini-2024-07-18".to_owned()),
        stream: Some(false),
        status: Some(200),
        outcome: Outcome::Finished.into(),
        usage: Some(Usage {
            source: Source::Reported.into(),
            input_tokens: Some(12),
            output_tokens: Some(5),
            cache_read_input_tokens: Some(0),
            reasoning_output_tokens: Some(0),
            audio_input_tokens: Some(0),
            audio_output_tokens: Some(0),
            provider_json: Some(PROVIDER_USAGE.as_bytes().to_vec()),
            ..Usage::default()
        }),
        cost: Some(Cost { usd: Some("0.0000048".to_owned()), prices: Some("1.106.2+7341680d".to_owned()) }),
        times: Some(Times {
            received_us: Some(RECEIVED_US),
            forwarded_us: Some(370),
            first_byte_us: Some(412_632),
            first_chunk_us: Some(412_691),
            last_byte_us: Some(412_691),
        }),
        chunks: Some(1),
        request_bytes: Some(2_021),
        response_bytes: Some(764),
        finish_reasons: vec!["stop".to_owned()],
        provider_request_id: Some("req_58cff97afd0e7c0bba910ccf0b044a6f".to_owned()),
        attempt: Some(1),
        count: 1,
        ..Exchange::default()
    }
}

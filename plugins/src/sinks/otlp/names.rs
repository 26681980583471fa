//! Every name that spans carry, in one place.
//!
//! `gen_ai.*` stands in the OpenTelemetry GenAI semantic conventions, schema version 1.42.0, all of it in the state
//! "Development": names change between versions, and then they change here, together with [`GENAI_SCHEMA_URL`]. The
//! audio tokens have come after that version. What comes next renames `cache_creation` to `cache_write`.
//! `llm_proxy.*` is ours, for what the conventions have no name for.

/// Which version of the conventions a span follows.
pub const GENAI_SCHEMA_URL: &str = "https://opentelemetry.io/schemas/gen-ai/1.42.0";

/// Who makes the spans: the scope, and the SDK that we use none of.
pub const SCOPE: &str = "llm-proxy";

// The resource: stable names of the general conventions.
pub const SERVICE_NAME: &str = "service.name";
pub const SERVICE_VERSION: &str = "service.version";
pub const TELEMETRY_SDK_NAME: &str = "telemetry.sdk.name";
pub const TELEMETRY_SDK_LANGUAGE: &str = "telemetry.sdk.language";
pub const TELEMETRY_SDK_VERSION: &str = "telemetry.sdk.version";

// What was asked of whom.
pub const OPERATION_NAME: &str = "gen_ai.operation.name";
pub const PROVIDER_NAME: &str = "gen_ai.provider.name";
pub const REQUEST_MODEL: &str = "gen_ai.request.model";
pub const REQUEST_STREAM: &str = "gen_ai.request.stream";
pub const PROMPT_NAME: &str = "gen_ai.prompt.name";
pub const OUTPUT_TYPE: &str = "gen_ai.output.type";

// Parameters of the request.
pub const REQUEST_MAX_TOKENS: &str = "gen_ai.request.max_tokens";
pub const REQUEST_TEMPERATURE: &str = "gen_ai.request.temperature";
pub const REQUEST_TOP_P: &str = "gen_ai.request.top_p";
pub const REQUEST_TOP_K: &str = "gen_ai.request.top_k";
pub const REQUEST_FREQUENCY_PENALTY: &str = "gen_ai.request.frequency_penalty";
pub const REQUEST_PRESENCE_PENALTY: &str = "gen_ai.request.presence_penalty";
pub const REQUEST_SEED: &str = "gen_ai.request.seed";
pub const REQUEST_CHOICE_COUNT: &str = "gen_ai.request.choice.count";
pub const REQUEST_STOP_SEQUENCES: &str = "gen_ai.request.stop_sequences";
pub const REQUEST_ENCODING_FORMATS: &str = "gen_ai.request.encoding_formats";
pub const EMBEDDINGS_DIMENSION_COUNT: &str = "gen_ai.embeddings.dimension.count";

// The answer.
pub const RESPONSE_ID: &str = "gen_ai.response.id";
pub const RESPONSE_MODEL: &str = "gen_ai.response.model";
pub const RESPONSE_FINISH_REASONS: &str = "gen_ai.response.finish_reasons";
/// In seconds.
pub const RESPONSE_TIME_TO_FIRST_CHUNK: &str = "gen_ai.response.time_to_first_chunk";
pub const HTTP_RESPONSE_STATUS_CODE: &str = "http.response.status_code";
pub const ERROR_TYPE: &str = "error.type";

// Tokens: input includes cache reads and writes, output includes reasoning.
pub const USAGE_INPUT_TOKENS: &str = "gen_ai.usage.input_tokens";
pub const USAGE_OUTPUT_TOKENS: &str = "gen_ai.usage.output_tokens";
pub const USAGE_CACHE_READ_INPUT_TOKENS: &str = "gen_ai.usage.cache_read.input_tokens";
pub const USAGE_CACHE_CREATION_INPUT_TOKENS: &str = "gen_ai.usage.cache_creation.input_tokens";
pub const USAGE_REASONING_OUTPUT_TOKENS: &str = "gen_ai.usage.reasoning.output_tokens";
pub const USAGE_AUDIO_INPUT_TOKENS: &str = "gen_ai.usage.audio.input_tokens";
pub const USAGE_AUDIO_OUTPUT_TOKENS: &str = "gen_ai.usage.audio.output_tokens";

// Who used it, and what belongs together.
pub const USER_ID: &str = "user.id";
pub const SESSION_ID: &str = "session.id";
pub const CONVERSATION_ID: &str = "gen_ai.conversation.id";

// Content: JSON in a text.
pub const SYSTEM_INSTRUCTIONS: &str = "gen_ai.system_instructions";
pub const INPUT_MESSAGES: &str = "gen_ai.input.messages";
pub const OUTPUT_MESSAGES: &str = "gen_ai.output.messages";

/// Names of earlier versions, for receivers that have not followed.
pub mod legacy {
    pub const SYSTEM: &str = "gen_ai.system";
    pub const USAGE_PROMPT_TOKENS: &str = "gen_ai.usage.prompt_tokens";
    pub const USAGE_COMPLETION_TOKENS: &str = "gen_ai.usage.completion_tokens";
}

/// Our own names.
pub mod own {
    pub const REQUEST_ID: &str = "llm_proxy.request_id";
    pub const CLIENT_REQUEST_ID: &str = "llm_proxy.client_request_id";
    pub const PROVIDER_REQUEST_ID: &str = "llm_proxy.provider_request_id";
    pub const PROJECT_ID: &str = "llm_proxy.project_id";
    pub const TOKEN_ID: &str = "llm_proxy.token_id";
    pub const API: &str = "llm_proxy.api";
    pub const DIALECT: &str = "llm_proxy.dialect";
    pub const ENDPOINT: &str = "llm_proxy.endpoint";
    pub const OUTCOME: &str = "llm_proxy.outcome";
    pub const REASON: &str = "llm_proxy.reason";
    /// US dollars, as a number that can be added up.
    pub const COST_USD: &str = "llm_proxy.cost.usd";
    pub const COST_PRICES: &str = "llm_proxy.cost.prices";
    pub const USAGE_SOURCE: &str = "llm_proxy.usage.source";
    pub const ATTEMPT: &str = "llm_proxy.attempt";
    /// Set where a record stands for several exchanges.
    pub const COUNT: &str = "llm_proxy.count";
    pub const CHUNKS: &str = "llm_proxy.chunks";
    pub const REQUEST_BYTES: &str = "llm_proxy.request_bytes";
    pub const RESPONSE_BYTES: &str = "llm_proxy.response_bytes";
    pub const CLIENT_ADDRESS: &str = "llm_proxy.client_address";
    pub const SESSION_NAME: &str = "llm_proxy.session.name";
    pub const SESSION_PATH: &str = "llm_proxy.session.path";
    /// What comes before the name of a free tag.
    pub const TAG_PREFIX: &str = "llm_proxy.tag.";
    /// Captured content that is no conversation, or of which only a part was kept.
    pub const REQUEST_CONTENT: &str = "llm_proxy.request.content";
    pub const RESPONSE_CONTENT: &str = "llm_proxy.response.content";
}

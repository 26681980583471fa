-- What was used, by the hour in which requests were received, token, API and model. A text that is not known is empty;
-- `token_id` and `project_id` may be of requests that no token was accepted for, so they refer to nothing.
--
-- Requests by outcome and by the source of their usage; tokens by class and source; `cost_usd` is a decimal text, the
-- sum over `priced_requests`. The histograms count microseconds, as text: `BUCKET:COUNT`, separated by blanks. Of a
-- bucket below 16 the value is its number; any other, `b`, holds the 2^s values from (b - 8 s) 2^s on, where
-- s = b / 8 - 1, rounded down.
CREATE TABLE usage_hours (
    hour_us INTEGER NOT NULL,
    project_id TEXT NOT NULL,
    token_id TEXT NOT NULL,
    api TEXT NOT NULL,
    model TEXT NOT NULL,
    outcome_unknown INTEGER NOT NULL,
    outcome_finished INTEGER NOT NULL,
    outcome_refused INTEGER NOT NULL,
    outcome_client_gone INTEGER NOT NULL,
    outcome_upstream_unreachable INTEGER NOT NULL,
    outcome_upstream_cut INTEGER NOT NULL,
    outcome_timeout INTEGER NOT NULL,
    outcome_revoked INTEGER NOT NULL,
    outcome_over_budget INTEGER NOT NULL,
    outcome_shed INTEGER NOT NULL,
    usage_unknown INTEGER NOT NULL,
    usage_reported INTEGER NOT NULL,
    usage_estimated INTEGER NOT NULL,
    input_reported INTEGER NOT NULL,
    input_estimated INTEGER NOT NULL,
    output_reported INTEGER NOT NULL,
    output_estimated INTEGER NOT NULL,
    cache_read_input_reported INTEGER NOT NULL,
    cache_read_input_estimated INTEGER NOT NULL,
    cache_creation_input_reported INTEGER NOT NULL,
    cache_creation_input_estimated INTEGER NOT NULL,
    reasoning_output_reported INTEGER NOT NULL,
    reasoning_output_estimated INTEGER NOT NULL,
    audio_input_reported INTEGER NOT NULL,
    audio_input_estimated INTEGER NOT NULL,
    audio_output_reported INTEGER NOT NULL,
    audio_output_estimated INTEGER NOT NULL,
    priced_requests INTEGER NOT NULL,
    cost_usd TEXT NOT NULL,
    latency_histogram TEXT NOT NULL,
    first_chunk_histogram TEXT NOT NULL,
    PRIMARY KEY (hour_us, project_id, token_id, api, model)
);

-- The models that have a name of their own in a project's hour. Further ones are counted as `other`.
CREATE TABLE usage_models (
    hour_us INTEGER NOT NULL,
    project_id TEXT NOT NULL,
    model TEXT NOT NULL,
    PRIMARY KEY (hour_us, project_id, model)
);

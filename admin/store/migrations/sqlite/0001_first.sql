-- Ids are UUIDv7 text, made before the insert. Times are microseconds since the epoch, UTC.

-- Secrets of the whole installation, sealed under the root key's key-encryption key.
CREATE TABLE sealed_secrets (
    name TEXT NOT NULL PRIMARY KEY,
    sealed BLOB NOT NULL,
    created_at_us INTEGER NOT NULL
);

CREATE TABLE projects (
    id TEXT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    is_active INTEGER NOT NULL,
    created_at_us INTEGER NOT NULL,
    updated_at_us INTEGER NOT NULL
);

-- Data-encryption keys, sealed under the key-encryption key. The newest of a project seals, all of them open.
CREATE TABLE project_keys (
    id TEXT NOT NULL PRIMARY KEY,
    project_id TEXT NOT NULL REFERENCES projects (id),
    sealed BLOB NOT NULL,
    created_at_us INTEGER NOT NULL
);
CREATE INDEX project_keys_by_project ON project_keys (project_id, id);

-- Provider keys, sealed under a project key. `version` counts the times this row was set.
CREATE TABLE provider_keys (
    id TEXT NOT NULL PRIMARY KEY,
    project_id TEXT NOT NULL REFERENCES projects (id),
    project_key_id TEXT NOT NULL REFERENCES project_keys (id),
    api TEXT NOT NULL,
    sealed BLOB NOT NULL,
    version INTEGER NOT NULL,
    last4 TEXT NOT NULL,
    updated_at_us INTEGER NOT NULL,
    UNIQUE (project_id, api)
);

-- `granted` is what leases took so far; `request_count` is what was used, counted from the journal behind it.
CREATE TABLE tokens (
    id TEXT NOT NULL PRIMARY KEY,
    project_id TEXT NOT NULL REFERENCES projects (id),
    digest BLOB NOT NULL UNIQUE,
    is_active INTEGER NOT NULL,
    expires_at_us INTEGER NOT NULL,
    max_requests INTEGER,
    granted INTEGER NOT NULL,
    request_count INTEGER NOT NULL,
    requests_per_minute INTEGER,
    allowed_models TEXT,
    created_at_us INTEGER NOT NULL,
    last_used_at_us INTEGER,
    CHECK (request_count >= 0 AND granted >= request_count)
);
CREATE INDEX tokens_by_project ON tokens (project_id, id);

-- The change feed. Its numbers come from the one row of `change_counter`, which every mutation locks until it commits.
CREATE TABLE change_counter (
    id INTEGER NOT NULL PRIMARY KEY,
    seq INTEGER NOT NULL
);
INSERT INTO change_counter (id, seq) VALUES (1, 0);

CREATE TABLE changes (
    seq INTEGER NOT NULL PRIMARY KEY,
    kind TEXT NOT NULL,
    subject_id TEXT NOT NULL,
    digest BLOB,
    at_us INTEGER NOT NULL
);

-- How far each journal is counted into `tokens.request_count`.
CREATE TABLE cursors (
    journal_id TEXT NOT NULL PRIMARY KEY,
    seq INTEGER NOT NULL
);

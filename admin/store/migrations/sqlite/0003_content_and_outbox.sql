-- What a project lets be kept of the bodies of its exchanges: the name of the policy, the most bytes of one body, and
-- after how many days what was kept is erased (null: never by age).
ALTER TABLE projects ADD COLUMN content_capture TEXT NOT NULL DEFAULT 'metadata';
ALTER TABLE projects ADD COLUMN content_max_bytes INTEGER NOT NULL DEFAULT 65536;
ALTER TABLE projects ADD COLUMN content_retention_days INTEGER;

-- What administrators did, on its way to the journal: one row for each change, in the transaction that made it. It goes
-- when the journal has it on disk.
CREATE TABLE outbox (
    seq INTEGER NOT NULL PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    time_us INTEGER NOT NULL,
    payload BLOB NOT NULL
);

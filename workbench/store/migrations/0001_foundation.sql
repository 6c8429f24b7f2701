-- The search path is the workbench's schema; every statement runs in one transaction.

CREATE TABLE instance (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    database_id uuid NOT NULL DEFAULT gen_random_uuid(),
    created_at timestamptz NOT NULL DEFAULT now()
);
INSERT INTO instance DEFAULT VALUES;

CREATE TABLE environment (
    environment_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    fingerprint bytea NOT NULL UNIQUE,
    details jsonb NOT NULL
);

-- A process that may hold work. Its lease is renewed while it lives.
CREATE TABLE worker (
    worker_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    host text NOT NULL,
    pid integer NOT NULL,
    environment_id bigint NOT NULL REFERENCES environment,
    started_at timestamptz NOT NULL DEFAULT now(),
    lease_until timestamptz NOT NULL,
    ended_at timestamptz
);

-- Memo: a claim is a set of keys that one worker computes. Its number grows, so it is also the epoch:
-- a value is written only while its claim is open. Keys of finished claims are dropped, their counts stay.
CREATE TABLE claim (
    claim_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    memo text NOT NULL,
    worker_id bigint NOT NULL REFERENCES worker,
    stage_id bigint,
    keys bytea[] NOT NULL,
    items integer NOT NULL,
    repeated integer NOT NULL DEFAULT 0,
    taken_at timestamptz NOT NULL DEFAULT now(),
    closed_at timestamptz,
    outcome text CHECK (outcome IN ('done', 'released', 'lost'))
);
ALTER TABLE claim ALTER COLUMN keys SET STORAGE EXTERNAL; -- digests do not compress
CREATE INDEX claim_open ON claim (memo) WHERE closed_at IS NULL;
CREATE INDEX claim_unfinished ON claim (memo) WHERE outcome IN ('released', 'lost');
CREATE INDEX claim_stage ON claim (stage_id);

CREATE TABLE memo_spans (
    key bytea PRIMARY KEY,
    claim_id bigint NOT NULL,
    starts integer[] NOT NULL,
    ends integer[] NOT NULL
);
CREATE TABLE memo_embedding (
    key bytea PRIMARY KEY,
    claim_id bigint NOT NULL,
    tokens integer NOT NULL,
    windows integer NOT NULL,
    truncated boolean NOT NULL,
    vector vector NOT NULL
);
-- Vectors do not compress; trying costs a third of the write.
ALTER TABLE memo_embedding ALTER COLUMN vector SET STORAGE EXTERNAL;
CREATE TABLE memo_ranking (
    key bytea PRIMARY KEY,
    claim_id bigint NOT NULL,
    chunk_nos integer[] NOT NULL,
    scores float8[] NOT NULL
);

-- Data: texts by content, so that an edited document adds one text and not a corpus.
CREATE TABLE body (
    digest bytea PRIMARY KEY,
    text text NOT NULL
);
CREATE TABLE corpus (
    corpus_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    fingerprint bytea NOT NULL UNIQUE
);
CREATE TABLE document (
    corpus_id bigint NOT NULL REFERENCES corpus ON DELETE CASCADE,
    doc_no integer NOT NULL,
    doc_id text NOT NULL,
    title text,
    uri text,
    metadata json NOT NULL,
    digest bytea NOT NULL REFERENCES body,
    PRIMARY KEY (corpus_id, doc_no),
    UNIQUE (corpus_id, doc_id)
);
CREATE TABLE query_set (
    query_set_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    fingerprint bytea NOT NULL UNIQUE
);
CREATE TABLE query (
    query_set_id bigint NOT NULL REFERENCES query_set ON DELETE CASCADE,
    query_no integer NOT NULL,
    query_id text NOT NULL,
    text text NOT NULL,
    PRIMARY KEY (query_set_id, query_no),
    UNIQUE (query_set_id, query_id)
);
CREATE TABLE gold_set (
    gold_set_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    fingerprint bytea NOT NULL UNIQUE
);
CREATE TABLE gold (
    gold_set_id bigint NOT NULL REFERENCES gold_set ON DELETE CASCADE,
    query_id text NOT NULL,
    answer text,
    metadata json NOT NULL,
    evidence json NOT NULL,
    PRIMARY KEY (gold_set_id, query_id)
);
CREATE TABLE dataset (
    dataset_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL,
    description text NOT NULL,
    licence text NOT NULL,
    source text NOT NULL,
    corpus_id bigint NOT NULL REFERENCES corpus,
    query_set_id bigint NOT NULL REFERENCES query_set,
    gold_set_id bigint NOT NULL REFERENCES gold_set,
    loaded_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (name, corpus_id, query_set_id, gold_set_id)
);

-- Stages and their outputs. Outputs are written in the transaction that sets a stage to done.
CREATE TABLE stage (
    stage_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    fingerprint bytea NOT NULL UNIQUE,
    kind text NOT NULL,
    code integer NOT NULL,
    spec jsonb NOT NULL,
    inputs jsonb NOT NULL,
    state text NOT NULL CHECK (state IN ('running', 'done', 'failed')),
    worker_id bigint NOT NULL REFERENCES worker,
    epoch integer NOT NULL DEFAULT 1,
    environment_id bigint NOT NULL REFERENCES environment,
    started_at timestamptz NOT NULL DEFAULT now(),
    finished_at timestamptz,
    seconds float8,
    items integer,
    computed integer,
    details jsonb NOT NULL DEFAULT '{}',
    error text
);
CREATE TABLE chunk (
    stage_id bigint NOT NULL REFERENCES stage ON DELETE CASCADE,
    chunk_no integer NOT NULL,
    doc_id text NOT NULL,
    span_start integer NOT NULL,
    span_end integer NOT NULL,
    PRIMARY KEY (stage_id, chunk_no)
);
-- The ordered memo keys of an embed stage: one row, because they are always read whole.
CREATE TABLE stage_keys (
    stage_id bigint PRIMARY KEY REFERENCES stage ON DELETE CASCADE,
    keys bytea[] NOT NULL
);
CREATE TABLE hit (
    stage_id bigint NOT NULL REFERENCES stage ON DELETE CASCADE,
    query_no integer NOT NULL,
    rank integer NOT NULL,
    chunk_no integer NOT NULL,
    score float8 NOT NULL,
    PRIMARY KEY (stage_id, query_no, rank)
);
CREATE TABLE score (
    stage_id bigint NOT NULL REFERENCES stage ON DELETE CASCADE,
    metric text NOT NULL,
    query_id text NOT NULL,
    value float8,
    reason text,
    PRIMARY KEY (stage_id, metric, query_id)
);

-- A trial is a leaf (its score stage) on a dataset; a sweep is a set of trials with a question.
-- json, not jsonb: axes and stages keep the order in which a person declared them.
CREATE TABLE trial (
    trial_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    fingerprint bytea NOT NULL,
    dataset_id bigint NOT NULL REFERENCES dataset,
    spec json NOT NULL,
    stages json NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (fingerprint, dataset_id)
);
CREATE TABLE sweep (
    sweep_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    fingerprint bytea NOT NULL UNIQUE,
    name text NOT NULL,
    dataset_id bigint NOT NULL REFERENCES dataset,
    spec json NOT NULL,
    baseline integer NOT NULL,
    state text NOT NULL CHECK (state IN ('planned', 'running', 'done', 'failed', 'interrupted')),
    created_at timestamptz NOT NULL DEFAULT now(),
    finished_at timestamptz
);
CREATE TABLE sweep_trial (
    sweep_id bigint NOT NULL REFERENCES sweep ON DELETE CASCADE,
    trial_no integer NOT NULL,
    label text NOT NULL,
    point json NOT NULL,
    spec json NOT NULL,
    trial_id bigint REFERENCES trial,
    state text NOT NULL CHECK (state IN ('planned', 'done', 'failed')),
    error text,
    PRIMARY KEY (sweep_id, trial_no)
);

-- Sweeps that survive: their plan and progress, every attempt at a stage, and which process a worker is.

-- `machine` is one boot of one kernel and its process numbers; `process` is "<pid>-<start time>" there. A process of
-- this machine that is gone need not be waited for until its lease ends.
ALTER TABLE worker ADD COLUMN machine text NOT NULL DEFAULT '', ADD COLUMN process text NOT NULL DEFAULT '';
CREATE INDEX worker_living ON worker (machine) WHERE ended_at IS NULL;

-- Milliseconds between the attempts of a call: backoff, and what the server asked for.
ALTER TABLE memo_call ADD COLUMN waited_ms float8 NOT NULL DEFAULT 0;

-- planned: its items are computed by several processes; whoever finds them complete begins and finishes it.
ALTER TABLE stage DROP CONSTRAINT stage_state_check,
    ADD CONSTRAINT stage_state_check CHECK (state IN ('planned', 'running', 'done', 'failed'));

ALTER TABLE sweep DROP CONSTRAINT sweep_state_check,
    ADD CONSTRAINT sweep_state_check
        CHECK (state IN ('planned', 'running', 'paused', 'cancelled', 'interrupted', 'failed', 'done')),
    ADD COLUMN engine text NOT NULL DEFAULT 'local',
    ADD COLUMN wanted text CHECK (wanted IN ('pause', 'cancel')), -- what a person asked of whoever runs it
    ADD COLUMN started_at timestamptz NOT NULL DEFAULT now(),     -- its latest run
    ADD COLUMN runner_id bigint REFERENCES worker,                -- the process of that run
    ADD COLUMN loop_stages integer NOT NULL DEFAULT 0;            -- what a loop over the trials would run

-- What a stage is, so that a process that has only this database can run it.
CREATE TABLE node (
    fingerprint bytea PRIMARY KEY,
    node json NOT NULL
);
-- The unique stages of a sweep, inputs before what needs them.
CREATE TABLE sweep_stage (
    sweep_id bigint NOT NULL REFERENCES sweep ON DELETE CASCADE,
    stage_no integer NOT NULL,
    fingerprint bytea NOT NULL,
    kind text NOT NULL,
    label text NOT NULL,
    inputs integer[] NOT NULL,
    queue text NOT NULL,
    model text,                     -- stages of one served model run together
    state text NOT NULL CHECK (state IN ('waiting', 'computed', 'reused', 'failed')),
    error text,
    PRIMARY KEY (sweep_id, stage_no)
);
CREATE INDEX sweep_stage_waiting ON sweep_stage (sweep_id, stage_no) WHERE state = 'waiting';
ALTER TABLE sweep_trial ADD COLUMN leaf integer;  -- the stage_no of its score

-- The fault ledger: every time a process set to work on a stage, and how that ended.
CREATE TABLE attempt (
    attempt_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    fingerprint bytea NOT NULL,
    kind text NOT NULL,
    label text NOT NULL,
    sweep_id bigint REFERENCES sweep ON DELETE SET NULL,
    worker_id bigint NOT NULL REFERENCES worker,
    started_at timestamptz NOT NULL DEFAULT now(),
    ended_at timestamptz,
    outcome text CHECK (outcome IN ('done', 'shared', 'failed', 'stopped', 'lost', 'crashed')),
    error text,
    done integer NOT NULL DEFAULT 0,        -- items that have a value, of
    items integer NOT NULL DEFAULT 0,
    computed integer NOT NULL DEFAULT 0,    -- by this attempt
    repeated integer NOT NULL DEFAULT 0,    -- claimed again without a value
    waited float8 NOT NULL DEFAULT 0        -- seconds for others who held what was needed
);
CREATE INDEX attempt_stage ON attempt (fingerprint, attempt_id);
CREATE INDEX attempt_sweep ON attempt (sweep_id, attempt_id);

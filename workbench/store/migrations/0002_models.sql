-- What models say: calls by key, scores of pairs, and the outputs of the stages that ask them.

-- A finished request; `key` covers the model's identity and the whole request. No failed call is ever here.
CREATE TABLE memo_call (
    key bytea PRIMARY KEY,
    claim_id bigint NOT NULL,
    text text NOT NULL,
    finish_reason text NOT NULL,
    prompt_tokens integer NOT NULL,
    cached_tokens integer,
    output_tokens integer NOT NULL,
    ttft_ms float8 NOT NULL,
    itl_ms float8[] NOT NULL,
    e2e_ms float8 NOT NULL,
    attempts integer NOT NULL,
    faults text[] NOT NULL,
    logprobs float8[] NOT NULL,
    finished_at timestamptz NOT NULL DEFAULT now()
);

-- How well a passage answers a question, by a reranker; `key` covers the model and both texts.
CREATE TABLE memo_pair (
    key bytea PRIMARY KEY,
    claim_id bigint NOT NULL,
    score float8 NOT NULL
);

CREATE TABLE context (
    stage_id bigint NOT NULL REFERENCES stage ON DELETE CASCADE,
    chunk_no integer NOT NULL,
    context text NOT NULL,
    PRIMARY KEY (stage_id, chunk_no)
);

-- The rank before a reranker moved the hit; null where there was none.
ALTER TABLE hit ADD COLUMN rank_before integer;

CREATE TABLE answer (
    stage_id bigint NOT NULL REFERENCES stage ON DELETE CASCADE,
    query_no integer NOT NULL,
    text text NOT NULL,
    refused boolean NOT NULL,
    shown integer[] NOT NULL,       -- chunk numbers of the passages in the prompt, in order: passage i is shown[i]
    citations integer[] NOT NULL,   -- chunk numbers cited, in order of citation
    uncheckable integer NOT NULL,   -- citations of passages that were not shown
    dropped integer NOT NULL,       -- passages left out for the model's window
    key bytea NOT NULL,             -- the call in memo_call
    PRIMARY KEY (stage_id, query_no)
);

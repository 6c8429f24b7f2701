"""The rerank stage: scores of (question, passage) pairs, or orders that a model writes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from psycopg import Connection

from workbench.models.protocols import Request
from workbench.pipeline import calls
from workbench.pipeline.graph import Node
from workbench.pipeline.job import Job, Phase, Work, Write
from workbench.specs import CrossEncoder, LateInteraction, LlmRerank, QueryLikelihood, fingerprint
from workbench.stages import reranking
from workbench.stages.reranking import Reranked
from workbench.store import tables
from workbench.store.memo import PAIR, Key, Row

PAIR_BATCH = 512
"""Pairs scored between two commits: a few seconds on two cores."""


def prepare(node: Node, job: Job) -> Work:
    """The reranking of every query's first hits."""
    spec = node.config
    rankings = job.rankings(node.node("hits"))
    passages = job.chunk_texts(node.node("chunks"), node.optional("context"))
    if isinstance(spec, LateInteraction | CrossEncoder):
        return _scored(node, job, spec, rankings, passages)
    if isinstance(spec, QueryLikelihood) or spec.mode == "pointwise":
        return _asked(node, job, spec, rankings, passages)
    return _listwise(node, job, spec, rankings, passages)


Rankings = Sequence[tuple[Sequence[int], Sequence[float]]]


def _pairs(depth: int, rankings: Rankings) -> list[tuple[int, int]]:
    """(query_no, chunk_no) of the candidates, by passage: a passage is read once for all its questions."""
    return sorted(
        ((no, chunk_no) for no, (chunk_nos, _) in enumerate(rankings) for chunk_no in chunk_nos[:depth]),
        key=lambda pair: (pair[1], pair[0]),
    )


def _scored(
    node: Node, job: Job, spec: LateInteraction | CrossEncoder, rankings: Rankings, passages: Sequence[str]
) -> Work:
    pairs = _pairs(spec.depth, rankings)
    queries = [q.text for q in job.dataset.queries]
    # Neither depth nor k, nor how the candidates were found: a pair has one score whoever asks.
    what = {name: value for name, value in node.identity.items() if name not in ("depth", "k")}
    prefix = hashlib.sha256(bytes.fromhex(fingerprint("pair", node.code, what, {})))
    keys = [_pair_key(prefix, queries[q], passages[c]) for q, c in pairs]

    def compute(positions: Sequence[int]) -> list[Row]:
        scorer = job.runtime.scorer(spec)
        node.require_model(scorer.identity)
        scores = scorer.score([(queries[q], passages[c]) for q, c in (pairs[i] for i in positions)])
        return [(score,) for score in scores.tolist()]

    def finish() -> Write:
        found = job.runtime.memo.read(PAIR, keys)
        scores = {pair: value for pair, (value,) in zip(pairs, found, strict=True)}
        return _write(_ordered(spec.depth, spec.k, rankings, scores), {"pairs": len(set(keys))})

    return Work(finish, [Phase(PAIR, keys, compute, batch=PAIR_BATCH)], len(set(keys)))


def _pair_key(prefix: Any, query: str, passage: str) -> Key:
    key = prefix.copy()
    asked = query.encode()
    key.update(len(asked).to_bytes(8, "big") + asked + passage.encode())
    digest: bytes = key.digest()
    return digest


def _asked(
    node: Node, job: Job, spec: QueryLikelihood | LlmRerank, rankings: Rankings, passages: Sequence[str]
) -> Work:
    model, prompt = calls.stage_model(job, node), calls.stage_prompt(node)
    pairs = _pairs(spec.depth, rankings)
    queries = [q.text for q in job.dataset.queries]
    asked = [reranking.ask_pair(spec, prompt, queries[q], passages[c], model.tokenizer) for q, c in pairs]
    requests = [one.request for one in asked]
    keys = calls.keys_of(model, requests)

    def finish() -> Write:
        said = calls.read_calls(job, keys)
        grades = [one.read(call) for one, call in zip(asked, said, strict=True)]
        scores = {
            pair: grade if grade is not None else reranking.UNPARSABLE
            for pair, grade in zip(pairs, grades, strict=True)
        }
        details = {
            "pairs": len(set(keys)),
            "unparsable": sum(grade is None for grade in grades),
            "calls": calls.summarise(model, requests, keys, said),
        }
        return _write(_ordered(spec.depth, spec.k, rankings, scores), details)

    return Work(finish, [calls.asking(job, model, spec, requests, keys)], len(set(keys)))


def _listwise(node: Node, job: Job, spec: LlmRerank, rankings: Rankings, passages: Sequence[str]) -> Work:
    model = calls.stage_model(job, node)
    queries = [q.text for q in job.dataset.queries]
    rounds = reranking.Listwise(
        spec, calls.stage_prompt(node), queries, [list(r[0]) for r in rankings], passages, model.tokenizer
    )
    requests: list[Request] = []
    keys: list[Key] = []

    def phases() -> Iterator[Phase]:
        while not rounds.done:
            current = rounds.requests()
            now = calls.keys_of(model, current)
            yield calls.asking(job, model, spec, current, now)
            rounds.advance([call.text for call in calls.read_calls(job, now)])
            requests.extend(current)
            keys.extend(now)

    def finish() -> Write:
        details = {
            "unparsable": rounds.unparsable,
            "calls": calls.summarise(model, requests, keys, calls.read_calls(job, keys)),
        }
        return _write(rounds.rankings(), details)

    return Work(finish, phases(), rounds.expected)


def _ordered(depth: int, k: int, rankings: Rankings, scores: Mapping[tuple[int, int], float]) -> list[Reranked]:
    return [
        reranking.order(chunk_nos[:depth], [scores[no, c] for c in chunk_nos[:depth]], k)
        for no, (chunk_nos, _) in enumerate(rankings)
    ]


def _write(reranked: Sequence[Reranked], details: Mapping[str, Any]) -> Write:
    def write(connection: Connection[Any], stage_id: int) -> Mapping[str, Any]:
        hits = tables.write_reranked(connection, stage_id, reranked)
        moved = sum(any(before != i for i, before in enumerate(one[2], 1)) for one in reranked)
        return {"hits": hits, "queries_moved": moved, **details}

    return write

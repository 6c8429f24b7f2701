"""The retrieval legs: for each kind, a function from positions of queries to their rankings."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from workbench.pipeline.graph import Node
from workbench.pipeline.job import Job, item_keys
from workbench.specs import Bm25, Dense, Exact, Fts, Hnsw, Hybrid, Lexical, digest
from workbench.stages.retrieval import Ranking, analyzer, fuse
from workbench.store import lexical, tables, vectors
from workbench.store.memo import RANKING, Compute, Row

ANN_SAMPLE = 200
"""Queries on which an approximate index is compared with exact search, at most."""


def compute(node: Node, job: Job, texts: Sequence[str]) -> Compute:
    """What ranks the queries at some positions of `texts`, by the node's kind."""
    if node.label == "dense":
        return _dense(node, job)
    if node.label == "bm25":
        return _bm25(node, job, texts)
    if node.label == "fts":
        return _fts(node, job, texts)
    return _hybrid(node, job, texts)


def _dense(node: Node, job: Job) -> Compute:
    spec, index = node.config
    assert isinstance(spec, Dense)
    table = job.stage_id(node.node("index"))
    keys = _query_keys(node, job)

    def rank(positions: Sequence[int]) -> Sequence[Row]:
        with job.runtime.database.transaction() as connection:
            return vectors.search(
                connection, table, index, [keys[i] for i in positions], spec.k, ef_search=spec.ef_search
            )

    return rank


def _query_keys(node: Node, job: Job) -> list[bytes]:
    with job.runtime.database.transaction() as connection:
        return tables.read_keys(connection, job.stage_id(node.node("queries")))


def _bm25(node: Node, job: Job, texts: Sequence[str]) -> Compute:
    spec, terms = node.config
    assert isinstance(spec, Bm25)
    assert isinstance(terms, Lexical)
    chunk, context = node.node("chunks"), node.optional("context")
    analyze = analyzer(terms)

    @functools.cache
    def index() -> lexical.Bm25Index:
        # Named by what determines it: neither k nor the queries, so one index serves them all.
        seen = [context.fingerprint] if context else []
        what = [chunk.fingerprint, node.identity["lexical"], node.identity["analyzer"], *seen]
        folder = job.runtime.home / "lexical"
        return lexical.Bm25Index.open(folder, digest(what), lambda: job.chunk_texts(chunk, context), analyze, terms)

    def rank(positions: Sequence[int]) -> Sequence[Row]:
        return [index().search(analyze(texts[i]), spec.k) for i in positions]

    return rank


def _fts(node: Node, job: Job, texts: Sequence[str]) -> Compute:
    spec = node.config
    assert isinstance(spec, Fts)
    table = job.stage_id(node.node("index"))

    def rank(positions: Sequence[int]) -> Sequence[Row]:
        with job.runtime.database.transaction() as connection:
            return lexical.search_fts(
                connection, table, spec.config, [texts[i] for i in positions], spec.k, match_all=spec.match == "all"
            )

    return rank


def _hybrid(node: Node, job: Job, texts: Sequence[str]) -> Compute:
    spec = node.config
    assert isinstance(spec, Hybrid)
    keys = {leg: item_keys(node.node(leg), texts) for leg in spec.legs}

    def rank(positions: Sequence[int]) -> Sequence[Row]:
        lists: Mapping[str, list[Ranking]] = {
            leg: [(r[0], r[1]) for r in job.runtime.memo.read(RANKING, [of[i] for i in positions])]
            for leg, of in keys.items()
        }
        return [fuse(spec, {leg: lists[leg][i] for leg in spec.legs}) for i in range(len(positions))]

    return rank


def ann_recall(node: Node, job: Job, rankings: Sequence[Row]) -> Mapping[str, Any]:
    """How much of exact search's answer an approximate index found, over the first queries; {} for other nodes."""
    if node.label != "dense" or not rankings:
        return {}
    spec, index = node.config
    assert isinstance(index, Exact | Hnsw)
    if isinstance(index, Exact):
        return {}
    keys = _query_keys(node, job)[:ANN_SAMPLE]
    with job.runtime.database.transaction() as connection:
        truth = vectors.search(connection, job.stage_id(node.node("index")), index, keys, spec.k, exact=True)
    shares = [len(set(found[0]) & set(exact[0])) / len(exact[0]) for found, exact in zip(rankings, truth, strict=False)]
    return {"ann_recall": {"mean": sum(shares) / len(shares), "low": min(shares), "n": len(shares), "k": spec.k}}

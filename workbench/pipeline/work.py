"""What each kind of stage looks up, computes and writes.

`prepare(node, job)` gives a `Work`: phases of items, each with the function that computes missing ones,
and `finish`, which makes the whole output from the memo and returns how to write it. Stages that ask a
model are in `contexts.py`, `reranks.py` and `answers.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from psycopg import Connection

from workbench import evaluation
from workbench.errors import InputError
from workbench.pipeline import answers, contexts, legs, reranks, summaries
from workbench.pipeline.graph import Node
from workbench.pipeline.job import Job, Phase, Work, Write, item_keys
from workbench.records import Chunk, frame
from workbench.specs import Embed, Fts, Given
from workbench.stages import chunking
from workbench.store import lexical, tables, vectors
from workbench.store.memo import EMBEDDING, RANKING, SPANS, Row

EMBED_BATCH = 128
"""Texts embedded between two commits: a few seconds on two cores."""


def prepare(node: Node, job: Job) -> Work:
    """What a stage has to do; its inputs are done."""
    kinds: Mapping[str, Callable[[Node, Job], Work]] = {
        "chunk": _chunk,
        "context": contexts.prepare,
        "embed": _embed,
        "index": _index,
        "retrieve": _retrieve,
        "rerank": reranks.prepare,
        "generate": answers.prepare,
        "score": _score,
    }
    return kinds[node.kind](node, job)


# --- chunk ---------------------------------------------------------------------------------------


def _chunk(node: Node, job: Job) -> Work:
    spec, documents = node.config, job.dataset.documents
    given = None
    items = [d.text for d in documents]
    if isinstance(spec, Given):
        assert job.dataset.folder is not None
        given = chunking.read_given(job.dataset.folder / spec.file, documents)
        items = [json.dumps([d.text, [list(map(int, s)) for s in given.get(d.doc_id, ())]]) for d in documents]
    tokenizer = job.runtime.tokenizer(spec.tokenizer) if hasattr(spec, "tokenizer") else None
    chunker = chunking.build(spec, tokenizer, given)
    keys = item_keys(node, items)

    def compute(positions: Sequence[int]) -> list[Row]:
        rows = []
        for i in positions:
            part = chunking.chunk_documents(chunker, [documents[i]])
            rows.append((part["start"].to_list(), part["end"].to_list()))
        return rows

    def finish() -> Write:
        values = job.runtime.memo.read(SPANS, keys)
        spans = [
            (d.doc_id, start, end)
            for d, (starts, ends) in zip(documents, values, strict=True)
            for start, end in zip(starts, ends, strict=True)
        ]
        chunks = frame(Chunk, ((no, *span) for no, span in enumerate(spans)))
        if not spans:
            raise InputError("no document gave a chunk", where=f"chunk.kind = {spec.kind!r}")

        def write(connection: Connection[Any], stage_id: int) -> Mapping[str, Any]:
            tables.write_chunks(connection, stage_id, chunks)
            lengths = (chunks["end"] - chunks["start"]).to_list()
            return {"chunks": len(spans), "characters": sum(lengths), "longest": max(lengths)}

        return write

    return Work(finish, [Phase(SPANS, keys, compute, batch=32)], len(keys))


# --- embed ---------------------------------------------------------------------------------------


def _embed(node: Node, job: Job) -> Work:
    spec, role = node.config
    assert isinstance(spec, Embed)
    source = node.inputs["texts"]
    if isinstance(source, Node):
        texts = job.chunk_texts(source, node.optional("context"))
    else:
        texts = [q.text for q in job.dataset.queries]
    keys = item_keys(node, texts)

    def compute(positions: Sequence[int]) -> list[Row]:
        embedder = job.runtime.embedder(spec)
        node.require_model(embedder.identity)
        batch = embedder.embed([texts[i] for i in positions], role)
        return list(
            zip(
                batch.tokens.tolist(),
                batch.windows.tolist(),
                batch.truncated.tolist(),
                list(batch.vectors),
                strict=True,
            )
        )

    def finish() -> Write:
        def write(connection: Connection[Any], stage_id: int) -> Mapping[str, Any]:
            tables.write_keys(connection, stage_id, keys)
            row = connection.execute(
                "SELECT coalesce(sum(m.tokens), 0)::int8, count(*) FILTER (WHERE m.windows > 1),"
                " count(*) FILTER (WHERE m.truncated), max(vector_dims(m.vector))"
                " FROM stage_keys s, unnest(s.keys) k JOIN memo_embedding m ON m.key = k WHERE s.stage_id = %s",
                [stage_id],
            ).fetchone()
            assert row is not None
            return {"texts": len(texts), "tokens": row[0], "pooled": row[1], "truncated": row[2], "dimensions": row[3]}

        return write

    return Work(finish, [Phase(EMBEDDING, keys, compute, batch=EMBED_BATCH)], len(keys))


# --- index ---------------------------------------------------------------------------------------


def _index(node: Node, job: Job) -> Work:
    spec = node.config
    if isinstance(spec, Fts):
        chunk_stage, dataset_id = job.stage_id(node.node("chunks")), job.dataset_id
        context = node.optional("context")
        context_stage = job.stage_id(context) if context else None

        def write_fts(connection: Connection[Any], stage_id: int) -> Mapping[str, Any]:
            rows = lexical.create_fts(connection, stage_id, spec.config, chunk_stage, dataset_id, context_stage)
            return {"rows": rows, "table": lexical.fts_table(stage_id)}

        return Work(lambda: write_fts, items=len(job.chunks(node.node("chunks"))))
    source = job.done[node.node("vectors").fingerprint]
    dimensions = source.details["dimensions"]
    vectors.check_dimensions(spec, dimensions)

    def write(connection: Connection[Any], stage_id: int) -> Mapping[str, Any]:
        rows = vectors.create(connection, stage_id, spec, source.stage_id, dimensions)
        return {"rows": rows, "table": vectors.table_name(stage_id), "dimensions": dimensions}

    return Work(lambda: write, items=source.details["texts"])


# --- retrieve, score -----------------------------------------------------------------------------


def _retrieve(node: Node, job: Job) -> Work:
    texts = [q.text for q in job.dataset.queries]
    keys = item_keys(node, texts)
    compute = legs.compute(node, job, texts)

    def finish() -> Write:
        rankings = job.runtime.memo.read(RANKING, keys)
        details = legs.ann_recall(node, job, rankings)

        def write(connection: Connection[Any], stage_id: int) -> Mapping[str, Any]:
            return {"hits": tables.write_hits(connection, stage_id, rankings), **details}

        return write

    return Work(finish, [Phase(RANKING, keys, compute)], len(keys))


def _score(node: Node, job: Job) -> Work:
    def finish() -> Write:
        queries, chunks = job.dataset.queries, job.chunks(node.node("chunks"))
        answered = node.optional("answers")
        scores = evaluation.score(
            job.hits(node.node("hits")),
            chunks,
            queries,
            job.texts,
            node.config,
            answers=job.answers(answered).select("query_id", "text", "refused", "citations") if answered else None,
        )
        summary = summaries.summarise(scores, queries)

        def write(connection: Connection[Any], stage_id: int) -> Mapping[str, Any]:
            tables.write_scores(connection, stage_id, scores)
            return {"metrics": summary}

        return write

    return Work(finish, items=len(job.dataset.queries))

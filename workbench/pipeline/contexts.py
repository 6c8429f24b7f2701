"""The context stage: from documents and structure alone, or one model call a chunk or a document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from psycopg import Connection

from workbench.pipeline import calls
from workbench.pipeline.graph import Node
from workbench.pipeline.job import Job, Work, Write
from workbench.specs import Lead, Situated, Summary
from workbench.stages import contextual
from workbench.store import tables


def prepare(node: Node, job: Job) -> Work:
    """The contexts of a chunk stage's chunks."""
    spec, chunks = node.config, job.chunks(node.node("chunks"))
    if isinstance(spec, Summary | Situated):
        return _asked(node, job, spec)
    tokenizer = job.runtime.tokenizer(spec.tokenizer) if isinstance(spec, Lead) else None

    def finish() -> Write:
        return _write(contextual.contexts(spec, job.dataset.documents, chunks, tokenizer), {})

    return Work(finish, items=len(chunks))


def _asked(node: Node, job: Job, spec: Summary | Situated) -> Work:
    chunks, documents = job.chunks(node.node("chunks")), job.dataset.documents
    model = calls.stage_model(job, node)
    asked = contextual.requests(spec, calls.stage_prompt(node), documents, chunks, model.tokenizer)
    requests = [request for _, request in asked]
    keys = calls.keys_of(model, requests)

    def finish() -> Write:
        answers = calls.read_calls(job, keys)
        texts = [""] * len(chunks)
        for (chunk_nos, _), call in zip(asked, answers, strict=True):
            for chunk_no in chunk_nos:
                texts[chunk_no] = contextual.clean(call.text)
        return _write(
            texts,
            {
                "calls": calls.summarise(model, requests, keys, answers),
                "document_tokens": calls.document_tokens(model, (d.text for d in documents)),
                "cut": asked.cut,
            },
        )

    return Work(finish, [calls.asking(job, model, spec, requests, keys)], len(set(keys)))


def _write(texts: Sequence[str], details: Mapping[str, Any]) -> Write:
    def write(connection: Connection[Any], stage_id: int) -> Mapping[str, Any]:
        tables.write_contexts(connection, stage_id, texts)
        counted = {"contexts": sum(map(bool, texts)), "empty": sum(not text for text in texts)}
        return {**counted, "characters": sum(map(len, texts)), **details}

    return write

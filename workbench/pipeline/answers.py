"""The generate stage: one call a query, over the first passages of its ranking."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from psycopg import Connection

from workbench.pipeline import calls
from workbench.pipeline.graph import Node
from workbench.pipeline.job import Job, Work, Write
from workbench.specs import Answer
from workbench.stages import generation
from workbench.stages.prompting import chat_request
from workbench.store import tables


def asked(node: Node, job: Job) -> list[generation.Asked]:
    """What each query's model call shows and asks, in query order."""
    spec = node.config
    assert isinstance(spec, Answer)
    model, prompt = calls.stage_model(job, node), calls.stage_prompt(node)
    titles = {d.doc_id: d.title or "" for d in job.dataset.documents}
    doc_ids = job.chunks(node.node("chunks"))["doc_id"].to_list()
    texts = job.chunk_texts(node.node("chunks"))
    found = []
    for query, (chunk_nos, _) in zip(job.dataset.queries, job.rankings(node.node("hits")), strict=True):
        passages = [generation.Passage(n, titles[doc_ids[n]], texts[n]) for n in chunk_nos[: spec.k]]
        found.append(generation.build(spec, prompt, query, passages, model.tokenizer))
    return found


def prepare(node: Node, job: Job) -> Work:
    """Answers to the queries of a run."""
    spec = node.config
    assert isinstance(spec, Answer)
    model, shown = calls.stage_model(job, node), asked(node, job)
    requests = [chat_request(spec, one.messages) for one in shown]
    keys = calls.keys_of(model, requests)

    def finish() -> Write:
        said = calls.read_calls(job, keys)
        parsed = [generation.parse(call.text, one.shown) for call, one in zip(said, shown, strict=True)]
        rows = [
            (no, call.text, p.refused, list(one.shown), list(p.citations), p.uncheckable, one.dropped, key)
            for no, (call, one, p, key) in enumerate(zip(said, shown, parsed, keys, strict=True))
        ]
        details = {
            "calls": calls.summarise(model, requests, keys, said),
            "refused": sum(p.refused for p in parsed),
            "citations": sum(len(p.citations) for p in parsed),
            "uncheckable": sum(p.uncheckable for p in parsed),
            "dropped": sum(one.dropped for one in shown),
        }

        def write(connection: Connection[Any], stage_id: int) -> Mapping[str, Any]:
            tables.write_answers(connection, stage_id, rows)
            return details

        return write

    return Work(finish, [calls.asking(job, model, spec, requests, keys)], len(set(keys)))

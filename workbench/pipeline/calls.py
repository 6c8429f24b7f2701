"""Model requests as items of a stage: each asked once ever, and what the calls of a stage cost together."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from workbench.models.chat import ByteTokenizer
from workbench.models.protocols import Call, LanguageModel, Request
from workbench.pipeline.graph import Node
from workbench.pipeline.job import Job, Phase
from workbench.specs import Served
from workbench.stages.prefixes import most_cached
from workbench.stages.prompting import Prompt, request_key
from workbench.store.memo import CALL, Key, Row

CLAIMED_AHEAD = 8
"""Calls that a process claims for each one it has on the way: enough to keep the server busy between two claims."""


def keys_of(model: LanguageModel, requests: Sequence[Request]) -> list[Key]:
    """The memo keys of requests: the model's identity and the whole request."""
    return [request_key(model.identity, request) for request in requests]


def asking(job: Job, model: LanguageModel, spec: Served, requests: Sequence[Request], keys: Sequence[Key]) -> Phase:
    """The phase that asks what was never asked, each call committed as it finishes."""

    def stream(positions: Sequence[int]) -> Generator[tuple[int, Row], None, None]:
        with contextlib.closing(model.stream([requests[i] for i in positions], check=job.check)) as calls:
            for index, call in calls:
                yield index, tuple(_listed(getattr(call, name)) for name in CALL.columns)

    return Phase(CALL, keys, stream=stream, claim_size=CLAIMED_AHEAD * spec.concurrency)


def read_calls(job: Job, keys: Sequence[Key]) -> list[Call]:
    """The finished calls of keys, in their order."""
    return [_call(row) for row in job.runtime.memo.read(CALL, keys)]


def _call(row: Row) -> Call:
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in zip(CALL.columns, row, strict=True)
    }
    return Call(**values)


def _listed(value: Any) -> Any:
    """PostgreSQL's arrays are written from lists: a tuple would be a row."""
    return list(value) if isinstance(value, tuple) else value


def summarise(model: LanguageModel, requests: Sequence[Request], keys: Sequence[Key], calls: Sequence[Call]) -> Any:
    """What the distinct calls of a stage were together: tokens, the prefix cache's share, latencies, faults.

    Latencies are facts about the day of each call: shown, never compared. `cached_tokens_most` is what an
    infinite prefix cache would have served of the same prompts, each sent once.
    """
    distinct = dict(zip(keys, zip(requests, calls, strict=True), strict=True)).values()
    chosen = [call for _, call in distinct]
    known = [c.cached_tokens for c in chosen if c.cached_tokens is not None]
    return {
        "calls": len(chosen),
        "prompt_tokens": sum(c.prompt_tokens for c in chosen),
        "output_tokens": sum(c.output_tokens for c in chosen),
        "cached_tokens": sum(known) if len(known) == len(chosen) else None,
        "cached_tokens_most": _most_cached(model, [request for request, _ in distinct]),
        "cache_block": model.block,
        "ttft_ms": _percentiles([c.ttft_ms for c in chosen]),
        "itl_ms": _percentiles([ms for c in chosen for ms in c.itl_ms]),
        "e2e_ms": _percentiles([c.e2e_ms for c in chosen]),
        "retried": sum(c.attempts > 1 for c in chosen),
        "waited_seconds": sum(c.waited_ms for c in chosen) / 1000,
        "faults": dict(Counter(fault for c in chosen for fault in c.faults)),
        "finish_reasons": dict(Counter(c.finish_reason for c in chosen)),
    }


def _most_cached(model: LanguageModel, requests: Sequence[Request]) -> int | None:
    """None where the model's own tokens are not known."""
    if isinstance(model.tokenizer, ByteTokenizer):
        return None
    return most_cached((_prompt_ids(model, request) for request in requests), model.block)


def document_tokens(model: LanguageModel, texts: Iterable[str]) -> int | None:
    """Tokens of documents as the model counts them; None where its tokens are not known."""
    if isinstance(model.tokenizer, ByteTokenizer):
        return None
    return sum(len(model.tokenizer.spans(text)) for text in texts)


def _prompt_ids(model: LanguageModel, request: Request) -> Sequence[int]:
    if request.endpoint == "chat":
        return model.tokenizer.chat_ids(request.body["messages"])
    return model.tokenizer.prompt_ids(request.body["prompt"])


def _percentiles(values: Sequence[float]) -> Mapping[str, float] | None:
    if not values:
        return None
    low, middle, high = np.percentile(values, [5, 50, 95])
    return {"p5": float(low), "p50": float(middle), "p95": float(high), "n": len(values)}


def totals(stages: Sequence[Mapping[str, Any]], computed: Sequence[int]) -> dict[str, int]:
    """The `calls` object of a result: calls and tokens of its stages, of which `computed` were asked in this run."""
    found = [(s["calls"], live) for s, live in zip(stages, computed, strict=True) if "calls" in s]
    asked = sum(of["calls"] for of, _ in found)
    live = sum(live for _, live in found)
    return {
        "live": live,
        "cached": asked - live,
        **{name: sum(of[name] or 0 for of, _ in found) for name in ("prompt_tokens", "cached_tokens", "output_tokens")},
    }


COSTS = {
    "stage": pl.String,
    "calls": pl.Int64,
    "prompt_tokens": pl.Int64,
    "output_tokens": pl.Int64,
    "cached": pl.Float64,
    "cached_most": pl.Float64,
    "per_million": pl.Float64,
    "ttft_ms": pl.Float64,
    "itl_ms": pl.Float64,
    "e2e_ms": pl.Float64,
    "retried": pl.Int64,
    "seconds": pl.Float64,
}


def costs(stages: Iterable[tuple[str, Mapping[str, Any], float]]) -> pl.DataFrame:
    """What the model calls of stages (name, details, seconds) cost, one row a stage that made any.

    `cached` is the share of prompt tokens that came from the prefix cache, `cached_most` what an infinite
    cache would have reached; `per_million` is prompt tokens per million tokens of documents, where documents
    were shown; times are medians in ms of the calls' own day: shown, never compared.
    """
    rows = []
    for name, details, seconds in stages:
        if (of := details.get("calls")) is None:
            continue
        prompt, documents = of["prompt_tokens"], details.get("document_tokens")
        rows.append(
            {
                "stage": name,
                "calls": of["calls"],
                "prompt_tokens": prompt,
                "output_tokens": of["output_tokens"],
                "cached": of["cached_tokens"] / prompt if prompt and of["cached_tokens"] is not None else None,
                "cached_most": of["cached_tokens_most"] / prompt
                if prompt and of["cached_tokens_most"] is not None
                else None,
                "per_million": prompt / documents * 1_000_000 if documents else None,
                **{t: of[t]["p50"] if of[t] else None for t in ("ttft_ms", "itl_ms", "e2e_ms")},
                "retried": of["retried"],
                "seconds": seconds,
            }
        )
    return pl.DataFrame(rows, schema=COSTS)


def stage_model(job: Job, node: Node) -> LanguageModel:
    """The language model that a stage was planned with.

    Raises:
        ModelError: its files changed meanwhile, or it is not there.
    """
    assert isinstance(node.config, Served)
    model = job.runtime.language_model(node.config)
    node.require_model(model.identity)
    return model


def stage_prompt(node: Node) -> Prompt:
    """The prompt of a stage, as it was when the stage was planned."""
    assert node.prompt is not None, f"{node.label} has no prompt"
    return node.prompt

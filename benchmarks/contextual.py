"""What does it bring to put the document first when chunks are situated, and what does prefix caching bring?

    python benchmarks/contextual.py [--json] [--tokens 4000] [--chunks 20] [--rounds 3] [--concurrency 1 8]

One document of the Python reference is cut to `tokens` tokens of the model; its first chunks are situated on
real vLLM servers with 16 tokens of answer each. Document-first and chunk-first run by turns on one server,
every run under a cache salt of its own, so that no run finds what another left. The server without prefix
caching follows, with fewer chunks because each is slow. Ratios are of seconds a chunk.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from machine import describe_machine

from workbench.models.protocols import LanguageModel, Request
from workbench.records import Document
from workbench.serving.languages import Languages
from workbench.settings import Settings
from workbench.specs import Recursive, Situated
from workbench.stages import chunking, contextual
from workbench.stages.prefixes import most_cached
from workbench.stages.prompting import Prompt, load_prompt

CHUNK_FIRST = Prompt(
    "chunk first",
    "",
    "<passage>\n{{ chunk }}\n</passage>\n"
    "<document>\n{% if title %}{{ title }}{% endif %}\n\n{{ document }}\n</document>\n"
    "In one short sentence, name the document and section that the passage is from and what it is about.",
)
"""The same values in the other order."""


def spec(tokens: int, concurrency: int, *, cache: bool) -> Situated:
    return Situated(
        window=tokens, max_tokens=16, max_model_len=tokens + 1024, concurrency=concurrency, prefix_caching=cache
    )


def run(model: LanguageModel, requests: Sequence[Request]) -> dict[str, Any]:
    """Seconds a chunk, and the shares of prompt tokens that were cached and could have been."""
    salt = uuid.uuid4().hex
    salted = [replace(r, body={**r.body, "cache_salt": salt}) for r in requests]
    begun = time.perf_counter()
    calls = [call for _, call in model.stream(salted)]
    seconds = time.perf_counter() - begun
    prompt = sum(call.prompt_tokens for call in calls)
    most = most_cached((model.tokenizer.chat_ids(r.body["messages"]) for r in requests), model.block)
    return {
        "seconds": seconds / len(requests),
        "ttft_ms": statistics.median(call.ttft_ms for call in calls),
        "cached": sum(call.cached_tokens or 0 for call in calls) / prompt,
        "most": most / prompt,
        "prompt_tokens": prompt,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4000)
    parser.add_argument("--chunks", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        settings = Settings.read(home=Path(home))
        languages = Languages(settings, settings.home / "cache")
        try:
            result = measure(languages, given.tokens, given.chunks, given.rounds, given.concurrency)
        finally:
            languages.close()
    if given.json:
        print(json.dumps(result))
    else:
        show(result)


def measure(languages: Languages, tokens: int, chunks: int, rounds: int, widths: Sequence[int]) -> dict[str, Any]:
    first = languages.model(spec(tokens, widths[0], cache=True))
    name = max(topics, key=lambda topic: len(topics[topic]))
    whole = topics[name]
    document = Document("reference", whole[: int(first.tokenizer.spans(whole)[tokens - 1][1])], title=name)
    frame = chunking.chunk_documents(chunking.build(Recursive(tokens=200)), [document]).head(chunks)
    of: dict[str, Any] = {"machine": "", "tokens": tokens, "chunks": len(frame), "rounds": rounds, "runs": []}

    def ask(prompt: Prompt, width: int) -> list[Request]:
        asked = contextual.requests(spec(tokens, width, cache=True), prompt, [document], frame, first.tokenizer)
        return [request for _, request in asked]

    orders = {"document first": load_prompt("situated-1"), "chunk first": CHUNK_FIRST}
    list(first.stream(ask(CHUNK_FIRST, 1)[:1]))  # the server is up, its first kernels are loaded
    of["machine"] = describe_machine("torch", "openai")
    for round_no in range(rounds):
        for width in widths:
            model = languages.model(spec(tokens, width, cache=True))
            for order, prompt in orders.items():
                found = run(model, ask(prompt, width))
                of["runs"].append({"order": order, "cache": True, "concurrency": width, "round": round_no, **found})
    for width in widths:
        bare = languages.model(spec(tokens, width, cache=False))
        requests = ask(orders["document first"], width)[: max(4, width)]
        if width == widths[0]:
            list(bare.stream(requests[:1]))
        found = run(bare, requests)
        of["runs"].append({"order": "document first", "cache": False, "concurrency": width, "round": 0, **found})
    return of


def show(result: dict[str, Any]) -> None:
    print(result["machine"])
    print(f"{result['chunks']} chunks of a document of {result['tokens']} tokens, {result['rounds']} rounds")
    runs = result["runs"]
    for width in sorted({r["concurrency"] for r in runs}):
        own = [r for r in runs if r["concurrency"] == width]
        base = [r for r in own if r["cache"] and r["order"] == "document first"]
        print(f"concurrency {width}")
        for order, cache in (("document first", True), ("chunk first", True), ("document first", False)):
            some = [r for r in own if r["order"] == order and r["cache"] is cache]
            # Rounds are neighbours in time; the server without a cache ran once, against the median of the rounds.
            against = (
                [b["seconds"] for b in base]
                if len(some) == len(base)
                else [statistics.median(b["seconds"] for b in base)]
            )
            ratios = [r["seconds"] / b for r, b in zip(some, against, strict=True)]
            seconds = statistics.median(r["seconds"] for r in some)
            print(
                f"  {order}, cache {'on ' if cache else 'off'}: {seconds:.2f} s a chunk"
                f" = {statistics.median(ratios):.2f} x ({min(ratios):.2f} to {max(ratios):.2f}),"
                f" first token {statistics.median(r['ttft_ms'] for r in some):,.0f} ms,"
                f" cached {statistics.median(r['cached'] for r in some):.1%} of at most {some[0]['most']:.1%}"
            )


if __name__ == "__main__":
    main()

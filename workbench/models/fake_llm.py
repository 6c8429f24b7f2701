"""A language model that needs no server: it counts, waits, logs and fails like one, and says what can be foreseen.

For tests and for fast dry runs of a pipeline: `model = "fake:words"`, or with options
"fake:words?delay=0.05&log=/path&fail_after=3". A request for JSON gets a value that fits its schema (an order
turned round, a choice by the length of the question); one for the log-probabilities of a prompt gets a higher
one for each word that occurred before; any other gets the last words of its last message.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.errors import CallError, ModelError
from workbench.models.fakes import read_options
from workbench.models.protocols import Call, Chat, Request
from workbench.models.tokenizers import Words
from workbench.specs import Served

_NAME = re.compile(r"fake:words(?:\?(?P<options>.*))?")
BLOCK = 16
_TICK = 0.2
"""Seconds between two calls of `check` while an answer is waited for."""
_WORDS = re.compile(r"\w+|[^\w\s]")


class WordTokenizer:
    """Each word is a token; its id is a hash of it."""

    @property
    def identity(self) -> Mapping[str, Any]:
        return Words().identity

    def spans(self, text: str) -> NDArray[np.int64]:
        return Words().spans(text)

    def chat_ids(self, messages: Chat) -> Sequence[int]:
        """Two tokens of template for each message."""
        return [i for m in messages for i in (1, *self.prompt_ids(m["content"]), 2)]

    def prompt_ids(self, text: str) -> Sequence[int]:
        return [sum(word.encode()) * 31 + len(word) for word in _WORDS.findall(text)]


class FakeLanguageModel:
    """Answers with the last words of what it was asked."""

    def __init__(
        self,
        spec: Served,
        *,
        delay: float = 0.0,
        log: Path | None = None,
        fail_after: int | None = None,
        fail_times: int | None = None,
    ) -> None:
        """`delay` seconds a call; `log` gets one line of JSON a finished call: [pid, prompt]; calls after the
        first `fail_after` fail, `fail_times` of them (None: all)."""
        self.window, self.block = spec.max_model_len, BLOCK
        self.tokenizer = WordTokenizer()
        self.calls = 0
        self._concurrency = spec.concurrency
        self._delay, self._log = delay, log
        self._fail_after, self._fail_times = fail_after, fail_times
        self._seen: set[tuple[int, ...]] = set()

    @property
    def identity(self) -> Mapping[str, Any]:
        """What determines the answers: not the delay, the faults or the log."""
        return {"weights": "fake:words", "max_model_len": self.window}

    def stream(
        self, requests: Sequence[Request], *, check: Callable[[], None] = lambda: None
    ) -> Generator[tuple[int, Call], None, None]:
        """As `LanguageModel.stream`."""
        failure: CallError | None = None
        with ThreadPoolExecutor(self._concurrency) as threads:
            waiting = iter(enumerate(requests))
            running: dict[Future[Call], int] = {}
            while True:
                while failure is None and len(running) < self._concurrency and (item := next(waiting, None)):
                    running[threads.submit(self._answer, *item)] = item[0]
                if not running:
                    break
                check()
                for future in wait(running, timeout=_TICK, return_when=FIRST_COMPLETED).done:
                    index = running.pop(future)
                    try:
                        call = future.result()
                    except CallError as error:
                        failure = failure or error
                    else:
                        yield index, call
        if failure:
            raise failure

    def _answer(self, index: int, request: Request) -> Call:
        self.calls += 1
        if self._fail_after is not None:
            failed = self.calls - self._fail_after
            if failed > 0 and (self._fail_times is None or failed <= self._fail_times):
                raise CallError(f"a failure that was asked for, on call {self.calls}", where=f"request {index}")
        begun = time.perf_counter()
        time.sleep(self._delay)
        chat = request.endpoint == "chat"
        text = request.body["messages"][-1]["content"] if chat else request.body["prompt"]
        ids = self.tokenizer.chat_ids(request.body["messages"]) if chat else self.tokenizer.prompt_ids(text)
        if len(ids) + request.body["max_tokens"] > self.window:
            raise CallError(f"{len(ids)} tokens of prompt do not fit into {self.window}", where=f"request {index}")
        said = self._words(text, request)
        milliseconds = (time.perf_counter() - begun) * 1000
        if self._log:
            with self._log.open("ab", buffering=0) as log:
                log.write((json.dumps([os.getpid(), text]) + "\n").encode())
        tokens = max(1, len(said.split()))
        return Call(
            text=said,
            finish_reason="stop",
            prompt_tokens=len(ids),
            cached_tokens=self._cached(ids),
            output_tokens=tokens,
            ttft_ms=milliseconds,
            itl_ms=(0.0,) * (tokens - 1),
            e2e_ms=milliseconds,
            attempts=1,
            logprobs=_logprobs(text) if "prompt_logprobs" in request.body else (),
        )

    def _words(self, text: str, request: Request) -> str:
        if "prompt_logprobs" in request.body:
            return ""
        if wanted := request.body.get("response_format"):
            return json.dumps(_fitting(wanted["json_schema"]["schema"], text))
        return " ".join(text.split()[-min(8, request.body["max_tokens"]) :])

    def _cached(self, ids: Sequence[int]) -> int:
        blocks = [tuple(ids[:end]) for end in range(BLOCK, len(ids), BLOCK)]
        found = next((i for i, block in enumerate(blocks) if block not in self._seen), len(blocks))
        self._seen.update(blocks)
        return found * BLOCK


def _logprobs(text: str) -> tuple[float, ...]:
    seen: set[str] = set()
    found = []
    for word in _WORDS.findall(text.lower()):
        found.append(-0.5 if word in seen else -4.0)
        seen.add(word)
    return tuple(found[1:])


def _fitting(schema: Mapping[str, Any], text: str) -> Any:
    """A value that fits a JSON Schema of objects, arrays, integers, enumerations and strings."""
    if "enum" in schema:
        return schema["enum"][len(text) % len(schema["enum"])]
    kind = schema.get("type")
    if kind == "object":
        return {name: _fitting(of, text) for name, of in schema.get("properties", {}).items()}
    if kind == "array":
        items, count = schema["items"], schema.get("minItems", 0)
        return items["enum"][::-1][:count] if "enum" in items else [_fitting(items, text)] * count
    return {"integer": schema.get("minimum", 0), "number": 0.0, "boolean": False, "null": None}.get(str(kind), "")


def fake_language_model(spec: Served) -> FakeLanguageModel:
    """The fake that a spec names.

    Raises:
        ModelError: unknown fake or option, or a value that does not fit.
    """
    match = _NAME.fullmatch(spec.model)
    if not match:
        raise ModelError(f"unknown fake {spec.model!r}", hint="for example fake:words")
    kinds = {"delay": float, "log": Path, "fail_after": int, "fail_times": int}
    return FakeLanguageModel(spec, **read_options(spec.model, match["options"] or "", kinds))

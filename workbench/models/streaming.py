"""From the bytes of an OpenAI-compatible answer to a Call.

Lines are read here and not by package openai: its objects, one a token, cost several times what all the rest
of a request does (benchmarks/client.py), and that time would stand in the latencies.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import Any

from workbench.models.protocols import Call
from workbench.models.retrying import Fault, event_fault

_FIELDS = {b"", b"data", b"event", b"id", b"retry"}
"""Of server-sent events; an empty one is a comment or ends an event."""


class Reading:
    """One answer while it comes: fed with bytes, then asked for its Call.

    Times are seconds of one monotonic clock; `sent` is when the request was sent. `logprobs`: those of the
    prompt were asked for.
    """

    def __init__(self, sent: float, *, logprobs: bool = False) -> None:
        self._sent, self._ended = sent, sent
        self._wants_logprobs = logprobs
        self._rest = b""
        self._texts: list[str] = []
        self._times: list[float] = []
        self._finish: str | None = None
        self._usage: tuple[int, int, int | None] | None = None
        self._logprobs: tuple[float, ...] = ()
        self._done = False

    def feed(self, data: bytes, now: float) -> None:
        """Take the next bytes of a stream of server-sent events, cut anywhere.

        Raises:
            Fault: an error event, or an event that is not what it should be.
        """
        # Only at line feeds: JSON may hold the other characters that end a line elsewhere (U+2028).
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            field, _, value = line.strip().partition(b":")
            if field == b"data" and value.strip() == b"[DONE]":
                self._done, self._ended = True, now
            elif field == b"data" and not self._done:
                self.take(value, now)
            elif field not in _FIELDS:
                raise _malformed(line)

    def take(self, event: bytes, now: float) -> None:
        """Take one event of a stream, or a whole answer, which is one event that says everything.

        Raises:
            Fault: as `feed`.
        """
        self._ended = now
        try:
            said = json.loads(event)
            if error := said.get("error"):
                raise event_fault(error)
            for choice in (said.get("choices") or [])[:1]:
                self._choose(choice, now)
            if usage := said.get("usage"):
                details = usage.get("prompt_tokens_details") or {}
                counts = int(usage["prompt_tokens"]), int(usage.get("completion_tokens") or 0)
                self._usage = (*counts, details.get("cached_tokens"))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise _malformed(event) from error

    def _choose(self, choice: dict[str, Any], now: float) -> None:
        delta = choice.get("delta") or choice.get("message")
        text = delta.get("content") if delta else choice.get("text")
        # A token may be thought or tool call instead of text; the role alone is no token.
        if text or (delta and any(value for name, value in delta.items() if name != "role")):
            self._times.append(now)
            self._texts.append(text or "")
        self._finish = choice.get("finish_reason") or self._finish
        if entries := choice.get("prompt_logprobs"):
            # The first token has none. Of each entry the first is the real token, likelier ones follow it.
            self._logprobs = tuple(float(next(iter(entry.values()))["logprob"]) for entry in entries[1:])

    def call(self, faults: Sequence[str], waited: float = 0.0) -> Call:
        """The finished call, after attempts that failed with `faults` and `waited` seconds between them.

        Raises:
            Fault: the answer is not complete, or the server lacks what was asked of it.
        """
        if self._finish is None or (self._usage is None and not self._done):
            raise Fault("cut short", "the answer ended without a reason to")
        if self._finish in ("abort", "error"):
            raise Fault("aborted", f"the server ended the answer with {self._finish!r}")
        lacking = "usage" if self._usage is None else "prompt_logprobs"
        if self._usage is None or (self._wants_logprobs and not self._logprobs and self._usage[0] > 1):
            hint = "use vLLM, or another server that gives it"
            raise Fault(f"no {lacking}", f"the answer has no {lacking}", retry=False, hint=hint)
        prompt, output, cached = self._usage
        first = self._times[0] if self._times else self._ended
        return Call(
            text=_storable("".join(self._texts)),
            finish_reason=self._finish,
            prompt_tokens=prompt,
            cached_tokens=cached,
            output_tokens=output,
            ttft_ms=(first - self._sent) * 1000,
            itl_ms=tuple((b - a) * 1000 for a, b in itertools.pairwise(self._times)),
            e2e_ms=(self._ended - self._sent) * 1000,
            attempts=len(faults) + 1,
            faults=tuple(faults),
            logprobs=self._logprobs,
            waited_ms=waited * 1000,
        )


def _storable(text: str) -> str:
    """An answer that PostgreSQL can keep: U+0000 and lone surrogates, which are no text, become U+FFFD."""
    return text.replace("\0", "\ufffd").encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _malformed(sent: bytes) -> Fault:
    return Fault("malformed", f"the server sent what is no answer: {sent[:80].decode(errors='replace')!r}")

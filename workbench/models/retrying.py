"""Why an attempt at a model request failed, whether another one can help, and how long to wait for it."""

from __future__ import annotations

import email.utils
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_TRANSIENT = {408, 409, 429}
_TOO_LONG = re.compile(r"context[ _]length|maximum (model |input )?length|max_model_len|too (long|many tokens)", re.I)

AGAIN = "calls that finished are kept: once the server answers, run again"


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how long one call is tried; times in seconds.

    Between attempts: exponential backoff with full jitter (Brooker 2015, "Exponential Backoff And Jitter"), or
    the server's Retry-After where that is longer, up to `longest_wait`.
    """

    attempts: int = 6
    deadline: float = 900.0
    """Over all attempts of a call, from the first on."""
    silence: float = 300.0
    """Without a byte from the server, in one attempt."""
    connect: float = 10.0
    base: float = 1.0
    cap: float = 30.0
    longest_wait: float = 120.0

    def pause(self, failures: int, asked: float | None, draw: float) -> float:
        """Seconds to wait after so many failed attempts; `draw` is uniform in [0, 1)."""
        jittered = draw * min(self.cap, self.base * 2.0 ** min(failures - 1, 60))
        return max(jittered, min(asked or 0.0, self.longest_wait))


class Fault(Exception):
    """One failed attempt.

    `word` is short enough for a ledger, `said` is for a person. `retry`: another attempt can help. `broken`: the
    connection failed, so the server may be gone. `after`: seconds that the server asks us to wait.
    """

    def __init__(
        self,
        word: str,
        said: str,
        *,
        retry: bool = True,
        broken: bool = False,
        after: float | None = None,
        hint: str = AGAIN,
    ) -> None:
        super().__init__(word)  # what was said may hold a key: whoever shows it masks it
        self.word, self.said, self.hint = word, " ".join(said.split()), hint
        self.retry, self.broken, self.after = retry, broken, after


def status_fault(status: int, body: object, headers: Mapping[str, str], now: float) -> Fault:
    """The fault of an error status; `body` is what stood there, decoded, or its "error"; `now` in epoch seconds."""
    message = _message(body)
    said = f"the server said {status}: {message}" if message else f"the server said {status}"
    if status in _TRANSIENT or status >= 500:
        hint = "lower the concurrency, or ask for a higher limit" if status == 429 else AGAIN
        return Fault(str(status), said, after=retry_after(headers.get("retry-after"), now), hint=hint)
    hint = "change the prompt or its sampling"
    if status in (401, 403):
        hint = "set WORKBENCH_LLM_KEY to a key that this server accepts"
    elif status == 413 or (status == 400 and (_field(body, "param") == "input_tokens" or _TOO_LONG.search(said))):
        said = f"prompt and answer do not fit in the model's window: {said}"
        hint = "show fewer or shorter passages, lower max_tokens, or raise max_model_len"
    return Fault(str(status), said, retry=False, hint=hint)


def event_fault(error: object) -> Fault:
    """The fault of an error inside a stream: final only where its code is a final status."""
    code = _field(error, "code")
    if isinstance(code, int) and 400 <= code < 500:
        return status_fault(code, error, {}, 0.0)
    return Fault("error event", f"the server broke off: {_message(error)}")


def transport_fault(error: Exception) -> Fault:
    """The fault of a request that was not sent, or whose answer stopped coming."""
    chain = list(_causes(error))
    if any(isinstance(cause, TimeoutError) for cause in chain):
        return Fault("timeout", "the server is silent", hint="is it overloaded? Lower the concurrency")
    word = "refused" if any(isinstance(cause, ConnectionRefusedError) for cause in chain) else "disconnected"
    said = f"the connection failed: {chain[-1] or type(chain[-1]).__name__}"
    return Fault(word, said, broken=True, hint=f"is the server running? {AGAIN.capitalize()}")


def retry_after(value: str | None, now: float) -> float | None:
    """Seconds that a Retry-After header asks for: a number or an HTTP date (RFC 9110, section 10.2.3)."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - now
        except (ValueError, OverflowError):
            return None
    return max(0.0, seconds) if seconds == seconds else None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _field(body: object, name: str) -> Any:
    return body.get(name) if isinstance(body, Mapping) else None


def _message(body: object) -> str:
    if isinstance(body, Mapping):
        inner = body.get("error", body)
        found = _field(inner, "message") or _field(inner, "detail")
        return str(found or json.dumps(inner, ensure_ascii=False, default=str))
    return " ".join(str(body or "").split())

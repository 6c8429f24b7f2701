"""Stand-ins for models at their seam: they count, fail and are slow on demand, and need no package.

For fault injection and for the speed of what surrounds a model; never the only proof that something
works. `fake_embedder` reaches them from a spec, so that they run in other processes too.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qsl

import numpy as np
from numpy.typing import NDArray

from workbench.errors import ModelError, did_you_mean
from workbench.models.protocols import Embeddings, Role
from workbench.specs import Embed

_WORD = re.compile(r"\w+")
_NAME = re.compile(r"fake:hash(?:-(?P<dimensions>\d+))?(?:\?(?P<options>.*))?")


class HashEmbedder:
    """Hashed bags of words: equal texts have equal unit vectors, texts that share words are closer.

    A token is a word in lower case; one special token stands before each window, so that a blank
    text has a vector too. Attributes `calls` and `embedded` count what was asked of this instance.
    """

    def __init__(
        self,
        dimensions: int = 64,
        *,
        query_prefix: str = "",
        passage_prefix: str = "",
        long: Literal["pool", "truncate"] = "pool",
        max_tokens: int | None = None,
        delay: float = 0.0,
        fail_after: int | None = None,
        fail_times: int | None = None,
        log: Path | None = None,
    ) -> None:
        """Prefixes, `long` and `max_tokens` as in `specs.Embed`; no window by default.

        Each call takes `delay` seconds more. The calls after the first `fail_after` fail, for ever
        or `fail_times` times. `log` gets one line a text that was embedded: a JSON list of process
        id, role and text, appended in one write a call.
        """
        if dimensions < 8:
            raise ModelError(f"{dimensions} dimensions are too few to tell words apart", hint="give at least 8")
        self.dimensions = dimensions
        self.calls = 0
        self.embedded = 0
        self._prefixes: Mapping[Role, str] = {"query": query_prefix, "passage": passage_prefix}
        self._pool = long == "pool"
        self._room = (max_tokens or 1_000_000_000) - 1
        self._delay, self._log = delay, log
        self._fail_after, self._fail_times = fail_after, fail_times
        longest = max(len(_words(prefix)) for prefix in self._prefixes.values())
        if longest >= self._room:
            raise ModelError(f"a window of {max_tokens} tokens has no room for text", hint="raise max_tokens")

    @property
    def identity(self) -> Mapping[str, Any]:
        """What determines the vectors: not the delay, the faults or the log."""
        return {"weights": "fake:hash", "dimensions": self.dimensions}

    def embed(self, texts: Sequence[str], role: Role) -> Embeddings:
        """Embed texts; order is kept.

        Raises:
            ModelError: a failure that was asked for; nothing of this call is counted or logged as embedded.
        """
        self.calls += 1
        time.sleep(self._delay)
        if self._fail_after is not None:
            failed = self.calls - self._fail_after
            if failed > 0 and (self._fail_times is None or failed <= self._fail_times):
                raise ModelError(f"a failure that was asked for, on call {self.calls}", where="fake:hash")
        vectors = np.empty((len(texts), self.dimensions), dtype=np.float32)
        counts = np.empty((3, len(texts)), dtype=np.int32)
        for i, text in enumerate(texts):
            vectors[i], counts[:, i] = self._embed(text, self._prefixes[role])
        self.embedded += len(texts)
        if self._log:
            lines = "".join(json.dumps([os.getpid(), role, text]) + "\n" for text in texts)
            with self._log.open("ab", buffering=0) as log:
                log.write(lines.encode())
        return Embeddings(vectors, counts[0], counts[1], counts[2].astype(np.bool_))

    def _embed(self, text: str, prefix: str) -> tuple[NDArray[np.float64], tuple[int, int, bool]]:
        head, words = _words(prefix), _words(text)
        total = 1 + len(head) + len(words)
        step = self._room - len(head)
        if not self._pool or len(words) <= step:
            return self._unit([*head, *words[:step]]), (total, 1, len(words) > step)
        parts = [self._unit([*head, *words[i : i + step]]) for i in range(0, len(words), step)]
        mean: NDArray[np.float64] = np.mean(parts, axis=0)
        return mean / np.linalg.norm(mean), (total, len(parts), False)

    def _unit(self, words: Sequence[str]) -> NDArray[np.float64]:
        total = sum((_direction(word, self.dimensions) for word in words), start=_direction("[CLS]", self.dimensions))
        unit: NDArray[np.float64] = total / np.linalg.norm(total)
        return unit


def fake_embedder(spec: Embed) -> HashEmbedder:
    """The fake that a spec names: "fake:hash-64", or with options "fake:hash?dimensions=64&delay=0.05&log=/path".

    Options are the keywords of `HashEmbedder` that no field of the spec holds; the spec's dtype and
    revision have no meaning here.

    Raises:
        ModelError: unknown fake or option, or a value that does not fit.
    """
    match = _NAME.fullmatch(spec.model)
    if not match:
        raise ModelError(f"unknown fake {spec.model!r}", where="embed.model", hint="for example fake:hash-64")
    kinds: Mapping[str, Callable[[str], Any]] = {
        "dimensions": int,
        "delay": float,
        "fail_after": int,
        "fail_times": int,
        "log": Path,
    }
    size = {"dimensions": int(match["dimensions"])} if match["dimensions"] else {}
    options = {**size, **read_options(spec.model, match["options"] or "", kinds)}
    return HashEmbedder(
        query_prefix=spec.query_prefix,
        passage_prefix=spec.passage_prefix,
        long=spec.long,
        max_tokens=spec.max_tokens,
        **options,
    )


def read_options(name: str, query: str, kinds: Mapping[str, Callable[[str], Any]]) -> dict[str, Any]:
    """The options in the name of a fake, "delay=0.05&log=/path", each made what its kind makes of it.

    Raises:
        ModelError: an unknown option, or a value that does not fit.
    """
    options: dict[str, Any] = {}
    for option, value in parse_qsl(query, keep_blank_values=True):
        if option not in kinds:
            raise ModelError(f"unknown option {option!r}", where=name, hint=did_you_mean(option, kinds))
        try:
            options[option] = kinds[option](value)
        except ValueError:
            raise ModelError(f"option {option} = {value!r} is no {kinds[option].__name__}", where=name) from None
    return options


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


@functools.lru_cache(maxsize=100_000)
def _direction(word: str, dimensions: int) -> NDArray[np.float64]:
    # The bytes of a hash are the same in every process; half-integers never cancel in an odd sum.
    data = np.frombuffer(hashlib.shake_256(word.encode(errors="surrogatepass")).digest(dimensions), dtype=np.uint8)
    return data.astype(np.float64) - 127.5

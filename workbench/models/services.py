"""Models behind an HTTP service: embeddings, and scores of pairs.

`/v1/embeddings` as OpenAI defined it; `/rerank` as Jina and Cohere have it and vLLM serves it, with vLLM's
`/score` where that is missing. Requests are tried again as `RetryPolicy` says after connection faults, 408,
409, 429 and 5xx; other answers are final. A key is sent as a bearer token, and shown nowhere.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray
from pydantic import SecretStr

from workbench.errors import ModelError
from workbench.models.protocols import Embeddings, Role
from workbench.models.retrying import Fault, RetryPolicy, retry_after, transport_fault
from workbench.specs import CrossEncoder, Embed

_BATCH = 64
"""Texts of one request: services refuse larger ones from a few hundred on."""
_TRANSIENT = {408, 409, 429}
_VERSIONED = re.compile(r"/v\d+$")
_TOO_LONG = re.compile(r"context|too long|maximum|max_model_len|tokens", re.IGNORECASE)


def origin_identity(url: str, model: str) -> Mapping[str, Any]:
    """What identifies a model of a service: {"origin": scheme://host[:port][/path], "model": name}.

    Credentials, query and fragment are left out, and a default port is not named.

    Raises:
        ModelError: the text is no http(s) URL.
    """
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, TypeError) as error:
        raise ModelError("the service's URL cannot be read", hint="for example http://127.0.0.1:8000") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ModelError("the service's URL is no http(s) URL", hint="for example http://127.0.0.1:8000")
    clean = parsed.copy_with(username=None, password=None, query=None, fragment=None)
    return {"origin": str(clean).rstrip("/"), "model": model}


class _Missing(ModelError):
    """The service has no such path, or no such model."""


class _Service:
    """What both services share: one connection pool, retries, and errors that say the next step."""

    _cut: str
    """What a person can do about texts that are too long for the model."""

    def __init__(self, url: str, model: str, key: SecretStr | None, table: str, policy: RetryPolicy) -> None:
        self.identity = origin_identity(url, model)
        self.origin: str = self.identity["origin"]
        self._model, self._key, self._table, self._policy = model, key, table, policy
        headers = {"Authorization": f"Bearer {key.get_secret_value()}"} if key else {}
        timeout = httpx.Timeout(policy.silence, connect=policy.connect)
        self._client = httpx.Client(headers=headers, timeout=timeout)
        self._sleep: Callable[[float], None] = time.sleep

    def close(self) -> None:
        """Close the connections; the service cannot be asked afterwards."""
        self._client.close()

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """The JSON answer to a request, after as many attempts as the policy allows.

        Raises:
            ModelError: the service refused the request, or could not be reached.
        """
        failures, began = 0, time.monotonic()
        while True:
            try:
                return self._attempt(path, {"model": self._model, **body})
            except Fault as fault:
                failures += 1
                pause = self._policy.pause(failures, fault.after, random.random())  # noqa: S311 -- jitter
                late = time.monotonic() + pause > began + self._policy.deadline
                if not fault.retry or failures >= self._policy.attempts or late:
                    tries = f" (attempt {failures})" if failures > 1 else ""
                    kind = _Missing if fault.word in ("404", "405") else ModelError
                    raise self.error(f"{fault.said}{tries}", path, hint=fault.hint, kind=kind) from None
            self._sleep(pause)

    def error(self, what: str, path: str, *, hint: str, kind: type[ModelError] = ModelError) -> ModelError:
        """An error at this service; whatever it said, the key is not in it."""
        return kind(self._masked(what), where=f"{self.origin}{path}", hint=hint)

    def _masked(self, text: str) -> str:
        return text.replace(self._key.get_secret_value(), "***") if self._key else text

    def _attempt(self, path: str, body: Mapping[str, Any]) -> Any:
        try:
            response = self._client.post(self.origin + path, json=body)
        except httpx.RequestError as error:
            raise transport_fault(error) from error
        if response.is_success:
            try:
                return response.json()
            except ValueError as error:
                hint = "does the URL end where the API begins?"
                raise Fault("no JSON", "the service answered, but not in JSON", retry=False, hint=hint) from error
        status = response.status_code
        # Before a fault shortens it, which could leave half a key.
        said = self._masked(f"the service said {status}: {_message(response)}")
        retry = status in _TRANSIENT or status >= 500
        after = retry_after(response.headers.get("retry-after"), time.time())
        raise Fault(str(status), said, retry=retry, after=after, hint=self._hint(status, said))

    def _hint(self, status: int, said: str) -> str:
        if status in (401, 403):
            return f"set WORKBENCH_{self._table.upper()}_KEY to a key that this service accepts"
        if status in (404, 405):
            return f"is {self._model!r} a model of this service, and does its URL end where the API begins?"
        if status in (400, 413, 422) and _TOO_LONG.search(said):
            return f"if a text is too long for the model: smaller chunks, or {self._cut}"
        if status == 429:
            return "the service's limit is reached: what finished is kept, run again later"
        if status >= 500:
            return "what finished is kept: once the service answers, run again"
        return "check the model's name and the spec"


class EmbeddingService(_Service):
    """The embeddings of a service as an `Embedder`.

    The service has its own window. With `long = "truncate"` it is asked to cut longer texts (vLLM's
    `truncate_prompt_tokens`; to `max_tokens` where that is given); with "pool" nothing can be averaged here, so
    a longer text is an error. What was cut is not told: `truncated` is False throughout.
    """

    _cut = 'embed.long = "truncate"'

    def __init__(
        self, spec: Embed, url: str, key: SecretStr | None = None, *, policy: RetryPolicy | None = None
    ) -> None:
        """`url` with its version or without: http://host:8000 and http://host:8000/v1 both work.

        Raises:
            ModelError: no http(s) URL.
        """
        super().__init__(url, spec.model, key, "embed", policy or RetryPolicy())
        self.spec = spec
        self._path = "/embeddings" if _VERSIONED.search(self.origin) else "/v1/embeddings"
        self._prefixes: Mapping[Role, str] = {"query": spec.query_prefix, "passage": spec.passage_prefix}
        self._dimensions: int | None = None

    @property
    def dimensions(self) -> int:
        """The length of the vectors, learned from the first answer; asked for where there was none yet."""
        if self._dimensions is None:
            self.embed(["a"], "query")
        assert self._dimensions is not None
        return self._dimensions

    def embed(self, texts: Sequence[str], role: Role) -> Embeddings:
        """Embed texts with the role's prefix; order is kept, equal texts are sent once.

        A service tells the tokens of a request, not of a text: they are shared out by the texts' lengths.

        Raises:
            ModelError: the service cannot be used, or what it answers are no vectors of these texts.
        """
        distinct = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        vectors: list[NDArray[np.float32]] = []
        tokens: list[NDArray[np.int32]] = []
        for batch in _batches([self._prefixes[role] + text for text in distinct]):
            found, counts = self._embed(batch)
            vectors.append(found)
            tokens.append(counts)
        if not vectors:
            vectors, tokens = [np.empty((0, self.dimensions), np.float32)], [np.empty(0, np.int32)]
        rows = np.array([distinct[text] for text in texts], dtype=np.int64)
        return Embeddings(
            vectors=np.concatenate(vectors)[rows],
            tokens=np.concatenate(tokens)[rows],
            windows=np.ones(len(rows), dtype=np.int32),
            truncated=np.zeros(len(rows), dtype=np.bool_),
        )

    def _embed(self, texts: Sequence[str]) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        body: dict[str, Any] = {"input": list(texts), "encoding_format": "float"}
        if self.spec.long == "truncate":
            body["truncate_prompt_tokens"] = self.spec.max_tokens or -1
        answer = self.post(self._path, body)
        try:
            rows = _by_index(answer["data"], "embedding", len(texts))
            vectors = np.array(rows, dtype=np.float64)
            if vectors.ndim != 2 or not vectors.shape[1]:
                raise ValueError("the vectors are of different lengths, or empty")
            total = (answer.get("usage") or {}).get("prompt_tokens")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise self.error(
                f"the answer does not hold a vector for each of {len(texts)} texts: {error}",
                self._path,
                hint="is this an embedding model, and an OpenAI-compatible service?",
            ) from error
        if self._dimensions not in (None, vectors.shape[1]):
            raise self.error(
                f"the vectors have {vectors.shape[1]} dimensions, those before had {self._dimensions}",
                self._path,
                hint="did the service change its model? Give the other one another name",
            )
        lengths = np.linalg.norm(vectors, axis=1)
        if bad := int(len(lengths) - (np.isfinite(lengths) & (lengths > 0)).sum()):
            raise self.error(
                f"{bad} of {len(texts)} vectors are not finite or have no direction",
                self._path,
                hint="let the service run the model in a wider dtype",
            )
        self._dimensions = int(vectors.shape[1])
        shares = _shares(total if isinstance(total, int) else 0, [len(text) for text in texts])
        return (vectors / lengths[:, None]).astype(np.float32), shares


class RerankService(_Service):
    """The scores of a service as a `PairScorer`: `/rerank`, or `/score` where the service has no such path."""

    _cut = "rerank.max_tokens"

    def __init__(
        self, spec: CrossEncoder, url: str, key: SecretStr | None = None, *, policy: RetryPolicy | None = None
    ) -> None:
        """`url` is what stands before /rerank; the model is asked for by `spec.model`.

        Raises:
            ModelError: no http(s) URL.
        """
        super().__init__(url, spec.model, key, "rerank", policy or RetryPolicy())
        self.spec = spec
        self._ask: Callable[[str, Sequence[str]], NDArray[np.float64]] | None = None

    def score(self, pairs: Sequence[tuple[str, str]]) -> NDArray[np.float64]:
        """[n] scores as the service gives them (vLLM: after a sigmoid); equal pairs are sent once.

        Raises:
            ModelError: the service cannot be used, or does not answer with a finite score for each passage.
        """
        passages: dict[str, dict[str, None]] = {}
        for question, passage in pairs:
            passages.setdefault(question, {})[passage] = None
        found: dict[tuple[str, str], float] = {}
        for question, distinct in passages.items():
            for batch in _batches(list(distinct)):
                for passage, score in zip(batch, self._scores(question, batch).tolist(), strict=True):
                    found[question, passage] = score
        return np.array([found[pair] for pair in pairs], dtype=np.float64)

    def _scores(self, question: str, passages: Sequence[str]) -> NDArray[np.float64]:
        if self._ask is not None:
            return self._ask(question, passages)
        try:
            scores = self._rerank(question, passages)
            self._ask = self._rerank
        except _Missing as missing:
            try:
                scores = self._score(question, passages)
            except _Missing:
                raise missing from None  # neither: what /rerank said is the nearer reason
            self._ask = self._score
        return scores

    def _rerank(self, question: str, passages: Sequence[str]) -> NDArray[np.float64]:
        body = {"query": question, "documents": list(passages)}
        return self._read("/rerank", body, "results", "relevance_score", len(passages))

    def _score(self, question: str, passages: Sequence[str]) -> NDArray[np.float64]:
        body = {"text_1": question, "text_2": list(passages)}
        return self._read("/score", body, "data", "score", len(passages))

    def _read(self, path: str, body: Mapping[str, Any], items: str, field: str, count: int) -> NDArray[np.float64]:
        cut = {"truncate_prompt_tokens": self.spec.max_tokens} if self.spec.max_tokens else {}
        answer = self.post(path, {**body, **cut})
        try:
            scores = np.array(_by_index(answer[items], field, count), dtype=np.float64).reshape(count)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise self.error(
                f"the answer does not hold a score for each of {count} passages: {error}",
                path,
                hint="is this a reranker, and does its service answer as vLLM, Jina or Cohere do?",
            ) from error
        if bad := int(count - np.isfinite(scores).sum()):
            hint = "let the service run the model in a wider dtype"
            raise self.error(f"{bad} of {count} scores are not finite", path, hint=hint)
        return scores


def _batches(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    return (texts[at : at + _BATCH] for at in range(0, len(texts), _BATCH))


def _by_index(items: Sequence[Mapping[str, Any]], field: str, count: int) -> list[Any]:
    """A field of each item in the order of their indices, which services need not keep."""
    found = {item["index"]: item[field] for item in items}
    if len(items) != count or set(found) != set(range(count)):
        raise ValueError(f"it has {len(items)} entries with {len(found)} indices")
    return [found[i] for i in range(count)]


def _shares(total: int, lengths: Sequence[int]) -> NDArray[np.int32]:
    """Whole numbers that add up to `total`, in proportion to the lengths."""
    weights = np.array(lengths, dtype=np.float64) + 1.0
    edges = np.rint(np.cumsum(weights) / weights.sum() * total)
    return np.diff(edges, prepend=0.0).astype(np.int32)


def _message(response: httpx.Response) -> str:
    """What a service says of an error: the message of its JSON where there is one, else the text, in one line."""
    found: Any = response.text
    try:
        found = response.json()
        for name in ("error", "message", "detail"):
            found = found.get(name, found) if isinstance(found, Mapping) else found
    except ValueError:
        pass
    return " ".join(str(found).split())

"""What a stage may ask of a model. Each protocol has one method; identity says what determines its output."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Role = Literal["query", "passage"]


class Tokenizer(Protocol):
    """Splits text into tokens that are spans of it."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """What determines the spans: a name, or a digest of the tokenizer's file."""
        ...

    def spans(self, text: str) -> NDArray[np.int64]:
        """[n, 2] code-point offsets (start, end) of the tokens, ordered, no special tokens."""
        ...


@dataclass(frozen=True, slots=True)
class Embeddings:
    """Unit vectors and what was done to get them; row i belongs to text i."""

    vectors: NDArray[np.float32]
    """[n, dimensions], each of length 1 (a text without tokens: see the model)."""
    tokens: NDArray[np.int32]
    """[n] tokens of each text, prefix and special tokens included, before any truncation."""
    windows: NDArray[np.int32]
    """[n] windows that were embedded and averaged; 1 where the text fitted."""
    truncated: NDArray[np.bool_]
    """[n] whether tokens were dropped."""


class Embedder(Protocol):
    """Turns texts into vectors."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """Digest of the weights (or origin of a service), beside what the spec already says."""
        ...

    @property
    def dimensions(self) -> int: ...

    def embed(self, texts: Sequence[str], role: Role) -> Embeddings:
        """Embed texts in the given role; order is kept."""
        ...


# --- language models -----------------------------------------------------------------------------


Chat = Sequence[Mapping[str, str]]
"""Messages of a chat: {"role": "system" | "user" | "assistant", "content": text}."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request to a language model, whole: with the model's identity it determines the answer.

    `body` is what is sent, as JSON, without the model's name and without how the answer travels (streaming).
    A completion with `prompt_logprobs` writes nothing: it is asked for the log-probabilities of its prompt.
    """

    endpoint: Literal["chat", "completion"]
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Call:
    """One finished model request; times from a monotonic clock at the client, of the attempt that succeeded."""

    text: str
    finish_reason: str
    prompt_tokens: int
    cached_tokens: int | None
    """Prompt tokens that the server took from its prefix cache; None where it does not say."""
    output_tokens: int
    ttft_ms: float
    """Time to first token, from sending the request."""
    itl_ms: tuple[float, ...]
    """Inter-token latencies: between consecutive pieces of the stream, each one token with vLLM."""
    e2e_ms: float
    attempts: int
    faults: tuple[str, ...] = ()
    """Why earlier attempts failed: "503", "timeout", "disconnected", "error event", ..."""
    logprobs: tuple[float, ...] = ()
    """Log-probabilities of the prompt's tokens from the second on, where they were asked for."""
    waited_ms: float = 0.0
    """Between attempts: backoff, and what the server asked for."""


class ChatTokenizer(Protocol):
    """How a language model counts tokens."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """What determines the counts."""
        ...

    def spans(self, text: str) -> NDArray[np.int64]:
        """[n, 2] code-point offsets (start, end) of the tokens of a text, no special tokens."""
        ...

    def chat_ids(self, messages: Chat) -> Sequence[int]:
        """Token ids of a whole chat prompt: template, special tokens and the turn to answer included."""
        ...

    def prompt_ids(self, text: str) -> Sequence[int]:
        """Token ids of a completion's prompt, as the server makes them (special tokens included)."""
        ...


class LanguageModel(Protocol):
    """Answers requests."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """Digest of the weights, or the origin of a service, with all that its serving can change in an answer."""
        ...

    @property
    def window(self) -> int:
        """Tokens of prompt and answer together, at most."""
        ...

    @property
    def block(self) -> int:
        """Tokens of one block of the prefix cache: a shared prefix is found in whole blocks."""
        ...

    @property
    def tokenizer(self) -> ChatTokenizer:
        """The model's own, or one that never counts too few tokens."""
        ...

    def stream(
        self, requests: Sequence[Request], *, check: Callable[[], None] = lambda: None
    ) -> Generator[tuple[int, Call], None, None]:
        """Send requests in order, several at a time; (position, call) of each as it finishes.

        `check` is called now and then while an answer is waited for, and may raise to stop. Closing the
        iterator cancels what is on the way.

        Raises:
            CallError: a request failed for good; no further one is sent, and those on the way are still
                awaited and yielded before it is raised.
        """
        ...


class PairScorer(Protocol):
    """Says how well passages answer questions."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """Digest of the weights or origin of a service, beside what the spec already says."""
        ...

    def score(self, pairs: Sequence[tuple[str, str]]) -> NDArray[np.float64]:
        """[n] finite scores of (question, passage) pairs, larger is better; order is kept.

        Raises:
            ModelError: the model cannot be run on a pair.
        """
        ...

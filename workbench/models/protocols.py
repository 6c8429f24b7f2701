"""What a stage may ask of a model. Each protocol has one method; identity says what determines its output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

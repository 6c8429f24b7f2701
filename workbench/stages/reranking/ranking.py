"""From scores to a ranking: a permutation of the candidates, of which the first are kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from workbench.errors import StageError


class Reranked(NamedTuple):
    """One query's ranking, best first; the three run in parallel."""

    chunk_nos: Sequence[int]
    scores: Sequence[float]
    """What the order was made of, larger is better: their unit is the reranker's."""
    ranks_before: Sequence[int]
    """Each chunk's rank, from 1, among the candidates."""


def order(chunk_nos: Sequence[int], scores: Sequence[float], k: int) -> Reranked:
    """The `k` best candidates by score; equal scores stay in the order of `chunk_nos`.

    Raises:
        StageError: a score is missing or not finite, so that there is no order.
    """
    if len(scores) != len(chunk_nos):
        raise StageError(f"{len(scores)} scores for {len(chunk_nos)} candidates", hint="one for each is needed")
    if bad := sum(not math.isfinite(score) for score in scores):
        raise StageError(f"{bad} of {len(scores)} scores are not finite", hint="rerank with another model or dtype")
    best = sorted(range(len(chunk_nos)), key=lambda i: -scores[i])[:k]
    return Reranked([chunk_nos[i] for i in best], [float(scores[i]) for i in best], [i + 1 for i in best])

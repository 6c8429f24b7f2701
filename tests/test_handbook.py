"""The handbook tells methods apart: the two conditions it was written for, through the whole pipeline."""

from __future__ import annotations

import pytest

from workbench.lab import Lab
from workbench.specs import Bm25, ChunkSpec, Dense, Fixed, Recursive, ScoreSpec, TrialSpec

pytestmark = pytest.mark.slow


@pytest.mark.timeout(600)
@pytest.mark.parametrize("chunk", [Recursive(tokens=200), Fixed(tokens=200)], ids=["recursive", "fixed"])
def test_both_methods_have_room_and_disagree(lab: Lab, chunk: ChunkSpec) -> None:
    pytest.importorskip("torch")
    data = lab.load("handbook")
    answerable = [q.query_id for q in data.queries if q.evidence]
    found = {}
    for retrieve in (Bm25(k=5), Dense(k=5)):
        result = lab.run(TrialSpec(chunk=chunk, retrieve=retrieve, score=ScoreSpec(k=(5,))), data)
        assert 0.4 <= result.metrics["recall@5"]["mean"] <= 0.9, retrieve.kind
        found[retrieve.kind] = result.score_of("recall@5")
    disagreeing = [q for q in answerable if found["bm25"][q] != found["dense"][q]]
    assert len(disagreeing) >= 0.15 * len(answerable)

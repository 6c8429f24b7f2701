"""Generated filings: what the title must bring, and where it must bring nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from workbench.lab import Lab
from workbench.specs import Bm25, ScoreSpec, SweepSpec, TrialSpec

METRIC = "recall@5"


@pytest.mark.parametrize("control", [0, 1])
def test_a_title_helps_where_a_chunk_alone_is_ambiguous_and_only_there(
    control: int, open_lab: Callable[..., Lab]
) -> None:
    """Correctness of the stages, never evidence for the method: the data were made to show it."""
    lab = open_lab()
    sweep = SweepSpec(
        base=TrialSpec(retrieve=Bm25(k=20), score=ScoreSpec(k=(1, 5, 20))),
        metric=METRIC,
        baseline={"context.kind": "none"},
        axes={"context.kind": ("none", "title", "headings")},
    )
    base = sweep.base.vary("chunk.tokenizer", "words").vary("chunk.tokens", 150)
    result = lab.sweep(sweep.model_copy(update={"base": base}), f"filings?chunks=300&control={control}&queries=100")
    assert [trial.label for trial in result.trials] == ["none", "title", "headings"]
    for comparison in result.comparisons:
        assert comparison.low is not None
        assert comparison.high is not None
        if control:
            assert comparison.low <= 0 <= comparison.high
        else:
            assert comparison.low > 0.3

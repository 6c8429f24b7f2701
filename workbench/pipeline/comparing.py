"""Two trials on the same queries: the paired difference, its test, and which queries changed sides."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import polars as pl

from workbench.errors import InputError
from workbench.evaluation import higher_is_better, score_matrix
from workbench.evaluation.statistics import Comparison, Interval, Paired, paired, verdict
from workbench.pipeline.results import TrialResult
from workbench.pipeline.shown import Rows, Shown
from workbench.pipeline.summaries import clusters


@dataclass(frozen=True)
class TrialComparison(Shown):
    """Trial `b` against trial `a` on one metric; differences are b - a."""

    metric: str
    a: TrialResult
    b: TrialResult
    paired: Paired
    queries: pl.DataFrame
    """query_id, text, a, b, difference: the queries scored in both, largest difference first."""

    @property
    def improved(self) -> list[str]:
        """Ids of the queries on which b is better."""
        sign = 1 if higher_is_better(self.metric) else -1
        return self.queries.filter(pl.col("difference") * sign > 0)["query_id"].to_list()

    @property
    def worsened(self) -> list[str]:
        """Ids of the queries on which b is worse."""
        sign = 1 if higher_is_better(self.metric) else -1
        return self.queries.filter(pl.col("difference") * sign < 0)["query_id"].to_list()

    @property
    def verdict(self) -> str:
        """One sentence that can say "not distinguishable"."""
        family = [Comparison(**dataclasses.asdict(self.paired), trial=1, baseline=0)]
        names = [self.a.label, self.b.label]
        if names[0] == names[1]:
            names = [f"{names[0]} (A)", f"{names[1]} (B)"]
        intervals = [
            Interval(**{k: t.metrics[self.metric][k] for k in Interval.__dataclass_fields__}) for t in (self.a, self.b)
        ]
        return verdict(names, self.metric, intervals, family, higher_is_better=higher_is_better(self.metric))

    def __repr__(self) -> str:
        return f"TrialComparison({self.verdict!r})"

    def as_json(self) -> dict[str, Any]:
        return {
            "metric": self.metric,
            "a": {"id": self.a.trial_id, "label": self.a.label},
            "b": {"id": self.b.trial_id, "label": self.b.label},
            **dataclasses.asdict(self.paired),
            "improved": self.improved,
            "worsened": self.worsened,
            "verdict": self.verdict,
        }

    def _rows(self) -> Rows:
        moved = self.queries.filter(pl.col("difference") != 0)
        rows = [(q, text, f"{a:.3f}", f"{b:.3f}", f"{d:+.3f}") for q, text, a, b, d in moved.head(20).iter_rows()]
        return self.verdict, ("query", "question", self.a.label, self.b.label, "difference"), rows


def compare(a: TrialResult, b: TrialResult, metric: str) -> TrialComparison:
    """Test b against a on the queries scored in both (sign flips, by document where there are enough).

    Raises:
        InputError: the trials ran on different queries or gold, or the metric is not there.
    """
    for part in ("queries", "gold"):
        name = f"{part}_fingerprint"
        if getattr(a.dataset, name) != getattr(b.dataset, name):
            raise InputError(f"the two trials ran on different {part}", where=f"{a.label} and {b.label}")
    for trial in (a, b):
        trial.require_metric(metric)
    ids, matrix, _ = score_matrix([a.scores, b.scores], metric)
    of = clusters(a.dataset.queries)
    texts = {q.query_id: q.text for q in a.dataset.queries}
    test = paired(matrix[1], matrix[0], [of[q] for q in ids])
    queries = (
        pl.DataFrame(
            {"query_id": ids, "text": [texts[q] for q in ids], "a": matrix[0], "b": matrix[1]},
            schema={"query_id": pl.String, "text": pl.String, "a": pl.Float64, "b": pl.Float64},
        )
        .fill_nan(None)
        .drop_nulls(["a", "b"])
        .with_columns(difference=pl.col("b") - pl.col("a"))
        .sort(pl.col("difference").abs(), "query_id", descending=[True, False])
    )
    return TrialComparison(metric, a, b, test, queries)

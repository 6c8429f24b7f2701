"""Intervals, paired tests and verdicts over per-query scores; NaN means unscored.

Everything is a function of its arguments: the random draws come from `seed` alone. Rows are trials,
columns are queries. Leave unanswerable queries out first (`evaluation.score_matrix` does): they cannot
be scored, while an unscored query could have been.
"""

from __future__ import annotations

from workbench.evaluation.statistics.comparisons import (
    Comparison,
    Paired,
    against_baseline,
    best_set,
    paired,
    verdict,
)
from workbench.evaluation.statistics.intervals import MIN_CLUSTERS, Interval, mean_interval, mean_intervals

CODE_VERSION = 1
"""Part of a score stage's fingerprint, which keeps the intervals; raised when any of them would change."""

__all__ = [
    "CODE_VERSION",
    "MIN_CLUSTERS",
    "Comparison",
    "Interval",
    "Paired",
    "against_baseline",
    "best_set",
    "mean_interval",
    "mean_intervals",
    "paired",
    "verdict",
]

"""Confidence intervals of mean scores.

- Efron, "Better Bootstrap Confidence Intervals", JASA 82 (1987), in the form of Efron & Tibshirani, An
  Introduction to the Bootstrap (1993), section 14.3: BCa.
- Field & Welsh, "Bootstrapping clustered data", J. R. Stat. Soc. B 69 (2007): resampling whole clusters.
- Wilson, "Probable Inference", JASA 22 (1927), as recommended by Brown, Cai & DasGupta, "Interval
  Estimation for a Binomial Proportion", Statistical Science 16 (2001).
- Clopper & Pearson, Biometrika 26 (1934): the bound for identical values.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from workbench.errors import InputError

Array = NDArray[np.float64]
Labels = NDArray[np.int64]
Bounds = tuple[float, float]

MIN_CLUSTERS = 20
"""With fewer clusters their own spread is too poorly known to resample them."""
CELLS = 2_000_000
"""Resamples x units handled at a time: 16 MB an array."""
TIE = 1e-9
"""Relative: sums of the same scores in another order are equal, not a rank apart."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and its confidence interval; mean None: nothing was scored, low or high None: no bound is known."""

    mean: float | None
    low: float | None
    high: float | None
    n: int
    unscored: int
    method: str
    note: str | None = None


def mean_interval(values: ArrayLike, clusters: ArrayLike | None = None, **options: Any) -> Interval:
    """`mean_intervals` of one row of values."""
    return mean_intervals(np.asarray(values, float)[None, :], clusters, **options)[0]


def mean_intervals(
    matrix: ArrayLike,
    clusters: ArrayLike | None = None,
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
    bounds: Bounds = (0.0, 1.0),
) -> list[Interval]:
    """The mean of each row with a two-sided confidence interval; a row's result is that of the row alone.

    Method, the first that fits: "exact bound" when all values are equal; "wilson" when all are 0 or 1
    and no clusters are resampled (it assumes independent queries); "bca" otherwise, over whole
    clusters if there are at least `MIN_CLUSTERS` of them and fewer than queries, else over queries
    (with a note if that ignores clusters).

    Args:
        matrix: (trials, queries); NaN = unscored.
        clusters: (queries,) labels, such as the document a query was asked of.
        confidence: two-sided, 0 < confidence < 1.
        resamples: bootstrap resamples; drawn in blocks, so memory does not grow with them.
        seed: of the draws.
        bounds: the range that every possible value lies in; the exact bound needs it.

    Raises:
        InputError: shapes do not fit, or a value lies outside `bounds`.
    """
    rows, labels = checked(matrix, clusters, bounds)
    return intervals_of(rows, labels, confidence, resamples, seed, bounds, wilson=bounds == (0.0, 1.0))


def intervals_of(
    rows: Array,
    labels: Labels | None,
    confidence: float,
    resamples: int,
    seed: int,
    bounds: Bounds,
    *,
    wilson: bool,
) -> list[Interval]:
    result: list[Interval | None] = [None] * len(rows)
    # Rows with equally many units share their draws, which depend on seed and number only.
    waiting: dict[int, list[tuple[int, Array, Array]]] = {}
    notes: list[str | None] = []
    for i, row in enumerate(rows):
        scored = ~np.isnan(row)
        values, n, unscored = row[scored], int(scored.sum()), int((~scored).sum())
        sums, sizes, note = _units(values, None if labels is None else labels[scored])
        notes.append(note)
        means = sums / sizes
        if n == 0:
            result[i] = Interval(None, None, None, 0, unscored, "none", "nothing was scored")
        elif np.ptp(means) <= TIE * max(1.0, float(np.abs(means).max())):
            mean = float(values[0]) if np.ptp(values) == 0 else float(values.mean())
            result[i] = Interval(
                mean, *_exact_bound(mean, len(sums), confidence, bounds), n, unscored, "exact bound", note
            )
        elif wilson and len(sums) == n and np.isin(values, (0.0, 1.0)).all():
            result[i] = Interval(float(values.mean()), *_wilson(values, confidence), n, unscored, "wilson", note)
        else:
            waiting.setdefault(len(sums), []).append((i, sums, sizes))
    for units, group in waiting.items():
        sums = np.stack([s for _, s, _ in group], axis=1)
        sizes = np.stack([s for _, _, s in group], axis=1)
        means = np.concatenate([c @ sums / (c @ sizes) for c in _draws(units, resamples, seed)])
        for column, (i, s, z) in enumerate(group):
            low, high = _bca(means[:, column], s, z, confidence)
            n = int(z.sum())
            method = "bca" if units == n else "bca over clusters"
            result[i] = Interval(float(s.sum() / n), low, high, n, rows.shape[1] - n, method, notes[i])
    return [interval for interval in result if interval is not None]


def _units(values: Array, labels: Labels | None) -> tuple[Array, Array, str | None]:
    """What is resampled, as sums and sizes: clusters if there are enough, else single queries (and a note)."""
    if labels is not None and len(labels):
        _, index, sizes = np.unique(labels, return_inverse=True, return_counts=True)
        if MIN_CLUSTERS <= len(sizes) < len(values):
            return np.bincount(index, weights=values).astype(float), sizes.astype(float), None
        if len(sizes) < len(values):
            return values, np.ones(len(values)), few_clusters(len(sizes))
    return values, np.ones(len(values)), None


def few_clusters(clusters: int) -> str:
    return (
        f"queries come from {clusters} cluster{'s' if clusters != 1 else ''}, fewer than {MIN_CLUSTERS}: "
        "treated as independent, so the uncertainty may be understated"
    )


def _draws(units: int, resamples: int, seed: int) -> Iterator[Array]:
    """Blocks of (resamples, units): how often each unit is drawn in each resample."""
    rng = np.random.default_rng(seed)
    step = max(1, CELLS // units)
    for done in range(0, resamples, step):
        rows = min(step, resamples - done)
        index = rng.integers(0, units, (rows, units)) + np.arange(rows)[:, None] * units
        yield np.bincount(index.ravel(), minlength=rows * units).reshape(rows, units).astype(float)


def _bca(means: Array, sums: Array, sizes: Array, confidence: float) -> tuple[float, float]:
    """Efron & Tibshirani 1993, section 14.3: bias correction from the resamples, acceleration from the jackknife."""
    normal = NormalDist()
    total, count = sums.sum(), sizes.sum()
    observed = total / count
    tolerance = TIE * max(1.0, abs(observed))
    below = (np.mean(means < observed - tolerance) + np.mean(means <= observed + tolerance)) / 2
    bias = normal.inv_cdf(min(max(float(below), 0.5 / len(means)), 1 - 0.5 / len(means)))
    left_out = (total - sums) / (count - sizes)
    influence = left_out.mean() - left_out
    acceleration = float((influence**3).sum() / (6 * (influence**2).sum() ** 1.5))
    levels = []
    for tail in ((1 - confidence) / 2, (1 + confidence) / 2):
        z = bias + normal.inv_cdf(tail)
        levels.append(normal.cdf(bias + z / (1 - acceleration * z)))
    low, high = np.quantile(means, levels)
    return float(low), float(high)


def _wilson(values: Array, confidence: float) -> tuple[float, float]:
    n, share = len(values), float(values.mean())
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def _exact_bound(value: float, units: int, confidence: float, bounds: Bounds) -> tuple[float | None, float | None]:
    """Bounds for the mean when all of n values are equal.

    If a share d of the population differed, n draws would all miss it with probability (1 - d)^n, so
    d <= 1 - (alpha / 2)^(1/n) (Clopper & Pearson 1934; for values 0 or 1 this is their interval).
    What differs lies anywhere in `bounds`. For values that are not 0 or 1 it is a conservative bound.
    """
    d = 1 - ((1 - confidence) / 2) ** (1 / units)
    low, high = ((1 - d) * value + d * edge if math.isfinite(edge) else None for edge in bounds)
    return low, high


def checked(matrix: ArrayLike, clusters: ArrayLike | None, bounds: Bounds) -> tuple[Array, Labels | None]:
    rows = np.asarray(matrix, float)
    if rows.ndim != 2:
        raise InputError(f"scores have {rows.ndim} dimensions", hint="expected trials x queries")
    if rows.size and ((rows < bounds[0]) | (rows > bounds[1])).any():
        raise InputError(
            f"scores lie outside [{bounds[0]}, {bounds[1]}]", hint="pass bounds=(low, high) for another range"
        )
    if clusters is None:
        return rows, None
    labels = np.asarray(clusters)
    if labels.shape != rows.shape[1:]:
        raise InputError(f"{labels.size} cluster labels for {rows.shape[1]} queries")
    return rows, np.unique(labels, return_inverse=True)[1].astype(np.int64)

"""Paired tests between trials, and the sentence that says what they found.

- Smucker, Allan & Carterette, "A Comparison of Statistical Significance Tests for Information
  Retrieval Evaluation", CIKM 2007: the randomisation test.
- Phipson & Smyth, Stat. Appl. Genet. Mol. Biol. 9 (2010): p = (1 + b) / (1 + B).
- Westfall & Young, Resampling-Based Multiple Testing (1993): single-step max-T.
- Carterette, "Multiple Testing in Statistical Analysis of Systems-Based Information Retrieval
  Experiments", ACM TOIS 30 (2012): the family of all pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from workbench.errors import InputError
from workbench.evaluation.statistics.intervals import (
    CELLS,
    MIN_CLUSTERS,
    TIE,
    Array,
    Bounds,
    Interval,
    Labels,
    checked,
    few_clusters,
    intervals_of,
)

EXACT_UNITS = 14
"""Up to so many units that differ, all 2^14 sign patterns are enumerated."""


@dataclass(frozen=True, slots=True)
class Paired:
    """The mean difference a - b over queries scored in both, its interval and its two-sided p-value.

    `unscored` counts the queries that lack a score in a or b. `verdict_stable` is False when scoring
    those as unfavourably as possible would change whether p <= 1 - confidence: the verdict is then
    "undecided". `low` and `high` are for this difference alone; `p` is adjusted for the family.
    """

    difference: float | None
    low: float | None
    high: float | None
    p: float | None
    n: int
    unscored: int
    method: str
    verdict_stable: bool
    note: str | None = None


@dataclass(frozen=True, slots=True)
class Comparison(Paired):
    """A trial against the baseline; `trial` and `baseline` are row numbers of the matrix."""

    trial: int = 0
    baseline: int = 0


def paired(
    a: ArrayLike,
    b: ArrayLike,
    clusters: ArrayLike | None = None,
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
    bounds: Bounds = (0.0, 1.0),
) -> Paired:
    """The difference a - b on the queries scored in both: interval (`mean_intervals`) and sign-flip test.

    Under the null hypothesis a and b are exchangeable within each query, so the sign of each
    difference is a coin's. All patterns are enumerated when at most `EXACT_UNITS` units differ; else
    p = (1 + b) / (1 + B) from B = `resamples` flips. Signs are flipped by cluster from
    `MIN_CLUSTERS` clusters on. The statistic is |t|.

    Args:
        a, b: (queries,); NaN = unscored.
        clusters, confidence, resamples, seed, bounds: as in `mean_intervals`.

    Raises:
        InputError: shapes do not fit, or a value lies outside `bounds`.
    """
    ours, theirs = np.asarray(a, float), np.asarray(b, float)
    if ours.shape != theirs.shape:
        raise InputError(f"{ours.size} scores against {theirs.size}", hint="pair them by query")
    pair = np.stack([theirs, ours])
    c = against_baseline(pair, 0, clusters, confidence=confidence, resamples=resamples, seed=seed, bounds=bounds)[0]
    return Paired(c.difference, c.low, c.high, c.p, c.n, c.unscored, c.method, c.verdict_stable, c.note)


def against_baseline(
    matrix: ArrayLike,
    baseline_index: int,
    clusters: ArrayLike | None = None,
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
    bounds: Bounds = (0.0, 1.0),
) -> list[Comparison]:
    """Every other row against the baseline row, with p-values adjusted for the whole family.

    Joint sign flips keep the correlation between trials; the studentised maximum over the family is
    the yardstick of each (single-step max-T), so the chance of any false alarm is at most
    1 - confidence. With one comparison this is the plain paired test.

    Args:
        matrix: (trials, queries); NaN = unscored.
        baseline_index: row of the declared baseline.
        clusters, confidence, resamples, seed, bounds: as in `mean_intervals`.

    Returns:
        One Comparison a row, in row order, without the baseline.

    Raises:
        InputError: shapes do not fit, or a value lies outside `bounds`.
    """
    rows, labels = checked(matrix, clusters, bounds)
    trials = [i for i in range(len(rows)) if i != baseline_index]
    if not trials:
        return []
    base, others = rows[baseline_index], rows[trials]
    differences = others - base
    widest = (bounds[0] - bounds[1], bounds[1] - bounds[0])
    intervals = intervals_of(differences, labels, confidence, resamples, seed, widest, wilson=False)
    # Unscored ones filled against the trial, then in its favour; an unbounded metric has no worst case.
    owners = np.flatnonzero(np.isnan(differences).any(axis=1)) if np.isfinite(widest).all() else np.array([], int)
    fills = np.concatenate(
        [
            np.where(np.isnan(others[owners]), worst, others[owners]) - np.where(np.isnan(base), best, base)
            for worst, best in (bounds, bounds[::-1])
        ]
    )
    units, note = _flipped_units(np.concatenate([differences, fills]), labels)
    p, filled, exact = _max_t(units, len(trials), np.tile(owners, 2), resamples, seed)
    alpha = 1 - confidence
    method = "exact sign flips" if exact else f"{resamples} sign flips"
    method += " over clusters" if units.shape[1] < rows.shape[1] else ""
    result = []
    for i, (trial, interval) in enumerate(zip(trials, intervals, strict=True)):
        at = [*np.flatnonzero(np.tile(owners, 2) == i)]
        verdicts = [_sign(p[i], interval.mean, alpha)]
        verdicts += [_sign(filled[j], float(fills[j].mean()), alpha) for j in at]
        stable = interval.n > 0 and len(set(verdicts)) == 1 and (bool(at) or not interval.unscored)
        result.append(
            Comparison(
                interval.mean,
                interval.low,
                interval.high,
                float(p[i]) if interval.n else None,
                interval.n,
                interval.unscored,
                method if interval.n else "none",
                stable,
                interval.note or note,
                trial,
                baseline_index,
            )
        )
    return result


def best_set(
    matrix: ArrayLike,
    clusters: ArrayLike | None = None,
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
    bounds: Bounds = (0.0, 1.0),
    higher_is_better: bool = True,
) -> list[int]:
    """Rows not distinguishable from the best one, the best first; rows without scores are left out.

    The best was picked on these very queries, so the yardstick is the maximum over *all pairs* of
    trials (as in the randomised Tukey HSD test of Carterette, ACM TOIS 30 (2012), with
    joint sign flips): the maximum over pairs with a fixed baseline would throw equals out too often.

    Args: as in `against_baseline`; time and memory grow with the square of the number of trials.

    Raises:
        InputError: shapes do not fit, or a value lies outside `bounds`.
    """
    rows, labels = checked(matrix, clusters, bounds)
    scored = [i for i in range(len(rows)) if not np.isnan(rows[i]).all()]
    order = sorted(scored, key=lambda i: (-1 if higher_is_better else 1) * float(np.nanmean(rows[i])))
    if len(order) < 2:
        return order
    ranked = rows[order]
    first, second = np.triu_indices(len(order), 1)
    units, _ = _flipped_units(ranked[first] - ranked[second], labels)
    p, _, _ = _max_t(units, len(units), np.array([], int), resamples, seed)
    # The first pairs are those of the best with each other trial, in order.
    return [order[0], *(i for i, value in zip(order[1:], p, strict=False) if value > 1 - confidence)]


def _sign(p: float, difference: float | None, alpha: float) -> int:
    """The verdict: 1 or -1 if the difference is significant, else 0."""
    return 0 if difference is None or not p <= alpha else 1 if difference > 0 else -1


def _flipped_units(differences: Array, labels: Labels | None) -> tuple[Array, str | None]:
    """(rows, units) sums of differences over what flips together; NaN where a unit has none."""
    if labels is None:
        return differences, None
    _, index, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    if len(sizes) == len(labels):
        return differences, None
    if len(sizes) < MIN_CLUSTERS:
        return differences, few_clusters(len(sizes))
    member = np.zeros((len(labels), len(sizes)))
    member[np.arange(len(labels)), index] = 1
    sums = np.nan_to_num(differences) @ member
    sums[(~np.isnan(differences)).astype(float) @ member == 0] = np.nan
    return sums, None


def _max_t(units: Array, family: int, owners: Labels, flips: int, seed: int) -> tuple[Array, Array, bool]:
    """Adjusted p-values of the first `family` rows, and of each further row standing in for its owner.

    Sign flips leave the sum of squares Q of a row as it is, and Q is the variance of the flipped sum
    S; so |S| / sqrt(Q) is studentised at no cost. Within a row it is a monotone function of |t|.
    Also returned: whether all patterns were enumerated.
    """
    sums = np.nan_to_num(units)
    sums = sums[:, (sums != 0).any(axis=0)]  # a sign changes nothing where all differences are zero
    spread = np.sqrt((sums**2).sum(axis=1, keepdims=True))
    rows = np.divide(sums, spread, out=np.zeros_like(sums), where=spread > 0)
    observed = np.abs(rows.sum(axis=1)) * (1 - TIE)
    reached = np.zeros(len(rows))
    for signs in _signs(rows.shape[1], flips, seed, rows=len(rows)):
        t = np.abs(signs @ rows.T)
        top = t[:, :family].max(axis=1)
        reached[:family] += len(top) - np.searchsorted(np.sort(top), observed[:family])
        for j, owner in enumerate(owners):
            others = np.delete(t[:, :family], owner, axis=1).max(axis=1, initial=0.0)
            reached[family + j] += (np.maximum(others, t[:, family + j]) >= observed[family + j]).sum()
    exact = rows.shape[1] <= EXACT_UNITS
    p = reached / 2 ** rows.shape[1] if exact else (1 + reached) / (1 + flips)
    return p[:family], p[family:], exact


def _signs(units: int, flips: int, seed: int, *, rows: int) -> Iterator[Array]:
    """Blocks of (flips, units) of +1 and -1: all patterns if they are few, else `flips` random ones."""
    if units <= EXACT_UNITS:
        patterns = np.arange(2**units)[:, None] >> np.arange(units) & 1
        yield from np.array_split(1.0 - 2.0 * patterns, 1 + 2**units * rows // CELLS)
        return
    rng = np.random.default_rng(seed)
    step = max(1, CELLS // max(units, rows))
    for done in range(0, flips, step):
        heads: Array = rng.integers(0, 2, (min(step, flips - done), units)).astype(float)
        yield 1.0 - 2.0 * heads


def verdict(
    labels: Sequence[str],
    metric: str,
    intervals: Sequence[Interval],
    comparisons: Sequence[Comparison],
    *,
    confidence: float = 0.95,
    higher_is_better: bool = True,
) -> str:
    """One sentence: which trials differ from the baseline, which cannot be told apart, which are undecided.

    Args:
        labels, intervals: of the trials, by row.
        metric: its name, as it is to be shown.
        comparisons: from `against_baseline`, of these rows; with more than two, their figures are left to a table.
    """
    clauses = {
        "better": "better than {}",
        "worse": "worse than {}",
        "not distinguishable": "not distinguishable from {}",
        "undecided": "undecided against {}, as queries without a score could change it",
        "unscored": "without a scored query in common with {}",
    }
    groups: dict[str, list[str]] = {kind: [] for kind in clauses}
    brief = len(comparisons) > 2  # figures of a large family belong into a table, not into a sentence
    for c in comparisons:
        said = labels[c.trial] if brief else _figures(labels[c.trial], c)
        groups[_kind(c, 1 - confidence, higher_is_better)].append(said)
    if not comparisons:
        return f"On {metric} there is nothing to compare."
    base = comparisons[0].baseline
    clauses_said = [
        f"{_join(members)} {'is' if len(members) == 1 else 'are'} {clauses[kind].format(labels[base])}"
        for kind, members in groups.items()
        if members
    ]
    own = intervals[base]
    context = [f"{labels[base]}: {_range(own.mean, own.low, own.high)}"] if own.mean is not None else []
    context += [f"p adjusted for {len(comparisons)} comparisons"] if len(comparisons) > 1 else []
    return f"On {metric}, {'; '.join(clauses_said)}{' (' + '; '.join(context) + ')' if context else ''}."


def _kind(c: Comparison, alpha: float, higher_is_better: bool) -> str:
    if c.p is None:
        return "unscored"
    if not c.verdict_stable:
        return "undecided"
    sign = _sign(c.p, c.difference, alpha)
    return "not distinguishable" if sign == 0 else "better" if (sign > 0) == higher_is_better else "worse"


def _figures(label: str, c: Comparison) -> str:
    if c.difference is None or c.p is None:
        return label
    p = "p < 0.001" if c.p < 0.001 else f"p = {c.p:.3f}"
    missing = f", {c.unscored} without a score" if c.unscored else ""
    return f"{label} ({_range(c.difference, c.low, c.high, sign='+')}, {p}, {c.n} queries{missing})"


def _range(mean: float, low: float | None, high: float | None, sign: str = "") -> str:
    limits = "" if low is None or high is None else f" [{low:{sign}.3f}, {high:{sign}.3f}]"
    return f"{mean:{sign}.3f}{limits}"


def _join(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"

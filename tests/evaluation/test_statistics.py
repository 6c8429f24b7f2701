"""Intervals and tests: against scipy, by simulation, and where samples are degenerate."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.stats

from workbench.errors import InputError
from workbench.evaluation.statistics import (
    against_baseline,
    best_set,
    mean_interval,
    mean_intervals,
    paired,
    verdict,
)

RNG = np.random.default_rng


# --- intervals -----------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [15, 40, 276])
@pytest.mark.parametrize("confidence", [0.95, 0.8])
def test_bca_is_scipys(n, confidence):
    values = RNG(n).beta(2, 0.5, n)
    ours = mean_interval(values, confidence=confidence, resamples=2000, seed=3)
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=2000, confidence_level=confidence, method="BCa", rng=RNG(3), vectorized=True
    ).confidence_interval
    # Both draw the same resamples from the same seed, so only rounding is left. (Of fewer values some
    # resamples are permutations of the sample: equal to its mean here, a rounding error off in scipy.)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-9)
    assert ours.method == "bca" and ours.n == n and ours.mean == pytest.approx(values.mean())


def test_bca_with_many_ties_is_scipys():
    values = np.array([0.0] * 9 + [0.5] * 3 + [1.0] * 8)
    ours = mean_interval(values, resamples=4000)
    theirs = scipy.stats.bootstrap((values,), np.mean, n_resamples=4000, method="BCa", rng=RNG(0)).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


@pytest.mark.parametrize(("hits", "n"), [(1, 2), (3, 10), (275, 276), (1, 125)])
def test_wilson_is_scipys(hits, n):
    values = np.r_[np.ones(hits), np.zeros(n - hits)]
    ours = mean_interval(values, confidence=0.9)
    theirs = scipy.stats.binomtest(hits, n).proportion_ci(0.9, method="wilson")
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high))
    assert ours.method == "wilson"


@pytest.mark.parametrize("n", [1, 2, 10, 500])
def test_identical_values_get_the_exact_bound(n):
    exact = scipy.stats.binomtest(n, n).proportion_ci(0.95, method="exact")
    ones, zeros = mean_interval(np.ones(n)), mean_interval(np.zeros(n))
    assert (ones.low, ones.high) == pytest.approx((exact.low, 1.0)) and ones.low < 1
    assert (zeros.low, zeros.high) == pytest.approx((0.0, 1 - exact.low))
    middle = mean_interval(np.full(n, 0.3))
    assert middle.mean == 0.3 and middle.method == "exact bound"
    assert middle.low == pytest.approx(0.3 * exact.low)
    assert middle.high == pytest.approx(0.3 * exact.low + 1 - exact.low)


def test_unscored_values_are_counted_and_change_nothing_else():
    values = RNG(0).random(30)
    holes = np.insert(values, [0, 10, 30], np.nan)
    plain, with_holes = mean_interval(values), mean_interval(holes)
    assert (plain.mean, plain.low, plain.high, plain.n) == pytest.approx(
        (with_holes.mean, with_holes.low, with_holes.high, with_holes.n)
    )
    assert (plain.unscored, with_holes.unscored) == (0, 3)
    for empty in ([], [np.nan, np.nan]):
        nothing = mean_interval(np.array(empty))
        assert nothing.mean is None and nothing.low is None and nothing.n == 0 and nothing.unscored == len(empty)


def test_rows_do_not_influence_each_other():
    rows = RNG(1).random((4, 25))
    rows[2, :5] = np.nan
    rows[3] = rows[3] > 0.5
    together = mean_intervals(rows, resamples=500)
    for row, interval in zip(rows, together, strict=True):
        alone = mean_interval(row, resamples=500)
        assert (interval.low, interval.high) == pytest.approx((alone.low, alone.high), abs=1e-12)
        assert interval.method == alone.method


def test_small_blocks_of_resamples_give_the_same_interval(monkeypatch):
    values, other = RNG(2).random((2, 50))
    whole = mean_interval(values, resamples=999), paired(values, other, resamples=999)
    monkeypatch.setattr("workbench.evaluation.statistics.intervals.CELLS", 1234)
    monkeypatch.setattr("workbench.evaluation.statistics.comparisons.CELLS", 1234)
    parts = mean_interval(values, resamples=999), paired(values, other, resamples=999)
    assert (parts[0].low, parts[0].high) == pytest.approx((whole[0].low, whole[0].high), abs=1e-12)
    assert parts[1].p == whole[1].p


def test_adding_a_constant_and_changing_the_order():
    values = RNG(4).random(60) / 2
    first, second = mean_interval(values), mean_interval(values + 0.25)
    assert (second.low, second.high) == pytest.approx((first.low + 0.25, first.high + 0.25))
    assert mean_interval(values, seed=7) == mean_interval(values, seed=7)
    shuffled = mean_interval(RNG(5).permutation(values))
    assert (shuffled.low, shuffled.high) == pytest.approx((first.low, first.high), abs=0.005)


def test_clusters_are_resampled_together_from_twenty_on():
    rng = RNG(6)
    clusters = np.repeat(np.arange(25), 8)
    values = np.clip(np.repeat(rng.random(25), 8) + rng.normal(0, 0.02, 200), 0, 1)
    whole, plain = mean_interval(values, clusters), mean_interval(values)
    assert whole.method == "bca over clusters" and whole.note is None and whole.n == 200
    assert whole.high - whole.low > 2 * (plain.high - plain.low)
    # Clusters of equal size: the same as the interval of the clusters' means.
    means = mean_interval(values.reshape(25, 8).mean(axis=1))
    assert (whole.low, whole.high) == pytest.approx((means.low, means.high))

    few = mean_interval(values[:152], clusters[:152])
    assert few.method == "bca" and "19 clusters" in few.note
    assert (few.low, few.high) == (mean_interval(values[:152]).low, mean_interval(values[:152]).high)
    # One query a cluster is no clustering, however few they are.
    assert mean_interval(values[:5], np.array(list("abcde"))).note is None
    # Wilson assumes independence, so clustered zeros and ones are resampled.
    ones = (values > 0.5).astype(float)
    assert mean_interval(ones, clusters).method == "bca over clusters"
    assert mean_interval(ones[:80], clusters[:80]).method == "wilson"
    # Clusters that all have one mean: a bound over 25 clusters, not over 200 queries.
    same = mean_interval(np.tile([0.0, 1.0], 100), clusters)
    assert same.method == "exact bound" and same.high == pytest.approx(0.5 + 0.5 * (1 - 0.025 ** (1 / 25)))


@pytest.mark.parametrize(
    "draw",
    [
        lambda rng, n: rng.beta(0.5, 0.5, n),
        lambda rng, n: rng.integers(0, 2, n).astype(float),
        lambda rng, n: rng.integers(0, 3, n) / 2,
    ],
    ids=["beta", "binary", "thirds"],
)
def test_intervals_cover_the_truth(draw):
    rng = RNG(8)
    covered = 0
    for _ in range(400):
        interval = mean_interval(draw(rng, 40), resamples=800)
        covered += interval.low <= 0.5 <= interval.high
    # Nominal 0.95, standard error 0.011.
    assert 0.91 <= covered / 400 <= 0.985


def test_wrong_input_is_named():
    with pytest.raises(InputError, match=r"outside \[0.0, 1.0\]"):
        mean_interval([0.5, 1.5])
    assert mean_interval([0.5, 1.5], bounds=(0, np.inf)).high <= 1.5
    assert mean_interval([7.0, 7.0], bounds=(0, np.inf)).high is None
    with pytest.raises(InputError, match="3 cluster labels for 2 queries"):
        mean_interval([0.5, 0.6], ["a", "b", "c"])
    with pytest.raises(InputError, match="2 scores against 3"):
        paired([0.5, 0.6], [0.5, 0.6, 0.7])


# --- paired --------------------------------------------------------------------------------------


def test_exact_p_is_scipys():
    rng = RNG(9)
    for n in (2, 5, 12):
        a, b = np.round(rng.random((2, n)), 1)
        ours = paired(a, b)
        theirs = scipy.stats.permutation_test(
            (a, b), lambda x, y: np.mean(x - y), permutation_type="samples", n_resamples=np.inf
        )
        assert ours.p == pytest.approx(theirs.pvalue, abs=1e-12) and ours.method == "exact sign flips"
    assert paired([0.9], [0.1]).p == 1


def test_random_p_is_near_scipys_and_never_zero():
    a, b = np.clip(RNG(10).random((2, 60)) + np.array([[0.06], [0]]), 0, 1)
    ours = paired(a, b)
    theirs = scipy.stats.permutation_test(
        (a, b), lambda x, y: np.mean(x - y), permutation_type="samples", n_resamples=9999, rng=RNG(1)
    )
    assert ours.p == pytest.approx(theirs.pvalue, abs=0.015) and ours.method == "10000 sign flips"
    assert ours.difference == pytest.approx((a - b).mean())
    far = paired(np.full(40, 0.9) - RNG(2).random(40) / 10, RNG(3).random(40) / 10)
    assert far.p == 1 / 10_001
    assert paired(a, b, resamples=99).p >= 1 / 100


def test_the_difference_has_the_interval_of_its_values():
    a, b = RNG(11).random((2, 30))
    ours = paired(a, b)
    theirs = scipy.stats.bootstrap((a - b,), np.mean, n_resamples=10_000, method="BCa", rng=RNG(0)).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


def test_equal_arms_and_zero_differences():
    a = RNG(12).random(20)
    same = paired(a, a)
    assert same.difference == 0 and same.p == 1 and same.low < 0 < same.high and same.verdict_stable
    # Zero differences carry no sign: 12 that differ are enumerated, whatever the number of queries.
    b = a.copy()
    b[:12] = np.clip(b[:12] - 0.1, 0, 1)
    assert paired(a, b).p == pytest.approx(2 / 2**12)


def test_swapping_the_arms_and_the_order():
    a, b = RNG(13).random((2, 50))
    forth, back = paired(a, b), paired(b, a)
    assert forth.p == back.p and forth.difference == pytest.approx(-back.difference)
    shuffle = RNG(14).permutation(50)
    assert paired(a[shuffle], b[shuffle]).p == pytest.approx(forth.p, abs=0.02)
    assert paired(a / 2 + 0.1, b / 2 + 0.1).p == forth.p


def test_clusters_flip_together():
    rng = RNG(15)
    clusters = np.repeat(np.arange(22), 10)
    shift = np.repeat(rng.choice([-0.2, 0.2], 22), 10) + 0.05
    b = 0.3 + 0.4 * rng.random(220)
    whole, plain = paired(b + shift, b, clusters), paired(b + shift, b)
    assert plain.p < 0.001 < 0.05 < whole.p
    assert whole.method == "10000 sign flips over clusters" and whole.note is None
    few = paired((b + shift)[:100], b[:100], clusters[:100])
    assert "10 clusters" in few.note and few.p == paired((b + shift)[:100], b[:100]).p


def test_p_values_are_uniform_or_larger_under_the_null():
    rng = RNG(16)
    p = np.array([paired(*rng.random((2, 30)), resamples=199).p for _ in range(400)])
    for level in (0.05, 0.2, 0.5):
        assert (p <= level).mean() <= level + 3 * np.sqrt(level * (1 - level) / 400)


def test_unscored_queries_can_make_a_verdict_undecided():
    a, b = np.full(40, 0.6), 0.4 + RNG(17).random(40) / 10
    one_missing = a.copy()
    one_missing[0] = np.nan
    firm = paired(one_missing, b)
    assert firm.verdict_stable and firm.n == 39 and firm.unscored == 1 and firm.p < 0.05
    many_missing = a.copy()
    many_missing[:15] = np.nan
    shaky = paired(many_missing, b)
    assert shaky.p < 0.05 and not shaky.verdict_stable
    # Not significant, but could be: undecided too.
    c, d = RNG(18).random((2, 40))
    c[:20] = np.nan
    assert paired(c, d).p > 0.05 and not paired(c, d).verdict_stable
    nothing = paired([np.nan, 0.5], [0.5, np.nan])
    assert nothing.p is None and nothing.difference is None and not nothing.verdict_stable


# --- families ------------------------------------------------------------------------------------


def slow_max_t(matrix: np.ndarray, baseline: int) -> list[float]:
    """Single-step max-T by enumeration, with the textbook t statistic."""
    differences = np.delete(matrix, baseline, axis=0) - matrix[baseline]

    def t(d: np.ndarray) -> np.ndarray:
        return np.abs(d.mean(axis=1)) / (d.std(axis=1, ddof=1) / np.sqrt(d.shape[1]))

    flips = [t(differences * signs).max() for signs in itertools.product([1, -1], repeat=matrix.shape[1])]
    return [float(np.mean(np.array(flips) >= observed - 1e-9)) for observed in t(differences)]


def test_max_t_is_that_of_textbook_t_statistics():
    matrix = RNG(19).random((4, 9))
    matrix[2] = np.clip(matrix[2] + 0.5, 0, 1)
    got = against_baseline(matrix, 1)
    assert [c.p for c in got] == pytest.approx(slow_max_t(matrix, 1), abs=1e-12)
    assert [(c.trial, c.baseline) for c in got] == [(0, 1), (2, 1), (3, 1)]


def test_one_comparison_is_the_plain_test():
    matrix = RNG(20).random((2, 45))
    matrix[1, :4] = np.nan
    (got,), alone = against_baseline(matrix, 0), paired(matrix[1], matrix[0])
    for name in ("difference", "low", "high", "p", "n", "unscored", "method", "verdict_stable"):
        assert getattr(got, name) == getattr(alone, name)
    assert against_baseline(matrix[:1], 0) == []


def test_adjusted_p_is_never_below_the_plain_one_nor_above_bonferroni():
    rng = RNG(21)
    matrix = np.clip(rng.random(80) + rng.normal(0, 0.2, (6, 80)) + np.linspace(0, 0.1, 6)[:, None], 0, 1)
    for c in against_baseline(matrix, 0):
        alone = paired(matrix[c.trial], matrix[0]).p
        assert alone - 0.01 <= c.p <= min(1, 5 * alone + 0.02)


def test_identical_arms_count_once():
    matrix = RNG(22).random((3, 50))
    doubled = np.vstack([matrix, matrix[1], matrix[1]])
    assert [c.p for c in against_baseline(doubled, 0)][:2] == [c.p for c in against_baseline(matrix, 0)]


def test_a_trial_with_hardly_any_scores_does_not_silence_the_others():
    rng = RNG(23)
    base = rng.random(60) * 0.5
    matrix = np.vstack([base, base + 0.1 + rng.random(60) / 10, np.full(60, np.nan)])
    matrix[2, 0] = 1.0
    good, sparse = against_baseline(matrix, 0)
    assert good.p < 0.001 and good.verdict_stable
    assert sparse.p > 0.5 and not sparse.verdict_stable and sparse.n == 1 and sparse.unscored == 59


def test_undecided_is_what_filling_by_hand_shows():
    rng, seen = RNG(27), set()
    for _ in range(40):
        base = rng.random(10)
        matrix = np.vstack([base, np.clip(base + rng.normal([[0.2], [-0.2], [0.05]], 0.2, (3, 10)), 0, 1)])
        matrix[1:][rng.random((3, 10)) < 0.1] = np.nan
        for c in against_baseline(matrix, 0, resamples=99):
            verdicts = {np.sign(c.difference) * (c.p <= 0.05)}
            for worst in (0.0, 1.0):
                filled = matrix.copy()
                filled[c.trial] = np.where(np.isnan(matrix[c.trial]), worst, matrix[c.trial])
                again = against_baseline(filled, 0, resamples=99)[c.trial - 1]
                verdicts.add(np.sign(again.difference) * (again.p <= 0.05))
            assert c.verdict_stable == (len(verdicts) == 1)
            seen.add((c.verdict_stable, c.unscored > 0))
    assert seen == {(True, False), (True, True), (False, True)}


def test_false_alarms_of_a_family_and_of_the_best_set():
    rng = RNG(24)
    alarms = thrown_out = 0
    for _ in range(200):
        matrix = np.clip(rng.random(40) + rng.normal(0, 0.2, (12, 40)), 0, 1)
        alarms += any(c.p <= 0.05 for c in against_baseline(matrix, 0, resamples=199))
        thrown_out += len(best_set(matrix, resamples=199)) < 12
    # 0.05 nominal, three standard errors above it.
    assert alarms / 200 <= 0.1
    assert thrown_out / 200 <= 0.1


def test_best_set_keeps_equals_and_drops_the_worse():
    rng = RNG(25)
    base = 0.4 + 0.3 * rng.random(80)
    matrix = np.vstack([base - 0.3, base + rng.normal(0, 0.02, 80), base + rng.normal(0, 0.02, 80), base - 0.25])
    matrix = np.vstack([matrix, np.full(80, np.nan)])
    kept = best_set(matrix)
    assert sorted(kept) == [1, 2] and kept[0] == int(np.argmax(np.nanmean(matrix[:4], axis=1)))
    assert best_set(matrix, higher_is_better=False)[0] == 0
    assert best_set(matrix[:1]) == [0] and best_set(matrix[4:]) == []
    assert sorted(best_set(np.vstack([base, base]))) == [0, 1]


# --- words ---------------------------------------------------------------------------------------


def test_verdicts_say_what_the_figures_allow():
    rng = RNG(26)
    base = 0.3 + 0.3 * rng.random(60)
    rows = [base, base + 0.1 + rng.random(60) / 10, base + rng.normal(0, 0.02, 60), base - 0.2, base + 0.02]
    matrix = np.vstack([*rows, np.full(60, np.nan)])
    matrix[4, :40] = np.nan
    labels = ["none", "situated", "title", "lead", "summary", "broken"]
    intervals, comparisons = mean_intervals(matrix), against_baseline(matrix, 0)
    said = verdict(labels, "recall@5", intervals, comparisons)
    assert said.startswith("On recall@5, situated is better than none;")
    assert said.endswith("p adjusted for 5 comparisons).")
    for part in (
        "lead is worse than none;",
        "title is not distinguishable from none;",
        "summary is undecided against none",
        "broken is without a scored query in common with none",
    ):
        assert part in said
    flipped = verdict(labels, "failure@5", intervals, comparisons, higher_is_better=False)
    assert flipped.startswith("On failure@5, lead") and "situated" in flipped.split("is worse than")[0]
    pair = verdict(labels, "recall@5", intervals, [comparisons[2], comparisons[3]])
    assert "lead (-0.200" in pair and "40 without a score) is undecided against none" in pair
    alone = verdict(labels, "recall@5", intervals, comparisons[1:2])
    assert "title" in alone and "not distinguishable from none" in alone and "adjusted" not in alone
    both = verdict(["a", "b", "c"], "m", mean_intervals(matrix[[0, 0, 0]]), against_baseline(matrix[[0, 0, 0]], 0))
    assert " and c (" in both and "are not distinguishable from a" in both
    assert verdict(["a"], "m", intervals[:1], []) == "On m there is nothing to compare."

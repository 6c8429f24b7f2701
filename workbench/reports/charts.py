"""Charts of results: each function takes results and a width in pixels and returns an Altair chart (or None).

`drawing.svg(chart)` makes it an SVG. A narrow chart (a phone's) puts labels above its marks.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from workbench.evaluation import higher_is_better
from workbench.pipeline.comparing import TrialComparison
from workbench.pipeline.results import TrialResult
from workbench.reports.drawing import BLUE, FAINT, GREEN, INK, MUTED, PURPLE, VERMILLION, WIDE, themed
from workbench.reports.page import number
from workbench.sweeps.results import SweepResult

FIGURES = 175
"""Room for a mean and its interval in figures, in pixels."""
NAMED = 5
"""So many lines a person can still tell apart; the others are drawn in grey."""
_EQUAL = "not distinguishable from the best"
_PLAIN: dict[str, Any] = {"ticks": False, "domain": False, "labelColor": INK, "labelFontSize": 13}
KINDS = ("chunk", "context", "embed", "index", "retrieve", "rerank", "generate", "score")


def _compact(width: int) -> bool:
    return width < 480


def _room(labels: Sequence[str]) -> int:
    """Pixels for labels. Fonts differ between machines, so the room is reckoned with a wide one."""
    return min(260, 20 + int(8.2 * max(map(len, labels), default=0)))


def intervals(result: SweepResult, metric: str | None = None, *, width: int = WIDE) -> Any:
    """Each trial's mean with its interval, the best first; the baseline and the best set are marked."""
    import altair as alt

    name = metric or result.spec.metric
    best, base = set(result.best) if name == result.spec.metric else set(), _baseline(result)
    rows = [
        {
            "trial": t.label,
            **{key: t.metrics[name][key] for key in ("mean", "low", "high")},
            "role": "baseline" if t.label == base else "trial",
            "set": _EQUAL if t.label in best else "other",
            "label": t.label + (" (baseline)" if t.label == base else ""),
            "figures": f"{number(t.metrics[name]['mean'])}"
            f"  [{number(t.metrics[name]['low'])}, {number(t.metrics[name]['high'])}]",
        }
        for t in result.trials
        if t.metrics[name]["mean"] is not None
    ]
    rows.sort(key=lambda r: (-r["mean"] if higher_is_better(name) else r["mean"], r["trial"]))
    frame = pl.DataFrame(rows, schema_overrides=dict.fromkeys(("mean", "low", "high"), pl.Float64))
    spoken = "; ".join(f"{r['label']} {r['figures']}" for r in rows)
    compact, room = _compact(width), _room([r["label"] for r in rows])
    labels = {**_PLAIN, "labelPadding": 10, "minExtent": room, "maxExtent": room}
    y = alt.Y("label:N", sort=[r["label"] for r in rows], title=None, axis=None if compact else alt.Axis(**labels))
    roles, sets = ["trial", "baseline"], [_EQUAL, "other"]
    colour = alt.Color("set:N", scale=alt.Scale(domain=sets, range=[BLUE, MUTED]), legend=None)
    shape = alt.Shape("role:N", scale=alt.Scale(domain=roles, range=["circle", "diamond"]), legend=None)
    plot = alt.Chart(frame).encode(y=y)
    domain = _domain(rows)
    ticks = alt.Axis(values=_ticks(domain, 4 if compact else 8), format=".2f")
    low = alt.X("low:Q", scale=alt.Scale(domain=domain, nice=False, zero=False), title=name, axis=ticks)
    mean = alt.X("mean:Q")
    level = alt.Chart(frame.filter(pl.col("role") == "baseline"))
    layers = [
        level.mark_rule(color=MUTED, strokeDash=[4, 4], opacity=0.8).encode(x=mean),
        plot.mark_rule(strokeWidth=3, strokeCap="round").encode(x=low, x2="high:Q", color=colour),
        plot.mark_point(filled=True, size=120, opacity=1).encode(x=mean, color=colour, shape=shape),
    ]
    if compact:
        text = plot.mark_text(align="left", dy=-16, fontSize=12.5, color=INK, limit=width - 10)
        layers.append(text.encode(x=alt.value(0), text="label:N"))
    inner = width - 26 if compact else width - room - FIGURES - 24
    if not compact:
        text = plot.mark_text(align="left", fontSize=12.5, color=MUTED)
        layers.append(text.encode(x=alt.value(inner + 14), text="figures:N"))
    layered = alt.layer(*layers).properties(width=inner, height=alt.Step(48 if compact else 36))
    return themed(
        layered,
        f"{name} of every trial",
        f"Mean and 95 % interval of {name}: {spoken}.",
        right=4 if compact else 34,
        left=12 if compact else 4,
    )


def _baseline(result: SweepResult) -> str | None:
    return None if result.baseline is None else result.labels[result.baseline]


def _domain(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """From the lowest to the highest value with a little air, in steps of 0.05, within 0 and 1."""
    values = [r[key] for r in rows for key in ("mean", "low", "high") if r.get(key) is not None] or [0.0, 1.0]
    low, high = math.floor(min(values) * 20 - 0.4) / 20, math.ceil(max(values) * 20 + 0.4) / 20
    return [max(0.0, low), min(1.0, high)]


def _ticks(domain: Sequence[float], most: int) -> list[float]:
    """At most so many round values: labels of unknown fonts must not run into each other."""
    first, last = round(domain[0] * 20), round(domain[1] * 20)
    step = next(s for s in (1, 2, 4, 5, 10, 20) if last // s - -(-first // s) < most)
    return [at / 20 for at in range(-(-first // step) * step, last + 1, step)]


def recall_curves(result: SweepResult, family: str | None = None, *, width: int = WIDE) -> Any:
    """A family of metrics over its cut-offs, one line a trial; None where there are not two cut-offs.

    The best trials and the baseline have a colour, a dash and a point of their own; others are grey.
    """
    import altair as alt

    family = family or curve_family(result)
    # A reranker keeps fewer hits than a retriever finds: its curve ends earlier.
    names = {n for t in result.trials for n in t.metrics if n.startswith(f"{family}@")}
    cutoffs = sorted(int(n.partition("@")[2]) for n in names)
    if len(cutoffs) < 2:
        return None
    ranked = ranking(result)
    named = [t.label for t in ranked[: NAMED - 1]]
    base = _baseline(result)
    named += [base] if base is not None and base not in named else [t.label for t in ranked[NAMED - 1 : NAMED]]
    grey = [label for label in result.labels if label not in named]
    rest = f"{len(grey)} other{'s' if len(grey) > 1 else ''}"
    rows = [
        {
            "trial": t.label,
            "line": t.label if t.label in named else rest,
            "k": k,
            "mean": t.metrics[f"{family}@{k}"]["mean"],
        }
        for t in result.trials
        for k in cutoffs
        if f"{family}@{k}" in t.metrics
    ]
    frame = pl.DataFrame(rows, schema_overrides={"mean": pl.Float64}).drop_nulls("mean")
    lines, few = [*named, *([rest] if grey else [])], len(named)
    scales: dict[str, list[Any]] = {
        "color": [*[BLUE, VERMILLION, GREEN, PURPLE, INK][:few], MUTED],
        "strokeDash": [*[[1, 0], [7, 3], [2, 2], [9, 3, 2, 3], [4, 4]][:few], [1, 0]],
        "shape": [*["circle", "square", "triangle-up", "diamond", "cross"][:few], "circle"],
    }
    compact, room = _compact(width), _room(lines) + 20
    legend = alt.Legend(
        title=None, orient="bottom" if compact else "right", columns=1, symbolSize=90, rowPadding=6, offset=22
    )
    look = {
        channel: kind("line:N", scale=alt.Scale(domain=lines, range=values[: len(lines)]), sort=lines, legend=legend)
        for (channel, values), kind in zip(scales.items(), (alt.Color, alt.StrokeDash, alt.Shape), strict=True)
    }
    ticks = alt.Axis(values=cutoffs, format="d", grid=False)
    x = alt.X("k:Q", scale=alt.Scale(type="log", nice=False), axis=ticks, title="cut-off k")
    heights = alt.Scale(domain=_domain(rows), nice=False, zero=False)
    y = alt.Y("mean:Q", scale=heights, title=f"{family}@k", axis=alt.Axis(tickCount=5, format=".2f"))
    layers = []
    for part, opacity in ((grey, 0.4), (named, 1.0)):  # the named lines lie on top
        plot = alt.Chart(frame.filter(pl.col("trial").is_in(part))).encode(x=x, y=y, detail="trial:N")
        lined = plot.mark_line(strokeWidth=2, opacity=opacity)
        pointed = plot.mark_point(filled=True, size=60, opacity=opacity)
        if part:
            layers.append(lined.encode(color=look["color"], strokeDash=look["strokeDash"]))
            layers.append(pointed.encode(color=look["color"], shape=look["shape"]))
    spoken = "; ".join(
        f"{t.label}: "
        + ", ".join(
            f"{number(t.metrics[name]['mean'], 2)} at {k}" for k in cutoffs if (name := f"{family}@{k}") in t.metrics
        )
        for t in ranked
    )
    inner, height = (width - 80, 230) if compact else (width - 90 - room, 300)
    layered = alt.layer(*layers).properties(width=inner, height=height)
    about = f"Mean {family} at each cut-off. {spoken}."
    return themed(layered, f"{family}@k over k", about, right=12 if compact else 44, left=12)


def curve_family(result: SweepResult) -> str:
    """The family of the primary metric if it has cut-offs, else one that this dataset has."""
    own = result.spec.metric.partition("@")
    if own[1]:
        return own[0]
    names = {n.partition("@")[0] for n in result.trials[0].metrics if "@" in n}
    return next((f for f in ("recall", "doc_recall", "ndcg") if f in names), "recall")


def ranking(result: SweepResult) -> list[TrialResult]:
    """The trials by their mean of the primary metric, the best first, unscored ones last."""
    sign = -1.0 if higher_is_better(result.spec.metric) else 1.0

    def key(trial: TrialResult) -> tuple[bool, float]:
        mean = trial.metrics[result.spec.metric]["mean"]
        return mean is None, 0.0 if mean is None else sign * mean

    return sorted(result.trials, key=key)


def differences(comparison: TrialComparison, *, width: int = WIDE) -> Any:
    """The difference b - a on each query where there is one, from the largest gain to the largest loss."""
    import altair as alt

    moved = comparison.queries.filter(pl.col("difference") != 0)
    if moved.is_empty():
        return None
    ordered = moved.sort(["difference", "query_id"], descending=[True, False]).with_row_index("place")
    better = set(comparison.improved)
    frame = ordered.select(
        "place",
        "difference",
        pl.Series("side", ["better" if q in better else "worse" for q in ordered["query_id"]]),
    )
    compact = _compact(width)
    plot = alt.Chart(frame).encode(x=alt.X("place:Q", axis=None, scale=alt.Scale(domain=[-1, len(frame)], nice=False)))
    scale = alt.Scale(domain=["better", "worse"], range=[BLUE, VERMILLION])
    colour = alt.Color("side:N", scale=scale, legend=alt.Legend(title=None, orient="top"))
    shape = alt.Shape(
        "side:N",
        scale=alt.Scale(domain=["better", "worse"], range=["triangle-up", "triangle-down"]),
        legend=alt.Legend(title=None, orient="top"),
    )
    limit = max(0.25, float(frame["difference"].abs().max() or 0))  # type: ignore[arg-type]
    y = alt.Y(
        "difference:Q",
        title=f"difference in {comparison.metric}",
        scale=alt.Scale(domain=[-limit, limit]),
        axis=alt.Axis(tickCount=5),
    )
    zero = alt.Chart(pl.DataFrame({"zero": [0.0]})).mark_rule(color=MUTED).encode(y="zero:Q")
    stems = plot.mark_rule(strokeWidth=1.5, opacity=0.55).encode(y=y, y2=alt.datum(0.0), color=colour)
    heads = plot.mark_point(filled=True, size=45, opacity=1).encode(y=y, color=colour, shape=shape)
    layered = alt.layer(stems, zero, heads).properties(width=width - 90, height=190 if compact else 240)
    equal = len(comparison.queries) - len(frame)
    counts = f"{len(comparison.improved)} better, {len(comparison.worsened)} worse, {equal} equal"
    words = f"{comparison.b.label} against {comparison.a.label}, query by query on {comparison.metric}: {counts}."
    return themed(layered, "Difference on each query", words)


def stage_work(result: SweepResult) -> pl.DataFrame:
    """kind, stages, loop, items, seconds, spared: what each kind of stage cost, and what sharing spared.

    `loop` counts the stages of a loop over the trials; `spared` is the time of those that were shared,
    taken from the one time each was computed.
    """
    stages = {s.fingerprint: s for t in result.trials for s in t.stages}
    uses = list(itertools.chain.from_iterable((s.fingerprint for s in t.stages) for t in result.trials))
    rows = []
    for kind in sorted({s.kind for s in stages.values()}, key=lambda k: (KINDS.index(k) if k in KINDS else 99, k)):
        own = [s for s in stages.values() if s.kind == kind]
        times = {s.fingerprint: uses.count(s.fingerprint) for s in own}
        rows.append(
            {
                "kind": kind,
                "stages": len(own),
                "loop": sum(times.values()),
                "items": sum(s.items for s in own),
                "seconds": sum(s.seconds for s in own),
                "spared": sum(s.seconds * (times[s.fingerprint] - 1) for s in own),
            }
        )
    return pl.DataFrame(rows)


def work(result: SweepResult, *, width: int = WIDE) -> Any:
    """Seconds a kind of stage: computed once, and not computed again because trials share it."""
    import altair as alt

    frame = stage_work(result)
    parts = ["computed once", "spared by sharing"]
    bars = pl.concat(
        [
            frame.select("kind", pl.col("seconds"), pl.lit(parts[0]).alias("part"), pl.lit(0).alias("order")),
            frame.select(
                "kind", pl.col("spared").alias("seconds"), pl.lit(parts[1]).alias("part"), pl.lit(1).alias("order")
            ),
        ]
    )
    chart = (
        alt.Chart(bars)
        .mark_bar(height=16)
        .encode(
            y=alt.Y(
                "kind:N",
                sort=frame["kind"].to_list(),
                title=None,
                axis=alt.Axis(**_PLAIN, labelPadding=8, minExtent=74),
            ),
            x=alt.X("seconds:Q", title="seconds", axis=alt.Axis(tickCount=5)),
            color=alt.Color(
                "part:N",
                sort=parts,
                scale=alt.Scale(domain=parts, range=[BLUE, FAINT]),
                legend=alt.Legend(title=None, orient="top"),
            ),
            order="order:Q",
        )
        .properties(width=width - 110, height=alt.Step(30))
    )
    spoken = "; ".join(
        f"{r['kind']} {r['seconds']:.2f} s, spared {r['spared']:.2f} s" for r in frame.iter_rows(named=True)
    )
    return themed(chart, "Where the time went", f"Seconds by kind of stage: {spoken}.")

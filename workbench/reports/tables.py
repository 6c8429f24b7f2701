"""Results as great_tables: the same bytes for the same result, wide ones scroll in a box of their own."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

import polars as pl

from workbench.evaluation import higher_is_better
from workbench.reports.charts import ranking, stage_work
from workbench.reports.page import Fragment, number
from workbench.sweeps.faults import FAULTS
from workbench.sweeps.plan import short
from workbench.sweeps.results import SweepResult

if TYPE_CHECKING:
    from great_tables import GT


def further_metrics(result: SweepResult) -> list[str]:
    """A few metrics that stand beside the primary one, at its cut-off where they have one."""
    primary = result.spec.metric
    there = result.trials[0].metrics
    k = primary.partition("@")[2] or str(min(5, *result.trials[0].trial.scored.k))
    wanted = ["mrr", f"recall@{k}", f"span_recall@{k}", f"span_precision@{k}", f"ndcg@{k}", f"doc_recall@{k}", "map"]
    return [name for name in wanted if name in there and name != primary][:3]


def results(result: SweepResult) -> GT:
    """One row a trial, the best first: the metric with its interval, against the baseline, and what it took."""
    primary = result.spec.metric
    axes = list(result.points[0]) if result.points else []
    # A label that only repeats the axes stands for their columns; its head then names them.
    repeated = bool(axes) and all(
        t.label == " / ".join(map(short, point.values())) for t, point in zip(result.trials, result.points, strict=True)
    )
    against = {c.trial: c for c in result.comparisons}
    position = {id(t): i for i, t in enumerate(result.trials)}
    best = set(result.best)
    others = further_metrics(result)
    rows = []
    for trial in ranking(result):
        i = position[id(trial)]
        own, c = trial.metrics[primary], against.get(i)
        row: dict[str, Any] = {"trial": trial.label + ("\u00a0●" if trial.label in best else "")}
        if not repeated:
            row |= {axis: short(value) for axis, value in result.points[i].items()}
        row |= {
            primary: number(own["mean"]),
            "interval": _range(own["low"], own["high"]),
            "difference": "baseline" if i == result.baseline else number_signed(c.difference if c else None),
            "p": "" if c is None or c.p is None else "< 0.001" if c.p < 0.001 else f"{c.p:.3f}",
            **{name: number(trial.metrics[name]["mean"]) for name in others},
            "n": str(own["n"]),
            "unscored": str(own["unscored"]),
            "chunks": f"{next((s.details.get('chunks', 0) for s in trial.stages if s.kind == 'chunk'), 0):,}",
            "seconds": f"{sum(s.seconds for s in trial.stages):.1f}",
        }
        rows.append(row)
    labels = {
        "trial": " / ".join(axes) if repeated else "trial",
        "interval": "95 % interval",
        "difference": "against baseline",
        "p": "p (adjusted)",
    }
    return table(pl.DataFrame(rows), "wb-results", labels=labels, words=("trial", *(() if repeated else axes)))


def hardest(result: SweepResult, most: int = 12) -> pl.DataFrame:
    """query_id, question, mean, best: the queries on which the trials do worst, those that all miss first.

    Queries that every trial answers in full are left out.
    """
    frame, up = _by_query(result), higher_is_better(result.spec.metric)
    perfect, worst = (1.0, 0.0) if up else (0.0, 1.0)
    return (
        frame.filter(pl.col("mean") != perfect)
        .sort(pl.col("best") == worst, "mean", "place", descending=[True, not up, False])
        .head(most)
        .drop("place")
    )


def missed(result: SweepResult) -> int:
    """How many queries every trial misses: the best of them has the worst value there is."""
    worst = 0.0 if higher_is_better(result.spec.metric) else 1.0
    return _by_query(result).filter(pl.col("best") == worst).height


def _by_query(result: SweepResult) -> pl.DataFrame:
    metric, rows = result.spec.metric, []
    top = max if higher_is_better(metric) else min
    scores = [t.score_of(metric) for t in result.trials]
    for place, query in enumerate(result.dataset.queries):
        values = [v for s in scores if (v := s[query.query_id]) is not None]
        if values:
            rows.append((place, query.query_id, query.text, sum(values) / len(values), top(values)))
    schema = {"place": pl.Int64, "query_id": pl.String, "question": pl.String, "mean": pl.Float64, "best": pl.Float64}
    return pl.DataFrame(rows, schema=schema, orient="row")


def work(result: SweepResult) -> GT:
    """What each kind of stage took: unique stages against those of a loop that shares nothing."""
    rows = [
        {
            "kind": r["kind"],
            "stages": str(r["stages"]),
            "loop": str(r["loop"]),
            "items": f"{r['items']:,}",
            "seconds": f"{r['seconds']:.2f}",
            "spared": f"{r['spared']:.2f}",
        }
        for r in stage_work(result).iter_rows(named=True)
    ]
    labels = {
        "kind": "kind of stage",
        "stages": "unique stages",
        "loop": "in a plain loop",
        "seconds": "seconds, once",
        "spared": "seconds spared",
    }
    return table(pl.DataFrame(rows), "wb-work", labels=labels, words=("kind",))


def calls(result: SweepResult) -> GT:
    """What the model calls of each stage cost: tokens, the prefix cache's share, median times."""

    def share(value: float | None) -> str:
        return "–" if value is None else f"{value:.1%}"

    def whole(value: float | None) -> str:
        return "–" if value is None else f"{value:,.0f}"

    rows = [
        {
            "stage": r["stage"],
            **{name: f"{r[name]:,}" for name in ("calls", "prompt_tokens", "output_tokens")},
            "cached": share(r["cached"]),
            "cached_most": share(r["cached_most"]),
            "per_million": whole(r["per_million"]),
            **{name: whole(r[name]) for name in ("ttft_ms", "itl_ms", "e2e_ms")},
            "retried": str(r["retried"]),
        }
        for r in result.costs.iter_rows(named=True)
    ]
    labels = {
        "prompt_tokens": "prompt tokens",
        "output_tokens": "output tokens",
        "cached_most": "cached at most",
        "per_million": "prompt tokens per million of documents",
        "ttft_ms": "first token, ms",
        "itl_ms": "between tokens, ms",
        "e2e_ms": "whole call, ms",
    }
    return table(pl.DataFrame(rows), "wb-calls", labels=labels, words=("stage",))


def faults(ledger: pl.DataFrame) -> GT:
    """The fault ledger, one row a stage."""
    seconds = ("waited", "backoff")
    shown = ledger.select(
        "stage",
        *(pl.col(name).cast(pl.String) for name in ("attempts", *FAULTS) if name not in seconds),
        *(pl.col(name).map_elements(lambda value: f"{value:.1f}", return_dtype=pl.String) for name in seconds),
        "faults",
    )
    labels = {
        "retries": "calls tried again",
        "waited": "waited, s",
        "backoff": "backoff, s",
        "faults": "why calls failed",
    }
    return table(shown, "wb-faults", labels=labels, words=("stage", "faults"))


def table(frame: pl.DataFrame, identity: str, *, labels: dict[str, str], words: tuple[str, ...]) -> GT:
    """A frame of words in the house style: columns of `words` to the left, figures to the right."""
    from great_tables import GT

    figures = [name for name in frame.columns if name not in words]
    return (
        GT(frame, id=identity)
        .cols_label(cases={name: _breakable(labels.get(name, name)) for name in frame.columns})
        .cols_align("left", columns=[name for name in frame.columns if name in words])
        .cols_align("right", columns=figures)
        .tab_options(table_width="100%", table_font_size="14px", quarto_disable_processing=True)
    )


def _breakable(name: str) -> str:
    """A long metric name may break where its parts meet."""
    return name.replace("_", "_\u200b").replace("@", "\u200b@")


def number_signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.3f}"


def _range(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{low:.3f} to {high:.3f}"


def fragment(made: GT, caption: str) -> Fragment:
    """A table for our pages: their style sheet instead of the table's own, in a box that scrolls sideways."""
    html = made.as_raw_html()
    # Its own styles name white backgrounds, and some of its rules reach every table of a page.
    body = html[html.index("<table") : html.rindex("</table>") + len("</table>")]
    box = f'<div class="wb-scroll" role="region" tabindex="0" aria-label="{escape(caption)}">{body}</div>'
    return Fragment(f'<figure class="wb-figure">{box}<figcaption>{escape(caption)}</figcaption></figure>', caption)

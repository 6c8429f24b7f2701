"""The report of a sweep, one function a section. The template notebook calls them and holds no logic."""

from __future__ import annotations

import functools
import hashlib
import shlex
from collections.abc import Sequence
from html import escape
from typing import Any

import polars as pl

import workbench
from workbench.errors import InputError
from workbench.evaluation import higher_is_better
from workbench.pipeline.comparing import compare
from workbench.pipeline.results import TrialResult
from workbench.reports import charts, tables
from workbench.reports.drawing import figure
from workbench.reports.inspector import inspect
from workbench.reports.page import TEMPLATES, Fragment, number
from workbench.reports.reproduce import environments, sweep_toml
from workbench.specs import digest
from workbench.sweeps.faults import with_faults
from workbench.sweeps.plan import short
from workbench.sweeps.results import SweepResult

DONE = "application/vnd.workbench.report+json"
"""The type of the output of the last cell: a notebook without it did not reach its end."""


def fingerprint(result: SweepResult) -> str:
    """What a report shows and how, as a digest: the same inputs need not be rendered again."""
    trials = [[t.label, t.trial_id, [s.fingerprint for s in t.stages]] for t in result.trials]
    seconds = [[s.seconds, s.items] for t in result.trials for s in t.stages]
    spec = result.spec.model_dump(mode="json")
    faults = [list(row) for row in result.faults.iter_rows()]
    return digest(
        [code(), result.sweep_id, result.name, result.state, spec, trials, seconds, dict(result.failed), faults]
    )


@functools.cache
def code() -> str:
    """The version of the report's code: a digest of this room's files, templates included."""
    files = sorted(p for p in TEMPLATES.parent.rglob("*") if p.suffix in (".py", ".j2", ".css", ".json", ".ipynb"))
    return digest([workbench.__version__, [hashlib.sha256(p.read_bytes()).hexdigest() for p in files]])


def check(result: SweepResult) -> SweepResult:
    """The result, if it can be reported.

    Raises:
        InputError: the declared metric was not scored on this dataset.
    """
    metric = result.spec.metric
    for trial in result.trials:
        if metric not in trial.metrics:
            raise InputError(
                f"{metric!r} was not scored on {result.dataset.name}",
                where=f"sweep {result.sweep_id}",
                hint="scored are " + ", ".join(list(trial.metrics)[:6]) if trial.metrics else "it has no gold",
            )
    return result


def head(result: SweepResult) -> Fragment:
    """The question, and what it was asked of."""
    data = result.dataset
    unanswerable = sum(not q.evidence for q in data.queries)
    facts = {
        "documents": f"{len(data.documents):,}",
        "queries": f"{len(data.queries):,}",
        "trials": str(len(result.trials)),
        "metric": result.spec.metric,
    }
    if unanswerable:
        facts["unanswerable"] = str(unanswerable)
    question = result.spec.question or result.name
    listed = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in facts.items())
    axes = "; ".join(f"{a}: {', '.join(map(short, v))}" for a, v in result.spec.axes.items())
    body = (
        f'<p class="wb-kicker">{escape(result.name)} · sweep {result.sweep_id} · {escape(data.name)}</p>'
        f'<h1 dir="auto">{escape(question)}</h1><dl class="wb-facts">{listed}</dl>'
        + (f'<p class="wb-note">{escape(axes)}</p>' if axes else "")
    )
    return Fragment(body, f"{question} ({data.name}; " + ", ".join(f"{v} {k}" for k, v in facts.items()) + ")")


def answer(result: SweepResult) -> Fragment:
    """The answer in one sentence, and the trials that cannot be told apart from the best."""
    best, metric = result.best, result.spec.metric
    notes = list(dict.fromkeys(c.note for c in result.comparisons if c.note))
    if best:
        leader = next(t for t in result.trials if t.label == best[0])
        value = number(leader.metrics[metric]["mean"])
        way = "highest" if higher_is_better(metric) else "lowest"
        line = f"{best[0]} has the {way} {metric}, {value}"
        line += (
            f", and cannot be told apart from {_join(best[1:])}." if len(best) > 1 else ", ahead of every other trial."
        )
        if len(result.trials) == 1:
            line = f"{best[0]} reaches {value} on {metric}; there is nothing to compare it with."
    else:
        line = f"No query could be scored on {metric}."
    chips = "".join(f'<li class="wb-chip">{escape(label)}</li>' for label in best)
    body = f'<p class="wb-answer">{escape(line)}</p>'
    if len(best) > 1:
        body += f'<ul class="wb-chips" aria-label="Not distinguishable from the best">{chips}</ul>'
    if len(result.trials) > 1:
        body += f'<p class="wb-note wb-verdict-text">{escape(result.verdict)}</p>'
    body += "".join(f'<p class="wb-note">{escape(_sentence(note))}</p>' for note in notes)
    for label, reason in result.failed.items():
        body += f'<p class="wb-verdict wb-bad">{escape(label)} has no result: {escape(reason)}</p>'
    return Fragment(body, f"{line} {result.verdict}")


def results(result: SweepResult) -> Fragment:
    """The table of all trials."""
    caption = (
        "● not distinguishable from the best. Intervals are 95 %; p-values are adjusted for all comparisons against"
        " the baseline. The best of many trials on the same queries is optimistic: expect a little less on new ones."
        " Seconds are what a trial's stages took when they were computed, shared ones included."
    )
    return tables.fragment(tables.results(result), caption)


def intervals(result: SweepResult) -> Fragment:
    """Means with their intervals."""
    caption = (
        "Mean and 95 % interval, the best first. Blue: not distinguishable from the best. Diamond and dashed line:"
        " the baseline. Intervals that overlap do not say that two trials are equal; the paired test does."
    )
    return figure(lambda width: charts.intervals(result, width=width), caption)


def curves(result: SweepResult) -> Fragment:
    """How the metric grows with the cut-off."""
    family = charts.curve_family(result)
    if charts.recall_curves(result, family) is None:
        return _words("There is a single cut-off, so there is no curve to draw.")
    caption = f"Mean {family} over the first k hits. The axis of k is logarithmic."
    return figure(lambda width: charts.recall_curves(result, family, width=width), caption)


def difference(result: SweepResult) -> Fragment:
    """The best trial against the baseline, or the baseline against the runner-up, query by query."""
    if result.baseline is None:
        return _words("The declared baseline has no result.")
    ranked, base = charts.ranking(result), result.trials[result.baseline]
    other = next((t for t in ranked if t is not base), None)
    if other is None:
        return _words("There is one trial only.")
    pair = compare(base, other, result.spec.metric)
    if charts.differences(pair) is None:
        return _words(f"{other.label} and {base.label} score the same on every query.")
    equal = len(pair.queries) - len(pair.improved) - len(pair.worsened)
    caption = (
        f"{other.label} against {base.label} on {pair.metric}: {len(pair.improved)} queries better,"
        f" {len(pair.worsened)} worse, {equal} equal (not drawn)."
    )
    return figure(lambda width: charts.differences(pair, width=width), caption)


def hardest(result: SweepResult) -> Fragment:
    """The queries on which the trials do worst; those that every trial misses come first."""
    frame = tables.hardest(result)
    if frame.is_empty():
        return _words("Every trial answers every query in full.")
    missed = tables.missed(result)
    shown = frame.select(
        "question",
        "query_id",
        pl.col("mean").map_elements(number, pl.String),
        pl.col("best").map_elements(number, pl.String),
    )
    made = tables.table(
        shown,
        "wb-hardest",
        labels={"query_id": "query", "mean": "mean of trials", "best": "best trial"},
        words=("query_id", "question"),
    )
    caption = (
        f"{missed} of {len(result.dataset.queries)} queries are missed by every trial on {result.spec.metric};"
        f" shown are the {len(frame)} hardest."
    )
    return tables.fragment(made, caption)


def hardest_inspected(result: SweepResult) -> Fragment:
    """The hardest query, opened: the best trial beside the baseline."""
    frame = tables.hardest(result, 1)
    if frame.is_empty():
        return _words("There is nothing to open.")
    best = charts.ranking(result)[0]
    base = best if result.baseline is None else result.trials[result.baseline]
    return inspect(base, frame["query_id"][0], best if best is not base else None).fragment()


def work(result: SweepResult) -> Fragment:
    """Where the time went, and what sharing stages spared."""
    return figure(
        lambda width: charts.work(result, width=width),
        "Seconds that stages took when they were computed. Grey: what a plain loop would have computed again.",
    )


def work_table(result: SweepResult) -> Fragment:
    """The same in figures."""
    frame = charts.stage_work(result)
    unique, loop = frame["stages"].sum(), frame["loop"].sum()
    return tables.fragment(tables.work(result), f"{unique} unique stages instead of the {loop} of a plain loop.")


def calls(result: SweepResult) -> Fragment:
    """What was asked of language models, and what it cost."""
    if result.costs.is_empty():
        return _words("No language model was asked.")
    caption = (
        "Model calls by stage; stages that ask the same share a call, which was made once and kept. Cached: the share"
        " of prompt tokens from the server's prefix cache, beside the most that the stage's own prompts could share"
        " (what others sent before is in the cache too). Times are medians of the calls'"
        " own day on their own machine: they show what happened and are no comparison."
    )
    return tables.fragment(tables.calls(result), caption)


def faults(result: SweepResult) -> Fragment:
    """What was tried again, lost, repeated or waited for: how the pipeline behaved when something went wrong."""
    ledger, odd = result.faults, with_faults(result.faults)
    attempts = _many(int(ledger["attempts"].sum()), "attempt", "attempts")
    asked = _many(int(ledger["calls"].sum()), "model call", "model calls")
    if odd.is_empty():
        return _words(f"No fault: {attempts} at stages and {asked}, and none was tried again, lost or waited for.")
    caption = (
        f"Of {attempts} at stages and {asked}. Crashed: its process died; stopped: by a person; lost: taken over by"
        " another while it stood still. Repeated: items claimed again, because whoever had them ended without a value."
        " Waited: seconds for others who held the same work. Backoff: seconds between the attempts of a call."
    )
    return tables.fragment(tables.faults(odd), caption)


def unscored(result: SweepResult) -> Fragment:
    """What could not be scored, and why; what the guards of the stages counted."""
    lines: list[str] = []
    unanswerable = [q.query_id for q in result.dataset.queries if not q.evidence]
    if unanswerable:
        shown = ", ".join(unanswerable[:12]) + (", …" if len(unanswerable) > 12 else "")
        lines.append(f"{_many(len(unanswerable), 'query', 'queries')} without gold, left out of every mean: {shown}.")
    for trial in result.trials:
        m = trial.metrics[result.spec.metric]
        if m["unscored"]:
            lines.append(f"{trial.label}: {_many(m['unscored'], 'query', 'queries')} unscored on {result.spec.metric}.")
    if not any(t.metrics[result.spec.metric]["unscored"] for t in result.trials):
        lines.append("Every query that has gold was scored in every trial.")
    return _list([*lines, *_guards(result.trials)])


def _guards(trials: Sequence[TrialResult]) -> list[str]:
    """Truncated and pooled texts, and the recall of approximate indexes, once a stage."""
    lines: dict[str, None] = {}
    for trial in trials:
        for s in trial.stages:
            kind = f"{s.kind} {s.label}" if s.label != s.kind else s.kind
            for what, word in (("truncated", "truncated at the model's window"), ("pooled", "embedded in windows")):
                if s.details.get(what):
                    lines[f"{trial.label}, {kind}: {s.details[what]:,} of {s.details['texts']:,} texts {word}."] = None
            if found := s.details.get("ann_recall"):
                lines[
                    f"{trial.label}: the approximate index found {found['mean']:.1%} of exact search's first"
                    f" {found['k']} over {_many(found['n'], 'query', 'queries')} (lowest {found['low']:.1%})."
                ] = None
    return list(lines)


def environment(result: SweepResult) -> Fragment:
    """Versions and processor of the machines that computed the stages."""
    body = ""
    for found in environments(result):
        packages = ", ".join(f"{name} {version}" for name, version in sorted(found.get("packages", {}).items()))
        rows = {
            "workbench": f"{found.get('workbench')}" + (f" ({found['commit'][:12]})" if found.get("commit") else ""),
            "Python": found.get("python"),
            "system": found.get("system"),
            "processor": found.get("processor"),
            "packages": packages,
        }
        cells = "".join(
            f'<tr><th scope="row">{k}</th><td class="wb-words">{escape(str(v))}</td></tr>' for k, v in rows.items() if v
        )
        body += (
            f'<div class="wb-scroll" role="region" tabindex="0" aria-label="Environment"><table>{cells}</table></div>'
        )
    return Fragment(body, "environment")


def reproduce(result: SweepResult) -> Fragment:
    """The sweep as TOML and the commands that run it again."""
    toml = sweep_toml(result.spec)
    data = result.dataset
    commands = (
        f"workbench sweep sweep.toml --dataset {shlex.quote(data.name)}   # or the folder it was loaded from\n"
        f"workbench report {result.sweep_id}\n"
    )
    prints = " · ".join(f"{part} {getattr(data, f'{part}_fingerprint')[:12]}" for part in ("corpus", "queries", "gold"))
    body = (
        f"<pre><code>{escape(toml)}</code></pre><pre><code>{escape(commands)}</code></pre>"
        f'<p class="wb-note">Dataset {escape(data.name)}: {prints}. Licence of its texts: {escape(data.licence)}.</p>'
    )
    return Fragment(body, toml + commands)


class Finished:
    """The output of the last cell, by which a report knows that every cell before it ran."""

    def __init__(self, result: SweepResult) -> None:
        self.fingerprint = fingerprint(result)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:  # noqa: ARG002
        return {DONE: {"fingerprint": self.fingerprint}, "text/plain": f"complete: {self.fingerprint[:12]}"}


def _words(text: str) -> Fragment:
    return Fragment(f"<p>{escape(text)}</p>", text)


def _list(lines: Sequence[str]) -> Fragment:
    return Fragment("<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>", "\n".join(lines))


def _many(count: int, one: str, several: str) -> str:
    return f"{count:,} {one if count == 1 else several}"


def _join(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")

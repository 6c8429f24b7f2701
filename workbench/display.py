"""How results look in a terminal, or in the pipe behind a command: one function a result."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from workbench.console import CONTROL, cell, console, count, figure, interval, one_line, piped, say, show, table

if TYPE_CHECKING:
    from workbench.datasets import CheckReport, Dataset, Entry
    from workbench.doctor import Check
    from workbench.pipeline.comparing import TrialComparison
    from workbench.pipeline.graph import Node
    from workbench.pipeline.results import StageSummary, TrialResult
    from workbench.pipeline.search import SearchResult
    from workbench.serving.servers import Status
    from workbench.sweeps.plan import Plan
    from workbench.sweeps.runs import SweepRun

_SIDE_BY_SIDE = 100
"""From this width on two trials stand in two columns."""
_WIDE = 80
"""Below this width a table of a sweep keeps to the declared metric."""
_PER_MINUTE = 1_300_000
"""Characters that MiniLM embeds in a minute on two cores, for the estimate before a first run."""


# --- trials --------------------------------------------------------------------------------------


def show_trial(result: TrialResult) -> None:
    """A trial's metrics with their intervals, and what this run did at each stage."""
    say(f"trial {result.trial_id}: {result.label} on {result.dataset.name}", "bold")
    for note in dict.fromkeys(
        m["note"] if m["n"] else f"{name}: {m['note']}" for name, m in result.metrics.items() if m["note"]
    ):
        say(f"note: {note}")
    grid = table("metric", "mean", "95 % interval", "n", "unscored", left=())
    grid.columns[0].justify = "left"
    for name, m in result.metrics.items():
        grid.add_row(name, figure(m["mean"]), interval(m), str(m["n"]), str(m["unscored"]))
    show(grid)
    for stage in result.stages:
        say(_stage(stage), "dim")


def _stage(stage: StageSummary) -> str:
    line = f"{stage.kind} {stage.label}: {count(stage.items, 'item')}, "
    if stage.state == "reused":
        line += f"reused (took {stage.seconds:.2f} s once)"
    else:
        line += f"{stage.computed:,} computed now in {stage.seconds:.2f} s"
        line += f", {stage.repeated:,} of them repeated" if stage.repeated else ""
    if stage.details.get("truncated"):
        line += f", {stage.details['truncated']} truncated"
    if calls := stage.details.get("calls"):
        line += f"; {_calls(calls)}"
    if "ann_recall" in stage.details:
        line += f", {stage.details['ann_recall']['mean']:.4f} of exact search found"
    return line


def _calls(calls: Mapping[str, Any]) -> str:
    """Tokens, cache and latencies of a stage's calls, in one line."""
    parts = [f"{calls['prompt_tokens']:,} prompt and {calls['output_tokens']:,} output tokens"]
    if calls["cached_tokens"] is not None and calls["prompt_tokens"]:
        line = f"{calls['cached_tokens'] / calls['prompt_tokens']:.1%} of the prompt from the cache"
        if calls["cached_tokens_most"] is not None:
            line += f" (at most {calls['cached_tokens_most'] / calls['prompt_tokens']:.1%})"
        parts.append(line)
    for name, what in (("ttft_ms", "first token"), ("itl_ms", "then a token each")):
        if calls[name]:
            parts.append(f"{what} {calls[name]['p50']:,.0f} ms (p95 {calls[name]['p95']:,.0f})")
    if calls["retried"]:
        parts.append(f"{count(calls['retried'], 'call')} retried")
    return "; ".join(parts)


def show_comparison(result: TrialComparison) -> None:
    """The verdict on two trials, and the queries that changed most."""
    for letter, trial in (("A", result.a), ("B", result.b)):
        say(f"{letter}: {trial.label} (trial {trial.trial_id})", "dim")
    say(result.verdict, "bold")
    say(f"{count(len(result.improved), 'query')} improved, {len(result.worsened)} worsened")
    changed = result.queries.filter(result.queries["difference"] != 0).head(20)
    if len(changed):
        grid = table("B - A", "query", "text", left=("query", "text"))
        for row in changed.iter_rows(named=True):
            grid.add_row(f"{row['difference']:+.3f}", cell(row["query_id"]), cell(one_line(row["text"])))
        show(grid)


# --- search --------------------------------------------------------------------------------------


def show_search(result: SearchResult, names: Sequence[str]) -> None:
    """Hits under the name of each trial: two trials side by side in a wide terminal, else one after the other."""
    width = console().width
    titles = [f"{name}: {label}" if name else label for name, label in zip(names, result.hits, strict=True)]
    answers = {
        t: result.answers[label] for t, label in zip(titles, result.hits, strict=True) if label in result.answers
    }
    columns = [[_hit(hit) for hit in frame.iter_rows(named=True)] for frame in result.hits.values()]
    if len(columns) == 2 and not piped() and width >= _SIDE_BY_SIDE:
        grid = Table.grid(padding=(0, 2), expand=True)
        for _ in columns:
            grid.add_column(ratio=1)
        grid.add_row(*(Text(title, style="bold") for title in titles))
        if answers:
            grid.add_row(*(cell(answers.get(title, "")) for title in titles))
        for rank in range(max(map(len, columns))):
            grid.add_row(*(column[rank] if rank < len(column) else "" for column in columns))
        show(grid)
        return
    for title, hits in zip(titles, columns, strict=True):
        say(title, "bold")
        if title in answers:
            say(f"     {answers[title]}")
        for hit in hits:
            show(hit)
        if not hits:
            say("     no hits: nothing in these documents fits the words of the question")


def _hit(hit: Mapping[str, Any]) -> Table:
    place = f"{hit['doc_id']} {hit['start']}:{hit['end']}"
    grid = Table.grid(padding=(0, 2))
    grid.add_column(justify="right", no_wrap=True, min_width=3)
    grid.add_column(overflow="fold")
    grid.add_row(str(hit["rank"]), Text(CONTROL.sub("�", f"{hit['score']:.3f}  {place}"), style="cyan"))
    grid.add_row("", cell(one_line(hit["text"])))
    return grid


# --- sweeps --------------------------------------------------------------------------------------


def show_plan(plan: Plan, todo: Sequence[Node], place: str, to_embed: int) -> None:
    """What a sweep is going to do and what is in the store already; `to_embed` counts characters."""
    data = plan.dataset
    say(plan.sweep.question or f"sweep {plan.name}", "bold")
    say(
        f"{count(len(plan.trials), 'trial')} on {data.name} ({count(len(data.documents), 'document')},"
        f" {count(len(data.queries), 'query')}): {count(len(plan.nodes), 'unique stage')}"
        f" instead of the {plan.stages_of_a_loop} of a loop"
    )
    for note in data.notes:
        say(f"note: {note}")
    for warning in plan.warnings:
        say(f"warning: {warning}", "yellow")
    if not todo:
        say(f"Every stage is in the store already ({place}): nothing is computed.")
        return
    cost = "some seconds"
    if to_embed:
        minutes = to_embed / _PER_MINUTE
        cost = "about " + (f"{minutes:.0f} min" if minutes >= 1.5 else "a minute" if minutes > 0.5 else "half a minute")
        cost += f" to embed {to_embed:,} characters on two cores"
    from workbench.specs import Served

    asking = [f"{n.kind} {n.label}" for n in todo if isinstance(n.config, Served)]
    if asking:
        names = ", ".join(dict.fromkeys(asking))
        cost += f", and the model calls of {count(len(asking), 'stage')} ({names})"
    stored = len(plan.nodes) - len(todo)
    say(f"{stored} of {len(plan.nodes)} stages are in the store ({place}). The rest costs {cost}, once.")


def show_sweep(run: SweepRun, result: Any) -> None:
    """A table of the trials, then the failures, the verdict and what was computed; `result` is None without any."""
    wide, metric = console().width >= _WIDE, run.status.spec.metric
    shared = [m for m in ("span_precision@5", "mrr", "ndcg@10") if all(m in t.metrics for t in run.results.values())]
    others = [m for m in shared if m != metric]
    others = others if wide else []
    grid = table("trial", "id", metric, "95 % interval", "n", *others, left=("trial",))
    for number, trial in run.results.items():
        m = trial.metrics[metric]
        mark = " (baseline)" if number == run.status.baseline else ""
        figures = (figure(trial.metrics[name]["mean"]) for name in others)
        grid.add_row(
            cell(trial.label + mark), str(trial.trial_id), figure(m["mean"]), interval(m), str(m["n"]), *figures
        )
    if run.results:
        show(grid)
    for label, error in run.errors.items():
        say(f"failed: {label}: {error}", "red")
    if result is not None:
        say(result.verdict, "bold")
        if result.best:
            say("Not distinguishable from the best: " + ", ".join(result.best))
    body = run.as_json()
    stages, items = body["stages"], body["items"]
    say(
        f"sweep {run.sweep_id}: {stages['computed']} stages computed, {stages['reused']} reused;"
        f" {count(items['computed'], 'item')} computed, {items['repeated']} repeated; {body['seconds']:.1f} s",
        "dim",
    )


def show_calls(run: SweepRun) -> None:
    """What the model calls of a sweep cost, stage by stage, beside the quality of the trials that used them."""
    metric = run.status.spec.metric
    users: dict[str, list[str]] = {}
    stages: dict[str, StageSummary] = {}
    for trial in run.results.values():
        for stage in trial.stages:
            if "calls" in stage.details:
                stages[stage.fingerprint] = stage
                users.setdefault(stage.fingerprint, []).append(f"{trial.label} {figure(trial.metrics[metric]['mean'])}")
    if not stages:
        return
    grid = table(
        "stage", "calls", "first token ms", "token ms", "cached", "at most", f"{metric} of", left=(f"{metric} of",)
    )
    grid.columns[0].justify = "left"
    for key, stage in stages.items():
        calls = stage.details["calls"]
        prompt = calls["prompt_tokens"] or 1
        cached, most = (
            "–" if calls[name] is None else f"{calls[name] / prompt:.1%}"
            for name in ("cached_tokens", "cached_tokens_most")
        )
        grid.add_row(
            f"{stage.kind} {stage.label}",
            f"{calls['calls']:,}",
            *(f"{calls[name]['p50']:,.0f} (p95 {calls[name]['p95']:,.0f})" if calls[name] else "–" for name in _TIMES),
            cached,
            most,
            cell("; ".join(users[key])),
        )
    say(
        "Model calls: median and 95th percentile of the calls' own times, and the share of prompt tokens from the cache"
    )
    show(grid)


_TIMES = ("ttft_ms", "itl_ms")


def server_json(status: Status) -> dict[str, Any]:
    """A running server as JSON; its key is not in it."""
    return dataclasses.asdict(status)


def show_servers(servers: Sequence[Status]) -> None:
    """Running model servers as a table."""
    if not servers:
        say("no server runs")
        return
    grid = table("key", "model", "url", "state", "owners", "idle", "memory", left=("model",))
    for one in servers:
        state = ("ready" if one.ready else "starting") + (", kept" if one.kept else "")
        memory, idle = f"{one.rss_bytes / 2**30:.1f} GiB", f"{one.idle_seconds:.0f} s"
        grid.add_row(one.key, cell(f"{one.served_name} ({one.dtype})"), one.url, state, str(one.owners), idle, memory)
    show(grid)


def show_page(name: str, path: Path) -> None:
    """Where a page was written, on one line that can be copied."""
    say(f"{name}: {path}", whole=True)


# --- datasets and checks -------------------------------------------------------------------------


def show_catalogue(entries: Sequence[Entry]) -> None:
    """The bundled datasets as a table."""
    grid = table("name", "documents", "queries", "description", left=("description",))
    grid.columns[0].justify = "left"
    for e in entries:
        grid.add_row(cell(e.name), str(e.documents), str(e.queries), cell(e.description))
    show(grid)


def show_dataset(body: Mapping[str, Any], data: Dataset, count: int) -> None:
    """A dataset's size, then its first queries with their gold text."""
    texts = {d.doc_id: d.text for d in data.documents}
    for key, value in body.items():
        if value not in ("", []):
            shown = "; ".join(value) if isinstance(value, list) else f"{value:,}" if isinstance(value, int) else value
            say(f"{key}: {shown}")
    for query in data.queries[:count]:
        say()
        say(f"{query.query_id}  {query.text}", "bold")
        if not query.evidence:
            say("  no evidence: unanswerable", "dim")
        for e in query.evidence:
            say(f"  {e.doc_id} {e.start}:{e.end}  {one_line(texts[e.doc_id][e.start : e.end])}")


def show_check(report: CheckReport) -> None:
    """Every fault of a dataset, then what stops nothing, then one line that says whether it is sound."""
    for fault in report.faults:
        say(f"fault: {fault}", "red")
    for note in report.notes:
        say(f"note: {note}")
    for query in report.leaking:
        say(f"note: query {query} shares six consecutive words with its gold, which flatters lexical search")
    for group in report.duplicates:
        say(f"note: documents with the same text: {', '.join(group)}")
    verdict = "sound" if report.ok else count(len(report.faults), "fault")
    say(
        f"{report.name} ({report.folder}): {verdict}; {count(report.documents, 'document')},"
        f" {count(report.queries, 'query')}, {report.evidence:,} evidence, {report.unanswerable:,} unanswerable",
        "bold",
        whole=True,
    )


def show_examined(check: Check) -> None:
    """One line of `workbench doctor`, and the next step below what failed."""
    mark = "ok     " if check.ok else "missing" if check.optional else "FAILED "
    say(f"{mark}  {check.name}: {check.detail}", "" if check.ok else "yellow" if check.optional else "red", whole=True)
    if not check.ok and check.next:
        say(f"         -> {check.next}", whole=True)

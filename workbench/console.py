"""What the commands print: results and one JSON object on stdout, errors on stderr."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from workbench.errors import InputError, WorkbenchError

if TYPE_CHECKING:
    from workbench.datasets import CheckReport, Dataset, Entry
    from workbench.doctor import Check
    from workbench.pipeline.comparing import TrialComparison
    from workbench.pipeline.results import StageSummary, TrialResult
    from workbench.pipeline.search import SearchResult
    from workbench.sweeps.local import SweepRun
    from workbench.sweeps.plan import Plan

INTERRUPTED = 130
_SIDE_BY_SIDE = 100
"""From this width on two trials stand in two columns."""
_WIDE = 80
"""Below this width a table of a sweep keeps to the declared metric."""
_PIPE = 10_000
_SHOWN = 300
"""Characters of a passage that a list shows."""
_PER_MINUTE = 1_300_000
"""Characters that MiniLM embeds in a minute on two cores, for the estimate before a first run."""

# Text from documents and files must not move a terminal's cursor or change its title.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


# --- streams -------------------------------------------------------------------------------------


def prepare() -> None:
    """Let no character of a result fail on a terminal that cannot show it."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace" if stream is sys.stdout else "backslashreplace")


def say(text: str = "", style: str = "", *, whole: bool = False) -> None:
    """A paragraph on stdout, wrapped at words in a terminal; `whole` keeps a line with a path in one piece."""
    _console().print(Text(_CONTROL.sub("�", text), style=style), soft_wrap=whole)


def print_json(value: Any) -> None:
    """One JSON object on a line of its own."""
    unicode = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    sys.stdout.write(json.dumps(value, ensure_ascii=not unicode, allow_nan=False, default=str) + "\n")


def complain(error: BaseException, *, as_json: bool) -> None:
    """An expected error: what, where and the next step on stderr; with `as_json` an object on stdout too."""
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        text = place + (error.strerror or str(error))
        body = {"what": error.strerror or str(error), "where": error.filename, "hint": None, "faults": []}
    elif isinstance(error, WorkbenchError):
        text = str(error)
        faults = list(getattr(error, "faults", ()))
        body = {"what": error.what, "where": error.where, "hint": error.hint, "faults": faults}
    else:
        text = str(error) or type(error).__name__
        body = {"what": text, "where": None, "hint": None, "faults": []}
    print(f"error: {_CONTROL.sub('�', text)}", file=sys.stderr)  # noqa: T201
    if as_json:
        print_json({"error": {"kind": type(error).__name__, **body}})


def run(app: Callable[..., Any], arguments: Sequence[str]) -> NoReturn:
    """Run a Typer application: an expected error is one message (with `--json` an object too) and an exit code."""
    as_json = "--json" in arguments
    prepare()
    try:
        code = app(
            args=list(arguments), prog_name="workbench", standalone_mode=False
        )  # the code of a command that raised typer.Exit
        sys.stdout.flush()
        if code == INTERRUPTED:  # which is what newer Typers make of Ctrl-C, without a word
            raise KeyboardInterrupt
    except (typer.Abort, KeyboardInterrupt):
        stopped = WorkbenchError("interrupted", hint="finished work is kept, run the same command again to go on")
        complain(stopped, as_json=as_json)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # `workbench ... | head`: nobody reads on, and the flush at exit must not complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except (WorkbenchError, OSError) as error:
        complain(error, as_json=as_json)
        sys.exit(error.exit_code if isinstance(error, WorkbenchError) else 2)
    except Exception as error:
        if hasattr(error, "format_message"):
            _complain_of_usage(error, as_json=as_json)
        if as_json:
            print_json({"error": {"kind": type(error).__name__, "what": str(error)}})
        raise
    sys.exit(code if isinstance(code, int) else 0)


def _complain_of_usage(error: Any, *, as_json: bool) -> NoReturn:
    """Typer's own errors (an unknown option, a missing argument), said as ours are."""
    message = error.format_message().strip()
    if message:  # without one the help was printed
        param, context = getattr(error, "param", None), getattr(error, "ctx", None)
        hints = []
        if message.startswith("Missing") and param is not None and param.help:
            hints.append(param.help.removesuffix("."))
        if context is not None:
            hints.append(f"see `{context.command_path} --help`")
        complain(InputError(message.removesuffix("."), hint="; ".join(hints) or None), as_json=as_json)
    sys.exit(error.exit_code)


def _piped() -> bool:
    return not sys.stdout.isatty() and "COLUMNS" not in os.environ


def _console() -> Console:
    """Stdout as it is now. In a pipe nothing is wrapped: what reads it is a program or a file."""
    return Console(width=_PIPE if _piped() else None, markup=False, emoji=False, highlight=False)


def _show(table: Table) -> None:
    console = _console()
    with console.capture() as captured:
        console.print(table)
    # The cells of the last column are padded to its width, which in a pipe may be long.
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))


def _table(*columns: str, left: Sequence[str]) -> Table:
    """A bare table; words wrap in the left-aligned columns, figures never."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in columns:
        words = name in left
        table.add_column(
            name, justify="left" if words else "right", no_wrap=not words, overflow="fold", ratio=1 if words else None
        )
    return table


def _cell(text: str) -> Text:
    return Text(_CONTROL.sub("�", text))


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _interval(summary: Mapping[str, Any]) -> str:
    return "–" if summary["low"] is None else f"{_figure(summary['low'])} to {_figure(summary['high'])}"


def _count(number: int, noun: str) -> str:
    plural = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"


def _one_line(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


# --- trials --------------------------------------------------------------------------------------


def show_trial(result: TrialResult) -> None:
    """A trial's metrics with their intervals, and what this run did at each stage."""
    say(f"trial {result.trial_id}: {result.label} on {result.dataset.name}", "bold")
    for note in dict.fromkeys(m["note"] for m in result.metrics.values() if m["note"]):
        say(f"note: {note}")
    table = _table("metric", "mean", "95 % interval", "n", "unscored", left=())
    table.columns[0].justify = "left"
    for name, m in result.metrics.items():
        table.add_row(name, _figure(m["mean"]), _interval(m), str(m["n"]), str(m["unscored"]))
    _show(table)
    for stage in result.stages:
        say(_stage(stage), "dim")


def _stage(stage: StageSummary) -> str:
    line = f"{stage.kind} {stage.label}: {_count(stage.items, 'item')}, "
    if stage.state == "reused":
        line += f"reused (took {stage.seconds:.2f} s once)"
    else:
        line += f"{stage.computed:,} computed now in {stage.seconds:.2f} s"
        line += f", {stage.repeated:,} of them repeated" if stage.repeated else ""
    if stage.details.get("truncated"):
        line += f", {stage.details['truncated']} truncated"
    if "ann_recall" in stage.details:
        line += f", {stage.details['ann_recall']['mean']:.4f} of exact search found"
    return line


def show_comparison(result: TrialComparison) -> None:
    """The verdict on two trials, and the queries that changed most."""
    for letter, trial in (("A", result.a), ("B", result.b)):
        say(f"{letter}: {trial.label} (trial {trial.trial_id})", "dim")
    say(result.verdict, "bold")
    say(f"{_count(len(result.improved), 'query')} improved, {len(result.worsened)} worsened")
    changed = result.queries.filter(result.queries["difference"] != 0).head(20)
    if len(changed):
        table = _table("B - A", "query", "text", left=("query", "text"))
        for row in changed.iter_rows(named=True):
            table.add_row(f"{row['difference']:+.3f}", _cell(row["query_id"]), _cell(_one_line(row["text"])))
        _show(table)


# --- search --------------------------------------------------------------------------------------


def show_search(result: SearchResult, names: Sequence[str]) -> None:
    """Hits under the name of each trial: two trials side by side in a wide terminal, else one after the other."""
    console = _console()
    titles = [f"{name}: {label}" if name else label for name, label in zip(names, result.hits, strict=True)]
    columns = [[_hit(hit) for hit in frame.iter_rows(named=True)] for frame in result.hits.values()]
    if len(columns) == 2 and not _piped() and console.width >= _SIDE_BY_SIDE:
        table = Table.grid(padding=(0, 2), expand=True)
        for _ in columns:
            table.add_column(ratio=1)
        table.add_row(*(Text(title, style="bold") for title in titles))
        for rank in range(max(map(len, columns))):
            table.add_row(*(column[rank] if rank < len(column) else "" for column in columns))
        _show(table)
        return
    for title, hits in zip(titles, columns, strict=True):
        say(title, "bold")
        for hit in hits:
            _show(hit)
        if not hits:
            say("     no hits: nothing in these documents fits the words of the question")


def _hit(hit: Mapping[str, Any]) -> Table:
    place = f"{hit['doc_id']} {hit['start']}:{hit['end']}"
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right", no_wrap=True, min_width=3)
    table.add_column(overflow="fold")
    table.add_row(str(hit["rank"]), Text(_CONTROL.sub("�", f"{hit['score']:.3f}  {place}"), style="cyan"))
    table.add_row("", _cell(_one_line(hit["text"])))
    return table


# --- sweeps --------------------------------------------------------------------------------------


def show_plan(plan: Plan, stored: int, place: str, to_embed: int) -> None:
    """What a sweep is going to do and what is in the store already; `to_embed` counts characters."""
    data = plan.dataset
    say(plan.sweep.question or f"sweep {plan.name}", "bold")
    say(
        f"{_count(len(plan.trials), 'trial')} on {data.name} ({_count(len(data.documents), 'document')},"
        f" {_count(len(data.queries), 'query')}): {_count(len(plan.nodes), 'unique stage')}"
        f" instead of the {plan.stages_of_a_loop} of a loop"
    )
    for note in data.notes:
        say(f"note: {note}")
    if stored == len(plan.nodes):
        say(f"Every stage is in the store already ({place}): nothing is computed.")
        return
    cost = "some seconds"
    if to_embed:
        minutes = to_embed / _PER_MINUTE
        cost = "about " + (f"{minutes:.0f} min" if minutes >= 1.5 else "a minute" if minutes > 0.5 else "half a minute")
        cost += f" to embed {to_embed:,} characters on two cores"
    say(f"{stored} of {len(plan.nodes)} stages are in the store ({place}). The rest costs {cost}, once.")


def show_sweep(run: SweepRun, result: Any) -> None:
    """A table of the trials, then the failures, the verdict and what was computed; `result` is None without any."""
    console, metric = _console(), run.plan.sweep.metric
    scored = next(iter(run.results.values())).metrics if run.results else {}
    others = [m for m in ("span_precision@5", "mrr", "ndcg@10") if m in scored and m != metric]
    others = others if console.width >= _WIDE else []
    table = _table("trial", "id", metric, "95 % interval", "n", *others, left=("trial",))
    for number, trial in run.results.items():
        m = trial.metrics[metric]
        mark = " (baseline)" if number == run.plan.baseline else ""
        figures = (_figure(trial.metrics[name]["mean"]) for name in others)
        table.add_row(
            _cell(trial.label + mark), str(trial.trial_id), _figure(m["mean"]), _interval(m), str(m["n"]), *figures
        )
    if run.results:
        _show(table)
    for number, error in run.errors.items():
        say(f"failed: {run.plan.trials[number].label}: {error}", "red")
    if result is not None:
        say(result.verdict, "bold")
        if result.best:
            say("Not distinguishable from the best: " + ", ".join(result.best))
    body = run.as_json()
    stages, items = body["stages"], body["items"]
    say(
        f"sweep {run.sweep_id}: {stages['computed']} stages computed, {stages['reused']} reused;"
        f" {_count(items['computed'], 'item')} computed, {items['repeated']} repeated; {body['seconds']:.1f} s",
        "dim",
    )


def show_page(name: str, path: Path) -> None:
    """Where a page was written, on one line that can be copied."""
    say(f"{name}: {path}", whole=True)


# --- datasets and checks -------------------------------------------------------------------------


def show_catalogue(entries: Sequence[Entry]) -> None:
    """The bundled datasets as a table."""
    table = _table("name", "documents", "queries", "description", left=("description",))
    table.columns[0].justify = "left"
    for e in entries:
        table.add_row(_cell(e.name), str(e.documents), str(e.queries), _cell(e.description))
    _show(table)


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
            say(f"  {e.doc_id} {e.start}:{e.end}  {_one_line(texts[e.doc_id][e.start : e.end])}")


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
    verdict = "sound" if report.ok else _count(len(report.faults), "fault")
    say(
        f"{report.name} ({report.folder}): {verdict}; {_count(report.documents, 'document')},"
        f" {_count(report.queries, 'query')}, {report.evidence:,} evidence, {report.unanswerable:,} unanswerable",
        "bold",
        whole=True,
    )


def show_examined(check: Check) -> None:
    """One line of `workbench doctor`, and the next step below what failed."""
    mark = "ok     " if check.ok else "missing" if check.optional else "FAILED "
    say(f"{mark}  {check.name}: {check.detail}", "" if check.ok else "yellow" if check.optional else "red", whole=True)
    if not check.ok and check.next:
        say(f"         -> {check.next}", whole=True)

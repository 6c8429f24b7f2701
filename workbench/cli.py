"""The command line. Each command is a few lines over the lab; results go to stdout, progress to stderr.

Exit codes: 0 done, 1 some trials failed, 2 wrong input or a missing service, 130 interrupted (work kept).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from workbench.errors import InputError, WorkbenchError

app = typer.Typer(
    name="workbench",
    help="A laboratory for retrieval-augmented generation: nothing is computed twice, nothing finished is lost.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(help="Datasets: list, show, check.", no_args_is_help=True)
app.add_typer(data_app, name="data")

DatasetOption = Annotated[str, typer.Option("--dataset", "-d", help="A name from `workbench data ls`, or a folder.")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on stdout and nothing else there.")]
LimitOption = Annotated[int | None, typer.Option("--limit", min=1, help="Only the first N queries.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="Change a field, e.g. --set retrieve.k=50.")
]
MetricOption = Annotated[str, typer.Option("--metric", "-m", help="The metric to compare on.")]

out = Console()


def main() -> NoReturn:
    """Run the command line; every expected error is one clear message and an exit code."""
    try:
        code = app(standalone_mode=False)  # the exit code of a command that raised typer.Exit
    except (typer.Abort, KeyboardInterrupt):
        _interrupted()
    except WorkbenchError as error:
        _fail(error)
    except BrokenPipeError:
        sys.exit(0)
    except Exception as error:
        if hasattr(error, "exit_code") and hasattr(error, "show"):  # click's usage errors
            error.show()
            sys.exit(error.exit_code)
        raise
    sys.exit(code if isinstance(code, int) else 0)


def _interrupted() -> NoReturn:
    print("interrupted; finished work is kept, run the same command again to go on", file=sys.stderr)  # noqa: T201
    sys.exit(130)


def _fail(error: WorkbenchError) -> NoReturn:
    print(f"error: {error}", file=sys.stderr)  # noqa: T201
    if "--json" in sys.argv:
        _print_json({"error": {"what": error.what, "where": error.where, "hint": error.hint}})
    sys.exit(error.exit_code)


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, ensure_ascii=False, allow_nan=False, default=str) + "\n")


def _lab(*, progress: bool = True) -> Any:
    from workbench.lab import Lab

    return Lab(progress=progress)


def _trial(path: Path | None, settings: list[str] | None) -> Any:
    from workbench.specs import TrialSpec, apply_settings, read_trial

    return apply_settings(TrialSpec() if path is None else read_trial(path), settings or [])


@app.command()
def demo(
    lexical: Annotated[bool, typer.Option("--lexical", help="Without an embedding model (needs no torch).")] = False,
    dataset: DatasetOption = "python-reference",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Where the HTML report goes.")] = None,
    as_json: JsonOption = False,
) -> None:
    """The main job, end to end: compare 2 chunkers x 3 retrievers on real text and write a report."""
    from workbench.sweeps.bundled import experiment

    _sweep(experiment("demo-lexical" if lexical else "demo"), dataset, None, output, as_json, report=True)


@app.command()
def sweep(
    file: Annotated[Path, typer.Argument(help="A sweep in TOML.")],
    dataset: DatasetOption,
    limit: LimitOption = None,
    report: Annotated[bool, typer.Option("--report", help="Also write the HTML report.")] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Where the HTML report goes.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Run a sweep: every unique stage of its trials once, whatever the store already holds reused."""
    _sweep(file, dataset, limit, output, as_json, report=report or output is not None)


def _sweep(file: Path, dataset: str, limit: int | None, output: Path | None, as_json: bool, *, report: bool) -> None:
    with _lab() as lab:
        plan = lab.plan(file, dataset, limit=limit)
        if not as_json:
            out.print(Text(plan.sweep.question or f"sweep {plan.name}", style="bold"))
            out.print(
                f"{len(plan.trials)} trials on {plan.dataset.name} ({len(plan.dataset.documents)} documents,"
                f" {len(plan.dataset.queries)} queries): {len(plan.nodes)} unique stages"
                f" instead of the {plan.stages_of_a_loop} of a loop"
            )
            for note in plan.dataset.notes:
                out.print(Text(f"note: {note}"))
        run = lab.run_sweep(plan)
        body = run.as_json()
        if run.results:
            result = lab.sweep_result(run.sweep_id)
            body |= {"verdict": result.verdict, "best": result.best}
            if report:
                body["report"] = str(lab.report(result, output))
        if as_json:
            _print_json(body)
        else:
            _show_sweep(run, body)
    if run.errors:
        raise typer.Exit(1)


def _show_sweep(run: Any, body: dict[str, Any]) -> None:
    metric = run.plan.sweep.metric
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column, side in (("trial", "left"), (metric, "right"), ("95 % interval", "left"), ("n", "right")):
        table.add_column(column, justify=side)  # type: ignore[arg-type]
    others = [m for m in ("span_precision@5", "mrr") if run.results and m in next(iter(run.results.values())).metrics]
    for name in others:
        table.add_column(name, justify="right")
    for number, result in run.results.items():
        m = result.metrics[metric]
        mark = " (baseline)" if number == run.plan.baseline else ""
        table.add_row(
            Text(result.label + mark),
            _figure(m["mean"]),
            f"{_figure(m['low'])} to {_figure(m['high'])}",
            str(m["n"]),
            *(_figure(result.metrics[name]["mean"]) for name in others),
        )
    out.print(table)
    for number, error in run.errors.items():
        out.print(Text(f"failed: {run.plan.trials[number].label}: {error}", style="red"))
    if "verdict" in body:
        out.print(Text(body["verdict"], style="bold"))
        out.print(Text("Not distinguishable from the best: " + ", ".join(body["best"])))
    stages = body["stages"]
    out.print(
        f"{stages['computed']} stages computed, {stages['reused']} reused; {body['items']['computed']} items computed,"
        f" {body['items']['repeated']} repeated; {body['seconds']:.1f} s"
    )
    if "report" in body:
        out.print(Text(f"report: {body['report']}"), soft_wrap=True)


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


@app.command()
def run(
    file: Annotated[Path | None, typer.Argument(help="A trial in TOML; none: the defaults.")] = None,
    dataset: DatasetOption = "",
    settings: SetOption = None,
    limit: LimitOption = None,
    queries: Annotated[Path | None, typer.Option("--queries", help="Per-query scores (.parquet, .jsonl).")] = None,
    hits: Annotated[Path | None, typer.Option("--hits", help="Ranked hits (.parquet, .jsonl, .trec).")] = None,
    as_json: JsonOption = False,
) -> None:
    """Run one trial on a dataset and print its metrics."""
    from workbench.exports import check_ending, write_hits, write_scores

    _need_dataset(dataset)
    for path, endings in ((queries, (".parquet", ".jsonl")), (hits, (".parquet", ".jsonl", ".trec"))):
        check_ending(path, endings)
    spec = _trial(file, settings)
    with _lab() as lab:
        result = lab.run(spec, dataset, limit=limit)
        if queries:
            write_scores(result, queries)
        if hits:
            write_hits(result, hits)
        if as_json:
            _print_json(result.as_json())
            return
        _show_trial(result)


def _need_dataset(dataset: str) -> None:
    if not dataset:
        raise InputError("no dataset was given", where="--dataset", hint="`workbench data ls` lists names")


def _show_trial(result: Any) -> None:
    out.print(Text(f"trial {result.trial_id}: {result.label} on {result.dataset.name}", style="bold"))
    for note in dict.fromkeys(m["note"] for m in result.metrics.values() if m["note"]):
        out.print(Text(f"note: {note}"))
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("metric", "mean", "95 % interval", "n", "unscored"):
        table.add_column(column, justify="left" if column in ("metric", "95 % interval") else "right")
    for name, m in result.metrics.items():
        interval = f"{_figure(m['low'])} to {_figure(m['high'])}"
        table.add_row(name, _figure(m["mean"]), interval, str(m["n"]), str(m["unscored"]))
    out.print(table)
    for stage in result.stages:
        details = ""
        if stage.details.get("truncated"):
            details += f", {stage.details['truncated']} truncated"
        if "ann_recall" in stage.details:
            details += f", {stage.details['ann_recall']['mean']:.4f} of exact search found"
        line = f"{stage.kind} {stage.label}: {stage.state}, {stage.items} items, {stage.seconds:.2f} s{details}"
        out.print(Text(line, style="dim"))


@app.command()
def search(
    text: Annotated[str, typer.Argument(help="A question.")],
    trials: Annotated[list[Path] | None, typer.Argument(help="One or two trials in TOML; none: the defaults.")] = None,
    dataset: DatasetOption = "",
    settings: SetOption = None,
    k: Annotated[int, typer.Option("-k", min=1, max=100, help="How many hits to show.")] = 5,
    as_json: JsonOption = False,
) -> None:
    """Ask a question now: the hits of one or two trials; no gold needed."""
    _need_dataset(dataset)
    specs = [_trial(path, settings) for path in trials or (None,)]
    with _lab() as lab:
        result = lab.search(text, dataset, *specs, k=k)
    if as_json:
        _print_json(result.as_json())
        return
    for label, frame in result.hits.items():
        out.print(Text(label, style="bold"))
        for hit in frame.iter_rows(named=True):
            place = f"{hit['doc_id']} {hit['start']}:{hit['end']}"
            out.print(Text(f"{hit['rank']:>3}  {hit['score']:.3f}  {place}", style="cyan"))
            out.print(Text("     " + " ".join(hit["text"].split())[:300]))


@app.command()
def compare(
    a: Annotated[str, typer.Argument(help="A trial in TOML, or the id of one that ran.")],
    b: Annotated[str, typer.Argument(help="Likewise; differences are B - A.")],
    dataset: DatasetOption = "",
    metric: MetricOption = "recall@5",
    limit: LimitOption = None,
    as_json: JsonOption = False,
) -> None:
    """A paired test of two trials on the same queries."""
    with _lab() as lab:
        result = lab.compare(*(_result(lab, name, dataset, limit) for name in (a, b)), metric)
        body = result.as_json()
    if as_json:
        _print_json(body)
        return
    out.print(Text(body["verdict"], style="bold"))
    out.print(f"{len(body['improved'])} queries improved, {len(body['worsened'])} worsened")
    for row in result.queries.filter(result.queries["difference"] != 0).head(20).iter_rows(named=True):
        out.print(Text(f"{row['difference']:+.3f}  {row['query_id']}  {row['text']}"))


def _result(lab: Any, name: str, dataset: str, limit: int | None = None) -> Any:
    if name.isdigit():
        return lab.trial(int(name))
    _need_dataset(dataset)
    return lab.run(Path(name), dataset, limit=limit)


@app.command()
def inspect(
    trial: Annotated[str, typer.Argument(help="A trial in TOML, or the id of one that ran.")],
    query: Annotated[str, typer.Option("--query", "-q", help="A query id; none: the first failure.")] = "",
    against: Annotated[str, typer.Option("--against", help="A second trial, shown beside it.")] = "",
    dataset: DatasetOption = "",
    metric: MetricOption = "recall@5",
    output: Annotated[Path, typer.Option("--output", "-o", help="The page.")] = Path("inspect.html"),
    as_json: JsonOption = False,
) -> None:
    """One query as a page: gold and retrieved spans in their documents."""
    with _lab() as lab:
        result = _result(lab, trial, dataset)
        other = _result(lab, against, dataset) if against else None
        if not query:
            failures = result.failures(metric)
            if not failures:
                raise InputError(f"every query has a full {metric}", where=result.label, hint="name one with --query")
            query = failures[0]
        inspection = lab.inspect(result, query, other)
        page = inspection.write(output)
    if as_json:
        _print_json({**inspection.as_json(), "page": str(page)})
    else:
        out.print(Text(f"{query}: {page}"), soft_wrap=True)


@app.command()
def report(
    sweep_id: Annotated[int, typer.Argument(metavar="SWEEP", help="The id that `workbench sweep` printed.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Where the HTML report goes.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Render a sweep's report from the store alone."""
    with _lab() as lab:
        path = lab.report(sweep_id, output)
    if as_json:
        _print_json({"sweep": sweep_id, "report": str(path)})
    else:
        out.print(Text(f"report: {path}"), soft_wrap=True)


@app.command()
def doctor(as_json: JsonOption = False) -> None:
    """Check what the workbench needs here: database, pgvector, models, packages."""
    from workbench.doctor import examine

    checks = examine()
    if as_json:
        _print_json({"ok": all(c.ok or c.optional for c in checks), "checks": [c.as_json() for c in checks]})
    else:
        for check in checks:
            mark = "ok     " if check.ok else "missing" if check.optional else "FAILED "
            out.print(Text(f"{mark}  {check.name}: {check.detail}"), soft_wrap=True)
    if not all(c.ok or c.optional for c in checks):
        raise typer.Exit(2)


@app.command()
def version(as_json: JsonOption = False) -> None:
    """The version of the workbench."""
    from workbench import __version__

    if as_json:
        _print_json({"version": __version__})
    else:
        out.print(f"rag-workbench {__version__}")


@data_app.command("ls")
def data_ls(as_json: JsonOption = False) -> None:
    """The bundled datasets."""
    from workbench import datasets

    entries = datasets.catalogue()
    if as_json:
        names = ("name", "description", "licence", "documents", "queries")
        _print_json({"datasets": [{name: getattr(e, name) for name in names} for e in entries]})
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("name", "documents", "queries", "description"):
        table.add_column(column, justify="right" if column in ("documents", "queries") else "left")
    for e in entries:
        table.add_row(Text(e.name), str(e.documents), str(e.queries), Text(e.description))
    out.print(table)


@data_app.command("show")
def data_show(
    dataset: Annotated[str, typer.Argument(help="A name or a folder.")],
    count: Annotated[int, typer.Option("-n", min=1, help="How many queries to show.")] = 5,
    as_json: JsonOption = False,
) -> None:
    """A dataset's size, and its first queries with their gold text."""
    from workbench import datasets

    loaded = datasets.load(dataset)
    texts = {d.doc_id: d.text for d in loaded.documents}
    body = {
        "name": loaded.name,
        "description": loaded.description,
        "licence": loaded.licence,
        "source": loaded.source,
        "documents": len(loaded.documents),
        "characters": sum(map(len, texts.values())),
        "queries": len(loaded.queries),
        "evidence": sum(len(q.evidence) for q in loaded.queries),
        "notes": list(loaded.notes),
    }
    if as_json:
        _print_json(body)
        return
    for key, value in body.items():
        if value:
            out.print(Text(f"{key}: {'; '.join(value) if isinstance(value, list) else value}"))
    for query in loaded.queries[:count]:
        out.print(Text(f"\n{query.query_id}  {query.text}", style="bold"))
        for e in query.evidence:
            out.print(Text(f"  {e.doc_id} {e.start}:{e.end}  " + " ".join(texts[e.doc_id][e.start : e.end].split())))


@data_app.command("check")
def data_check(path: Annotated[str, typer.Argument(help="A name or a folder.")], as_json: JsonOption = False) -> None:
    """Validate a dataset: every fault with its file and line."""
    from workbench import datasets

    checked = datasets.check(path)
    body = checked.as_json()
    if as_json:
        _print_json(body)
    else:
        for key, value in body.items():
            if isinstance(value, list):
                for entry in value:
                    out.print(Text(f"{key}: {entry}"))
            else:
                out.print(Text(f"{key}: {value}"))
    if not checked.ok:
        raise typer.Exit(2)


if __name__ == "__main__":
    main()

"""The command line. Each command is a few lines over the lab; results go to stdout, progress to stderr.

Inputs and outputs are checked before the store is opened, so that a mistake costs no work. Exit codes:
0 done, 1 some trials failed, 2 wrong input or a missing service, 130 interrupted (work kept).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from workbench import __version__, cli_notebooks, cli_serve, cli_sweeps, console, display, inputs
from workbench.errors import InputError

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
app.add_typer(cli_sweeps.app)
app.add_typer(cli_notebooks.app, name="notebooks")
app.add_typer(cli_serve.app, name="serve")


def _expand(path: Path | None) -> Path | None:
    """`--output=~/a.html`: no shell expands a tilde behind the equals sign."""
    return None if path is None else path.expanduser()


DATASET_HELP = "A name from `workbench data ls`, or a folder."
DatasetOption = Annotated[str, typer.Option("--dataset", "-d", help=DATASET_HELP)]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on stdout and nothing else there.")]
LimitOption = Annotated[int | None, typer.Option("--limit", min=1, help="Only the first N queries.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="Change a field, e.g. --set retrieve.k=50.")
]
MetricOption = Annotated[str, typer.Option("--metric", "-m", help="The metric to judge by; none: recall@5.")]
ReportOption = Annotated[
    Path | None, typer.Option("--output", "-o", callback=_expand, help="Where the HTML report goes.")
]
TrialOrId = "a trial in TOML, or the id of one that ran"


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line; every expected error is one clear message and an exit code."""
    console.run(app, sys.argv[1:] if arguments is None else list(arguments))


# --- experiments ---------------------------------------------------------------------------------


def _say_version(wanted: bool) -> None:
    if wanted:
        console.say(f"rag-workbench {__version__}")
        raise typer.Exit


VersionOption = Annotated[
    bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Show the version and exit.")
]


@app.callback()
def _root(version: VersionOption = False) -> None:
    pass


@app.command()
def demo(
    lexical: Annotated[bool, typer.Option("--lexical", help="Without any model (needs no torch, no vLLM).")] = False,
    models: Annotated[bool, typer.Option(help="Also contexts, reranking and answers on a real vLLM server.")] = True,
    dataset: DatasetOption = "python-reference",
    engine: cli_sweeps.EngineOption = cli_sweeps.EngineName.local,
    limit: LimitOption = None,
    output: ReportOption = None,
    as_json: JsonOption = False,
) -> None:
    """The main job, end to end, on real text: chunkers and retrievers compared; then contexts, reranking, answers."""
    from workbench import demo as demonstration

    failed = demonstration.run(
        dataset=dataset,
        lexical=lexical,
        models=models,
        limit=limit,
        output=output,
        as_json=as_json,
        engine=engine.value,
    )
    if failed:
        raise typer.Exit(1)


@app.command()
def run(
    file: Annotated[Path | None, typer.Argument(metavar="[TRIAL.toml]", help="A trial; none: the defaults.")] = None,
    dataset: DatasetOption = "",
    settings: SetOption = None,
    limit: LimitOption = None,
    queries: Annotated[
        Path | None, typer.Option("--queries", callback=_expand, help="Per-query scores (.parquet, .jsonl).")
    ] = None,
    hits: Annotated[
        Path | None, typer.Option("--hits", callback=_expand, help="Ranked hits (.parquet, .jsonl, .trec).")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Run one trial on a dataset and print its metrics."""
    from workbench import exports

    exports.check_output(queries, exports.SCORES)
    exports.check_output(hits, exports.HITS)
    if queries is not None and queries == hits:
        raise InputError("--queries and --hits name the same file", where=str(hits))
    spec, data = inputs.trial(file, settings), inputs.dataset(dataset, limit)
    with inputs.open_lab() as lab:
        result = lab.run(spec, data)
        if queries is not None:
            exports.write_scores(result, queries)
        if hits is not None:
            exports.write_hits(result, hits)
        if not as_json:
            display.show_trial(result)
    if as_json:
        console.print_json(result.as_json())


@app.command()
def search(
    words: Annotated[
        list[str], typer.Argument(metavar="[TRIAL.toml] [TRIAL.toml] QUESTION", help="None, one or two trials.")
    ],
    dataset: DatasetOption = "",
    settings: SetOption = None,
    k: Annotated[int, typer.Option("-k", min=1, max=100, help="How many hits to show.")] = 5,
    as_json: JsonOption = False,
) -> None:
    """Ask a question now: the hits of one or two trials; no gold needed."""
    files = [word for word in words if word.endswith(".toml") and (" " not in word or Path(word).is_file())]
    questions = [word for word in words if word not in files]
    if len(questions) != 1 or not questions[0].strip():
        what = (
            "more than one question" if len(questions) > 1 else "the question is blank" if questions else "no question"
        )
        raise InputError(what, where="search", hint='put it in quotes: workbench search trial.toml "..." --dataset D')
    specs = [inputs.trial(Path(file), settings) for file in files] or [inputs.trial(None, settings)]
    if len(specs) > 2:
        raise InputError(f"{len(specs)} trials were given", where="search", hint="one, or two to see side by side")
    data = inputs.dataset(dataset, scored=False)
    with inputs.open_lab() as lab:
        result = lab.search(questions[0], data, *specs, k=k)
    if as_json:
        console.print_json(result.as_json())
    else:
        display.show_search(result, [Path(file).name for file in files] or [""])


@app.command()
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help=f"A: {TrialOrId}.")],
    b: Annotated[str, typer.Argument(metavar="B", help="B: likewise; differences are B - A.")],
    dataset: DatasetOption = "",
    metric: MetricOption = "",
    limit: LimitOption = None,
    as_json: JsonOption = False,
) -> None:
    """A paired test of two trials on the same queries."""
    from workbench.reports.inspector import failure_metric

    operands = [inputs.Operand(name, dataset, limit, metric) for name in (a, b)]
    with inputs.open_lab() as lab:
        results = [operand.result(lab) for operand in operands]
        if results[0].label == results[1].label:  # what differs is in the files then, so their names tell them apart
            results = [o.result(lab, Path(o.name).stem) for o in operands]
        result = lab.compare(results[0], results[1], metric or failure_metric(results[0]))
        body = result.as_json()
        if not as_json:
            display.show_comparison(result)
    if as_json:
        console.print_json(body)


@app.command()
def inspect(
    trial: Annotated[str, typer.Argument(metavar="TRIAL", help=f"{TrialOrId[0].upper()}{TrialOrId[1:]}.")],
    query: Annotated[str, typer.Option("--query", "-q", help="A query id; none: the first failure.")] = "",
    against: Annotated[str, typer.Option("--against", help="A second trial, shown beside it.")] = "",
    dataset: DatasetOption = "",
    metric: MetricOption = "",
    output: Annotated[Path, typer.Option("--output", "-o", callback=_expand, help="The page.")] = Path("inspect.html"),
    as_json: JsonOption = False,
) -> None:
    """One query as a page: gold and retrieved spans in their documents."""
    from workbench.errors import did_you_mean
    from workbench.exports import PAGES, check_output
    from workbench.reports.inspector import failure_metric

    check_output(output, PAGES)
    operands = [inputs.Operand(name, dataset, None, metric) for name in (trial, against) if name]
    for operand in operands:
        ids = [q.query_id for q in operand.data.queries] if operand.data else [query]
        if query and query not in ids:
            raise InputError(f"no query {query!r} in {dataset}", where="--query", hint=did_you_mean(query, ids))
    with inputs.open_lab() as lab:
        result, *others = (operand.result(lab) for operand in operands)
        if not query:
            judge = metric or failure_metric(result)
            failures = result.failures(judge)
            if not failures:
                raise InputError(f"no query fails on {judge}", where=result.label, hint="name one with --query")
            query = failures[0]
        inspection = lab.inspect(result, query, others[0] if others else None)
        page = inspection.write(output)
        body = {**inspection.as_json(), "page": str(page)}
    if as_json:
        console.print_json(body)
    else:
        display.show_page(f"query {query}", page)


@app.command()
def report(
    sweep_id: Annotated[int, typer.Argument(metavar="SWEEP", help="The id that `workbench sweep` printed.")],
    output: ReportOption = None,
    as_json: JsonOption = False,
) -> None:
    """Render a sweep's report from the store alone."""
    from workbench.exports import PAGES, check_output
    from workbench.progress import waiting

    check_output(output, PAGES, folder=True)
    with inputs.open_lab() as lab, waiting("rendering the report"):
        path = lab.report(sweep_id, output)
    if as_json:
        console.print_json({"sweep": sweep_id, "report": str(path)})
    else:
        display.show_page("report", path)


# --- set-up and datasets -------------------------------------------------------------------------


@app.command()
def doctor(as_json: JsonOption = False) -> None:
    """Check what the workbench needs here: packages, models, home, database; each failure has a next step."""
    from workbench.doctor import examine

    checks = []
    for check in examine():
        checks.append(check)
        if not as_json:
            display.show_examined(check)
    ok = all(check.ok or check.optional for check in checks)
    if as_json:
        console.print_json({"ok": ok, "checks": [check.as_json() for check in checks]})
    if not ok:
        raise typer.Exit(2)


@app.command()
def version(as_json: JsonOption = False) -> None:
    """The version of the workbench."""
    if as_json:
        console.print_json({"version": __version__})
    else:
        console.say(f"rag-workbench {__version__}")


@data_app.command("ls")
def data_ls(as_json: JsonOption = False) -> None:
    """The bundled datasets."""
    from workbench import datasets

    entries = datasets.catalogue()
    if as_json:
        names = ("name", "description", "licence", "documents", "queries")
        console.print_json({"datasets": [{name: getattr(e, name) for name in names} for e in entries]})
    else:
        display.show_catalogue(entries)


@data_app.command("show")
def data_show(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help=DATASET_HELP)],
    count: Annotated[int, typer.Option("-n", min=1, help="How many queries to show.")] = 5,
    as_json: JsonOption = False,
) -> None:
    """A dataset's size, and its first queries with their gold text."""
    data = inputs.dataset(dataset, scored=False)
    body = {
        "name": data.name,
        "description": data.description,
        "licence": data.licence,
        "source": data.source,
        "documents": len(data.documents),
        "characters": sum(len(d.text) for d in data.documents),
        "queries": len(data.queries),
        "evidence": sum(len(q.evidence) for q in data.queries),
        "notes": list(data.notes),
    }
    if as_json:
        console.print_json(body)
    else:
        display.show_dataset(body, data, count)


@data_app.command("check")
def data_check(
    path: Annotated[str, typer.Argument(metavar="DATASET", help=DATASET_HELP)], as_json: JsonOption = False
) -> None:
    """Validate a dataset: every fault with its file and line."""
    from workbench import datasets

    checked = datasets.check(path)
    if as_json:
        console.print_json(checked.as_json())
    else:
        display.show_check(checked)
    if not checked.ok:
        raise typer.Exit(2)


if __name__ == "__main__":
    main()

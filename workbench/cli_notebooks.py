"""`workbench notebooks`: a sweep as a folder of executed notebooks, one a trial."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from workbench import console, inputs

if TYPE_CHECKING:
    from workbench.reports.batches import Batch, Outcome
    from workbench.reports.executing import Progress

app = typer.Typer(help="A sweep as executed notebooks.", no_args_is_help=True)


@app.callback()
def _root() -> None:
    pass  # with it `run` stays a command of its own while it is the only one


@app.command()
def run(
    notebook: Annotated[Path, typer.Argument(metavar="NOTEBOOK", help="With a parameters cell: dataset and trial.")],
    sweep: Annotated[Path, typer.Option("--sweep", "-s", metavar="SWEEP.toml", help="A sweep in TOML.")],
    dataset: Annotated[str, typer.Option("--dataset", "-d", help="A name from `workbench data ls`, or a folder.")] = "",
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only the first N queries.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The folder of the notebooks; none: runs/<name of the sweep>.")
    ] = None,
    parameters: Annotated[
        list[str] | None, typer.Option("-p", metavar="NAME=VALUE", help="A further parameter of the notebook.")
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, max=64, help="How many notebooks at once.")] = 1,
    timeout: Annotated[int | None, typer.Option("--timeout", min=1, help="Seconds for one cell; none: no end.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout and nothing else there.")] = False,
) -> None:
    """Execute a notebook once for every trial of a sweep; those that are there already are kept."""
    from workbench import running
    from workbench.reports import batches, executing
    from workbench.reports.parameters import parse_parameters, read_template

    template = read_template(notebook.expanduser())
    further = parse_parameters(parameters or [], template)
    task = running.Task.read(sweep, inputs.dataset(dataset, limit))
    folder = (output or Path("runs") / task.name).expanduser().absolute()
    started = time.monotonic()
    with inputs.open_lab() as lab:
        batch = batches.arrange(
            lab.plan(task.spec, task.data, name=task.name),
            template,
            folder,
            dataset=_reference(dataset),
            limit=limit,
            parameters=further,
        )
        if not as_json:
            _say_what(batch)
        with _progress(len(batch.entries), not as_json) as progress:
            outcomes = executing.run(batch, lab.runtime, jobs=jobs, timeout=timeout, progress=progress)
    failed = [outcome for outcome in outcomes if outcome.state == "failed"]
    if as_json:
        console.print_json(_body(batch, outcomes, time.monotonic() - started))
    else:
        _show(batch, outcomes)
    if failed:
        raise typer.Exit(1)


def _reference(dataset: str) -> str:
    """A dataset as a notebook names it wherever its kernel runs: a catalogue name as it is, a folder in full."""
    from workbench.datasets.catalog import NAMES

    known = dataset.partition("?")[0] in NAMES
    return dataset if known else str(Path(dataset).expanduser().absolute())


def _say_what(batch: Batch) -> None:
    plan = batch.plan
    console.say(plan.sweep.question or f"sweep {plan.name}", "bold")
    notebooks, queries = (
        console.count(len(batch.entries), "notebook"),
        console.count(len(plan.dataset.queries), "query"),
    )
    console.say(f"{notebooks} on {plan.dataset.name} ({queries}), {batch.template.path.name}, one a trial")
    for note in plan.dataset.notes:
        console.say(f"note: {note}")
    for warning in plan.warnings:
        console.say(f"warning: {warning}", "yellow")


@contextmanager
def _progress(notebooks: int, enabled: bool) -> Iterator[Progress]:
    """Bars at a terminal, for the batch and for each notebook that runs; elsewhere a line for each that has run."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars
    from rich.text import Text

    from workbench.reports.batches import Entry
    from workbench.reports.executing import Progress

    if not enabled:
        yield Progress()
        return
    terminal = sys.stderr.isatty()
    screen = Console(stderr=True, force_terminal=terminal, width=None if terminal else 200)
    text = TextColumn("{task.description}", markup=False)
    bars = Bars(
        text,
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=screen,
        disable=not terminal,
        transient=True,
    )
    whole = bars.add_task("notebooks", total=notebooks)
    tasks: dict[str, Any] = {}

    class Shown(Progress):
        def cell(self, entry: Entry, done: int, of: int) -> None:
            label = entry.label
            if label not in tasks:
                tasks[label] = bars.add_task(label, total=of)
            bars.update(tasks[label], completed=done)

        def ended(self, outcome: Outcome) -> None:
            if outcome.label in tasks:
                bars.remove_task(tasks.pop(outcome.label))
            bars.advance(whole)
            if outcome.state != "reused":
                line = f"{outcome.file.name}: {outcome.state}, {outcome.seconds:.1f} s"
                screen.print(Text(console.CONTROL.sub("�", line), style="dim"), soft_wrap=True)

    with bars:
        yield Shown()


def _show(batch: Batch, outcomes: Sequence[Outcome]) -> None:
    """One row a notebook, then what failed and why."""
    grid = console.table("trial", "state", batch.plan.sweep.metric, "seconds", "file", left=("trial", "file"))
    for one in outcomes:
        seconds = f"{one.seconds:.1f}" if one.seconds else "–"
        grid.add_row(console.cell(one.label), one.state, console.figure(one.mean), seconds, console.cell(one.file.name))
    console.show(grid)
    failed = [one for one in outcomes if one.state == "failed"]
    for one in failed:
        console.say(f"failed: {one.label}: {one.error}", "red")
    console.say(f"notebooks: {batch.folder}", whole=True)
    if failed:
        console.say("run the same command again to execute only what failed")


def _body(batch: Batch, outcomes: Sequence[Outcome], seconds: float) -> dict[str, Any]:
    """The JSON object of `workbench notebooks run`."""
    states = [outcome.state for outcome in outcomes]
    return {
        "sweep": batch.plan.name,
        "dataset": batch.plan.dataset.name,
        "notebook": str(batch.template.path),
        "folder": str(batch.folder),
        "metric": batch.plan.sweep.metric,
        "state": "failed" if "failed" in states else "done",
        "trials": len(outcomes),
        **{state: states.count(state) for state in ("done", "reused", "failed")},
        "seconds": round(seconds, 3),
        "results": [outcome.as_json() for outcome in outcomes],
    }

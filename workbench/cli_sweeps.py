"""Sweeps at the command line: run, look, pause, go on; and the workers that help."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from workbench import console, display_sweeps, inputs
from workbench.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from workbench.sweeps.runs import Status

app = typer.Typer()


class EngineName(enum.StrEnum):
    """Who runs a sweep."""

    local = "local"
    temporal = "temporal"


DatasetOption = Annotated[str, typer.Option("--dataset", "-d", help="A name from `workbench data ls`, or a folder.")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on stdout and nothing else there.")]
EngineOption = Annotated[
    EngineName, typer.Option("--engine", help="local: a loop in this process; temporal: a workflow and its workers.")
]
WorkersOption = Annotated[
    int, typer.Option("--workers", min=0, max=64, help="Worker processes started for it (engine temporal).")
]
SweepArgument = Annotated[int, typer.Argument(metavar="SWEEP", help="The id that `workbench sweep` printed.")]


def _expand(path: Path | None) -> Path | None:
    return None if path is None else path.expanduser()


@app.command()
def sweep(
    file: Annotated[Path, typer.Argument(metavar="SWEEP.toml", help="A sweep in TOML.")],
    dataset: DatasetOption = "",
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only the first N queries.")] = None,
    engine: EngineOption = EngineName.local,
    workers: WorkersOption = 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="As `workbench plan`: print the plan, run nothing.")
    ] = False,
    report: Annotated[bool, typer.Option("--report", help="Also write the HTML report.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", callback=_expand, help="Where the HTML report goes.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Run a sweep: every unique stage of its trials once, whatever the store already holds reused."""
    from workbench import running

    if dry_run:
        plan(file, dataset, limit, as_json)
        return
    task = running.Task.read(file, inputs.dataset(dataset, limit), output)
    with inputs.open_lab() as lab:
        finished, body = running.run(
            task, lab, quiet=as_json, report=report or output is not None, engine=engine.value, workers=workers
        )
    if as_json:
        console.print_json(body)
    if finished.errors:
        raise typer.Exit(1)


@app.command()
def plan(
    file: Annotated[Path, typer.Argument(metavar="SWEEP.toml", help="A sweep in TOML.")],
    dataset: DatasetOption = "",
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only the first N queries.")] = None,
    as_json: JsonOption = False,
) -> None:
    """What a sweep would do and cost: trials, stages, what is stored, calls, tokens, seconds, money."""
    from workbench import display_plan, running
    from workbench.sweeps.estimate import estimate

    task = running.Task.read(file, inputs.dataset(dataset, limit))
    with inputs.open_lab() as lab:
        made = lab.plan(task.spec, task.data, name=task.name)
        expected = estimate(made, lab.runtime)
    if as_json:
        console.print_json(expected.as_json())
    else:
        display_plan.show_plan(expected, lab.runtime.database.name)


@app.command()
def status(
    sweep_id: Annotated[int | None, typer.Argument(metavar="[SWEEP]", help="A sweep's id; none: all sweeps.")] = None,
    as_json: JsonOption = False,
) -> None:
    """How far a sweep is, whoever runs it; without an id, all sweeps of this database."""
    from workbench.sweeps.faults import totals

    with inputs.open_lab() as lab:
        if sweep_id is None:
            listed = lab.sweeps()
            if as_json:
                console.print_json({"sweeps": listed.to_dicts()})
            else:
                display_sweeps.show_sweeps(listed)
            return
        found = lab.status(sweep_id)
        faults = lab.faults(sweep_id)
    if as_json:
        console.print_json({**found.as_json(), "faults": totals(faults)})
    else:
        display_sweeps.show_status(found)
        display_sweeps.show_faults(faults)


@app.command()
def pause(sweep_id: SweepArgument, as_json: JsonOption = False) -> None:
    """Have whoever runs a sweep stop after the items at hand; `workbench resume` goes on."""
    with inputs.open_lab() as lab:
        found = lab.pause(sweep_id)
    _show(found, as_json)


@app.command()
def cancel(sweep_id: SweepArgument, as_json: JsonOption = False) -> None:
    """Have whoever runs a sweep stop for good; what is finished stays in the store."""
    with inputs.open_lab() as lab:
        found = lab.cancel(sweep_id)
    _show(found, as_json)


@app.command()
def resume(
    sweep_id: SweepArgument,
    engine: Annotated[EngineName | None, typer.Option("--engine", help="None: the one it ran on.")] = None,
    workers: WorkersOption = 1,
    as_json: JsonOption = False,
) -> None:
    """Go on with a sweep that was paused, cancelled or interrupted, or that has failures, from the store alone."""
    from workbench import display

    with inputs.open_lab() as lab:
        finished = lab.resume(sweep_id, engine=engine.value if engine else None, workers=workers)
        if as_json:
            console.print_json(finished.as_json())
        else:
            display.show_sweep(finished, lab.sweep_result(sweep_id) if finished.results else None)
    if finished.errors:
        raise typer.Exit(1)


@app.command()
def worker(
    queues: Annotated[str, typer.Option("--queues", help="Of cpu, llm and gpu, with commas between.")] = "cpu,llm,gpu",
    concurrency: Annotated[
        int, typer.Option("--concurrency", min=1, max=64, help="Stages of each queue that run at once.")
    ] = 1,
) -> None:
    """Help with the sweeps of a database, here or from another machine, until it is interrupted."""
    from workbench.sweeps.book import QUEUES
    from workbench.sweeps.temporal import worker as temporal
    from workbench.sweeps.temporal.crew import end_with_parent

    end_with_parent()
    named = [name.strip() for name in queues.split(",") if name.strip()]
    for name in named:
        if name not in QUEUES:
            raise InputError(f"no queue {name!r}", where="--queues", hint=did_you_mean(name, QUEUES))
    if not named:
        raise InputError("no queue", where="--queues", hint=f"of {', '.join(QUEUES)}")
    chosen = [queue for queue in QUEUES if queue in named]
    with inputs.open_lab() as lab:
        temporal.run(
            lab.runtime,
            queues=chosen,
            concurrency=concurrency,
            ready=lambda address: console.say(
                f"working on queues {', '.join(chosen)} of {lab.runtime.database.name}, with Temporal at {address}"
            ),
        )


def _show(found: Status, as_json: bool) -> None:
    if as_json:
        console.print_json(found.as_json())
    else:
        display_sweeps.show_status(found)

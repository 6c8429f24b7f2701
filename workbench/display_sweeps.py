"""What the terminal shows of sweeps: how far they are, and what went wrong on the way."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench.console import cell, count, say, show, table

if TYPE_CHECKING:
    import polars as pl

    from workbench.sweeps.runs import Status

_AGAIN = ("paused", "cancelled", "interrupted", "failed")


def show_sweeps(listed: pl.DataFrame) -> None:
    """One line a sweep."""
    if listed.is_empty():
        say("No sweep was run in this database yet: workbench sweep SWEEP.toml --dataset D")
        return
    grid = table(
        "sweep", "name", "dataset", "state", "done", "failed", "of", "started", left=("name", "dataset", "state")
    )
    for row in listed.iter_rows(named=True):
        figures = (str(row[name]) for name in ("done", "failed", "trials"))
        grid.add_row(
            str(row["sweep"]),
            cell(row["name"]),
            cell(row["dataset"]),
            row["state"],
            *figures,
            row["started_at"].replace("T", " ").rstrip("Z"),
        )
    show(grid)


def show_status(found: Status) -> None:
    """How far one sweep is."""
    body = found.as_json()
    stages = body["stages"]
    asked = f", asked to {found.wanted}" if found.wanted and found.state == "running" else ""
    say(f"sweep {found.sweep_id}, {found.name} on {found.dataset}: {found.state}{asked} ({found.engine})", "bold")
    say(
        f"{body['done']} of {count(body['trials'], 'trial')} done, {body['failed']} failed;"
        f" {stages['unique'] - stages['waiting'] - stages['failed']} of {count(stages['unique'], 'stage')} done,"
        f" {stages['computed']} computed by the latest run, {stages['failed']} failed"
    )
    say(
        f"{count(found.items['computed'], 'item')} computed, {found.items['repeated']} repeated; {found.seconds:.0f} s",
        "dim",
    )
    for stage in found.working:
        helpers = f" by {count(stage['workers'], 'worker')}" if stage["workers"] > 1 else ""
        say(f"now: {stage['kind']} {stage['label']}, {stage['done']:,} of {stage['items']:,} items{helpers}")
    for name, error in found.troubles.items():
        say(f"to be tried again: {name}: {error}", "yellow")
    for label, error in found.errors.items():
        say(f"failed: {label}: {error}", "red")
    if found.state in _AGAIN:
        say(f"Go on with: workbench resume {found.sweep_id}")


def show_faults(faults: pl.DataFrame) -> None:
    """The stages on which something was tried again, lost or waited for; a sentence where there was nothing."""
    from workbench.sweeps.faults import FAULTS, with_faults

    if faults.is_empty():
        return
    odd = with_faults(faults)
    if odd.is_empty():
        say(f"No fault in {count(int(faults['attempts'].sum()), 'attempt')}: nothing was repeated, lost or waited for.")
        return
    grid = table("stage", "attempts", *FAULTS, "faults", left=("stage", "faults"))
    for row in odd.iter_rows(named=True):
        figures = (f"{row[n]:.1f} s" if isinstance(row[n], float) else str(row[n]) for n in FAULTS)
        grid.add_row(cell(row["stage"]), str(row["attempts"]), *figures, cell(row["faults"]))
    show(grid)

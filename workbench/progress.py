"""Progress of long work for a person at a terminal, on stderr; silent elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from workbench.pipeline.execute import Progress
from workbench.pipeline.graph import Node

_ITEMS = {"chunk": "documents", "embed": "texts", "index": "rows", "retrieve": "queries", "score": "queries"}


@contextlib.contextmanager
def show_progress(enabled: bool = True) -> Iterator[Progress | None]:
    """A callback that draws one bar a stage while the block runs; None where nobody would see it."""
    console = Console(stderr=True)
    if not (enabled and console.is_terminal):
        yield None
        return
    bars = Bars(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}"),
        TimeElapsedColumn(),
        console=console,
    )
    tasks: dict[str, TaskID] = {}

    def advance(node: Node, done: int, of: int) -> None:
        if node.fingerprint not in tasks:
            tasks[node.fingerprint] = bars.add_task(f"{node.kind} {node.label}", total=of, unit=_ITEMS[node.kind])
        bars.update(tasks[node.fingerprint], completed=done, total=of)

    with bars:
        yield advance

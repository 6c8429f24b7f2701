"""Progress of long work on stderr: bars at a terminal, and in pipes, logs and notebooks a line now and then."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from workbench.pipeline.execute import Progress
from workbench.pipeline.graph import Node

EVERY = 20.0
"""Seconds between two lines of progress where there is no terminal."""
_ITEMS = {
    "chunk": "documents",
    "context": "contexts",
    "embed": "texts",
    "index": "rows",
    "retrieve": "queries",
    "rerank": "pairs",
    "generate": "answers",
    "score": "queries",
}


def _terminal() -> Console | None:
    """The terminal on stderr; None where nobody would see something move."""
    # Asked of the stream itself: FORCE_COLOR makes rich believe in a terminal behind every pipe.
    if sys.stderr is None or not sys.stderr.isatty():
        return None
    console = Console(stderr=True)
    return console if console.is_terminal and not console.is_dumb_terminal else None


@contextlib.contextmanager
def show_progress(enabled: bool = True) -> Iterator[Progress | None]:
    """A callback that draws one bar a stage while the block runs; None where it is not wanted.

    What the workbench logs meanwhile at level INFO ("loading model minilm") stands above the bars. Where
    nobody would see a bar move, long work says in a line every `EVERY` seconds how far it is.
    """
    if not enabled:
        yield None
        return
    console = _terminal()
    if console is None:
        with _notes_to(Console(stderr=True, width=200, force_terminal=False), "workbench.serving"):
            yield _Lines()
        return
    bars = Bars(
        SpinnerColumn(finished_text=" "),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}", markup=False),
        TimeElapsedColumn(),
        console=console,
    )
    tasks: dict[str, TaskID] = {}

    def advance(node: Node, done: int, of: int) -> None:
        if node.fingerprint not in tasks:
            unit = _ITEMS.get(node.kind, "items")
            tasks[node.fingerprint] = bars.add_task(f"{node.kind} {node.label}", total=of, unit=unit)
        bars.update(tasks[node.fingerprint], completed=done, total=of)

    with bars, _notes_to(bars.console):
        yield advance


@contextlib.contextmanager
def show_notes(enabled: bool = True) -> Iterator[None]:
    """What the workbench logs at level INFO, line by line, while the block runs; silent where nobody would see it."""
    console = _terminal() if enabled else None
    if console is None:
        yield
        return
    with _notes_to(console):
        yield


@contextlib.contextmanager
def waiting(text: str, enabled: bool = True) -> Iterator[None]:
    """A spinner with a word on what takes its time while the block runs."""
    console = _terminal() if enabled else None
    if console is None:
        yield
        return
    with console.status(text):
        yield


class _Lines:
    """How far the stage at hand is, in one line of stderr every `EVERY` seconds."""

    def __init__(self) -> None:
        self._told = time.monotonic()

    def __call__(self, node: Node, done: int, of: int) -> None:
        now = time.monotonic()
        if now - self._told >= EVERY and sys.stderr is not None:
            self._told = now
            unit = _ITEMS.get(node.kind, "items")
            print(f"{node.kind} {node.label}: {done:,} of {of:,} {unit}", file=sys.stderr, flush=True)  # noqa: T201


class _Notes(logging.Handler):
    def __init__(self, console: Console) -> None:
        super().__init__(logging.INFO)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        self._console.print(record.getMessage(), style="dim", markup=False, highlight=False)


@contextlib.contextmanager
def _notes_to(console: Console, of: str = "workbench") -> Iterator[None]:
    log, notes = logging.getLogger(of), _Notes(console)
    level = log.level
    log.addHandler(notes)
    if not log.isEnabledFor(logging.INFO):
        log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(notes)
        log.setLevel(level)

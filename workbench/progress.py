"""Progress of long work: bars at a terminal or below a notebook's cell, in pipes and logs a line now and then."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from html import escape
from importlib import import_module
from typing import Any

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
    if (publish := _notebook()) is not None:
        cell = _Cell(publish)
        with _notes_to(cell.note, "workbench"):
            try:
                yield cell
            finally:
                cell.clear()
        return
    console = _terminal()
    if console is None:
        lines = Console(stderr=True, width=200, force_terminal=False)
        with _notes_to(_dim(lines), "workbench.serving"), _notes_to(_dim(lines), "workbench.sweeps"):
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

    with bars, _notes_to(_dim(bars.console)):
        yield advance


@contextlib.contextmanager
def show_notes(enabled: bool = True) -> Iterator[None]:
    """What the workbench logs at level INFO, line by line, while the block runs; silent where nobody would see it."""
    console = _terminal() if enabled else None
    if console is None:
        yield
        return
    with _notes_to(_dim(console)):
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


def quiet_libraries() -> None:
    """In a notebook: import tqdm.auto, which others draw with, before they do: it would ask for ipywidgets aloud."""
    if "ipykernel" in sys.modules:
        with warnings.catch_warnings(), contextlib.suppress(ImportError):
            warnings.simplefilter("ignore")
            import_module("tqdm.auto")


def _notebook() -> Callable[[dict[str, str], bool], None] | None:
    """What shows or replaces one output of the running cell; None outside of a notebook's kernel."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if not hasattr(shell, "kernel"):
        return None
    from uuid import uuid4

    from IPython.display import publish_display_data

    name = {"display_id": f"workbench-{uuid4().hex}"}

    def publish(data: dict[str, str], update: bool) -> None:
        show: Any = publish_display_data
        show(data, {}, transient=name, update=update)

    return publish


class _Cell:
    """A bar a stage below the running cell, as plain HTML that needs no widget, and gone at the end.

    What a cell leaves behind must not depend on how long it took: a notebook that is executed again to be
    compared would differ. So the output starts empty, is updated in place, and ends empty.
    """

    AFTER, PAUSE = 1.0, 0.25
    """Seconds before anything is shown, and between two updates."""

    def __init__(self, publish: Callable[[dict[str, str], bool], None]) -> None:
        self._publish = publish
        self._stages: dict[str, tuple[str, int, int, str]] = {}
        self._note = ""
        self._next, self._shown = time.monotonic() + self.AFTER, False

    def __call__(self, node: Node, done: int, of: int) -> None:
        self._stages[node.fingerprint] = (f"{node.kind} {node.label}", done, of, _ITEMS.get(node.kind, "items"))
        self._show()

    def note(self, text: str) -> None:
        self._note = text
        self._show()

    def clear(self) -> None:
        if self._shown:
            self._publish({}, True)

    def _show(self) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + self.PAUSE
        if not self._shown:
            self._shown = True
            self._publish({}, False)
        said = [
            (f"<progress value='{done}' max='{max(of, 1)}'></progress> ", f"{name}: {done:,} of {of:,} {unit}")
            for name, done, of, unit in self._stages.values()
        ] + [("", self._note)]
        html = "".join(f"<div>{bar}{escape(text)}</div>" for bar, text in said)
        self._publish({"text/html": html, "text/plain": "\n".join(text for _, text in said[-2:])}, True)


def _dim(console: Console) -> Callable[[str], None]:
    return lambda text: console.print(text, style="dim", markup=False, highlight=False)


class _Notes(logging.Handler):
    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__(logging.INFO)
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        self._say(record.getMessage())


@contextlib.contextmanager
def _notes_to(say: Callable[[str], None], of: str = "workbench") -> Iterator[None]:
    log, notes = logging.getLogger(of), _Notes(say)
    level = log.level
    log.addHandler(notes)
    if not log.isEnabledFor(logging.INFO):
        log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(notes)
        log.setLevel(level)

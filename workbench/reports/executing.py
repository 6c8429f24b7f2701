"""Runs the notebooks of a batch by papermill, several at once, each in a kernel of its own."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from workbench.errors import InputError
from workbench.pipeline.execute import require_models
from workbench.processes import identity, is_living
from workbench.reports import batches
from workbench.reports.batches import Batch, Entry, Outcome
from workbench.reports.kernel import START_SECONDS, _kernel
from workbench.runtime import Runtime

GRACE_SECONDS = 5.0
"""How long an interrupted kernel may take to give back what it claimed, before it is killed."""
POLL_SECONDS = 0.2
_PART = ".part.ipynb"


class Progress:
    """What is told while notebooks are executed; does nothing by itself."""

    def cell(self, entry: Entry, done: int, of: int) -> None:
        """A notebook has come to its next cell; called in several threads."""

    def ended(self, outcome: Outcome) -> None:
        """A notebook is done, reused or failed."""


def run(
    batch: Batch,
    runtime: Runtime,
    *,
    jobs: int = 1,
    timeout: int | None = None,
    progress: Progress | None = None,
) -> list[Outcome]:
    """Execute the notebooks of a batch that are not there yet, `jobs` at once; outcomes come in the order of trials.

    A notebook that exists, was made from the same notebook, parameters, data and version, and whose trial is in the
    store, is reused. A failed one is kept beside the others with its error, and the others go on. `timeout` is in
    seconds and for each cell; none by default, because one cell may run a whole trial.

    Raises:
        InputError: the folder cannot be made.
        ModelError: a package is missing that a stage needs; nothing was started.
        KeyboardInterrupt: passed on when every kernel is ended; finished notebooks stay.
    """
    progress = progress or Progress()
    done = runtime.ledger.done([node.fingerprint for node in batch.plan.nodes])
    require_models((node for node in batch.plan.nodes if node.fingerprint not in done), runtime.settings)
    _open_folder(batch.folder)
    found = batches.stored(runtime, [entry.leaf for entry in batch.entries])
    outcomes: dict[Path, Outcome] = {}

    def ended(entry: Entry, outcome: Outcome) -> None:
        outcomes[entry.file] = outcome
        progress.ended(outcome)

    todo = []
    for entry in batch.entries:
        if entry.leaf in found and batches.fingerprint_of(entry.file) == entry.fingerprint:
            entry.failed_file.unlink(missing_ok=True)
            ended(entry, Outcome(entry.label, "reused", entry.file, batch.mean(found[entry.leaf])))
        else:
            todo.append(entry)
    _Execution(batch, runtime, timeout, progress).run(todo, jobs, ended)
    return [outcomes[entry.file] for entry in batch.entries]


def _open_folder(folder: Path) -> None:
    """Make the folder, and take out what a killed run left half-written in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        what = f"no folder can be made there: {error.strerror}"
        raise InputError(what, where=str(folder), hint="name another") from None
    for part in folder.glob(f".*{_PART}"):
        if not is_living(part.name.removesuffix(_PART).rpartition(".")[2]):
            part.unlink(missing_ok=True)


class _Stopped(Exception):
    """The batch was interrupted while this notebook ran."""


class _Execution:
    """Notebooks run by threads, and their kernels, which the thread that is interrupted can end."""

    def __init__(self, batch: Batch, runtime: Runtime, timeout: int | None, progress: Progress) -> None:
        self._template, self._mean = batch.template, batch.mean
        self._runtime, self._timeout, self._progress = runtime, timeout, progress
        self._kernels: dict[Any, bool] = {}
        """The manager of each kernel, and whether it has come to a cell."""
        self._lock = threading.Lock()
        self._stopping = threading.Event()

    def run(self, entries: Sequence[Entry], jobs: int, ended: Callable[[Entry, Outcome], None]) -> None:
        """Execute notebooks, `jobs` at once; `ended` is called in this thread, as they end."""
        futures: dict[Future[Outcome], Entry] = {}
        # A thread each, not a process: the work is done in the kernels, and papermill takes a second to import.
        with _quiet("papermill"), ThreadPoolExecutor(jobs, thread_name_prefix="notebook") as pool:
            try:
                futures |= {pool.submit(self._execute, entry): entry for entry in entries}
                running = set(futures)
                while running:
                    # Never without a timeout: polars makes waits go on after a signal, and Ctrl-C would not be heard.
                    over, running = wait(running, POLL_SECONDS, FIRST_COMPLETED)
                    for future in over:
                        ended(futures[future], future.result())
            except BaseException:
                self._stopping.set()
                pool.shutdown(wait=False, cancel_futures=True)
                try:
                    self._end_kernels(politely=True)
                    wait(futures, GRACE_SECONDS)
                finally:  # also when interrupted once more
                    self._end_kernels()
                raise

    def _execute(self, entry: Entry) -> Outcome:
        """One notebook, from its template to its file or its failed file."""
        import nbformat

        self._check()
        started, template = time.monotonic(), self._template
        part = entry.file.with_name(f".{entry.file.stem}.{identity(os.getpid())}{_PART}")
        try:
            error = self._papermill(entry, part)
            self._check()
            row = batches.stored(self._runtime, [entry.leaf]).get(entry.leaf)
            seconds = time.monotonic() - started
            source = part.read_text(encoding="utf-8") if part.exists() else nbformat.writes(template.notebook)
            notebook = nbformat.reads(source, as_version=4)
            if error is None and row is not None:
                batches.keep(notebook, entry, template)
                return Outcome(entry.label, "done", entry.file, self._mean(row), seconds)
            error = error or "the notebook ended without its trial: the store has no result of it"
            batches.keep_failed(notebook, error, entry, template)
            return Outcome(entry.label, "failed", entry.failed_file, None, seconds, error)
        finally:
            part.unlink(missing_ok=True)

    def _papermill(self, entry: Entry, part: Path) -> str | None:
        """Execute into a file, saved after every cell; returns what went wrong."""
        from papermill.exceptions import PapermillExecutionError
        from papermill.execute import execute_notebook

        cells = len(self._template.notebook.cells) + 1  # papermill adds one with the parameters

        try:
            with self._kernel() as manager:

                def at_cell(cell: Any, cell_index: int) -> None:  # noqa: ARG001 -- nbclient calls it with these names
                    self._kernels[manager] = True
                    self._check()
                    self._progress.cell(entry, cell_index, cells)

                execute_notebook(
                    self._template.notebook,
                    str(part).replace("{", "{{").replace("}", "}}"),  # papermill fills parameters into paths
                    parameters=dict(entry.parameters),
                    kernel_name="python3",
                    language="python",
                    progress_bar=False,
                    start_timeout=START_SECONDS,
                    execution_timeout=self._timeout,
                    km=manager,
                    on_cell_start=at_cell,
                )
        except PapermillExecutionError as error:
            return f"{error.ename}: {error.evalue}"
        except (RuntimeError, TimeoutError, OSError) as error:  # nbclient's errors derive from these
            return str(error).strip().partition("\n")[0] or type(error).__name__
        return None

    @contextlib.contextmanager
    def _kernel(self) -> Iterator[Any]:
        """A kernel that works in our folder, and that `_end_kernels` reaches."""
        from jupyter_core.utils import ensure_event_loop

        with contextlib.ExitStack() as ending:
            ending.callback(ensure_event_loop().close)  # jupyter_client opens one a thread and never closes it
            folder = Path(ending.enter_context(tempfile.TemporaryDirectory(prefix="workbench-notebook-")))
            _write_profile(folder, self._template.path.parent)
            manager = ending.enter_context(_kernel(self._runtime.settings, folder))
            with self._lock:
                self._kernels[manager] = False
            try:
                self._check()
                yield manager
            finally:
                with self._lock:
                    del self._kernels[manager]

    def _check(self) -> None:
        if self._stopping.is_set():
            raise _Stopped

    def _end_kernels(self, *, politely: bool = False) -> None:
        """Kill the kernels that run; politely, those that are at work are interrupted."""
        with self._lock:
            kernels = dict(self._kernels)
        for manager, at_work in kernels.items():
            process = manager.provisioner.process
            if process is not None:
                # Before its first cell a kernel has claimed nothing, and would only print where it was.
                process.send_signal(signal.SIGINT if politely and at_work else signal.SIGKILL)


def _write_profile(folder: Path, beside: Path) -> None:
    """The IPython profile of a kernel whose files lie in `folder`.

    It works where we do, so that a path in a trial means the same in both, and imports what lies beside the notebook,
    as in Jupyter. Its own log, which would tell of each interrupt, stays off our terminal.
    """
    profile = folder / "ipython" / "profile_default"
    (profile / "startup").mkdir(parents=True)
    lines = ("import os, sys", f"os.chdir({str(Path.cwd())!r})", f"sys.path.append({str(beside.resolve())!r})")
    (profile / "startup" / "00-place.py").write_text("\n".join((*lines, "del os, sys", "")), encoding="utf-8")
    (profile / "ipython_kernel_config.py").write_text("get_config().Application.log_level = 50\n", encoding="utf-8")


@contextlib.contextmanager
def _quiet(name: str) -> Iterator[None]:
    """What a library logs goes to the handlers that someone gave it, and not to stderr: we say it ourselves."""
    log, handler = logging.getLogger(name), logging.NullHandler()
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)

"""Workers of a runner's own: processes that start with it, are started again when they die, and end with it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from workbench.errors import ServiceError
from workbench.processes import die_with_parent
from workbench.settings import Settings, child_environment

PARENT = "WORKBENCH_PARENT"
"""The variable that tells a worker whose end is its own."""
_PATIENCE = 30.0  # seconds for a worker to give back what it has
_LONG_LIFE, _DEATHS = 5.0, 8
"""A worker that died younger, in seconds, and how many such deaths in a row are too many."""


class Crew:
    """`count` worker processes, in a `with` block. Their words are in `home/temporal/worker-N.log`."""

    def __init__(self, settings: Settings, count: int, *, concurrency: int = 1) -> None:
        self._settings, self._concurrency = settings, concurrency
        self._folder = settings.home.expanduser().resolve() / "temporal"
        self._slots: list[subprocess.Popen[bytes] | None] = [None] * count
        self._born = [0.0] * count
        self._deaths = 0

    @property
    def pids(self) -> list[int]:
        """Of the workers that live."""
        return [worker.pid for worker in self._slots if worker is not None and worker.poll() is None]

    def tend(self) -> None:
        """Start who is missing.

        Raises:
            ServiceError: workers die as soon as they are started; with the last words of one.
        """
        for slot, worker in enumerate(self._slots):
            if worker is not None:
                if worker.poll() is None:
                    if time.monotonic() - self._born[slot] > _LONG_LIFE:
                        self._deaths = 0
                    continue
                if time.monotonic() - self._born[slot] < _LONG_LIFE:
                    self._deaths += 1
                if self._deaths >= _DEATHS:
                    log = self._log(slot)
                    words = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
                    raise ServiceError(f"workers die at once: {' '.join(words)}", where=str(log))
            self._start(slot)

    def _start(self, slot: int) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        environment = child_environment(self._settings) | {PARENT: str(os.getpid())}
        arguments = ["worker", "--concurrency", str(self._concurrency)]
        with self._log(slot).open("ab") as log:
            self._slots[slot] = subprocess.Popen(
                [sys.executable, "-m", "workbench.cli", *arguments],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is the runner's to handle
            )
        self._born[slot] = time.monotonic()

    def _log(self, slot: int) -> Path:
        return self._folder / f"worker-{slot}.log"

    def close(self) -> None:
        """Ask all to end, and kill who does not."""
        living = [worker for worker in self._slots if worker is not None and worker.poll() is None]
        for worker in living:
            worker.terminate()
        deadline = time.monotonic() + _PATIENCE
        for worker in living:
            try:
                worker.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()
        self._slots = [None] * len(self._slots)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def end_with_parent() -> None:
    """In a worker that a runner started: die when the runner is killed, however that comes."""
    if parent := os.environ.get(PARENT):
        die_with_parent(int(parent))

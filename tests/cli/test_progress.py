"""Progress is drawn on a terminal's stderr and nowhere else."""

from __future__ import annotations

import logging
import os
import pty
import subprocess
import sys

import pytest

from workbench import progress

DRAW = """
import logging, sys
from types import SimpleNamespace
from workbench.progress import show_progress, waiting
with waiting("opening the store"):
    pass
with show_progress() as advance:
    assert advance is not None
    node = SimpleNamespace(kind="rerank", label="late", fingerprint="f")
    logging.getLogger("workbench.runtime").info("loading model [minilm]")
    logging.getLogger("other").info("noise")
    advance(node, 0, 4)
    advance(node, 4, 4)
print("result")
"""


def test_nothing_is_drawn_in_a_pipe(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress.waiting("a while"), progress.show_progress() as advance:
        logging.getLogger("workbench.runtime").info("loading model minilm")
    assert advance is None
    assert capfd.readouterr() == ("", "")


def on_a_terminal(environment: dict[str, str]) -> tuple[str, str]:
    """Stdout and what a terminal on stderr got."""
    screen, side = pty.openpty()
    try:
        run = subprocess.run(
            [sys.executable, "-c", DRAW], stdout=subprocess.PIPE, stderr=side, env=os.environ | environment, timeout=60
        )
        os.close(side)
        drawn = b""
        while True:
            try:
                part = os.read(screen, 65536)
            except OSError:  # the other side is closed
                break
            if not part:
                break
            drawn += part
    finally:
        os.close(screen)
    return run.stdout.decode(), drawn.decode()


def test_a_terminal_gets_bars_and_words() -> None:
    out, drawn = on_a_terminal({"TERM": "xterm", "COLUMNS": "100"})
    assert out == "result\n"
    for words in ("loading model [minilm]", "rerank late", "4/4", "pairs"):
        assert words in drawn
    assert "noise" not in drawn


def test_a_dumb_terminal_is_left_alone() -> None:
    out, drawn = on_a_terminal({"TERM": "dumb"})
    assert out == ""
    assert "AssertionError" in drawn

"""Progress is drawn on a terminal's stderr; elsewhere long work says in lines how far it is."""

from __future__ import annotations

import logging
import os
import pty
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from jupyter_client.manager import start_new_kernel

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


NODE: Any = SimpleNamespace(kind="context", label="situated", fingerprint="f")


def test_short_work_says_nothing_in_a_pipe(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress.waiting("a while"), progress.show_progress() as advance:
        logging.getLogger("workbench.runtime").info("loading model minilm")
        assert advance is not None
        advance(NODE, 4, 4)
    assert capfd.readouterr() == ("", "")


def test_long_work_says_how_far_it_is_in_a_pipe(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 5.0, 21.0, 22.0, 50.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress.show_progress() as advance:
        assert advance is not None
        for done in (1, 20, 30, 1200):
            advance(NODE, done, 3000)
    said = "context situated: 20 of 3,000 contexts\ncontext situated: 1,200 of 3,000 contexts\n"
    assert capfd.readouterr() == ("", said)


def test_progress_can_be_turned_off() -> None:
    with progress.show_progress(False) as advance:
        assert advance is None


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
    assert out == "result\n"
    assert "\x1b" not in drawn


IN_A_KERNEL = """
from types import SimpleNamespace
from workbench import progress
progress._Cell.AFTER = progress._Cell.PAUSE = 0
with progress.show_progress() as advance:
    advance(SimpleNamespace(kind="rerank", label="<late>", fingerprint="f"), 1, 4)
    advance(SimpleNamespace(kind="rerank", label="<late>", fingerprint="f"), 4, 4)
print("done")
"""


def test_a_notebook_shows_bars_while_it_works_and_keeps_nothing() -> None:
    manager, client = start_new_kernel(kernel_name="python3")
    try:
        messages: list[dict[str, Any]] = []
        client.execute_interactive(IN_A_KERNEL, output_hook=messages.append, timeout=60)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    shown = [(m["msg_type"], m["content"].get("data")) for m in messages if "data" in m["content"]]
    kinds, bars = [kind for kind, _ in shown], [data for _, data in shown]
    assert kinds == ["display_data"] + ["update_display_data"] * 3
    assert bars[0] == bars[-1] == {}
    assert "<progress value='4' max='4'>" in bars[2]["text/html"] and "&lt;late&gt;" in bars[2]["text/html"]
    assert [m["content"]["text"] for m in messages if m["msg_type"] == "stream"] == ["done\n"]

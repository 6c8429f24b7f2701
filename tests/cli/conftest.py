"""The command line in this process, quick enough for every mistake, and a small dataset with trials in a folder."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import SWEEP, TRIAL, Cli, Outcome

from workbench import cli
from workbench.datasets import Dataset
from workbench.settings import Settings


@pytest.fixture
def place(tmp_path: Path, tiny: Dataset, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a dataset `data`, trials `bm25.toml`, `fts.toml`, `dense.toml` and a sweep `sweep.toml`."""
    monkeypatch.chdir(tmp_path)
    for name in ("COLUMNS", "FORCE_COLOR", "WORKBENCH_DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORKBENCH_HOME", str(settings.home))
    monkeypatch.setenv("WORKBENCH_SCHEMA", settings.db_schema)
    write_dataset(tmp_path / "data", tiny)
    for kind in ("bm25", "fts", "dense"):
        Path(f"{kind}.toml").write_text(TRIAL.format(kind=kind))
    Path("sweep.toml").write_text(SWEEP)
    return tmp_path


def write_dataset(folder: Path, data: Dataset) -> None:
    folder.mkdir()
    documents = [{"doc_id": d.doc_id, "text": d.text, "title": d.title} for d in data.documents]
    queries = [
        {
            "query_id": q.query_id,
            "text": q.text,
            "evidence": [{"doc_id": e.doc_id, "start": e.start, "end": e.end} for e in q.evidence],
        }
        for q in data.queries
    ]
    for name, rows in (("corpus", documents), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def run_cli(place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Runs a command line in this process."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # Typer puts its own there

    def run(*arguments: str) -> Outcome:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            cli.main(arguments)
        code = stopped.value.code
        assert isinstance(code, int)
        return Outcome(code, *capsys.readouterr())

    return run


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets the width of the terminal that the commands believe in."""

    def set_width(columns: int) -> None:
        monkeypatch.setenv("COLUMNS", str(columns))

    return set_width

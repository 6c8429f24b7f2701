"""`workbench doctor`: every failing check has a next step, and one failure hides no other."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from command_line import Cli

from workbench.models.fakes import fake_embedder
from workbench.specs import Embed

SECRET = "s3cr3t-passw0rd"
NAMES = {"python", "core", "models", "serve", "temporal", "judges", "lab", "tokenizers", "embedding", "browser"}
NAMES |= {"settings", "home", "database"}


@pytest.fixture(autouse=True)
def quick_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real model takes seconds to load; it is loaded by the test of the real command."""
    model = fake_embedder(Embed(model="fake:hash-64"))
    monkeypatch.setattr("workbench.models.embedding.load_embedder", lambda *_: model)


def test_a_sound_machine(run_cli: Cli) -> None:
    body = run_cli("doctor", "--json").body
    assert set(body) == {"ok", "checks"}
    assert {c["name"] for c in body["checks"]} == NAMES
    for check in body["checks"]:
        assert set(check) == {"name", "ok", "detail", "next", "optional"}
        assert check["ok"] or check["optional"], check
        assert check["ok"] or check["next"], check
    shown = run_cli("doctor")
    assert shown.code == 0
    assert re.search(r"^ok       database: PostgreSQL \d+.*pgvector \d+", shown.out, re.MULTILINE)


def test_a_database_that_is_down(run_cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_DATABASE_URL", f"postgresql://me:{SECRET}@127.0.0.1:1/db")
    outcome = run_cli("doctor")
    assert outcome.code == 2
    assert SECRET not in outcome.out + outcome.err
    assert re.search(r"^FAILED   database: 127.0.0.1:1/db: cannot connect.*\n +-> check WORKBENCH", outcome.out, re.M)
    assert re.search(r"^ok +home: ", outcome.out, re.MULTILINE)


def test_a_url_that_is_none(run_cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_DATABASE_URL", f"none-{SECRET}")
    outcome = run_cli("doctor")
    assert outcome.code == 2
    assert "FAILED   database: WORKBENCH_DATABASE_URL" in outcome.out
    assert SECRET not in outcome.out + outcome.err


def test_a_variable_that_nothing_reads(run_cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_DATABSE_URL", "postgresql://host/db")
    outcome = run_cli("doctor")
    assert outcome.code == 2
    assert "WORKBENCH_DATABSE_URL is set, but nothing reads it" in outcome.out
    assert "-> did you mean WORKBENCH_DATABASE_URL?" in outcome.out
    assert re.search(r"^ok +database: ", outcome.out, re.MULTILINE)


def test_a_variable_that_does_not_fit(run_cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_POOL_SIZE", "many")
    outcome = run_cli("doctor")
    assert outcome.code == 2
    assert re.search(r"^FAILED   settings: .*WORKBENCH_POOL_SIZE", outcome.out, re.MULTILINE)


def test_a_home_that_is_a_file(run_cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("occupied").write_text("a file")
    monkeypatch.setenv("WORKBENCH_HOME", "occupied")
    checks = {c["name"]: c for c in run_cli("doctor", "--json").body["checks"]}
    for name in ("home", "database"):
        assert not checks[name]["ok"]
        assert "WORKBENCH_HOME" in checks[name]["next"]


def test_a_missing_package_is_optional_for_models_only(run_cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    outcome = run_cli("doctor")
    assert outcome.code == 0
    assert re.search(
        r'^missing  models: .*torch missing\n +-> pip install "rag-workbench\[models\]"', outcome.out, re.M
    )
    monkeypatch.setitem(sys.modules, "papermill", None)
    outcome = run_cli("doctor")
    assert outcome.code == 2
    assert re.search(r"^FAILED   core: .*papermill missing", outcome.out, re.MULTILINE)


def test_a_package_that_breaks_on_import_is_said(run_cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise OSError("libgomp.so.1: cannot open shared object file")

    monkeypatch.setattr("workbench.models.embedding.load_embedder", broken)
    outcome = run_cli("doctor")
    assert outcome.code == 2
    assert "libgomp.so.1" in outcome.out

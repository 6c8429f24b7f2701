"""`workbench serve` and trials that ask models: what is refused before anything is started."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import Cli

from workbench.lab import Lab
from workbench.settings import Settings


@pytest.fixture(autouse=True)
def serving_home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="wb-") as folder:
        monkeypatch.setenv("WORKBENCH_SERVING_HOME", f"{folder}/s")
        yield Path(folder) / "s"


def test_no_server_runs(run_cli: Cli) -> None:
    assert run_cli("serve", "status", "--json").body == {"servers": []}
    assert run_cli("serve", "status").out == "no server runs\n"
    assert run_cli("serve", "stop", "--json").body == {"stopped": []}
    assert run_cli("serve", "stop").out == "no server runs\n"


def test_a_key_that_no_server_has(run_cli: Cli) -> None:
    outcome = run_cli("serve", "stop", "abc")
    assert outcome.code == 2
    assert "no server 'abc' runs" in outcome.err


def test_a_trial_without_a_model_needs_no_server(run_cli: Cli, tmp_path: Path) -> None:
    trial = tmp_path / "t.toml"
    trial.write_text('[retrieve]\nkind = "bm25"\n')
    outcome = run_cli("serve", "start", str(trial))
    assert outcome.code == 2
    assert "this trial asks no language model" in outcome.err


def test_a_service_needs_no_server(run_cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_LLM_URL", "http://127.0.0.1:9/v1")
    outcome = run_cli("serve", "start")
    assert outcome.code == 2
    assert "WORKBENCH_LLM_URL is set" in outcome.err


@pytest.mark.parametrize(
    ("url", "words"),
    [("localhost:8000", "this is no http(s) URL"), ("http://me:pw@host/v1", "a key does not belong in a URL")],
)
def test_a_url_that_is_none(run_cli: Cli, monkeypatch: pytest.MonkeyPatch, url: str, words: str) -> None:
    monkeypatch.setenv("WORKBENCH_LLM_URL", url)
    outcome = run_cli("serve", "status")
    assert outcome.code == 2
    assert f"WORKBENCH_LLM_URL: {words}" in outcome.err


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ('[context]\nkind = "situatd"', "did you mean 'situated'"),
        ('[context]\nkind = "situated"\nmodel = "smollm3-135m"', "did you mean 'smollm2-135m'"),
        ('[context]\nkind = "title"\nlegs = ["dens"]', "context.title.legs.0"),
        ('[context]\nkind = "situated"\nmax_tokens = 4096', "must leave room in max_model_len (4096)"),
        ('[context]\nkind = "situated"\nprompt = "situated-9"', "unknown prompt 'situated-9'"),
        ('[generate]\nprompt = "nowhere.toml"', "no such file"),
        ("[generate]\ntemprature = 1.0", "did you mean 'temperature'"),
        ('[generate]\narguments = { "port" = 1 }', "ports are chosen by the workbench"),
        ('[rerank]\nkind = "llm"\ndepth = 5\nk = 10', "k (10) must not exceed depth (5)"),
        ('[rerank]\nkind = "cross_encoder"\nmodel = "no/where"', "did not come from the Hugging Face hub"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(
    run_cli: Cli, settings: Settings, place: Path, serving_home: Path, table: str, words: str
) -> None:
    Path("wrong.toml").write_text(table + "\n")
    outcome = run_cli("run", "wrong.toml", "-d", "data")
    assert outcome.code == 2, outcome
    assert words in outcome.err
    assert outcome.err.count("error:") == 1
    with Lab(settings, progress=False) as lab, lab.runtime.database.transaction() as connection:
        assert connection.execute("SELECT kind FROM stage").fetchall() == []
    assert not serving_home.exists(), "nothing was started"

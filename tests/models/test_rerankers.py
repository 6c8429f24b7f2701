"""Local rerankers: tiny random models against plain transformers; MiniLM on sentences whose order is known."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from workbench.errors import ModelError, SpecError
from workbench.models.cross_encoder import load_cross_encoder
from workbench.models.late_interaction import load_late_interaction
from workbench.models.protocols import PairScorer
from workbench.models.weights import CROSS_ENCODER, RERANKER, locate
from workbench.specs import CrossEncoder, LateInteraction

WORDS = ["red", "blue", "green", "house", "river", "stone", "bird", "paper", "light", "garden", "winter", "music"]
PIECES = ["##s", "##ing"]
PAIRS = [
    ("red house", "the red house by the river"),
    ("blue bird", "music"),
    ("red house", "winter garden"),
    ("music", "a stone , the birds and a house " * 5),
    ("red house", "the red house by the river"),
    ("Größe 東京", "naïve & 🙂"),
]

pytestmark = pytest.mark.slow


def save_tiny(folder: Path, kind: str, *, labels: int = 1, positions: int = 64) -> Path:
    """A random BERT ("BertModel" or one with a head) with a vocabulary of its own."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    known = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS, *PIECES, "the", "by", "a", "and", ",", "&", "[Q]", "[D]"]
    inner = Tokenizer(models.WordPiece({w: i for i, w in enumerate(known)}, unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer(lowercase=True)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        model_max_length=positions,
    )
    config = transformers.BertConfig(
        vocab_size=len(known),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=positions,
        initializer_range=0.5,  # large, so that position and neighbours matter
        num_labels=labels,
    )
    with torch.random.fork_rng():
        torch.manual_seed(7)
        getattr(transformers, kind)(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("encoder"), "BertModel")


@pytest.fixture(scope="module")
def cross(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("cross"), "BertForSequenceClassification")


@pytest.fixture(params=["late_interaction", "cross_encoder"])
def make(request: pytest.FixtureRequest, encoder: Path, cross: Path) -> Callable[..., PairScorer]:
    if request.param == "late_interaction":
        return lambda **fields: load_late_interaction(LateInteraction(**{"model": str(encoder), **fields}))
    return lambda **fields: load_cross_encoder(CrossEncoder(**{"model": str(cross), **fields}))


# --- contract ------------------------------------------------------------------------------------


def test_order_neighbours_and_repetition_do_not_matter(make: Callable[..., PairScorer]) -> None:
    scorer = make()
    together = scorer.score(PAIRS)
    assert together.shape == (len(PAIRS),)
    assert together.dtype == np.float64
    assert together[0] == together[4], "equal pairs have equal digits"
    assert len(set(together.tolist())) == len(PAIRS) - 1
    np.testing.assert_allclose(scorer.score(PAIRS[::-1]), together[::-1], atol=1e-5)
    np.testing.assert_allclose([scorer.score([pair])[0] for pair in PAIRS], together, atol=1e-5)
    np.testing.assert_array_equal(make().score(PAIRS), together)
    assert scorer.score([]).shape == (0,)


def test_identity_is_that_of_the_weights(make: Callable[..., PairScorer], encoder: Path, cross: Path) -> None:
    families = (RERANKER, CROSS_ENCODER)
    found = [locate(str(f), family=of).identity for f, of in zip((encoder, cross), families, strict=True)]
    assert dict(make().identity) in [dict(identity) for identity in found]


def test_lower_dtypes_round(make: Callable[..., PairScorer]) -> None:
    exact, rounded = make().score(PAIRS), make(dtype="bfloat16").score(PAIRS)
    assert 0 < np.abs(exact - rounded).max() < 0.2 * np.abs(exact).max()


def test_threads_do_not_disturb_each_other(make: Callable[..., PairScorer]) -> None:
    scorer = make()
    expected = scorer.score(PAIRS)
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(scorer.score(PAIRS))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for scores in found:
        np.testing.assert_array_equal(scores, expected)


def test_faults_are_explained(make: Callable[..., PairScorer], tmp_path: Path) -> None:
    for fields, error, message in (
        ({"max_tokens": 65}, SpecError, "rerank.max_tokens: .*has 64 positions, not 65"),
        ({"model": "./nowhere"}, ModelError, "no such model folder"),
        ({"revision": "main"}, SpecError, "no hub name"),
    ):
        with pytest.raises(error, match=message):
            make(**fields)
    cut = save_tiny(tmp_path / "cut", "BertForSequenceClassification")
    (cut / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ModelError, match=r"cannot be loaded.*expected a folder"):
        make(model=str(cut))


def test_scores_that_are_not_finite(make: Callable[..., PairScorer], tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    for kind, prefix in (("BertModel", ""), ("BertForSequenceClassification", "bert.")):
        folder = save_tiny(tmp_path / kind, kind)
        tensors = load_file(folder / "model.safetensors")
        tensors[f"{prefix}embeddings.word_embeddings.weight"][4] = torch.nan  # "red"
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    kind = "BertModel" if type(make()).__name__ == "MaxSim" else "BertForSequenceClassification"
    scorer = make(model=str(tmp_path / kind))
    assert np.isfinite(scorer.score([("blue", "music")])).all()
    with pytest.raises(ModelError, match="2 of 3 pairs got a score that is not finite"):
        scorer.score([("blue", "red"), ("red", "music"), ("blue", "music")])


# --- late interaction ----------------------------------------------------------------------------


def states(folder: Path, text: str, *, around: bool = False) -> np.ndarray[Any, Any]:
    """[tokens, 32] last hidden states at unit length by plain transformers, without the two special tokens."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        found = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].numpy()
    return found / np.linalg.norm(found, axis=1, keepdims=True)  # type: ignore[no-any-return]


def test_max_sim_against_plain_transformers(encoder: Path) -> None:
    scorer = load_late_interaction(LateInteraction(model=str(encoder)))
    for (question, passage), score in zip(PAIRS, scorer.score(PAIRS), strict=True):
        similarities = states(encoder, question)[1:-1] @ states(encoder, passage)[1:-1].T
        assert score == pytest.approx(similarities.max(axis=1).sum(), abs=1e-4)


def test_a_text_scores_its_own_tokens_at_one_and_blanks_the_least(encoder: Path) -> None:
    scorer = load_late_interaction(LateInteraction(model=str(encoder)))
    found = scorer.score([("red house , [UNK]", "red house , [UNK]"), ("red house", ""), ("", "red"), ("", " ")])
    np.testing.assert_allclose(found, [4, -2, 0, 0], atol=1e-5)


@pytest.mark.parametrize("window", [5, 8, 9, 20])
def test_a_long_passage_is_read_whole_in_windows(encoder: Path, window: int) -> None:
    """The maximum goes over the windows, each with its special tokens, cut between words."""
    scorer: Any = load_late_interaction(LateInteraction(model=str(encoder), max_tokens=window))
    words = [WORDS[i * i % 12] + ("s" if i % 3 == 0 else "") for i in range(17)]
    room, parts, tokens = window - 2, [[]], 0  # type: ignore[var-annotated]
    for word in words:
        size = 2 if word.endswith("s") else 1
        if tokens + size > room:
            parts.append([])
            tokens = 0
        parts[-1].append(word)
        tokens += size
    passage = " ".join(words)
    assert [part.split() for part in scorer._windows(passage, room)] == parts
    assert "".join(scorer._windows(passage, room)) == passage
    question = "red bird"
    rows = np.concatenate([states(encoder, " ".join(part))[1:-1] for part in parts])
    expected = (states(encoder, question)[1:-1] @ rows.T).max(axis=1).sum()
    assert scorer.score([(question, passage)])[0] == pytest.approx(expected, abs=1e-4)


def test_a_word_longer_than_the_window_is_cut_inside(encoder: Path) -> None:
    scorer: Any = load_late_interaction(LateInteraction(model=str(encoder), max_tokens=5))
    text = "red" + "s" * 10 + " house"
    parts = scorer._windows(text, 3)
    assert "".join(parts) == text
    assert len(parts) > 3
    assert np.isfinite(scorer.score([("red", text)])[0])
    with pytest.raises(SpecError, match="a window of 2 tokens has no room"):
        load_late_interaction(LateInteraction(model=str(encoder), max_tokens=2))


def test_questions_are_encoded_once_and_many_passages_in_turn(encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from workbench.models import late_interaction

    monkeypatch.setattr(late_interaction, "_PASSAGES", 3)
    monkeypatch.setattr(late_interaction, "_QUESTIONS", 2)
    scorer: Any = load_late_interaction(LateInteraction(model=str(encoder)))
    whole = scorer.score(PAIRS)
    asked: list[str] = []
    encode = scorer._model.encode_query
    monkeypatch.setattr(
        scorer._model, "encode_query", lambda texts, **more: asked.extend(texts) or encode(texts, **more)
    )
    scorer.score([("music", "a"), ("Größe 東京", "a"), ("red house", "b"), ("red house", "a")])
    assert asked == ["red house"], "of the four questions before, the last two were kept"
    np.testing.assert_allclose(scorer.score(PAIRS), whole, atol=1e-5)


def test_a_model_trained_for_it_runs_as_it_was_saved(encoder: Path, tmp_path: Path) -> None:
    """Its projection, markers and window: against that library's own encoding and MaxSim."""
    import torch
    from sentence_transformers import MultiVectorEncoder, SentenceTransformer
    from sentence_transformers.base.modules import Dense, Normalize
    from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask

    with torch.random.fork_rng():
        torch.manual_seed(3)
        dense = Dense(32, 8, bias=False, activation_function=torch.nn.Identity(), module_input_name="token_embeddings")
    modules = [
        SentenceTransformer(str(encoder), device="cpu")[0],
        dense,
        MultiVectorMask(skiplist_words=[","]),
        Normalize(module_input_name="token_embeddings"),
    ]
    prompts = {"query": "[Q] ", "document": "[D] "}
    model = MultiVectorEncoder(modules=modules, prompts=prompts, device="cpu")
    model.save(str(tmp_path), create_model_card=False)
    queries = model.encode_query([q for q, _ in PAIRS], show_progress_bar=False)
    documents = model.encode_document([p for _, p in PAIRS], show_progress_bar=False)
    expected = [float((q @ d.T).max(dim=1).values.sum()) for q, d in zip(queries, documents, strict=True)]
    assert queries[0].shape[1] == 8
    found = load_late_interaction(LateInteraction(model=str(tmp_path))).score(PAIRS)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_minilm_finds_the_passage_that_answers() -> None:
    scorer = load_late_interaction(LateInteraction())
    passages = [
        "The function opens a socket and waits until the server accepts the connection.",
        "Bread is baked from flour, water and yeast in a hot oven.",
        "A transaction is rolled back when the database reports a conflict.",
    ]
    for i, question in enumerate(["How is a connection made?", "What is bread made of?", "When is it rolled back?"]):
        assert scorer.score([(question, passage) for passage in passages]).argmax() == i


# --- cross-encoders ------------------------------------------------------------------------------


def test_logits_against_plain_transformers(cross: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(cross)
    model = AutoModelForSequenceClassification.from_pretrained(cross).eval()
    for max_tokens in (None, 12):
        scorer = load_cross_encoder(CrossEncoder(model=str(cross), max_tokens=max_tokens))
        for (question, passage), score in zip(PAIRS, scorer.score(PAIRS), strict=True):
            encoded = tokenizer(question, passage, truncation=True, max_length=max_tokens or 64, return_tensors="pt")
            with torch.inference_mode():
                assert score == pytest.approx(model(**encoded).logits.item(), abs=1e-4)
    assert np.abs(scorer.score(PAIRS)).max() > 1, "no sigmoid"


def test_models_that_are_no_rerankers(encoder: Path, tmp_path: Path) -> None:
    classifier = save_tiny(tmp_path / "classifier", "BertForSequenceClassification", labels=3)
    for model, message in (
        (str(classifier), "gives 3 scores for a pair, not one"),
        (str(encoder), 'BertModel has no trained head.*kind = "late_interaction"'),
        ("minilm", "unknown model .minilm. .give a folder"),
    ):
        with pytest.raises(ModelError, match=message):
            load_cross_encoder(CrossEncoder(model=model))


def test_loading_is_silent(make: Callable[..., PairScorer], capfd: pytest.CaptureFixture[str]) -> None:
    make().score(PAIRS)
    assert capfd.readouterr() == ("", "")

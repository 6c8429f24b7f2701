"""Specs are read strictly, and a fingerprint changes exactly when an output could."""

from __future__ import annotations

import importlib.util
import itertools
import random
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.errors import SpecError
from workbench.parsing import parse, parse_setting, read_toml
from workbench.specs import (
    Answer,
    Bm25,
    Dense,
    Embed,
    Exact,
    Fixed,
    Fts,
    Given,
    Hnsw,
    Hybrid,
    Lexical,
    Markdown,
    NoGeneration,
    Python,
    Recursive,
    ScoreSpec,
    Sentence,
    Situated,
    Spec,
    SweepSpec,
    TrialSpec,
    apply_settings,
    canonical_json,
    digest,
    fingerprint,
    read_sweep,
    read_trial,
)

STAGES = ("chunk", "embed", "lexical", "index", "retrieve", "score")


def refusal(data: Mapping[str, Any], model: type[Spec] = TrialSpec) -> str:
    with pytest.raises(SpecError) as caught:
        parse(model, data, where="a.toml")
    assert str(caught.value).startswith("a.toml: ")
    return caught.value.what


# --- reading -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"chunk": {"kind": "recusive"}}, "chunk.kind = 'recusive' is not known: did you mean 'recursive'?"),
        ({"retrieve": {"kind": "sparse"}}, "retrieve.kind = 'sparse' is not known: known: bm25, dense, fts, hybrid"),
        ({"chnk": {}}, "unknown field 'chnk': did you mean 'chunk'?"),
        ({"embed": {"modle": "x"}}, "unknown field 'embed.modle': did you mean 'model'?"),
        (
            {"chunk": {"kind": "recursive", "tokns": 5}},
            "unknown field 'chunk.tokns': did you mean 'tokens'?",
        ),
        # The nearest name is one of this kind: Markdown has no overlap.
        (
            {"chunk": {"kind": "markdown", "overlap": 5}},
            "unknown field 'chunk.overlap': known: kind, tokenizer, tokens",
        ),
        ({"chunk": {"knd": "fixed"}}, "unknown field 'chunk.knd': did you mean 'kind'?"),
        ({"retrieve": {"kind": "dense", "k": "5"}}, "retrieve.dense.k: Input should be a valid integer, not '5'"),
        ({"lexical": {"b": True}}, "lexical.b: Input should be a valid number, not True"),
        ({"index": {"kind": "hnsw", "m": 3.0}}, "index.hnsw.m: Input should be a valid integer, not 3.0"),
        ({"score": {"coverage": 0}}, "score.coverage: Input should be greater than 0, not 0"),
        (
            {"chunk": {"kind": "fixed", "tokens": 5, "overlap": 5}},
            "chunk.fixed: overlap (5) must be smaller than tokens (5)",
        ),
        (
            {"index": {"kind": "hnsw", "m": 64}},
            "index.hnsw: ef_construction (64) must be at least 2 * m (128)",
        ),
        ({"retrieve": {"kind": "hybrid", "legs": ["dense"]}}, "at least two different legs"),
        ({"retrieve": {"kind": "hybrid", "legs": ["fts", "fts"]}}, "at least two different legs"),
        ({"retrieve": {"kind": "hybrid", "weights": [1]}}, "weights must give one number for each"),
        ({"retrieve": {"kind": "hybrid", "weights": [0, 0]}}, "not all zero"),
        ({"retrieve": {"kind": "hybrid", "weights": [float("inf"), 1]}}, "finite number"),
        ({"lexical": {"k1": float("nan")}}, "lexical.k1"),
        ({"retrieve": {"kind": "fts", "config": "x'; DROP"}}, "retrieve.fts.config"),
        ({"chunk": {"kind": "python", "target": "not a target a:b"}}, "chunk.python.target"),
        ({"chunk": {"kind": "python", "target": "os.path"}}, "chunk.python.target"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_nearest_name(data: Mapping[str, Any], message: str) -> None:
    assert message in refusal(data)


def test_every_fault_is_named_at_once() -> None:
    data = {
        "chunk": {"kind": "fixed", "tokens": 0, "size": 3},
        "retrieve": {"kind": "dens"},
        "embed": {"model": 7},
        "extra": 1,
    }
    text = refusal(data)
    for part in ("chunk.fixed.tokens", "'chunk.size'", "'dens'", "embed.model", "'extra'"):
        assert part in text


def test_faults_inside_a_sweeps_base_get_the_same_hints() -> None:
    text = refusal({"base": {"chunk": {"kind": "recursive", "overlp": 3}}}, SweepSpec)
    assert text == "unknown field 'chunk.overlp': did you mean 'overlap'?"


def test_numbers_that_are_equal_are_one_value() -> None:
    whole = parse(TrialSpec, {"lexical": {"b": 1}})
    assert whole.lexical.identity() == {"b": 1.0}
    assert fingerprint("x", 1, whole.lexical, {}) == fingerprint("x", 1, Lexical(b=1.0), {})


def test_a_trial_from_toml(tmp_path: Path) -> None:
    file = tmp_path / "trial.toml"
    file.write_text('[chunk]\nkind = "sentence"\ntokens = 60\n[score]\nk = [1, 3]\n', encoding="utf-8")
    assert read_trial(file) == TrialSpec(chunk=Sentence(tokens=60), score=ScoreSpec(k=(1, 3)))


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "baseline.toml").write_text("", encoding="utf-8")
    with pytest.raises(SpecError, match="no such file") as missing:
        read_toml(tmp_path / "baselin.toml")
    assert str(tmp_path / "baselin.toml") in str(missing.value)
    assert missing.value.hint == "did you mean 'baseline.toml'?"

    broken = tmp_path / "broken.toml"
    broken.write_text("[chunk]\nkind = 'fixed'\ntokens =\n", encoding="utf-8")
    with pytest.raises(SpecError, match=r"line 3, column 9") as syntax:
        read_trial(broken)
    assert syntax.value.where == str(broken)

    broken.write_bytes(b"name = '\xff'")
    with pytest.raises(SpecError, match="not readable as TOML"):
        read_toml(broken)
    with pytest.raises(SpecError, match="not readable as TOML"):
        read_toml(tmp_path)


def test_the_base_of_a_sweep_lies_beside_it(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text("[retrieve]\nkind = 'bm25'\nk = 7\n", encoding="utf-8")
    file = tmp_path / "sweep.toml"
    file.write_text("base = 'base.toml'\n[axes]\n'lexical.k1' = [1.0, 2.0]\n", encoding="utf-8")
    sweep = read_sweep(file)
    assert sweep.base == TrialSpec(retrieve=Bm25(k=7))
    assert sweep.axes == {"lexical.k1": (1.0, 2.0)}

    file.write_text("base = 'bse.toml'\n", encoding="utf-8")
    with pytest.raises(SpecError, match=r"did you mean 'base.toml'"):
        read_sweep(file)

    # A fault stands where a person can mend it: in the base, not in the sweep that names it.
    (tmp_path / "base.toml").write_text("[retrieve]\nkind = 'bm25'\nkk = 7\n", encoding="utf-8")
    file.write_text("base = 'base.toml'\n", encoding="utf-8")
    with pytest.raises(SpecError, match=r"unknown field 'retrieve.kk'") as fault:
        read_sweep(file)
    assert fault.value.where == str(tmp_path / "base.toml")


# --- varying and settings ------------------------------------------------------------------------


def test_varying_a_field_keeps_the_rest() -> None:
    trial = TrialSpec(chunk=Fixed(tokens=50, overlap=10), retrieve=Bm25(k=3))
    varied = trial.vary("chunk.tokens", 70)
    assert varied == TrialSpec(chunk=Fixed(tokens=70, overlap=10), retrieve=Bm25(k=3))
    assert trial.chunk == Fixed(tokens=50, overlap=10)


def test_varying_a_kind_keeps_the_fields_that_both_know() -> None:
    trial = TrialSpec(chunk=Recursive(tokens=50, overlap=10, tokenizer="words", separators=("\n",)))
    assert trial.vary("chunk.kind", "sentence").chunk == Sentence(tokens=50, overlap=10, tokenizer="words")
    assert trial.vary("chunk.kind", "markdown").chunk == Markdown(tokens=50, tokenizer="words")
    assert trial.vary("chunk.kind", "given").chunk == Given()
    assert TrialSpec(retrieve=Dense(k=9)).vary("retrieve.kind", "hybrid").retrieve == Hybrid(k=9)


def test_varying_a_whole_stage() -> None:
    assert TrialSpec().vary("retrieve", Fts(k=4)).retrieve == Fts(k=4)
    assert TrialSpec().vary("retrieve", {"kind": "fts", "k": 4}).retrieve == Fts(k=4)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("retreive.k", 5, "did you mean 'retrieve'?"),
        ("retrieve.kk", 5, "unknown field 'retrieve.kk'"),
        ("retrieve.k", "5", "valid integer"),
        ("chunk.kind", "markdwn", "did you mean 'markdown'?"),
        ("chunk.tokens.min", 5, "unknown field 'chunk.tokens.min'"),
        ("chunk.overlap", 200, "must be smaller than tokens"),
        ("embed.kind", "remote", "unknown field 'embed.kind'"),
        ("score.kind", ["x"], "unknown field 'score.kind'"),
        ("", 1, "unknown stage ''"),
    ],
)
def test_paths_and_values_that_do_not_fit(path: str, value: Any, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        TrialSpec().vary(path, value)
    assert message in str(caught.value)
    assert (caught.value.where or "") == path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("retrieve.k=50", ("retrieve.k", 50)),
        (" lexical.b = 0.5", ("lexical.b", 0.5)),
        ("lexical.split_identifiers=true", ("lexical.split_identifiers", True)),
        ("embed.model=fake:hash-8?delay=0.1&log=/x", ("embed.model", "fake:hash-8?delay=0.1&log=/x")),
        ('embed.revision="2024-01-01"', ("embed.revision", "2024-01-01")),
        ("score.k=[1, 5]", ("score.k", (1, 5))),
        ("retrieve.legs=['dense', 'fts']", ("retrieve.legs", ("dense", "fts"))),
        ("chunk.kind=fixed", ("chunk.kind", "fixed")),
        ("embed.query_prefix=", ("embed.query_prefix", "")),
    ],
)
def test_settings_read_as_toml_or_else_as_text(text: str, expected: tuple[str, Any]) -> None:
    assert parse_setting(text) == expected


@pytest.mark.parametrize("text", ["retrieve.k", "", "=5", "  = 5"])
def test_a_setting_needs_a_path(text: str) -> None:
    with pytest.raises(SpecError, match="is not path=value"):
        parse_setting(text)


def test_fields_that_fit_only_each_other_are_changed_together() -> None:
    trial = TrialSpec(chunk=Fixed(tokens=200, overlap=50), index=Hnsw())
    expected = trial.chunk.model_copy(update={"tokens": 40, "overlap": 10})
    for paths in (("tokens", "overlap"), ("overlap", "tokens")):
        assert trial.varied({f"chunk.{name}": getattr(expected, name) for name in paths}).chunk == expected
    assert apply_settings(trial, ["index.m=60", "index.ef_construction=120"]).index == Hnsw(m=60, ef_construction=120)
    with pytest.raises(SpecError) as caught:
        trial.varied({"chunk.tokens": 40, "retrieve.k": 5})
    assert caught.value.where == "chunk.tokens"
    assert trial.varied({}) == trial


def test_of_a_stage_the_whole_comes_first_then_its_kind_then_its_fields() -> None:
    changes = {"chunk.overlap": 5, "chunk.kind": "sentence", "chunk": {"kind": "fixed", "tokens": 50}}
    assert TrialSpec().varied(changes).chunk == Sentence(tokens=50, overlap=5)
    assert TrialSpec().varied({"generate.k": 2, "generate": Answer(model="m")}).generate == Answer(model="m", k=2)
    assert TrialSpec(generate=NoGeneration(kind="none")).vary("generate.k", 2).generate == Answer(k=2)


def test_settings_apply_kinds_first() -> None:
    trial = apply_settings(TrialSpec(), ["retrieve.depth=7", "chunk.overlap=3", "retrieve.kind=hybrid"])
    assert trial == TrialSpec(retrieve=Hybrid(depth=7), chunk=Recursive(overlap=3))


# --- callables -----------------------------------------------------------------------------------


def module_of(path: Path, source: str) -> ModuleType:
    path.write_text(source, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_callable_is_known_by_its_source(tmp_path: Path) -> None:
    source = "def halves(text):\n    return [text[: len(text) // 2], text[len(text) // 2 :]]\n"
    (tmp_path / "again").mkdir()
    (tmp_path / "other").mkdir()
    first = module_of(tmp_path / "mine.py", source).halves
    again = module_of(tmp_path / "again" / "mine.py", "import os\n\n\n" + source).halves
    other = module_of(tmp_path / "other" / "mine.py", source.replace("// 2", "// 3")).halves
    made = [TrialSpec(chunk=f).chunk for f in (first, again, other)]
    assert all(isinstance(spec, Python) and spec.target == "mine:halves" for spec in made)
    assert made[0].identity() == made[1].identity()
    assert made[0].identity() != made[2].identity()
    assert made[0].function is first  # type: ignore[union-attr]
    assert Python.of(first, version=2).identity() != made[0].identity()


def test_callables_of_every_shape() -> None:
    def nested(text: str) -> list[str]:
        return [text]

    spec = TrialSpec().vary("chunk", nested).chunk
    assert isinstance(spec, Python)
    assert spec.function is nested
    bare = eval("lambda text: [text]", {"__name__": "console"})
    with pytest.raises(SpecError, match=r"source of .* cannot be read"):
        Python.of(bare)
    with pytest.raises(SpecError, match=r"source of .* cannot be read"):
        TrialSpec(chunk=len)
    module_level = Python.of(MODULE_LEVEL)
    assert module_level.target.endswith(":<lambda>")


MODULE_LEVEL = lambda text: [text]  # noqa: E731


def test_a_copy_with_another_stage_keeps_the_callable() -> None:
    def mine(text: str) -> list[str]:
        return [text]

    varied = TrialSpec(chunk=mine).vary("retrieve.k", 7)
    assert isinstance(varied.chunk, Python)
    assert varied.chunk.function is mine


# --- fingerprints --------------------------------------------------------------------------------

names = st.sampled_from(["a", "b", "wordpiece"])
SPECS: st.SearchStrategy[Spec] = st.one_of(
    st.builds(Fixed, tokens=st.sampled_from([9, 200]), overlap=st.integers(0, 2), tokenizer=names),
    st.builds(Sentence, tokens=st.sampled_from([9, 200])),
    st.builds(Recursive, tokens=st.sampled_from([9, 200]), separators=st.sampled_from([("\n",), ("\n", "")])),
    st.builds(Markdown, tokens=st.sampled_from([9, 200])),
    st.builds(Given, file=names),
    st.builds(Python, target=st.sampled_from(["m:f", "m:g"]), version=st.integers(1, 2)),
    st.builds(
        Embed,
        model=names,
        revision=st.none() | names,
        dtype=st.sampled_from(["float32", "float16"]),
        query_prefix=st.sampled_from(["", "q"]),
        passage_prefix=st.sampled_from(["", "q"]),
        long=st.sampled_from(["pool", "truncate"]),
        max_tokens=st.none() | st.just(9),
    ),
    st.builds(
        Lexical,
        stopwords=st.sampled_from(["english", "none"]),
        stemmer=st.sampled_from(["english", "none"]),
        split_identifiers=st.booleans(),
        min_length=st.integers(1, 2),
        k1=st.sampled_from([1, 1.5, 2.0]),
        b=st.sampled_from([0.75, 1]),
    ),
    st.builds(Exact, storage=st.sampled_from(["vector", "halfvec"])),
    st.builds(Hnsw, storage=st.sampled_from(["vector", "halfvec"]), m=st.sampled_from([8, 16])),
    st.builds(Dense, k=st.sampled_from([10, 100]), ef_search=st.none() | st.just(50)),
    st.builds(Bm25, k=st.sampled_from([10, 100])),
    st.builds(Fts, k=st.sampled_from([10, 100]), match=st.sampled_from(["any", "all"]), config=st.just("simple")),
    st.builds(
        Hybrid,
        legs=st.sampled_from([("dense", "bm25"), ("bm25", "dense")]),
        fusion=st.sampled_from(["rrf", "weighted"]),
        weights=st.sampled_from([None, (1.0, 1.0), (1, 2)]),
        rrf_k=st.sampled_from([60, 0]),
    ),
    st.builds(ScoreSpec, k=st.sampled_from([(1,), (1, 5)]), occurrences=st.sampled_from(["same", "any"])),
)


@given(SPECS, SPECS)
def test_equal_specs_have_equal_fingerprints_and_others_not(a: Spec, b: Spec) -> None:
    same = fingerprint("x", 1, a, {}) == fingerprint("x", 1, b, {})
    # Without a kind two models of other stages may both be "all defaults"; their stage's name tells them apart.
    comparable = type(a) is type(b) or "kind" in type(a).model_fields or "kind" in type(b).model_fields
    if comparable:
        assert same == (a == b)


@given(SPECS)
def test_every_changed_field_changes_the_fingerprint(spec: Spec) -> None:
    before = fingerprint("x", 1, spec, {})
    for name in type(spec).model_fields:
        if name == "kind" or name in spec.not_identity:
            continue
        changed = spec.model_copy(update={name: "another value"})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the value has another type: what counts is that it is seen
            assert fingerprint("x", 1, changed, {}) != before, name


@given(SPECS)
def test_values_that_equal_the_default_change_nothing(spec: Spec) -> None:
    explicit = parse(type(spec), spec.model_dump(mode="json"))
    assert explicit == spec
    assert explicit.identity() == spec.identity()
    body = spec.identity()
    assert parse(type(spec), body) == spec, "what is left out is exactly what is default"
    assert ("kind" in body) == ("kind" in type(spec).model_fields)


def test_inputs_kind_and_code_version_are_in_the_fingerprint() -> None:
    base = fingerprint("chunk", 1, Fixed(), {"a": "1", "b": "2"})
    assert fingerprint("chunk", 1, Fixed(), {"b": "2", "a": "1"}) == base
    others = [
        fingerprint("embed", 1, Fixed(), {"a": "1", "b": "2"}),
        fingerprint("chunk", 2, Fixed(), {"a": "1", "b": "2"}),
        fingerprint("chunk", 1, Fixed(), {"a": "2", "b": "1"}),
        fingerprint("chunk", 1, Fixed(), {"a": "1"}),
        fingerprint("chunk", 1, Sentence(), {"a": "1", "b": "2"}),
    ]
    assert len({base, *others}) == 6


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


def shuffled(value: Any, rng: random.Random) -> Any:
    if isinstance(value, dict):
        items = [(k, shuffled(v, rng)) for k, v in value.items()]
        rng.shuffle(items)
        return dict(items)
    return [shuffled(v, rng) for v in value] if isinstance(value, list) else value


@given(values, st.randoms(use_true_random=False))
def test_canonical_json_does_not_depend_on_order(value: Any, rng: random.Random) -> None:
    assert canonical_json(shuffled(value, rng)) == canonical_json(value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": [float("-inf")]}])
def test_canonical_json_refuses_what_is_no_number(value: Any) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(value)


def test_the_default_trial_keeps_its_identity() -> None:
    """A change here makes every stored result of a default trial unfindable: raise a code version instead."""
    trial = TrialSpec()
    identities = {name: getattr(trial, name).identity() for name in STAGES}
    assert canonical_json(identities) == (
        '{"chunk":{"kind":"recursive"},"embed":{},"index":{"kind":"exact"},"lexical":{},'
        '"retrieve":{"kind":"dense"},"score":{}}'
    )
    assert digest(identities) == "9323cf67133153b7ec7aabb12a8cbec939998cc07220b73e8b126447ae0079e1"
    assert (
        fingerprint("chunk", 1, TrialSpec(chunk=Recursive(tokens=100)).chunk, {"corpus": "0" * 64})
        == "030b0f98d546e546e173c47ce627bb7b7f97e6290da566072fe91a5887acc06a"
    )


def test_defaults_that_are_left_out_of_fingerprints_are_these() -> None:
    """What equals its default is not in a fingerprint, so a changed default must raise the stage's code version."""
    expected: dict[type[Spec], dict[str, Any]] = {
        Fixed: {"tokens": 200, "overlap": 0, "tokenizer": "wordpiece"},
        Recursive: {"tokens": 200, "overlap": 0, "separators": ("\n\n", "\n", ". ", "? ", "! ", " ", "")},
        Markdown: {"tokens": 200, "tokenizer": "wordpiece"},
        Embed: {"model": "minilm", "dtype": "float32", "long": "pool", "max_tokens": None, "query_prefix": ""},
        Lexical: {
            "stopwords": "english",
            "stemmer": "none",
            "split_identifiers": False,
            "min_length": 2,
            "k1": 1.5,
            "b": 0.75,
        },
        Exact: {"storage": "vector"},
        Hnsw: {"storage": "vector", "m": 16, "ef_construction": 64},
        Dense: {"k": 100, "ef_search": None},
        Bm25: {"k": 100},
        Fts: {"k": 100, "match": "any", "config": "english"},
        Hybrid: {"legs": ("dense", "bm25"), "depth": 100, "fusion": "rrf", "rrf_k": 60, "weights": None, "k": 100},
        ScoreSpec: {"k": (1, 5, 10, 20, 100), "coverage": 1.0, "occurrences": "same"},
    }
    for model, defaults in expected.items():
        assert {name: model.model_fields[name].default for name in defaults} == defaults, model.__name__


# --- sweeps --------------------------------------------------------------------------------------


def test_points_are_all_combinations_in_declared_order() -> None:
    sweep = SweepSpec(axes={"chunk.tokens": (50, 100), "retrieve.kind": ("dense", "bm25")})
    assert sweep.points() == [
        {"chunk.tokens": 50, "retrieve.kind": "dense"},
        {"chunk.tokens": 50, "retrieve.kind": "bm25"},
        {"chunk.tokens": 100, "retrieve.kind": "dense"},
        {"chunk.tokens": 100, "retrieve.kind": "bm25"},
    ]
    assert SweepSpec().points() == [{}]


def test_kinds_are_varied_before_their_fields() -> None:
    sweep = SweepSpec(axes={"retrieve.rrf_k": (5,), "retrieve.kind": ("hybrid",)})
    assert sweep.trial(sweep.points()[0]).retrieve == Hybrid(rrf_k=5)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"axes": {"chunk.kind": []}}, "axis 'chunk.kind' has no values"),
        ({"axes": {"chunk.kind": ["fixed"]}, "baseline": {"chunk.knd": "fixed"}}, "did you mean 'chunk.kind'?"),
        ({"axes": {"chunk.kind": ["fixed"]}, "baseline": {"chunk.kind": "given"}}, "is not on its axis"),
        ({"axes": {"chunk.kind": "fixed"}}, "axes.chunk.kind"),
        ({"replicates": 0}, "replicates"),
        ({"metrc": "recall@5"}, "did you mean 'metric'?"),
        ({"axes": {"retrieve.k": [5, 7, 5]}}, "axis 'retrieve.k' names 5 more than once"),
        ({"axes": {"lexical.b": [0, 0.0]}}, "axis 'lexical.b' names 0.0 more than once"),
        ({"axes": {"retrieve.legs": [["dense", "fts"], ("dense", "fts")]}}, "more than once"),
        ({"axes": {"retrieve.k": [5]}, "include": [{"retrieve.k": 5}]}, "include {'retrieve.k': 5} is a point already"),
        ({"include": [{"retrieve.k": 5}, {"retrieve.k": 5}]}, "include {'retrieve.k': 5} is a point already"),
        ({"axes": {"retrieve.k": [5, 6]}, "exclude": [{"retrieve.k": 7}]}, "exclude {'retrieve.k': 7} fits no point"),
        ({"axes": {"retrieve.k": [5]}, "exclude": [{"retreive.k": 5}]}, "did you mean 'retrieve.k'?"),
        (
            {"axes": {"retrieve.k": [5, 6]}, "exclude": [{"retrieve.k": 5}, {"retrieve.k": 6}]},
            "every point is excluded",
        ),
        ({"axes": {"retrieve.k": [5, 6]}, "exclude": [{}]}, "every point is excluded"),
        (
            {
                "axes": {"retrieve.k": [5, 6], "chunk.tokens": [9, 10]},
                "exclude": [{"retrieve.k": 5, "chunk.tokens": 9}],
                "baseline": {"retrieve.k": 5, "chunk.tokens": 9},
            },
            "no point agrees with the baseline",
        ),
        ({"axes": {"replicate": [1, 2]}}, "'replicate' is no path of a trial"),
        ({"axes": {f"lexical.{name}": list(range(100)) for name in ("k1", "b", "x")}}, "1,000,000 points"),
        ({"include": [{"retrieve.k": float("nan")}]}, "Out of range"),
        ({"include": {"retrieve.k": 5}}, "include"),
    ],
)
def test_sweeps_that_do_not_fit(data: Mapping[str, Any], message: str) -> None:
    assert message in refusal(data, SweepSpec)


def test_a_grid_loses_what_is_excluded_and_gets_what_is_included() -> None:
    sweep = parse(
        SweepSpec,
        {
            "axes": {"chunk.tokens": [50, 100], "retrieve.kind": ["dense", "bm25", "fts"]},
            "exclude": [{"chunk.tokens": 50, "retrieve.kind": "fts"}, {"retrieve.kind": "bm25"}],
            "include": [{"chunk.tokens": 50, "retrieve.kind": "bm25", "lexical.k1": 2.0}, {"chunk.kind": "markdown"}],
            "baseline": {"lexical.k1": 2},
        },
    )
    points: list[dict[str, Any]] = [
        {"chunk.tokens": 50, "retrieve.kind": "dense"},
        {"chunk.tokens": 100, "retrieve.kind": "dense"},
        {"chunk.tokens": 100, "retrieve.kind": "fts"},
        {"chunk.tokens": 50, "retrieve.kind": "bm25", "lexical.k1": 2.0},
        {"chunk.kind": "markdown"},
    ]
    assert sweep.points() == points
    assert sweep.trials() == [(point, sweep.trial(point)) for point in points]
    assert parse(SweepSpec, sweep.model_dump(mode="json")) == sweep
    assert SweepSpec(include=({"retrieve.k": 5},)).points() == [{"retrieve.k": 5}], "without axes there is no grid"


grids = st.fixed_dictionaries(
    {
        "chunk.tokens": st.lists(st.integers(10, 14), min_size=1, max_size=3, unique=True),
        "retrieve.kind": st.lists(st.sampled_from(["dense", "bm25", "fts"]), min_size=1, unique=True),
        "lexical.b": st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, unique=True),
    }
)


@given(grids, st.data())
def test_points_are_the_grid_by_its_definition(axes: Mapping[str, list[Any]], data: st.DataObject) -> None:
    rule = st.dictionaries(st.sampled_from(sorted(axes)), st.none(), min_size=1).map(
        lambda paths: {path: data.draw(st.sampled_from(axes[path])) for path in paths}
    )
    exclude = data.draw(st.lists(rule, max_size=2))
    whole = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    expected = [p for p in whole if not any(all(p[path] == v for path, v in out.items()) for out in exclude)]
    spec = {"axes": axes, "exclude": exclude}
    if not expected:
        assert "every point is excluded" in refusal(spec, SweepSpec)
        return
    sweep = parse(SweepSpec, spec)
    assert sweep.points() == expected
    for point, trial in sweep.trials():
        one = sweep.base
        for path in sorted(point, key=lambda p: not p.endswith(".kind")):
            one = one.vary(path, point[path])
        assert trial == one == sweep.trial(point)


def test_trials_that_agree_on_a_stage_share_its_spec() -> None:
    sweep = SweepSpec(axes={"chunk.tokens": (50, 100), "retrieve.k": (5, 6, 7)})
    trials = [trial for _, trial in sweep.trials()]
    assert len({id(trial.chunk) for trial in trials}) == 2
    assert len({id(trial.retrieve) for trial in trials}) == 3
    assert {id(trial.rerank) for trial in trials} == {id(sweep.base.rerank)}


def test_what_serves_a_spec_on_an_axis_stays_with_it() -> None:
    spec = Situated(concurrency=32, prefix_caching=False)
    sweep = SweepSpec(axes={"context": (spec,)})
    assert [trial.context for _, trial in sweep.trials()] == [spec]


def test_a_list_on_an_axis_may_be_the_baseline() -> None:
    data = {
        "axes": {"retrieve.legs": [["dense", "bm25"], ["dense", "fts"]]},
        "baseline": {"retrieve.legs": ["dense", "fts"]},
    }
    sweep = parse(SweepSpec, data)
    assert sweep.baseline["retrieve.legs"] == ("dense", "fts")
    assert parse(SweepSpec, sweep.model_dump(mode="json")) == sweep


def test_specs_on_an_axis_stand_as_their_tables() -> None:
    sweep = SweepSpec(axes={"chunk": (Fixed(tokens=50), Recursive())}, baseline={"chunk": Recursive()})
    assert sweep.points() == [{"chunk": {"kind": "fixed", "tokens": 50}}, {"chunk": {"kind": "recursive"}}]
    assert [sweep.trial(point).chunk for point in sweep.points()] == [Fixed(tokens=50), Recursive()]
    assert parse(SweepSpec, sweep.model_dump(mode="json")) == sweep


def test_a_function_on_an_axis_is_refused_with_the_way_out() -> None:
    def mine(text: str) -> list[str]:
        return [text]

    for value in (mine, Python.of(mine)):
        assert '"target": "module:function"' in refusal({"axes": {"chunk": [value]}}, SweepSpec)


def test_a_table_without_a_kind_is_of_the_default_kind() -> None:
    assert parse(TrialSpec, {"chunk": {"tokens": 5}}).chunk == Recursive(tokens=5)
    assert parse(TrialSpec, {"retrieve": {"k": 7}}).retrieve == Dense(k=7)


def test_cut_offs_deeper_than_the_hits_are_not_scored() -> None:
    trial = TrialSpec(retrieve=Dense(k=10))
    assert trial.scored.k == (1, 5, 10)
    assert trial.vary("retrieve.k", 3).vary("score.k", (5,)).scored.k == (3,)
    assert TrialSpec().scored is TrialSpec().score


def test_a_sweep_read_as_a_trial_and_the_reverse(tmp_path: Path) -> None:
    sweep, trial = tmp_path / "sweep.toml", tmp_path / "trial.toml"
    sweep.write_text('[axes]\n"retrieve.k" = [5, 10]\n', encoding="utf-8")
    trial.write_text("[chunk]\ntokens = 5\n", encoding="utf-8")
    with pytest.raises(SpecError, match="workbench sweep"):
        read_trial(sweep)
    with pytest.raises(SpecError, match="workbench run"):
        read_sweep(trial)

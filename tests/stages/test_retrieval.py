"""The analyzer's terms, and fusion against a plain formula."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.specs import Hybrid, Lexical
from workbench.stages.retrieval import Ranking, analyzer, fuse

# --- analyzer ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "text", "terms"),
    [
        (Lexical(), "The herons AND the Otters, in a reed-bed!", ["herons", "otters", "reed", "bed"]),
        (Lexical(stopwords="none"), "The heron and I", ["the", "heron", "and"]),
        (Lexical(stopwords="none", min_length=1), "The heron and I", ["the", "heron", "and", "i"]),
        (Lexical(min_length=6), "heron otters", ["otters"]),
        (Lexical(stemmer="english"), "Running herons ran happily", ["run", "heron", "ran", "happili"]),
        # Stop words go before stemming: "being" is none, though its stem would be one.
        (Lexical(stemmer="english"), "their being", ["be"]),
        (Lexical(), "Über naïve Ψυχή 東京都 𝔘nicode", ["über", "naïve", "ψυχή", "東京都", "𝔘nicode"]),
        (Lexical(), "", []),
        (Lexical(), "?! --- 🙂", []),
        (Lexical(), "snake_case camelCase", ["snake_case", "camelcase"]),
        (Lexical(min_length=1), "v2 3.14 x", ["v2", "3", "14", "x"]),
    ],
)
def test_terms(spec: Lexical, text: str, terms: list[str]) -> None:
    assert analyzer(spec)(text) == terms


@pytest.mark.parametrize(
    ("word", "terms"),
    [
        ("camelCase", ["camelcase", "camel", "case"]),
        ("snake_case_name", ["snake_case_name", "snake", "case", "name"]),
        ("HTTPServer2", ["httpserver2", "http", "server", "2"]),
        ("parseHTTP", ["parsehttp", "parse", "http"]),
        ("PyObject_GetAttr", ["pyobject_getattr", "py", "object", "get", "attr"]),
        ("utf8", ["utf8", "utf", "8"]),
        ("__init__", ["__init__", "init"]),
        ("MAX_SIZE", ["max_size", "max", "size"]),
        ("word", ["word"]),
        ("Word", ["word"]),
        ("HTTP", ["http"]),
        ("2024", ["2024"]),
        ("größe", ["größe"]),
        ("Größe", ["größe"]),
        ("größeWert", ["größewert", "größe", "wert"]),
        ("ÖlPreis", ["ölpreis", "öl", "preis"]),
        ("ΑθήναΝέα", ["αθήνανέα", "αθήνα", "νέα"]),
        ("東京Tower", ["東京tower", "東京", "tower"]),
        ("___", ["___"]),
    ],
)
def test_identifiers_give_their_parts_beside_themselves(word: str, terms: list[str]) -> None:
    assert analyzer(Lexical(split_identifiers=True, stopwords="none", min_length=1))(word) == terms


def test_parts_pass_the_same_rules() -> None:
    assert analyzer(Lexical(split_identifiers=True, stemmer="english"))("isTheRunningX2") == ["istherunningx2", "run"]


@given(st.text(max_size=40), st.booleans(), st.sampled_from(["none", "english"]), st.integers(1, 4))
def test_any_text_gives_terms_that_are_terms(text: str, split: bool, stopwords: str, min_length: int) -> None:
    analyze = analyzer(Lexical(split_identifiers=split, stopwords=stopwords, min_length=min_length))  # type: ignore[arg-type]
    terms = analyze(text)
    assert all(len(term) >= min_length and term == term.lower() for term in terms)
    assert analyze(text) == terms
    if split:
        plain = analyzer(Lexical(stopwords=stopwords, min_length=min_length))(text)  # type: ignore[arg-type]
        rest = iter(terms)
        assert all(term in rest for term in plain), "words themselves stay, in their order"


# --- fusion --------------------------------------------------------------------------------------

LEGS = ("dense", "bm25", "fts")


@st.composite
def rankings(draw: st.DrawFn) -> dict[str, Ranking]:
    """Three lists of different chunks, best first; quarters, so that sums are exact and ties happen."""
    made: dict[str, Ranking] = {}
    for leg in LEGS:
        chunks = draw(st.lists(st.integers(0, 12), unique=True, max_size=9))
        scores = sorted((draw(st.integers(1, 12)) / 4 for _ in chunks), reverse=True)
        made[leg] = (chunks, scores)
    return made


weights = st.none() | st.tuples(*[st.sampled_from([0.5, 1.0, 2.0])] * 3)


def plain_rrf(spec: Hybrid, legs: Mapping[str, Ranking]) -> dict[int, Fraction]:
    """Cormack et al. 2009, section 2, in exact arithmetic."""
    total: dict[int, Fraction] = {}
    for leg, weight in zip(spec.legs, spec.weights or (1.0, 1.0, 1.0), strict=True):
        for rank, chunk in enumerate(legs[leg][0], 1):
            if rank <= spec.depth:
                total[chunk] = total.get(chunk, Fraction(0)) + Fraction(weight) / (spec.rrf_k + rank)
    return total


@given(rankings(), weights, st.integers(1, 10), st.integers(1, 14), st.sampled_from([0, 1, 60]))
def test_rrf_is_its_formula(
    legs: dict[str, Ranking], given_weights: tuple[float, ...] | None, depth: int, k: int, rrf_k: int
) -> None:
    spec = Hybrid(legs=LEGS, weights=given_weights, depth=depth, k=k, rrf_k=rrf_k)
    chunks, scores = fuse(spec, legs)
    truth = plain_rrf(spec, legs)
    assert len(chunks) == len(set(chunks)) == min(k, len(truth))
    for chunk, score in zip(chunks, scores, strict=True):
        assert score == pytest.approx(float(truth[chunk]), rel=1e-12)
    best = sorted(truth.values(), reverse=True)[:k]
    assert scores == pytest.approx([float(v) for v in best], rel=1e-12)
    ranked = [(-s, c) for c, s in zip(chunks, scores, strict=True)]
    assert ranked == sorted(ranked), "ties by chunk number"


@given(rankings(), st.permutations(LEGS), st.sampled_from(["rrf", "weighted"]), weights)
def test_fusion_does_not_depend_on_the_order_of_the_mapping(
    legs: dict[str, Ranking], order: list[str], fusion: str, given_weights: tuple[float, ...] | None
) -> None:
    spec = Hybrid(legs=LEGS, fusion=fusion, weights=given_weights)  # type: ignore[arg-type]
    expected = fuse(spec, legs)
    assert fuse(spec, {leg: legs[leg] for leg in order}) == expected
    as_tuples = {leg: (tuple(chunks), tuple(scores)) for leg, (chunks, scores) in legs.items()}
    assert fuse(spec, as_tuples) == expected


@pytest.mark.parametrize("fusion", ["rrf", "weighted"])
def test_sums_are_the_same_to_the_last_bit_in_any_order(fusion: str) -> None:
    spec = Hybrid(legs=LEGS, fusion=fusion, weights=(0.3, 0.5, 0.7))  # type: ignore[arg-type]
    rng = random.Random(5)
    legs: dict[str, Ranking] = {}
    for leg in LEGS:
        chunks = list(range(40))
        rng.shuffle(chunks)
        legs[leg] = (chunks, sorted((rng.random() for _ in chunks), reverse=True))
    found = [fuse(spec, {leg: legs[leg] for leg in order}) for order in itertools.permutations(LEGS)]
    assert all(one == found[0] for one in found)


@given(rankings(), st.integers(1, 10))
def test_weighted_scales_each_leg_to_one(legs: dict[str, Ranking], depth: int) -> None:
    spec = Hybrid(legs=LEGS, fusion="weighted", weights=(1.0, 2.0, 0.5), depth=depth)
    truth: dict[int, float] = {}
    for leg, weight in (("dense", 1.0), ("bm25", 2.0), ("fts", 0.5)):
        chunks, scores = legs[leg][0][:depth], legs[leg][1][:depth]
        for chunk, score in zip(chunks, scores, strict=True):
            flat = max(scores) == min(scores)
            share = 1.0 if flat else (score - min(scores)) / (max(scores) - min(scores))
            truth[chunk] = truth.get(chunk, 0.0) + weight * share
    chunks, scores = fuse(spec, legs)
    assert dict(zip(chunks, scores, strict=True)) == pytest.approx(truth)
    ranked = [(-s, c) for c, s in zip(chunks, scores, strict=True)]
    assert ranked == sorted(ranked)


def test_ties_go_to_the_smaller_chunk_number() -> None:
    spec = Hybrid(legs=("dense", "bm25"))
    chunks, scores = fuse(spec, {"dense": ([9, 4], [0.9, 0.1]), "bm25": ([4, 9], [7.0, 3.0])})
    assert chunks == [4, 9]
    assert scores[0] == scores[1]


def test_depth_cuts_each_leg_and_k_the_result() -> None:
    legs: dict[str, Ranking] = {"dense": ([1, 2, 3], [3.0, 2.0, 1.0]), "bm25": ([4, 5, 1], [3.0, 2.0, 1.0])}
    assert fuse(Hybrid(legs=("dense", "bm25"), depth=2), legs)[0] == [1, 4, 2, 5]
    assert fuse(Hybrid(legs=("dense", "bm25"), depth=3), legs)[0] == [1, 4, 2, 5, 3]
    assert fuse(Hybrid(legs=("dense", "bm25"), depth=3, k=2), legs)[0] == [1, 4]


@pytest.mark.parametrize("fusion", ["rrf", "weighted"])
def test_empty_legs(fusion: str) -> None:
    spec = Hybrid(legs=("dense", "bm25"), fusion=fusion)  # type: ignore[arg-type]
    assert fuse(spec, {"dense": ([], []), "bm25": ([], [])}) == ([], [])
    assert fuse(spec, {"dense": ([], []), "bm25": ([5, 3], [2.0, 1.0])})[0] == [5, 3]
    assert fuse(spec, {"dense": ([7], [0.1]), "bm25": ([], [])})[0] == [7]

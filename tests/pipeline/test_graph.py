"""A trial as a graph: which nodes there are, what they share, and what their identity depends on."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from workbench.datasets import Dataset
from workbench.errors import DatasetError, SpecError
from workbench.lab import Lab
from workbench.pipeline import graph
from workbench.pipeline.graph import Node, TrialGraph
from workbench.records import Evidence, Query
from workbench.runtime import Runtime
from workbench.settings import Settings
from workbench.specs import Bm25, Dense, Embed, Fixed, Fts, Given, Hnsw, Hybrid, TrialSpec


@pytest.fixture(scope="module")
def runtime(server_home: Path) -> Iterator[Runtime]:
    with Runtime(Settings(home=server_home, db_schema="t_graph")) as opened:
        yield opened


def names(built: TrialGraph) -> list[str]:
    return [f"{node.kind} {node.label}" for node in built.score.walk()]


def retrieving(trial: TrialSpec, spec: Dense | Bm25 | Fts | Hybrid) -> TrialSpec:
    return trial.model_copy(update={"retrieve": spec})


DENSE = ["chunk recursive", "embed passage", "index exact", "embed query", "retrieve dense", "score score"]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (Dense(), DENSE),
        (Bm25(), ["chunk recursive", "retrieve bm25", "score score"]),
        (Fts(), ["chunk recursive", "index fts", "retrieve fts", "score score"]),
        (
            Hybrid(legs=("dense", "bm25")),
            [*DENSE[:-1], "retrieve bm25", "retrieve hybrid", "score score"],
        ),
        (
            Hybrid(legs=("fts", "bm25")),
            ["chunk recursive", "index fts", "retrieve fts", "retrieve bm25", "retrieve hybrid", "score score"],
        ),
    ],
)
def test_nodes_are_pulled_from_the_leaf(
    runtime: Runtime, tiny: Dataset, words_trial: TrialSpec, spec: Hybrid, expected: list[str]
) -> None:
    assert names(graph.build(retrieving(words_trial, spec), tiny, runtime)) == expected


def test_inputs_come_before_what_needs_them_and_each_node_once(
    runtime: Runtime, tiny: Dataset, words_trial: TrialSpec
) -> None:
    built = graph.build(retrieving(words_trial, Hybrid(legs=("fts", "dense", "bm25"))), tiny, runtime)
    seen: set[str] = set()
    for node in built.score.walk():
        assert node.fingerprint not in seen
        assert all(i.fingerprint in seen for i in node.inputs.values() if isinstance(i, Node))
        seen.add(node.fingerprint)
    assert built.score.fingerprint in seen
    assert list(built.score.walk())[-1] is built.score


def prints(runtime: Runtime, data: Dataset, trial: TrialSpec) -> dict[str, str]:
    built = graph.build(trial, data, runtime)
    return {f"{node.kind} {node.label}": node.fingerprint for node in built.score.walk()}


@pytest.mark.parametrize(
    ("path", "value", "changed"),
    [
        ("retrieve.k", 3, {"retrieve dense", "score score"}),
        ("score.coverage", 0.5, {"score score"}),
        ("index.storage", "halfvec", {"index exact", "retrieve dense", "score score"}),
        ("embed.query_prefix", "q: ", {"embed query", "retrieve dense", "score score"}),
        ("embed.passage_prefix", "p: ", {"embed passage", "index exact", "retrieve dense", "score score"}),
        ("embed.model", "fake:hash-65", set(DENSE) - {"chunk recursive"}),
        # The queries are embedded apart from the chunks.
        ("chunk.tokens", 16, set(DENSE) - {"embed query"}),
        ("lexical.k1", 2.0, set()),
        ("retrieve.ef_search", 60, set()),
    ],
)
def test_trials_share_what_they_agree_on(
    runtime: Runtime, tiny: Dataset, words_trial: TrialSpec, path: str, value: object, changed: set[str]
) -> None:
    before = prints(runtime, tiny, words_trial)
    after = prints(runtime, tiny, words_trial.vary(path, value))
    assert {name for name in before if before[name] != after[name]} == changed


def test_ef_search_counts_on_an_index(runtime: Runtime, tiny: Dataset, words_trial: TrialSpec) -> None:
    trial = words_trial.model_copy(update={"index": Hnsw()})
    before, after = prints(runtime, tiny, trial), prints(runtime, tiny, trial.vary("retrieve.ef_search", 60))
    assert {name for name in before if before[name] != after[name]} == {"retrieve dense", "score score"}


def test_a_hybrids_legs_are_those_of_plain_trials(runtime: Runtime, tiny: Dataset, words_trial: TrialSpec) -> None:
    hybrid = prints(runtime, tiny, retrieving(words_trial, Hybrid(legs=("dense", "bm25", "fts"), depth=20)))
    for spec in (Dense(k=20), Bm25(k=20), Fts(k=20)):
        plain = prints(runtime, tiny, retrieving(words_trial, spec))
        shared = {name: value for name, value in plain.items() if name != "score score"}
        assert shared.items() <= hybrid.items()
    other = prints(runtime, tiny, retrieving(words_trial, Hybrid(legs=("dense", "bm25", "fts"), depth=20, rrf_k=1)))
    assert {name for name in hybrid if hybrid[name] != other[name]} == {"retrieve hybrid", "score score"}


@pytest.mark.parametrize("spec", [Dense(), Bm25(), Fts(), Hybrid(legs=("dense", "bm25", "fts"))])
def test_recipes_do_not_depend_on_queries_while_fingerprints_do(
    runtime: Runtime, tiny: Dataset, words_trial: TrialSpec, spec: Hybrid
) -> None:
    trial = retrieving(words_trial, spec)
    more = dataclasses.replace(tiny, queries=(*tiny.queries, Query("q10", "one more")))
    one, two = graph.build(trial, tiny, runtime), graph.build(trial, more, runtime)
    assert one.chunk.fingerprint == two.chunk.fingerprint
    assert one.hits.recipe == two.hits.recipe
    assert one.hits.fingerprint != two.hits.fingerprint
    other = graph.build(trial.vary("chunk.tokens", 16), tiny, runtime)
    assert other.hits.recipe != one.hits.recipe, "the chunks are in the recipe"


def test_gold_changes_scores_only(runtime: Runtime, tiny: Dataset, words_trial: TrialSpec) -> None:
    first = dataclasses.replace(tiny.queries[0], evidence=(Evidence("d0", 0, 5),))
    corrected = dataclasses.replace(tiny, queries=(first, *tiny.queries[1:]))
    before, after = prints(runtime, tiny, words_trial), prints(runtime, corrected, words_trial)
    assert {name for name in before if before[name] != after[name]} == {"score score"}


def test_an_edited_document_changes_the_stages_but_not_the_recipes(
    runtime: Runtime, tiny: Dataset, words_trial: TrialSpec
) -> None:
    first = dataclasses.replace(tiny.documents[0], text=tiny.documents[0].text + " More.")
    edited = dataclasses.replace(tiny, documents=(first, *tiny.documents[1:]))
    one, two = graph.build(words_trial, tiny, runtime), graph.build(words_trial, edited, runtime)
    assert one.chunk.fingerprint != two.chunk.fingerprint
    assert one.chunk.recipe == two.chunk.recipe, "unchanged documents keep their items"
    embeds = [next(n for n in b.score.walk() if n.label == "passage") for b in (one, two)]
    assert embeds[0].recipe == embeds[1].recipe


def test_the_tokenizer_is_in_the_chunks_identity(runtime: Runtime, tiny: Dataset, words_trial: TrialSpec) -> None:
    one = graph.build(words_trial, tiny, runtime).chunk
    other = graph.build(words_trial.vary("chunk.tokenizer", "characters"), tiny, runtime).chunk
    assert one.identity["tokenizer"] != other.identity["tokenizer"]


@pytest.fixture
def given_chunks(tiny: Dataset, tmp_path: Path) -> Dataset:
    """The dataset in a folder with a file of chunks: one a document."""
    lines = [json.dumps({"doc_id": d.doc_id, "start": 0, "end": len(d.text)}) for d in tiny.documents]
    (tmp_path / "chunks.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return dataclasses.replace(tiny, folder=tmp_path)


def test_a_given_file_counts_by_its_content(runtime: Runtime, given_chunks: Dataset, words_trial: TrialSpec) -> None:
    folder = given_chunks.folder
    assert folder is not None
    trial = words_trial.model_copy(update={"chunk": Given()})
    before = graph.build(trial, given_chunks, runtime).chunk.fingerprint
    (folder / "copy.jsonl").write_bytes((folder / "chunks.jsonl").read_bytes())
    copied = trial.vary("chunk.file", "copy.jsonl")
    assert graph.build(copied, given_chunks, runtime).chunk.fingerprint == before
    text = (folder / "chunks.jsonl").read_text(encoding="utf-8")
    (folder / "chunks.jsonl").write_text(text.replace('"start": 0', '"start": 1', 1), encoding="utf-8")
    assert graph.build(trial, given_chunks, runtime).chunk.fingerprint != before


def test_given_chunks_need_their_file(runtime: Runtime, given_chunks: Dataset, words_trial: TrialSpec) -> None:
    assert given_chunks.folder is not None
    trial = words_trial.model_copy(update={"chunk": Given(file="nowhere.jsonl")})
    with pytest.raises(DatasetError, match="the given chunks cannot be read") as caught:
        graph.build(trial, given_chunks, runtime)
    assert caught.value.where == str(given_chunks.folder / "nowhere.jsonl")
    with pytest.raises(SpecError, match="need a dataset that is a folder"):
        graph.build(trial, dataclasses.replace(given_chunks, folder=None), runtime)


def test_an_own_chunker_counts_by_its_source(runtime: Runtime, tiny: Dataset, words_trial: TrialSpec) -> None:
    def mine(text: str) -> list[str]:
        return text.split("\n\n")

    def other(text: str) -> list[str]:
        return text.split("\n")

    one = graph.build(words_trial.vary("chunk", mine), tiny, runtime).chunk
    again = graph.build(words_trial.vary("chunk", mine), tiny, runtime).chunk
    assert one.fingerprint == again.fingerprint
    assert graph.build(words_trial.vary("chunk", other), tiny, runtime).chunk.fingerprint != one.fingerprint


def test_dimensions_that_hnsw_cannot_hold_are_refused_at_plan_time(lab: Lab, tiny: Dataset) -> None:
    trial = TrialSpec(chunk=Fixed(tokenizer="words"), embed=Embed(model="fake:hash-2001"), index=Hnsw())
    with pytest.raises(SpecError, match="halfvec"):
        graph.build(trial, tiny, lab.runtime)
    assert graph.build(trial.vary("index.storage", "halfvec"), tiny, lab.runtime).score.fingerprint
    assert graph.build(trial.vary("index.kind", "exact"), tiny, lab.runtime).score.fingerprint

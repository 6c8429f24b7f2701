"""Three fingerprints: each changes with what it stands for and with nothing else."""

import dataclasses
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.datasets import Dataset, document_digest
from workbench.records import Document, Evidence, Query

BASE = Dataset(
    "base",
    (Document("a", "The cat sat.", "A", None, {"k": [1, "é"]}), Document("b", "The dog ran.")),
    (Query("1", "Who sat?", (Evidence("a", 4, 7),), "cat", {"kind": "x"}), Query("2", "Who flew?")),
)


def prints(dataset: Dataset) -> tuple[str, str, str]:
    return dataset.corpus_fingerprint, dataset.queries_fingerprint, dataset.gold_fingerprint


def edited(what: str, index: int = 0, **changes: Any) -> Dataset:
    rows = list(getattr(BASE, what))
    rows[index] = dataclasses.replace(rows[index], **changes)
    return dataclasses.replace(BASE, **{what: tuple(rows)})


def changed(other: Dataset) -> list[str]:
    names = ("corpus", "queries", "gold")
    return [name for name, a, b in zip(names, prints(BASE), prints(other), strict=True) if a != b]


@pytest.mark.parametrize(
    ("other", "parts"),
    [
        (edited("documents", text="The cat sat!"), ["corpus"]),
        (edited("documents", title="B"), ["corpus"]),
        (edited("documents", uri="u"), ["corpus"]),
        (edited("documents", metadata={"k": [1, "e"]}), ["corpus"]),
        (dataclasses.replace(BASE, documents=BASE.documents[::-1]), ["corpus"]),
        (edited("queries", text="Who sat down?"), ["queries"]),
        (edited("queries", query_id="3"), ["queries", "gold"]),
        (edited("queries", evidence=(Evidence("a", 0, 7),)), ["gold"]),
        (edited("queries", evidence=(Evidence("a", 4, 7, 2),)), ["gold"]),
        (edited("queries", answer="the cat"), ["gold"]),
        (edited("queries", metadata={}), ["gold"]),
        (dataclasses.replace(BASE, name="x", licence="y", notes=("z",), folder=None), []),
        (edited("documents", metadata=dict(reversed({"k": [1, "é"]}.items()))), []),
    ],
)
def test_each_edit_changes_its_own_fingerprints(other: Dataset, parts: list[str]) -> None:
    assert changed(other) == parts


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30))
def test_any_other_text_changes_the_corpus_only(text: str) -> None:
    if text.strip() and len(text) >= 7 and text[4:7].strip():
        assert changed(edited("documents", text=text)) == ([] if text == BASE.documents[0].text else ["corpus"])


STORED = ["e73776e7a778", "0cfa94a8cdd5", "f292970c587d"]


def test_fingerprints_are_stable_over_releases() -> None:
    # These digests name stored results: a change here recomputes everything that people have.
    assert document_digest("é") == "4a99557e4033c3539de2eb65472017cad5f9557f7a0625a09f1c3f6e2ba69c4c"
    assert [p[:12] for p in prints(BASE)] == STORED


def test_equal_datasets_have_equal_fingerprints_and_unequal_texts_are_framed() -> None:
    assert prints(dataclasses.replace(BASE)) == prints(BASE)
    one = Dataset("d", (Document("a", "x"),), (Query("1", "a\nb"),))
    two = Dataset("d", (Document("a", "x"),), (Query("1", "a"), Query("2", "b")))
    assert one.queries_fingerprint != two.queries_fingerprint

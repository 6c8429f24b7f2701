"""Folders are read exactly: offsets are code points, newlines stay, and a round trip loses nothing."""

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from workbench.datasets import Dataset, load
from workbench.datasets.files import locate
from workbench.datasets.texts import first_heading, occurrences
from workbench.errors import DatasetError
from workbench.records import SCHEMAS, Document, Evidence, Query, check_frame, text_lengths

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=60).filter(
    str.strip
)
NAME = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=8).filter(str.strip)
METADATA = st.dictionaries(NAME, st.one_of(st.none(), st.booleans(), st.integers(), TEXT), max_size=2)


@st.composite
def datasets(draw: st.DrawFn) -> tuple[tuple[Document, ...], tuple[Query, ...]]:
    doc_ids = draw(st.lists(NAME, min_size=1, max_size=4, unique=True))
    documents = tuple(
        Document(i, draw(TEXT), draw(st.none() | TEXT), draw(st.none() | TEXT), draw(METADATA)) for i in doc_ids
    )
    queries = []
    for query_id in draw(st.lists(NAME, max_size=3, unique=True)):
        evidence = []
        for d in draw(st.lists(st.sampled_from(documents), max_size=3)):
            start = draw(st.integers(0, len(d.text) - 1))
            end = draw(st.integers(start + 1, len(d.text)))
            if draw(st.booleans()):
                evidence.append(Evidence(d.doc_id, 0, len(d.text), unit="document"))
            elif d.text[start:end].strip():
                evidence.append(Evidence(d.doc_id, start, end, draw(st.integers(1, 3))))
        unique = tuple(dict.fromkeys(evidence))
        queries.append(Query(query_id, draw(TEXT), unique, draw(st.none() | TEXT), draw(METADATA)))
    return documents, tuple(queries)


def write(folder: Path, documents: tuple[Document, ...], queries: tuple[Query, ...], quotes: bool = False) -> None:
    texts = {d.doc_id: d.text for d in documents}
    rows = [dataclasses.asdict(q) for q in queries]
    for row in rows:
        for e in row["evidence"]:
            if quotes and e["unit"] == "span":
                e["quote"] = texts[e["doc_id"]][e["start"] : e["end"]]
    folder.mkdir(parents=True, exist_ok=True)
    for name, items in (("corpus", [dataclasses.asdict(d) for d in documents]), ("queries", rows)):
        lines = (json.dumps(item, ensure_ascii=False) + "\n" for item in items)
        (folder / f"{name}.jsonl").write_bytes("".join(lines).encode())


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(data=datasets(), quotes=st.booleans())
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, data: tuple, quotes: bool) -> None:
    folder = tmp_path_factory.mktemp("d")
    write(folder, *data, quotes=quotes)
    found = load(folder)
    assert (found.documents, found.queries) == data
    check_frame(Document, found.documents_frame, stage="test")
    check_frame(Query, found.queries_frame, stage="test")
    check_frame(Evidence, found.evidence_frame, stage="test", text_lengths=text_lengths(found.documents))
    assert found.queries_frame["evidence"].list.len().sum() == found.evidence_frame.height
    assert found.documents_frame["text"].to_list() == [d.text for d in found.documents]


def test_empty_frames_keep_their_schema(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("# A\ntext")
    found = load(tmp_path)
    assert found.queries == ()
    assert found.queries_frame.schema == SCHEMAS[Query]
    assert found.evidence_frame.schema == SCHEMAS[Evidence]


def test_offsets_count_code_points_of_astral_text(tmp_path: Path) -> None:
    text = "𝔘𝔫𝔦 e\u0301 👩‍💻 code"
    start = text.index("code")
    write(tmp_path, (Document("d", text),), (Query("q", "?", (Evidence("d", start, start + 4),)),), quotes=True)
    e = load(tmp_path).queries[0].evidence[0]
    assert text[e.start : e.end] == "code"
    assert e.start < len(text.encode("utf-16-le")) // 2 - 4  # UTF-16 units would point elsewhere


def test_quotes_are_located(tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl").write_text(
        '{"doc_id": "a", "text": "one two"}\n\n{"doc_id": "b", "text": "two three"}\n'
    )
    evidence = [{"quote": "three"}, {"doc_id": "a", "quote": "two"}, {"doc_id": "b", "unit": "document"}]
    dropped = [{"doc_id": "gone", "unit": "document", "grade": 0}, {"doc_id": "a", "start": 0, "end": 3, "grade": -1}]
    row = {"query_id": "q", "text": "?", "evidence": evidence + dropped, "answer": None}
    (tmp_path / "queries.jsonl").write_text(json.dumps(row))
    assert load(tmp_path).queries[0].evidence == (
        Evidence("b", 4, 9),
        Evidence("a", 4, 7),
        Evidence("b", 0, 9, unit="document"),
    )


def test_overlapping_occurrences_are_counted() -> None:
    assert list(occurrences("aaaa", "aa")) == [0, 1, 2]


def test_jsonl_with_bom_crlf_and_line_separator(tmp_path: Path) -> None:
    body = b'\xef\xbb\xbf{"doc_id": "a", "text": "x\\r\\ny\xe2\x80\xa8z"}\r\n'
    (tmp_path / "corpus.jsonl").write_bytes(body)
    assert load(tmp_path).documents[0].text == "x\r\ny\u2028z"


def test_prose_folder(tmp_path: Path) -> None:
    (tmp_path / "dataset.toml").write_text('name = "mine"\nlicence = "MIT"\n')
    (tmp_path / "README.md").write_text("# A card, no document")
    (tmp_path / "docs" / "deep").mkdir(parents=True)
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "x.md").write_text("hidden")
    (tmp_path / "docs" / "deep" / "b.MD").write_bytes(b"intro\r\n\r\n## Title ##\r\nbody\r\n")
    (tmp_path / "z.txt").write_bytes(b"\xef\xbb\xbf# no heading in plain text\rold\r\n")
    (tmp_path / "docs" / "blank.md").write_text(" \n")
    (tmp_path / "docs" / "README.md").write_text("an inner one is a document")
    found = load(tmp_path)
    assert [d.doc_id for d in found.documents] == ["README.md", "deep/b.MD", "z.txt"]
    assert found.documents[1] == Document("deep/b.MD", "intro\r\n\r\n## Title ##\r\nbody\r\n", "Title")
    assert found.documents[2] == Document("z.txt", "# no heading in plain text\rold\r\n", None)
    assert (found.name, found.licence, found.queries) == ("mine", "MIT", ())
    assert found.notes == ("docs/blank.md is blank and was left out",)
    assert found.folder == tmp_path.resolve()


def test_without_a_card_docs_is_a_folder_like_any_other(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    for name in ("a.md", "docs/a.md"):
        (tmp_path / name).write_text(name)
    assert [d.doc_id for d in load(tmp_path).documents] == ["a.md", "docs/a.md"]
    (tmp_path / "dataset.toml").touch()
    with pytest.raises(DatasetError, match=r"doc_id 'a.md' is taken"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["node_modules", "__pycache__", ".git", ".venv", ".hidden"])
def test_folders_of_tools_hold_no_documents(tmp_path: Path, name: str) -> None:
    for folder in (tmp_path / name / "deep", tmp_path / "src" / name, tmp_path / f"my{name}"):
        folder.mkdir(parents=True)
        (folder / "a.md").write_text("text")
    assert [d.doc_id for d in load(tmp_path).documents] == [f"my{name}/a.md"]


SAID = "“Don’t,” she said – and\tleft (at 5.0)."
CHANGED = "but for case, white space, quotation marks and dashes it stands at"


@pytest.mark.parametrize(
    ("quote", "hint"),
    [
        ("she said – and left", "but for white space it stands at 9:28 of 'a'"),
        ("she said - and left", f"{CHANGED} 9:28 of 'a'"),
        ('"Don\'t," she', f"{CHANGED} 0:12 of 'a'"),
        ("«DON`T,»", f"{CHANGED} 0:8 of 'a'"),
        ("Left (AT 5.0)", f"{CHANGED} 24:37 of 'a'"),
    ],
)
def test_a_quote_that_copying_changed_is_shown_its_place(quote: str, hint: str) -> None:
    assert locate(quote, {"a": SAID, "b": "other"}) == f"quote {quote!r} is not in 2 documents; {hint}"


@pytest.mark.parametrize("quote", ["left (at 5x0)", "she said-and left", "DON", "'Don't,'"])
def test_a_quote_of_other_words_or_of_two_places_is_shown_none(quote: str) -> None:
    assert locate(quote, {"a": SAID, "b": "I don’t."}) == f"quote {quote!r} is not in 2 documents"


COPIED = str.maketrans("'\"-", "’”–")


@given(st.text("ab'\"- .*(", min_size=1, max_size=12).filter(str.strip))
def test_marks_that_an_editor_replaced_are_found_again(quote: str) -> None:
    text = f"[{quote.translate(COPIED)}]"
    found = locate(quote, {"a": text})
    if isinstance(found, tuple):
        assert text[found[1] : found[2]] == quote
    elif text.count(quote.translate(COPIED).strip()) == 1:
        start = text.index(quote.translate(COPIED).strip())
        assert f"it stands at {start}:{start + len(quote.strip())} of 'a'" in found


def test_readme_is_a_document_of_a_plain_folder(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("text")
    assert [d.doc_id for d in load(tmp_path).documents] == ["README.md"]


def test_questions_csv(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_bytes(b"# A\r\nThe cat sat.\r\nOn the mat.\r\n")
    (tmp_path / "questions.csv").write_bytes(
        b"\xef\xbb\xbfquestion,quote,answer\r\n"
        b'Who sat?,"The cat sat.\r\nOn",cat\r\n'
        b"\r\n"
        b"Who flew?,,\r\n"
        b"Who sat?,the mat,\r\n"
    )
    first, second = load(tmp_path).queries
    assert first == Query("q-001", "Who sat?", (Evidence("a.md", 5, 21), Evidence("a.md", 22, 29)), "cat")
    assert second == Query("q-002", "Who flew?")


def test_misnamed_and_ignored_question_files_are_noted(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("text")
    (tmp_path / "querys.jsonl").write_text("")
    assert "querys.jsonl is not read" in load(tmp_path).notes[0]
    (tmp_path / "queries.jsonl").write_text("")
    (tmp_path / "questions.csv").write_text("")
    assert load(tmp_path).notes == ("questions.csv is not read, because there is queries.jsonl",)


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("# One", "One"),
        ("```\n# code\n```\n## Two #\n", "Two"),
        ("~~~~\n# a\n~~~\n# b\n~~~~\n# c", "c"),
        ("#hashtag\n#\n", None),
        ("plain", None),
        ("# C# and F#", "C# and F#"),
    ],
)
def test_first_heading(text: str, title: str | None) -> None:
    assert first_heading(text) == title


def test_limited_keeps_the_corpus() -> None:
    found = Dataset("d", (Document("a", "x"),), (Query("1", "?"), Query("2", "?")))
    assert [q.query_id for q in found.limited(1).queries] == ["1"]
    assert found.limited(1).corpus_fingerprint == found.corpus_fingerprint
    assert found.limited(None) is found.limited(9) is found
    assert found.limited(0).queries == ()
    with pytest.raises(DatasetError, match="negative"):
        found.limited(-1)


def test_html_is_escaped() -> None:
    page = Dataset("<b>", (Document("a", "x"),), licence="<script>", notes=("<i>",))._repr_html_()
    assert "<script>" not in page
    assert "<b>" not in page
    assert "&lt;i&gt;" in page

"""Breadcrumbs: where in its document a chunk stands, from the document's own structure."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

from workbench.records import Document
from workbench.stages.contextual._parts import Parts
from workbench.stages.contextual.definitions import LANGUAGES, Language, definitions
from workbench.stages.contextual.sections import sections

SEPARATOR = " > "
_LOOKED_AT, _FEWEST = 20_000, 4
"""Code points of a text without a known ending that are looked at, and the lines it must have to be code."""
_TEXT = re.compile("md|markdown|mdx|rst|txt|text|adoc|asciidoc|org|html?|tex|pdf|docx")
_ENDING = re.compile(r"[^\s?#]*\.([A-Za-z]{1,10})(?:[?#]\S*)?")
_COMMENT = re.compile(r"#|//|/?\*")
_PYTHON = re.compile(
    r"(?:async\s+def|def|class|elif|with|for|if)\s+\w.*:$|(?:from\s+[\w.]+\s+)?import\s+[\w.]+|@\w|return\b|[\w.]+\s=\s"
)


def breadcrumbs(document: Document, spans: Sequence[tuple[int, int]]) -> list[str]:
    """One breadcrumb a span: "title > heading > heading; heading; heading".

    First the title and the headings (in source code: the definitions) around the span's start, or around the
    first character after it that is no blank; then those that begin further on in it. A heading that repeats
    the one before it is left out, as the first one often repeats the title.
    """
    text, title = document.text, " ".join((document.title or "").split())
    language = language_of(document)
    parts = Parts(sections(text) if language is None else definitions(text, language))
    crumbs = []
    for start, end in spans:
        first = end - len(text[start:end].lstrip())
        around = _unrepeated([title, *parts.around(first)])
        crumbs.append("; ".join(_unrepeated([SEPARATOR.join(around), *parts.beginning(first, end)])))
    return crumbs


def _unrepeated(names: Sequence[str]) -> list[str]:
    return [name for above, name in itertools.pairwise(["", *names]) if name.casefold() != above.casefold()]


def language_of(document: Document) -> Language | None:
    """The language of source code; None for a text.

    Decided by the ending of a file name that is the title, the uri or the doc_id: a text's before a program's.
    Where none has a known ending the content decides.
    """
    names = [_ENDING.fullmatch(name) for name in (document.title, document.uri, document.doc_id) if name]
    endings = [name[1].lower() for name in names if name]
    if any(_TEXT.fullmatch(ending) for ending in endings):
        return None
    known = [LANGUAGES[ending] for ending in endings if ending in LANGUAGES]
    return known[0] if known else _guess(document.text)


def _guess(text: str) -> Language | None:
    """C's family where lines end in braces and semicolons, Python's where they begin with its keywords."""
    lines = [line for line in map(str.strip, text[:_LOOKED_AT].splitlines()) if line and not _COMMENT.match(line)]
    if len(lines) < _FEWEST or any(line.startswith(("```", "~~~")) for line in lines):
        return None
    share = len(lines) / 4
    if sum(line.endswith(("{", "}", ";")) for line in lines) > share:
        return LANGUAGES["c"]
    return LANGUAGES["py"] if sum(_PYTHON.match(line) is not None for line in lines) > share else None

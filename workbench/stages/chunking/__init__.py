"""The chunking stage: from a spec to a function from a document to spans, and from documents to a Chunk frame.

One file a family: fixed, recursive, sentence, markdown, given, custom. `_spans.py` holds what they share.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import assert_never

import polars as pl

from workbench.errors import FrameError, SpecError
from workbench.models.protocols import Tokenizer
from workbench.models.tokenizers import load_tokenizer
from workbench.records import SCHEMAS, Chunk, Document, check_frame, text_lengths
from workbench.specs import ChunkSpec, Fixed, Given, Markdown, Python, Recursive, Sentence
from workbench.stages.chunking import custom, fixed, given, markdown, recursive, sentence
from workbench.stages.chunking.custom import source_digest
from workbench.stages.chunking.given import read_given

__all__ = ["CODE_VERSIONS", "Chunker", "build", "chunk_documents", "read_given", "source_digest"]

Chunker = Callable[[Document], Sequence[tuple[int, int]]]
"""From a document to its chunks: (start, end) in code points, ordered, no two alike, none blank."""

CODE_VERSIONS: Mapping[str, int] = MappingProxyType(
    {"fixed": 1, "recursive": 1, "sentence": 1, "markdown": 1, "given": 1, "python": 1}
)
"""The code version of each kind, part of its fingerprint: raised whenever its output changes."""


def build(
    spec: ChunkSpec,
    tokenizer: Tokenizer | None = None,
    given: Mapping[str, Sequence[tuple[int, int]]] | None = None,
) -> Chunker:
    """A chunker from its spec.

    Sizes are in tokens of `tokenizer` (the spec's own, loaded by name, where none is passed): a chunk
    has as many as start within it. Every chunk has at most `spec.tokens`, but for a single character
    that has more. `given` holds the spans of kind "given", as `read_given` returns them.

    Raises:
        ModelError: the tokenizer cannot be loaded.
        SpecError: kind "given" without spans, or kind "python" with a target that cannot be imported.
    """
    match spec:
        case Recursive():
            return partial(recursive.pieces, spec, recursive.levels(spec.separators), _tokenizer(spec, tokenizer))
        case Sentence():
            return partial(sentence.sentences, spec, _tokenizer(spec, tokenizer))
        case Fixed():  # after its subclasses
            return partial(fixed.windows, spec, _tokenizer(spec, tokenizer))
        case Markdown():
            return partial(markdown.sections, spec, _tokenizer(spec, tokenizer))
        case Given():
            return _given(spec, given)
        case Python():
            return partial(custom.by_function, spec.target, custom.resolve(spec))
        case _:
            assert_never(spec)


def _tokenizer(spec: Fixed | Markdown, tokenizer: Tokenizer | None) -> Tokenizer:
    return load_tokenizer(spec.tokenizer) if tokenizer is None else tokenizer


def _given(spec: Given, spans: Mapping[str, Sequence[tuple[int, int]]] | None) -> Chunker:
    if spans is None:
        raise SpecError(f"the chunks of {spec.file!r} were not passed", where="chunk", hint="read them with read_given")
    return partial(given.from_mapping, spans)


def chunk_documents(chunker: Chunker, documents: Sequence[Document]) -> pl.DataFrame:
    """The chunks of all documents as a Chunk frame; chunk_no counts from 0 over the documents in order.

    Returns:
        [chunks, 4] columns chunk_no, doc_id, start, end (code points, end exclusive).

    Raises:
        FrameError: two documents share a doc_id; a span is out of range or occurs twice.
        StageError: a person's own chunker failed.
    """
    doubled = [doc_id for doc_id, n in Counter(document.doc_id for document in documents).items() if n > 1]
    if doubled:
        raise FrameError("documents do not fit", [f"duplicate doc_id {d!r}" for d in doubled], where="chunk")
    doc_ids: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    faults: list[str] = []
    for document in documents:
        spans = chunker(document)
        if len(set(spans)) < len(spans):
            twice = sorted(span for span, n in Counter(spans).items() if n > 1)
            faults += [f"span {start}:{end} of {document.doc_id!r} occurs twice" for start, end in twice[:20]]
        doc_ids += [document.doc_id] * len(spans)
        starts += [start for start, _ in spans]
        ends += [end for _, end in spans]
    if faults:
        raise FrameError("Chunk frame does not fit", faults, where="chunk")
    data = pl.DataFrame(
        {"chunk_no": range(len(starts)), "doc_id": doc_ids, "start": starts, "end": ends}, schema=SCHEMAS[Chunk]
    )
    return check_frame(Chunk, data, stage="chunk", text_lengths=text_lengths(documents))

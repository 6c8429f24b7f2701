"""The context stage: what stands before a chunk where it is indexed, so that it can be found by where it is from.

One file a family: document (title, lead), headings, generated (summary, situated). `definitions` and `sections`
find the structure that headings are made of, `answers` cleans what a model says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType

import polars as pl

from workbench.models.protocols import ChatTokenizer, Tokenizer
from workbench.models.tokenizers import load_tokenizer
from workbench.records import Chunk, Document, check_frame, text_lengths
from workbench.specs import Headings, Lead, Situated, Summary, Title
from workbench.stages.contextual.answers import clean
from workbench.stages.contextual.document import leads, titles
from workbench.stages.contextual.generated import Requests, situations, summaries
from workbench.stages.contextual.headings import breadcrumbs
from workbench.stages.prompting import Prompt

__all__ = ["CODE_VERSIONS", "Requests", "clean", "contexts", "contextual_text", "requests"]

CODE_VERSIONS: Mapping[str, int] = MappingProxyType({"title": 1, "headings": 1, "lead": 1, "summary": 1, "situated": 1})
"""The code version of each kind, part of its fingerprint: raised whenever its output or its requests change."""


def contextual_text(context: str, text: str) -> str:
    """What is indexed: the context, a blank line, the chunk; an empty context adds nothing."""
    return f"{context}\n\n{text}" if context else text


def contexts(
    spec: Title | Headings | Lead,
    documents: Sequence[Document],
    chunks: pl.DataFrame,
    tokenizer: Tokenizer | None = None,
) -> list[str]:
    """The context of each row of a Chunk frame, in its order, from the documents alone.

    `tokenizer` counts for kind "lead"; the spec's own is loaded where none is passed.

    Raises:
        FrameError: the chunks do not fit, or not the documents.
        ModelError: the tokenizer cannot be loaded.
    """
    match spec:
        case Title():
            family = titles
        case Headings():
            family = breadcrumbs
        case Lead():
            family = partial(leads, spec.tokens, load_tokenizer(spec.tokenizer) if tokenizer is None else tokenizer)
    found: dict[int, str] = {}
    spans = _by_document(documents, chunks)
    for document in documents:
        own = spans.get(document.doc_id, {})
        found.update(zip(own, family(document, list(own.values())), strict=True))
    return [found[chunk_no] for chunk_no in chunks["chunk_no"]]


def requests(
    spec: Summary | Situated,
    prompt: Prompt,
    documents: Sequence[Document],
    chunks: pl.DataFrame,
    tokenizer: ChatTokenizer,
) -> Requests:
    """What a model is asked for the contexts of a Chunk frame, in sending order; `clean` its answers.

    Each prompt and `spec.max_tokens` fit into `spec.max_model_len` as `tokenizer` counts.

    Raises:
        FrameError: the chunks do not fit, or not the documents.
        SpecError: the prompt asks for values that there are not, or leaves no room for text.
    """
    spans = _by_document(documents, chunks)
    if isinstance(spec, Summary):
        return summaries(spec, prompt, documents, spans, tokenizer)
    return situations(spec, prompt, documents, spans, tokenizer)


def _by_document(documents: Sequence[Document], chunks: pl.DataFrame) -> dict[str, dict[int, tuple[int, int]]]:
    """doc_id -> chunk_no -> span, in the frame's order."""
    spans: dict[str, dict[int, tuple[int, int]]] = {}
    for chunk_no, doc_id, start, end in check_frame(
        Chunk, chunks, stage="context", text_lengths=text_lengths(documents)
    ).iter_rows():
        spans.setdefault(doc_id, {})[chunk_no] = start, end
    return spans

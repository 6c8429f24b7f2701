"""Contexts that a model writes: a summary of each document, or a place in its document for each chunk.

Situating chunks is the method of Anthropic, "Introducing Contextual Retrieval" (September 2024); there the model
sees the whole document. Here a long one is shown through a window around the chunk, because a small model's is
too short for it and a part far away says little about the chunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from workbench.errors import SpecError
from workbench.models.protocols import ChatTokenizer, Request
from workbench.records import Document
from workbench.specs import Sampled, Situated, Summary
from workbench.stages.contextual._windows import Cells, window
from workbench.stages.prompting import Prompt, chat_request

Span = tuple[int, int]
Asked = tuple[tuple[int, ...], Request]
"""The chunk_nos that a request's answer is for, and the request."""


@dataclass(frozen=True)
class Requests:
    """Requests in the order in which they are best sent: those with an equal prefix follow each other."""

    asked: Sequence[Asked]
    cut: int
    """Requests that have no room for what they are about: the chunk, or `window` tokens of the document."""

    def __iter__(self) -> Iterator[Asked]:
        return iter(self.asked)

    def __len__(self) -> int:
        return len(self.asked)


def summaries(
    spec: Summary,
    prompt: Prompt,
    documents: Sequence[Document],
    chunks: Mapping[str, Mapping[int, Span]],
    tokenizer: ChatTokenizer,
) -> Requests:
    """One request a document that has chunks: its first `spec.window` tokens, or as many as fit.

    Raises:
        SpecError: the prompt needs other values than title and document, or leaves no room for a document.
    """
    asked: list[Asked] = []
    cut = 0
    for document in documents:
        if not chunks.get(document.doc_id):
            continue
        cells = Cells(document.text, tokenizer)
        wanted = stop = min(len(cells), spec.window)
        while True:
            start, end = cells.offsets(0, stop)
            request, excess = _ask(spec, prompt, tokenizer, title=document.title, document=document.text[start:end])
            if excess <= 0:
                break
            stop = _left(stop - excess, spec)
        asked.append((tuple(chunks[document.doc_id]), request))
        cut += stop < wanted
    return Requests(asked, cut)


def situations(
    spec: Situated,
    prompt: Prompt,
    documents: Sequence[Document],
    chunks: Mapping[str, Mapping[int, Span]],
    tokenizer: ChatTokenizer,
) -> Requests:
    """One request a chunk, by document, then window, then place in it; what is shown holds the chunk.

    Raises:
        SpecError: the prompt needs other values than title, document and chunk, or leaves no room for a chunk.
    """
    asked: list[Asked] = []
    cut = 0
    for document in documents:
        cells = Cells(document.text, tokenizer)
        found = []
        for chunk_no, (start, end) in chunks.get(document.doc_id, {}).items():
            shown, request, short = _situate(spec, prompt, tokenizer, document, cells, (start, end))
            found.append((shown, start, end, chunk_no, request))
            cut += short
        found.sort(key=lambda one: one[:4])
        asked += [((chunk_no,), request) for *_, chunk_no, request in found]
    return Requests(asked, cut)


def _situate(
    spec: Situated, prompt: Prompt, tokenizer: ChatTokenizer, document: Document, cells: Cells, chunk: Span
) -> tuple[Span, Request, bool]:
    """The span of the document shown, the request, and whether the chunk was cut.

    A window that does not fit is made smaller by quarters, not just as small as it must be: neighbours of about
    the same length then still share theirs.
    """

    def ask(first: int, stop: int, chunk: Span) -> tuple[Span, Request, int]:
        low, high = cells.offsets(first, stop)
        texts = {"document": document.text[low:high], "chunk": document.text[slice(*chunk)]}
        return (low, high), *_ask(spec, prompt, tokenizer, title=document.title, **texts)

    first, stop = cells.holding(*chunk)
    size = spec.window
    while True:
        low, high = window(len(cells), size, first, stop)
        shown, request, excess = ask(low, high, chunk)
        if excess <= 0:
            return shown, request, False
        if (low, high) == (first, stop):
            break
        while size > max(0, high - low - excess):
            size = size * 3 // 4
    while excess > 0:
        # What is cut here is gone from both places: the document and the chunk.
        stop = first + _left(stop - first - (excess + 1) // 2, spec)
        shown, request, excess = ask(first, stop, (chunk[0], min(chunk[1], cells.offsets(first, stop)[1])))
    return shown, request, True


def _ask(spec: Sampled, prompt: Prompt, tokenizer: ChatTokenizer, **values: str | None) -> tuple[Request, int]:
    """A request, and by how many tokens its prompt and answer exceed the model's window."""
    messages = prompt.messages(**values)
    return chat_request(spec, messages), len(tokenizer.chat_ids(messages)) + spec.max_tokens - spec.max_model_len


def _left(tokens: int, spec: Sampled) -> int:
    if tokens <= 0:
        raise SpecError(
            f"prompt and answer leave no room for text in {spec.max_model_len} tokens",
            where="context.max_model_len",
            hint="raise max_model_len, lower max_tokens, or shorten the prompt",
        )
    return tokens

"""A person's own chunker, "module:function" or a plain callable, behind the same door as the others."""

from __future__ import annotations

import importlib
import itertools
import operator
from collections.abc import Callable, Iterable
from typing import Any

from workbench import sources
from workbench.errors import SpecError, StageError, did_you_mean
from workbench.records import Document
from workbench.specs import Python
from workbench.stages.chunking._spans import Spans, not_blank

Function = Callable[[str], Iterable[Any]]


def resolve(spec: Python) -> Function:
    """The callable of a spec: the one it travels with, or its "module:function" imported.

    Raises:
        SpecError: the module cannot be imported, or has no such callable.
    """
    if spec.function is not None:
        return spec.function
    module_name, _, name = spec.target.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:  # importing runs a person's code, which can raise anything
        raise SpecError(
            f"module {module_name!r} cannot be imported: {type(error).__name__}: {error}",
            where=f"chunk.target = {spec.target!r}",
            hint="install it, or put its folder on PYTHONPATH",
        ) from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise SpecError(
                f"{module_name!r} has no {name!r}",
                where=f"chunk.target = {spec.target!r}",
                hint=did_you_mean(part, [n for n in vars(found) if not n.startswith("_")] or ["nothing"])[:200],
            )
        found = getattr(found, part)
    if not callable(found):
        raise SpecError(
            f"{name!r} is a {type(found).__name__}, not a function",
            where=f"chunk.target = {spec.target!r}",
            hint="expected a function(text) that returns (start, end) pairs or strings of the text",
        )
    function: Function = found
    return function


def source_digest(spec: Python) -> str:
    """The digest of all that the function's results depend on (`workbench.sources`), but for `version`.

    Raises:
        SpecError: the target cannot be imported, or its source cannot be read.
    """
    if spec.function is not None and spec.source is not None:
        return spec.source
    found = sources.source_digest(resolve(spec))
    if spec.source not in (None, found):
        raise SpecError(
            f"{spec.target} is not the function that this spec was written for",
            where="chunk.source",
            hint="leave source out to use the function as it is now",
        )
    return found


def by_function(target: str, function: Function, document: Document) -> Spans:
    """What the function returns for the text, as spans: ordered, blank ones left out.

    It may return (start, end) pairs of code-point offsets in any order, or strings that occur in the text
    in the order given. A string that directly follows the one before (blanks apart) is taken there; any
    other at its first occurrence after the start of the one before, so that strings may overlap.

    Raises:
        StageError: the function raises, or returns something else, a span out of range or twice, or a
            string that is not in the text; `where` names the target and the document.
    """
    where = f"{target}, document {document.doc_id!r}"
    try:
        results = list(function(document.text))
    except Exception as error:  # a person's code can raise anything
        raise StageError(f"the chunker raised {type(error).__name__}: {error}", where=where) from error
    if any(isinstance(result, str) for result in results):
        spans = _located(results, document.text, where)
    else:
        spans = [_span(result, len(document.text), where) for result in results]
    ordered = sorted(spans)
    for one, other in itertools.pairwise(ordered):
        if one == other:
            raise StageError(f"the chunker returned the span {one[0]}:{one[1]} twice", where=where)
    return not_blank(document.text, ordered)


def _unexpected(result: Any, where: str) -> StageError:
    return StageError(
        f"the chunker returned {result!r:.80}",
        where=where,
        hint="expected (start, end) pairs of whole numbers, or strings of the text; not a mixture",
    )


def _span(result: Any, length: int, where: str) -> tuple[int, int]:
    try:
        first, last = result
        start, end = operator.index(first), operator.index(last)
    except (TypeError, ValueError):
        raise _unexpected(result, where) from None
    if not 0 <= start < end <= length:
        raise StageError(
            f"the chunker returned the span {start}:{end}, which is empty or outside the text",
            where=where,
            hint=f"expected 0 <= start < end <= {length}, in code points",
        )
    return start, end


def _located(results: list[Any], text: str, where: str) -> Spans:
    spans: Spans = []
    start, end = -1, 0
    for result in results:
        if not isinstance(result, str):
            raise _unexpected(result, where)
        if not result or result.isspace():
            continue
        at = text.find(result, end)
        if at < 0 or text[end:at].strip():
            at = text.find(result, start + 1)
        if at < 0:
            raise StageError(
                f"no chunker returns text that is not in the document: {result!r:.80} is not found after offset {end}",
                where=where,
                hint="return the text unchanged and in order, or return (start, end) pairs",
            )
        start, end = at, at + len(result)
        spans.append((start, end))
    return spans

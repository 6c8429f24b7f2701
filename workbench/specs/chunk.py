"""How documents become chunks, and a person's own function in the place of a stage."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PrivateAttr, model_validator

from workbench.sources import source_digest
from workbench.specs.base import Name, Spec, Tokens

TARGET = re.compile(r"^[A-Za-z_][\w.]*:[A-Za-z_<][\w.<>]*$")


class Fixed(Spec):
    """Windows of `tokens` tokens; each starts `tokens - overlap` after the one before."""

    kind: Literal["fixed"] = "fixed"
    tokens: Tokens = 200
    overlap: Annotated[int, Field(ge=0)] = 0
    tokenizer: Name = "wordpiece"

    @model_validator(mode="after")
    def _overlap_fits(self) -> Self:
        if self.overlap >= self.tokens:
            raise ValueError(f"overlap ({self.overlap}) must be smaller than tokens ({self.tokens})")
        return self


class Recursive(Fixed):
    """Split at the first separator that helps, merge neighbours up to `tokens`, recurse into what is too long."""

    kind: Literal["recursive"] = "recursive"  # type: ignore[assignment]
    separators: tuple[str, ...] = ("\n\n", "\n", ". ", "? ", "! ", " ", "")


class Sentence(Fixed):
    """Whole sentences up to `tokens`; `overlap` tokens of whole sentences are repeated."""

    kind: Literal["sentence"] = "sentence"  # type: ignore[assignment]


class Markdown(Spec):
    """Sections, tables, lists and code blocks of Markdown kept whole where they fit in `tokens`."""

    kind: Literal["markdown"] = "markdown"
    tokens: Tokens = 200
    tokenizer: Name = "wordpiece"


class Given(Spec):
    """Chunks from a file of {doc_id, start, end} lines in the dataset's folder."""

    kind: Literal["given"] = "given"
    file: Name = "chunks.jsonl"

    @model_validator(mode="after")
    def _inside_the_folder(self) -> Self:
        if Path(self.file).is_absolute() or ".." in Path(self.file).parts:
            raise ValueError(f"file {self.file!r} must lie inside the dataset's folder")
        return self


class Python(Spec):
    """A person's own function in the place of a stage; its identity is its source and `version`.

    `target` is "module:function". A callable may be given instead; then `source` is its digest
    (`sources.source_digest`) and the callable itself travels beside the spec, within this process only.
    """

    kind: Literal["python"] = "python"
    target: Annotated[str, Field(pattern=TARGET.pattern)]
    version: Annotated[int, Field(ge=1)] = 1
    source: str | None = None
    _function: Callable[..., Any] | None = PrivateAttr(default=None)

    @classmethod
    def of(cls, function: Callable[..., Any], *, version: int = 1) -> Self:
        """Wrap a callable (a notebook cell's chunker).

        Raises:
            SpecError: its source, or a value that it reads, cannot be identified.
        """
        name = getattr(function, "__qualname__", type(function).__name__)
        spec = cls(target=f"{function.__module__}:{name}", version=version, source=source_digest(function))
        spec._function = function
        return spec

    @property
    def function(self) -> Callable[..., Any] | None:
        return self._function


ChunkSpec = Annotated[Fixed | Recursive | Sentence | Markdown | Given | Python, Field(discriminator="kind")]

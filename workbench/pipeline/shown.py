"""Results that show themselves: a table in a notebook, the same as plain text when they are printed."""

from __future__ import annotations

import html
from abc import ABC, abstractmethod
from collections.abc import Sequence

Rows = tuple[str, Sequence[str], Sequence[Sequence[str]]]
"""A title, the heads of the columns, and the cells."""


class Shown(ABC):
    """Base of results; a subclass says what its table is."""

    @abstractmethod
    def _rows(self) -> Rows: ...

    def _repr_html_(self) -> str:
        title, head, rows = self._rows()
        cells = "".join(f"<th>{html.escape(h)}</th>" for h in head)
        body = "".join("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>" for row in rows)
        caption = f"<caption>{html.escape(title)}</caption>"
        return f"<table>{caption}<thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>"

    def __str__(self) -> str:
        title, head, rows = self._rows()
        lines = [[" ".join(cell.split()) for cell in row] for row in (head, *rows)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
        text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
        return "\n".join([title, *(line.rstrip() for line in text)])

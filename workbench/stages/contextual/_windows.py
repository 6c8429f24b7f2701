"""Windows on a document: which part of a long one is shown around a span.

A text is divided into cells, one a token: each reaches from the start of its token to the start of the
next, so that cells cover the text whole. Windows count cells.
"""

from __future__ import annotations

import numpy as np

from workbench.models.protocols import ChatTokenizer, Tokenizer


class Cells:
    """The cells of one text."""

    def __init__(self, text: str, tokenizer: Tokenizer | ChatTokenizer) -> None:
        inner = tokenizer.spans(text)[1:, 0]
        self._edges = np.concatenate([[0], inner, [len(text)]]).astype(np.int64)

    def __len__(self) -> int:
        return len(self._edges) - 1

    def offsets(self, first: int, stop: int) -> tuple[int, int]:
        """The span of text of cells [first, stop)."""
        return int(self._edges[first]), int(self._edges[stop])

    def holding(self, start: int, end: int) -> tuple[int, int]:
        """The fewest cells [first, stop) that hold text[start:end]; end > start."""
        first = int(np.searchsorted(self._edges, start, "right")) - 1
        return first, int(np.searchsorted(self._edges, end, "left"))


def window(cells: int, size: int, first: int, stop: int) -> tuple[int, int]:
    """The window of `size` of a text's cells that is shown around its cells [first, stop).

    The whole text where it fits. Else windows start every half of their size, the last where the text's end
    lets it; of those that hold the cells the one with the nearest centre is taken, the earlier of two. Cells
    that no window holds, being more than half of one, get their own: as large, with them in its middle, or
    just as large as they are.
    """
    if cells <= size:
        return 0, cells
    step, last = max(1, size // 2), cells - size
    ideal = (first + stop - size) // 2
    nearby = range(ideal // step, ideal // step + 2)
    starts = {min(max(k, 0) * step, last) for k in nearby}
    fitting = [start for start in starts if start <= first and stop <= start + size]
    if fitting:
        start = min(fitting, key=lambda s: (abs(2 * s + size - first - stop), s))
        return start, start + size
    size = max(size, stop - first)
    start = min(max(0, (first + stop - size) // 2), cells - size)
    return start, start + size

"""Passages cut after a token, so that a prompt fits its model's window."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from workbench.errors import InputError
from workbench.models.protocols import ChatTokenizer

T = TypeVar("T")


def fit(
    passages: Sequence[str],
    tokens: int,
    budget: int,
    tokenizer: ChatTokenizer,
    render: Callable[[Sequence[str]], tuple[T, int]],
) -> T:
    """What `render` makes of the passages, each cut to its first `tokens` tokens, or to fewer where need be.

    `render` returns a prompt and its number of tokens; the longest equal cut within `budget` is found by
    bisection, and what is returned was counted.

    Raises:
        InputError: the prompt is too long without any passage.
    """
    ends = [tokenizer.spans(passage)[:, 1].tolist() for passage in passages]

    def cut(size: int) -> tuple[T, int]:
        return render(
            [p if len(e) <= size else p[: e[size - 1]] if size else "" for p, e in zip(passages, ends, strict=True)]
        )

    whole, count = cut(tokens)
    if count <= budget:
        return whole
    best, count = cut(0)
    if count > budget:
        raise InputError(
            f"the question alone makes a prompt of {count} tokens, and there is room for {budget}",
            where="rerank.max_model_len",
            hint="raise it, ask for a smaller window, or shorten the question or the prompt",
        )
    low, high = 0, min(tokens, max(map(len, ends), default=0))
    while high - low > 1:
        prompt, count = cut(middle := (low + high) // 2)
        if count <= budget:
            best, low = prompt, middle
        else:
            high = middle
    return best

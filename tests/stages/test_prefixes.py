"""The bound on prefix caching, against a cache that is played through."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.stages.prefixes import most_cached

PROMPTS = st.lists(st.lists(st.integers(0, 1), max_size=9), max_size=5)


def served(prompts: Sequence[Sequence[int]], block: int) -> int:
    """Tokens that a cache serves which keeps every whole block of each prompt, in this order."""
    cache: set[tuple[int, ...]] = set()
    total = 0
    for prompt in prompts:
        hit = 0
        while hit + block < len(prompt) and tuple(prompt[: hit + block]) in cache:
            hit += block
        total += hit
        cache |= {tuple(prompt[:end]) for end in range(block, len(prompt) + 1, block)}
    return total


@given(PROMPTS, st.integers(1, 4))
def test_is_what_the_best_order_is_served(prompts: list[list[int]], block: int) -> None:
    assert most_cached(prompts, block) == max(served(order, block) for order in itertools.permutations(prompts))


@given(PROMPTS, st.integers(1, 4))
def test_prompts_sent_by_length_reach_it(prompts: list[list[int]], block: int) -> None:
    assert most_cached(prompts, block) == served(sorted(prompts, key=len), block)


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        ([], 0),
        ([[], []], 0),
        ([[1] * 128], 0),
        ([[1] * 128] * 2, 0),  # the last token is never served, so the only block is not
        ([[1] * 129] * 3, 256),
        ([[1] * 300, [1] * 256 + [2] * 9, [2] + [1] * 299], 256),
        ([[1 << 33] * 129, [1] * 129], 0),
    ],
)
def test_known_cases(prompts: list[list[int]], expected: int) -> None:
    assert most_cached(iter(prompts), 128) == expected

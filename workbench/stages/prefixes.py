"""The most that exact-prefix caching can serve of a set of prompts."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Sequence


def most_cached(prompts: Iterable[Sequence[int]], block: int) -> int:
    """Prompt tokens that an infinite cache of whole blocks serves, each prompt sent once, in the best order.

    A block is found by its own tokens and all before it, and somebody must have computed it first. The last
    token of a prompt is never served, for its output is what is asked for: n tokens use (n - 1) // block
    blocks of the cache, but leave n // block in it. So a block with a prompt that ends where it ends is free
    for all others; any other costs the first of those that use it. Prompts sent by length reach this.

    `block` is at least 1 token. Memory is 16 bytes a distinct block, and what a set needs.
    """
    uses = 0
    used: set[bytes] = set()
    free: set[bytes] = set()
    for prompt in prompts:
        ids = memoryview(array("q", prompt)).cast("B")
        prefix = hashlib.blake2b(digest_size=16)
        width, blocks = block * 8, (len(prompt) - 1) // block if prompt else 0
        uses += blocks
        for at in range(0, blocks * width, width):
            prefix.update(ids[at : at + width])
            used.add(prefix.digest())
        if prompt and len(prompt) % block == 0:
            prefix.update(ids[blocks * width :])
            free.add(prefix.digest())
    return block * (uses - len(used - free))

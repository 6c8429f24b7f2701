"""Answers from numbered passages: what a model is shown within its window, and what its answer says of itself."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from workbench.errors import InputError
from workbench.models.protocols import Chat, ChatTokenizer
from workbench.records import Query
from workbench.specs import Answer
from workbench.stages.prompting import Prompt

CODE_VERSION = 1
"""Raised when the same passages would make other messages, or other things would be read in the same answer."""

REFUSAL = "The passages do not contain the answer."
"""What a model is asked to write where no passage answers the question; `refusal` in a template."""
LEAD_IN = 8
"""Words that may stand before a refusal ("I'm sorry, but"); behind more of them it is part of an answer."""
_REFUSED = re.compile(r"\bpassages? do(?:es)? not contain (?:the|an|any) answer\b")

_ITEM = r"[0-9]{1,9}(?:\s*[-–]\s*[0-9]{1,9})?"
CITATION = re.compile(rf"\[\s*{_ITEM}(?:\s*[,;]\s*{_ITEM})*\s*\]")
"""A citation mark: [1], [1, 2], [1-3]."""


@dataclass(frozen=True, slots=True)
class Passage:
    """A retrieved chunk as a model reads it; `title` may be empty."""

    chunk_no: int
    title: str
    text: str


@dataclass(frozen=True, slots=True)
class Asked:
    """What a model is asked for one query."""

    messages: Chat
    shown: tuple[int, ...]
    """Chunk numbers of the passages that it is shown; the one at index i has the number i + 1."""
    dropped: int
    """How many passages, the last ones, found no room."""
    prompt_tokens: int
    """Of the whole chat, as the tokenizer counts them."""


@dataclass(frozen=True, slots=True)
class Parsed:
    """What an answer says of itself."""

    citations: tuple[int, ...]
    """Chunk numbers of the cited passages, each once, in the order of their first citation."""
    uncheckable: int
    """Citations that name a passage which was not shown; a range counts as one."""
    refused: bool


def build(
    spec: Answer,
    prompt: Prompt,
    query: Query,
    passages: Sequence[Passage],
    tokenizer: ChatTokenizer,
    window: int | None = None,
) -> Asked:
    """The chat that asks a query over as many passages as there is room for, in their order.

    Prompt and answer together take at most `spec.max_model_len` tokens, or `window` where that is less: the
    whole chat is counted, and passages are dropped from the end. Where not even the first one fits, it is cut
    after a token; where not one token of it fits, no passage is shown.

    Raises:
        InputError: the question alone does not fit.
        SpecError: the prompt cannot be rendered.
    """
    budget = min(spec.max_model_len, window or spec.max_model_len) - spec.max_tokens

    def ask(kept: Sequence[Passage]) -> Asked:
        numbered = [{"number": n, "title": p.title, "text": p.text} for n, p in enumerate(kept, 1)]
        messages = prompt.messages(passages=numbered, question=query.text, refusal=REFUSAL)
        shown = tuple(p.chunk_no for p in kept)
        return Asked(messages, shown, len(passages) - len(kept), len(tokenizer.chat_ids(messages)))

    def largest(upto: int, of: Callable[[int], Asked]) -> Asked:
        """The question with the largest n that fits, by bisection; every one that is returned was counted."""
        best, low, high = bare, 0, upto + 1
        while high - low > 1:
            asked = of(middle := (low + high) // 2)
            if asked.prompt_tokens <= budget:
                best, low = asked, middle
            else:
                high = middle
        return best

    everything = ask(passages)
    if everything.prompt_tokens <= budget:
        return everything
    bare = ask([])
    if bare.prompt_tokens > budget:
        raise InputError(
            f"the question alone makes a prompt of {bare.prompt_tokens} tokens, and there is room for {budget}",
            where=f"query {query.query_id!r}",
            hint="raise generate.max_model_len, lower generate.max_tokens, or shorten the question or the prompt",
        )
    asked = largest(len(passages) - 1, lambda n: ask(passages[:n]))
    if asked.shown:
        return asked
    first = passages[0]
    ends = sorted(set(tokenizer.spans(first.text)[:budget, 1].tolist()))
    return largest(len(ends), lambda n: ask([replace(first, text=first.text[: ends[n - 1]])]))


def parse(text: str, shown: Sequence[int]) -> Parsed:
    """Citations and refusal in an answer to a chat that showed the passages of these chunk numbers.

    A refusal is the sentence `REFUSAL`, in any case and punctuation, of one passage or several, contracted
    or not, behind at most `LEAD_IN` words.
    """
    cited: dict[int, None] = {}
    uncheckable = 0
    for mark in CITATION.findall(text):
        for item in re.findall(_ITEM, mark):
            numbers = sorted(map(int, re.findall("[0-9]+", item)))
            low, high = numbers[0], numbers[-1]
            cited.update(dict.fromkeys(shown[max(low, 1) - 1 : high]))
            uncheckable += low < 1 or high > len(shown)
    plain = unicodedata.normalize("NFKC", CITATION.sub(" ", text)).casefold().replace("’", "'").replace("n't", " not")
    words = " ".join(re.findall(r"\w+", plain))
    refusal = _REFUSED.search(words)
    return Parsed(tuple(cited), uncheckable, refusal is not None and words.count(" ", 0, refusal.start()) <= LEAD_IN)

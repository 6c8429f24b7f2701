"""Orders that a model writes, one window of passages at a time (Sun et al. 2023, "RankGPT", section 4.1).

The window moves from the back of the ranking to its front, `step` passages at a time, so that what is good
rises through the overlaps. A window is asked about when the one behind it is settled: all queries advance
together, in rounds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from workbench.models.protocols import ChatTokenizer, Request
from workbench.specs import LlmRerank
from workbench.stages.prompting import Prompt, chat_request
from workbench.stages.reranking.fitting import fit
from workbench.stages.reranking.ranking import Reranked, order

_NUMBER = re.compile(r"(?<![\d.-])[0-9]{1,9}(?=[\s,\]])")
"""A whole number that something stands behind: the last one of an answer that was cut off may lack digits."""


def window_spans(candidates: int, window: int, step: int) -> list[tuple[int, int]]:
    """(start, end) of the windows over a ranking, the last ones first; the one at the front is as wide as any."""
    if candidates < 2:
        return []
    starts = [*range(candidates - window, 0, -step), 0]
    return [(start, min(start + window, candidates)) for start in starts]


def parse_order(text: str, size: int) -> list[int] | None:
    """The order in an answer as positions from 0 to `size` - 1, best first; None where it names no passage.

    Read from its first bracket on, so that [2] > [1] is an order too. Numbers out of range and repeated ones are
    dropped, and the passages that it leaves out follow in their old order. An answer that was cut off counts up
    to its last whole number.
    """
    _, _, listed = text.partition("[")
    found = _NUMBER.findall(listed)
    named = dict.fromkeys(i for number in found if 0 <= (i := int(number) - 1) < size)
    return list(dict.fromkeys([*named, *range(size)])) if named else None


class Listwise:
    """The rankings of all queries on their way: ask `requests()`, hand the answers to `advance`, until `done`."""

    def __init__(
        self,
        spec: LlmRerank,
        prompt: Prompt,
        questions: Sequence[str],
        candidates: Sequence[Sequence[int]],
        passages: Sequence[str] | Mapping[int, str],
        tokenizer: ChatTokenizer,
    ) -> None:
        """`candidates` are the chunk numbers of each query as retrieved, of which the first `spec.depth` are
        looked at; `passages` gives the text of a chunk number."""
        self._spec, self._prompt, self._tokenizer = spec, prompt, tokenizer
        self._questions, self._passages = questions, passages
        self._candidates = [list(chunk_nos[: spec.depth]) for chunk_nos in candidates]
        self._orders = [list(range(len(chunk_nos))) for chunk_nos in self._candidates]
        """Of each query, the indices of its candidates as they stand now."""
        self._windows = [window_spans(len(chunk_nos), spec.window, spec.step) for chunk_nos in self._candidates]
        self._round = 0
        self.unparsable = 0
        """Answers so far that named no passage: their windows kept their order."""

    @property
    def expected(self) -> int:
        """Requests of all rounds together."""
        return sum(map(len, self._windows))

    @property
    def done(self) -> bool:
        return not self._waiting

    @property
    def _waiting(self) -> list[int]:
        return [query for query, windows in enumerate(self._windows) if self._round < len(windows)]

    def requests(self) -> list[Request]:
        """The requests of this round: one for each query that is not finished, in their order.

        Prompt and answer together take at most `spec.max_model_len` tokens.

        Raises:
            InputError: a question does not fit.
            SpecError: the prompt cannot be rendered.
        """
        return [self._request(query) for query in self._waiting]

    def advance(self, answers: Sequence[str]) -> None:
        """Take the answers to this round's requests, in their order."""
        for query, answer in zip(self._waiting, answers, strict=True):
            start, end = self._windows[query][self._round]
            found = parse_order(answer, end - start)
            if found is None:
                self.unparsable += 1
            else:
                window = self._orders[query][start:end]
                self._orders[query][start:end] = [window[i] for i in found]
        self._round += 1

    def rankings(self) -> list[Reranked]:
        """The first `spec.k` of each query as they stand now; a score is 1 / rank, for want of any other."""
        return [
            order(chunk_nos, _reciprocal_ranks(now), self._spec.k)
            for chunk_nos, now in zip(self._candidates, self._orders, strict=True)
        ]

    def _request(self, query: int) -> Request:
        start, end = self._windows[query][self._round]
        chunk_nos = [self._candidates[query][i] for i in self._orders[query][start:end]]
        # Up to three digits and a separator a number, each possibly a token of its own, and what stands around.
        max_tokens = max(self._spec.max_tokens, 16 + 5 * len(chunk_nos))

        def render(passages: Sequence[str]) -> tuple[Any, int]:
            messages = self._prompt.messages(mode="listwise", question=self._questions[query], passages=passages)
            return messages, len(self._tokenizer.chat_ids(messages))

        messages = fit(
            [self._passages[chunk_no] for chunk_no in chunk_nos],
            self._spec.passage_tokens,
            self._spec.max_model_len - max_tokens,
            self._tokenizer,
            render,
        )
        return chat_request(self._spec, messages, max_tokens=max_tokens, schema=_schema(len(chunk_nos)))


def _reciprocal_ranks(now: Sequence[int]) -> list[float]:
    scores = [0.0] * len(now)
    for rank, candidate in enumerate(now, 1):
        scores[candidate] = 1 / rank
    return scores


def _schema(size: int) -> Mapping[str, Any]:
    numbers = {"type": "array", "items": {"type": "integer", "enum": list(range(1, size + 1))}}
    return {
        "type": "object",
        "properties": {"order": {**numbers, "minItems": size, "maxItems": size}},
        "required": ["order"],
        "additionalProperties": False,
    }

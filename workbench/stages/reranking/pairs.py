"""One question and one passage: how likely the question is, or what grade the passage gets."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from workbench.errors import CallError, SpecError
from workbench.models.protocols import Call, ChatTokenizer, Request
from workbench.specs import LlmRerank, QueryLikelihood
from workbench.stages.prompting import Prompt, chat_request
from workbench.stages.reranking.fitting import fit

GRADES = (0, 1, 2, 3)
UNPARSABLE = float(GRADES[0])
"""The score of a passage whose grade cannot be read: the lowest."""
_GRADE: Mapping[str, Any] = {
    "type": "object",
    "properties": {"grade": {"type": "integer", "enum": list(GRADES)}},
    "required": ["grade"],
    "additionalProperties": False,
}


@dataclass(frozen=True, slots=True)
class Asked:
    """What a model is asked about a pair."""

    request: Request
    read: Callable[[Call], float | None]
    """The score in the answer, larger is better; None where it cannot be read.

    Raises CallError where the server's tokens are not those that were counted."""


def ask_pair(
    spec: QueryLikelihood | LlmRerank, prompt: Prompt, question: str, passage: str, tokenizer: ChatTokenizer
) -> Asked:
    """The request that scores a pair; prompt and answer together take at most `spec.max_model_len` tokens.

    Raises:
        InputError: the question does not fit.
        SpecError: the prompt cannot be rendered, or one for query likelihood does not end with the question.
    """
    ask = _likelihood if isinstance(spec, QueryLikelihood) else _grade
    return ask(spec, prompt, question, passage, tokenizer)  # type: ignore[arg-type]


def _likelihood(spec: QueryLikelihood, prompt: Prompt, question: str, passage: str, tokenizer: ChatTokenizer) -> Asked:
    """Mean log-probability of the question's tokens behind the passage (Sachan et al. 2022, section 2.2)."""
    asked = question.strip()

    def render(passages: Sequence[str]) -> tuple[tuple[str, Sequence[int]], int]:
        text = prompt.messages(passage=passages[0], question=asked)[-1]["content"]
        ids = tokenizer.prompt_ids(text)
        return (text, ids), len(ids)

    text, ids = fit([passage], spec.passage_tokens, spec.max_model_len - 1, tokenizer, render)
    if not text.endswith(asked):
        raise SpecError(
            "a prompt for query likelihood must end with the question",
            where=prompt.name,
            hint="put {{ question }} last, with nothing behind it",
        )
    # Where both agree no token reaches into the question: one that holds the blank before it counts as its own.
    before = tokenizer.prompt_ids(text[: len(text) - len(asked)])
    own = len(ids) - sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(before, ids, strict=False)))

    def read(call: Call) -> float:
        if len(call.logprobs) != len(ids) - 1 or not own:
            raise CallError(
                f"the server gave {len(call.logprobs)} log-probabilities for a prompt of {len(ids)} tokens "
                f"with {own} of the question; there must be one for each token from the second on",
                hint="rerank.tokenizer must be the model's own, and the server must answer prompt_logprobs",
            )
        return sum(call.logprobs[-own:]) / own

    body = {"prompt": text, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0}
    return Asked(Request("completion", body), read)


def _grade(spec: LlmRerank, prompt: Prompt, question: str, passage: str, tokenizer: ChatTokenizer) -> Asked:
    def render(passages: Sequence[str]) -> tuple[Any, int]:
        messages = prompt.messages(mode="pointwise", question=question, passages=passages)
        return messages, len(tokenizer.chat_ids(messages))

    messages = fit([passage], spec.passage_tokens, spec.max_model_len - spec.max_tokens, tokenizer, render)
    return Asked(chat_request(spec, messages, schema=_GRADE), lambda call: parse_grade(call.text))


def parse_grade(text: str) -> float | None:
    """The grade in an answer, or None; words around the JSON object are allowed."""
    try:
        found = json.loads(text[text.index("{") : text.rindex("}") + 1])["grade"]
    except (ValueError, KeyError, RecursionError):
        return None
    return float(found) if type(found) is int and found in GRADES else None

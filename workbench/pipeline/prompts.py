"""Prompts tried out when a stage is planned: what cannot work is refused before any call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workbench.errors import SpecError
from workbench.specs import Answer, LlmRerank, QueryLikelihood, Situated, Summary
from workbench.stages.prompting import Prompt, load_prompt


def tried_prompt(spec: Any) -> Prompt | None:
    """The prompt of a stage that has one, tried out before any model is asked.

    Raises:
        SpecError: no such prompt, or none for this kind of stage.
    """
    if not isinstance(spec, Summary | Situated | QueryLikelihood | LlmRerank | Answer):
        return None
    prompt = load_prompt(spec.prompt)
    shown = {**_SHOWN[spec.kind], **({"mode": spec.mode} if isinstance(spec, LlmRerank) else {})}
    whole = prompt.messages(**shown)
    asked = whole[-1]["content"]
    for name in _NEEDED[spec.kind]:
        if prompt.messages(**{**shown, name: type(shown[name])()}) == whole:
            raise SpecError(
                f"the prompt does not use {name}",
                where=prompt.name,
                hint=f"it is a Jinja template: put {{{{ {name} }}}} into it; it may use {', '.join(shown)}",
            )
    if isinstance(spec, QueryLikelihood) and not asked.endswith(shown["question"]):
        raise SpecError(
            "a prompt for query likelihood must end with the question",
            where=prompt.name,
            hint="put {{ question }} last, with nothing behind it",
        )
    return prompt


_SHOWN: Mapping[str, Mapping[str, Any]] = {
    "summary": {"title": "Title", "document": "Text."},
    "situated": {"title": "Title", "document": "Text.", "chunk": "Text."},
    "query_likelihood": {"passage": "Text.", "question": "which?"},
    "llm": {"question": "which?", "passages": ["Text."]},
    "answer": {
        "question": "which?",
        "passages": [{"number": 1, "title": "Title", "text": "Text."}],
        "refusal": "Not here.",
    },
}
"""Values like those that each kind of stage gives to its prompt."""
_NEEDED: Mapping[str, tuple[str, ...]] = {
    "summary": ("document",),
    "situated": ("chunk",),
    "query_likelihood": ("passage", "question"),
    "llm": ("question", "passages"),
    "answer": ("question", "passages"),
}
"""Values without which every call of a stage would ask the same, or leave out what it is about."""

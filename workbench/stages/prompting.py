"""Prompts as versioned files, and requests made of them.

A prompt is a TOML file with the Jinja templates `system` (may be empty) and `user`. What ships lies in
`prompts/NAME.toml` and is never edited once released: a better wording is a new number.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateError
from jinja2.sandbox import SandboxedEnvironment

from workbench.errors import SpecError, did_you_mean
from workbench.models.protocols import Chat, Request
from workbench.parsing import read_toml
from workbench.specs import Sampled, canonical_json

_FOLDER = Path(__file__).parent / "prompts"


@dataclass(frozen=True)
class Prompt:
    """The two templates of a prompt; `digest` is SHA-256 of both."""

    name: str
    system: str
    user: str

    @functools.cached_property
    def digest(self) -> str:
        return hashlib.sha256(canonical_json([self.system, self.user]).encode()).hexdigest()

    @functools.cached_property
    def _templates(self) -> tuple[Template, Template]:
        environment = SandboxedEnvironment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        return environment.from_string(self.system), environment.from_string(self.user)

    def messages(self, **values: Any) -> Chat:
        """The chat with the values in their places.

        Raises:
            SpecError: the template names a value that this stage does not give, or cannot be rendered.
        """
        try:
            system, user = (template.render(values) for template in self._templates)
        except Exception as error:  # a template can divide by zero, or call what is no function
            raise SpecError(
                f"the prompt cannot be rendered: {error}", where=self.name, hint=f"it may use {', '.join(values)}"
            ) from error
        head = [{"role": "system", "content": system}] if system else []
        return [*head, {"role": "user", "content": user}]


def load_prompt(name: str) -> Prompt:
    """A prompt that ships with the workbench by its name, or a .toml file by its path.

    Raises:
        SpecError: no such prompt, or a file that is none.
    """
    own = name.endswith(".toml")
    path = Path(name).expanduser() if own else _FOLDER / f"{name}.toml"
    if not own and (not path.is_file() or Path(name).name != name):
        known = sorted(file.stem for file in _FOLDER.glob("*.toml"))
        raise SpecError(f"unknown prompt {name!r}", hint=f"{did_you_mean(name, known)} or give a .toml file")
    data = read_toml(path)
    texts = {"system": "", **data}
    if set(texts) != {"system", "user"} or not all(isinstance(text, str) for text in texts.values()):
        raise SpecError("a prompt holds the texts `system` and `user`", where=str(path), hint="and nothing else")
    prompt = Prompt(name, texts["system"], texts["user"])
    try:
        assert prompt._templates
    except TemplateError as error:
        raise SpecError(f"the prompt is no template: {error}", where=str(path)) from error
    return prompt


def chat_request(
    spec: Sampled, messages: Chat, *, max_tokens: int | None = None, schema: Mapping[str, Any] | None = None
) -> Request:
    """A chat with the spec's sampling; `schema` is a JSON Schema that the answer must fit.

    Greedy requests carry neither seed nor top_p: they cannot change the answer.
    """
    body: dict[str, Any] = {
        "messages": [dict(message) for message in messages],
        "max_tokens": max_tokens or spec.max_tokens,
        "temperature": spec.temperature,
    }
    if spec.temperature > 0:
        body |= {"seed": spec.seed, "top_p": spec.top_p}
    if spec.stop and schema is None:
        body["stop"] = list(spec.stop)
    if schema is not None:
        body["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": dict(schema), "strict": True},
        }
    return Request("chat", body)


def request_key(model: Mapping[str, Any], request: Request) -> bytes:
    """The memo key of a request to a model of this identity."""
    what = {"model": dict(model), "endpoint": request.endpoint, "request": dict(request.body)}
    return hashlib.sha256(canonical_json(what).encode()).digest()

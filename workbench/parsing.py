"""Strict reading: data, TOML files and `--set` into models, with every fault named and the nearest known word."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from workbench.errors import SpecError, did_you_mean

S = TypeVar("S", bound=BaseModel)


def parse(model: type[S], data: Mapping[str, Any], *, where: str | None = None) -> S:
    """Validate data strictly; lists stand for tuples.

    Raises:
        SpecError: every fault in one message, with the nearest known name for each unknown one.
    """
    try:
        return model.model_validate(tuples(data))
    except ValidationError as error:
        known = _known_names(model)
        lines = [_explain(e, known) for e in error.errors()]
        raise SpecError("; ".join(dict.fromkeys(lines)), where=where) from None


def tuples(value: Any) -> Any:
    """TOML and JSON know lists only; specs are frozen and hold tuples."""
    if isinstance(value, Mapping):
        return {k: tuples(v) for k, v in value.items()}
    return tuple(map(tuples, value)) if isinstance(value, list) else value


def _known_names(model: type[BaseModel]) -> dict[str, set[str]]:
    """Field names by table and kind, for hints: {"": {...}, "chunk": {...}, "chunk.markdown": {...}}."""
    names: dict[str, set[str]] = {"": set(model.model_fields)}
    for name, info in model.model_fields.items():
        kinds = get_args(info.annotation) or (info.annotation,)
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                names.setdefault(name, set()).update(kind.model_fields)
                if "kind" in kind.model_fields:
                    names[f"{name}.{kind.model_fields['kind'].default}"] = set(kind.model_fields)
                names |= {k: v for k, v in _known_names(kind).items() if k}
    return names


def _explain(error: Any, known: Mapping[str, set[str]]) -> str:
    path = [str(p) for p in error["loc"]]
    if error["type"] == "extra_forbidden":
        at = next((i for i in range(len(path) - 2, -1, -1) if path[i] in known), None)
        table = "" if at is None else path[at]
        fields = known[table] if at is None else known.get(".".join(path[at : at + 2]), known[table])
        return f"unknown field {'.'.join([*([table] if table else []), path[-1]])!r}: " + did_you_mean(path[-1], fields)
    if error["type"] == "union_tag_invalid":
        tags = re.findall(r"'([^']+)'", error["ctx"]["expected_tags"])
        return f"{'.'.join(path)}.kind = {error['ctx']['tag']!r} is not known: " + did_you_mean(
            str(error["ctx"]["tag"]), tags
        )
    if error["type"] == "union_tag_not_found":
        kinds = {name.partition(".")[2] for name in known if name.startswith(f"{path[-1]}.")}
        return f"{'.'.join(path)}.kind is missing: known: {', '.join(sorted(kinds))}"
    message = error["msg"].removeprefix("Value error, ")
    given = "" if error["type"] in ("missing", "value_error") else f", not {error['input']!r}"
    return f"{'.'.join(path) or 'spec'}: {message}{given}"


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file as a dictionary.

    Raises:
        SpecError: the file is missing or is not TOML (with line and column).
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        near = did_you_mean(path.name, [p.name for p in path.parent.glob("*.toml")] or ["no .toml file there"])
        raise SpecError("no such file", where=str(path), hint=near) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise SpecError(f"not readable as TOML: {error}", where=str(path)) from None


def parse_setting(text: str) -> tuple[str, Any]:
    """`--set path=value`: the value is read as TOML, or else as a plain string.

    Raises:
        SpecError: there is no `=`.
    """
    path, equals, raw = text.partition("=")
    if not equals or not path.strip():
        raise SpecError(f"{text!r} is not path=value", where="--set", hint="for example --set retrieve.k=50")
    try:
        value = tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        value = raw.strip()
    return path.strip(), tuples(value)

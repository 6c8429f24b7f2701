"""Rows of files, read strictly: every fault is collected with its file and line."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from workbench.datasets.texts import bad_character, shortened
from workbench.errors import did_you_mean

LISTED = 50
BOM = b"\xef\xbb\xbf"


def listed(faults: Sequence[str], most: int = LISTED) -> list[str]:
    """At most `most` faults and a line that says how many more there are."""
    rest = len(faults) - most
    return [*faults[:most], f"and {rest} more"] if rest > 0 else list(faults)


class Row(BaseModel):
    """Base of all rows: strict types, no unknown fields; null stands for an absent optional field."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


R = TypeVar("R", bound=Row)


@dataclass(frozen=True)
class Placed(Generic[R]):
    """A row with the place a person can open: `corpus.jsonl:3`."""

    row: R
    where: str


@dataclass
class Faults:
    """Everything wrong so far, in the order of discovery."""

    found: list[str] = field(default_factory=list)

    def add(self, where: str, what: str) -> None:
        self.found.append(f"{where}: {what}")


def read_bytes(path: Path, faults: Faults, name: str | None = None) -> bytes | None:
    """A file's bytes without a UTF-8 byte order mark (it marks the encoding and is no text); None with a fault."""
    try:
        return path.read_bytes().removeprefix(BOM)
    except OSError as error:
        faults.add(name or path.name, f"cannot be read: {error.strerror or error}")
        return None


def decode(data: bytes, where: str, faults: Faults) -> str | None:
    """UTF-8, strictly; None with a fault that names the byte."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        faults.add(where, f"byte {error.start} (0x{data[error.start]:02X}) is not UTF-8; save the file as UTF-8")
        return None


def read_jsonl(path: Path, model: type[R], faults: Faults) -> Iterator[Placed[R]]:
    """The well-formed rows of a JSON Lines file; what is wrong with the others goes to `faults`."""
    data = read_bytes(path, faults)
    # Lines end at LF alone: U+2028 and friends are ordinary characters of a JSON string.
    for number, raw in enumerate((data or b"").split(b"\n"), 1):
        where = f"{path.name}:{number}"
        line = decode(raw, where, faults) if raw.strip() else None
        if line is None:
            continue
        try:
            value = json.loads(line, object_pairs_hook=_no_doubles, parse_constant=_no_constant)
        except json.JSONDecodeError as error:
            faults.add(where, f"not JSON: {error.msg} at column {error.colno}")
            continue
        except (ValueError, RecursionError) as error:
            faults.add(where, f"not usable JSON: {error}")
            continue
        if row := parse_row(value, model, where, faults):
            yield Placed(row, where)


def parse_row(value: Any, model: type[R], where: str, faults: Faults) -> R | None:
    """One row from JSON; None, with every fault told, when it does not fit."""
    if not isinstance(value, dict):
        faults.add(where, f"expected a JSON object, not {type(value).__name__}")
        return None
    named = next((str(value[key]) for key in ("doc_id", "query_id") if isinstance(value.get(key), str)), None)
    of = f" of {shortened(named)}" if named else ""
    bad = [f"{path or 'value'}{of} holds {what}" for path, what in _unstorable(value, "")]
    for fault in bad:
        faults.add(where, fault)
    if bad:
        return None
    try:
        return model.model_validate({key: item for key, item in value.items() if item is not None})
    except ValidationError as error:
        for e in error.errors():
            faults.add(where, _explain(e, model))
        return None


def _no_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"field {next(k for k in keys if keys.count(k) > 1)!r} is given twice")
    return row


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _unstorable(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """(path, why) of every string or number of a JSON value that neither JSON nor PostgreSQL can hold."""
    if isinstance(value, str):
        if bad := bad_character(value):
            yield path, bad
    elif isinstance(value, float) and not math.isfinite(value):
        yield path, "a number beyond the range of floats"
    elif isinstance(value, dict):
        for key, item in value.items():
            if bad := bad_character(key):
                yield path or "a field name", bad
            yield from _unstorable(item, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from _unstorable(item, f"{path}[{i}]")


_EXPECTED = {
    "string_type": "text",
    "int_type": "a whole number",
    "dict_type": "an object",
    "list_type": "a list",
    "model_type": "an object",
}


def _explain(error: Any, model: type[Row]) -> str:
    path = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in error["loc"]).lstrip(".")
    kind, given = error["type"], error["input"]
    if kind == "missing":
        return f"missing field {path!r}"
    if kind == "extra_forbidden":
        return f"unknown field {path!r}: {did_you_mean(str(error['loc'][-1]), _fields(model, error['loc'][:-1]))}"
    shown = (
        shortened(given)
        if isinstance(given, str)
        else shortened(json.dumps(given, ensure_ascii=False, default=str))[1:-1]
    )
    if kind in _EXPECTED:
        return f"field {path!r} must be {_EXPECTED[kind]}, not {shown}"
    return f"field {path!r}: {error['msg'].removeprefix('Value error, ')}, not {shown}"


def _fields(model: type[Row], path: Sequence[Any]) -> list[str]:
    """Names of the fields (as files spell them) of the table that a fault's path leads to."""
    table: Any = model
    for step in path:
        if isinstance(step, str) and step in table.model_fields:
            annotation = table.model_fields[step].annotation
            table = next((a for a in getattr(annotation, "__args__", ()) if isinstance(a, type)), annotation)
    return [info.alias or name for name, info in table.model_fields.items()]

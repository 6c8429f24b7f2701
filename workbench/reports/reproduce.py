"""What it takes to do it again: a sweep as TOML, and the environments that its stages were computed in."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from workbench.specs import SweepSpec
from workbench.sweeps.results import SweepResult


def sweep_toml(spec: SweepSpec) -> str:
    """A sweep as TOML that `workbench sweep` reads back as an equal one; what equals its default is left out."""
    body = spec.model_dump(mode="json", exclude_defaults=True)
    return "\n".join(_lines(body, ())).strip() + "\n"


def _lines(table: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    """Values before tables: a value after a table's head would belong to that table."""
    tables = {k: v for k, v in table.items() if isinstance(v, Mapping)}
    if path and (len(tables) < len(table) or not table):
        yield f"[{'.'.join(map(_key, path))}]"
    for key, value in table.items():
        if key not in tables and value is not None:
            yield f"{_key(key)} = {_value(value)}"
    if len(tables) < len(table):
        yield ""
    for key, value in tables.items():
        yield from _lines(value, (*path, key))


def _key(key: str) -> str:
    plain = key.isascii() and key.replace("_", "").replace("-", "").isalnum()
    return key if plain else _value(key)


def _value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items()) + " }"
    # JSON and TOML write these alike but for DEL, which TOML wants escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def environments(result: SweepResult) -> list[dict[str, Any]]:
    """The distinct environments in which the sweep's stages were computed, in order of first use."""
    stages = sorted({s.stage_id for t in result.trials for s in t.stages})
    with result.trials[0].database.transaction() as connection:
        rows = connection.execute(
            "SELECT details FROM environment JOIN (SELECT environment_id, min(stage_id) AS first FROM stage"
            " WHERE stage_id = ANY(%s) GROUP BY environment_id) used USING (environment_id) ORDER BY first",
            [stages],
        ).fetchall()
    return [dict(row[0]) for row in rows]

"""Settings of this machine and person: where the database is, where files go. Never part of a fingerprint."""

from __future__ import annotations

import json
import os
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from workbench.errors import SpecError


def _named(home: Path) -> Path:
    if str(home) in ("", "."):
        raise ValueError("this names no folder of its own; give one, such as .workbench")
    return home


def _http(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("this is no http(s) URL; for example http://127.0.0.1:8000/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("a key does not belong in a URL; it has a variable of its own")
    return url.rstrip("/")


Url = Annotated[str, AfterValidator(_http)]

_PRICES = 'for example {"model-name": {"input": 0.15, "output": 0.6}}, in currency units per million tokens'
Money = Annotated[float, Field(ge=0)]


class Price(BaseModel):
    """What a million tokens of a model cost, in whatever currency all prices are in.

    `cached` is the price of prompt tokens that the service found in its cache; without it they cost as others.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    input: Money
    output: Money
    cached: Money | None = None


class Settings(BaseSettings):
    """Read from `WORKBENCH_*` environment variables.

    `database_url` empty means the embedded PostgreSQL in `home`. `lease_seconds` is how long a silent
    process keeps the work it claimed.

    `llm_url` is an OpenAI-compatible service (".../v1") that answers instead of a vLLM server of our own;
    `embed_url` and `rerank_url` serve specs with `via = "server"`. Our own servers are shared by all
    processes of a person on a machine: their state lies in `serving_home` (default: a folder of that person
    in /tmp: its path must be short), they stop after `serving_idle_seconds`, and on a CPU each keeps
    `kv_cache_gib` GiB of key-value cache.

    `prices` are what models cost, by the names that specs give them, as JSON:
    `WORKBENCH_PRICES={"model-name": {"input": 0.15, "output": 0.6, "cached": 0.075}}`.
    """

    model_config = SettingsConfigDict(env_prefix="WORKBENCH_", frozen=True, extra="ignore", populate_by_name=True)

    home: Annotated[Path, Field(validation_alias="WORKBENCH_HOME"), AfterValidator(_named)] = Path(".workbench")
    database_url: SecretStr | None = None
    db_schema: Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_]{0,39}$", validation_alias="WORKBENCH_SCHEMA")] = (
        "workbench"
    )
    lease_seconds: Annotated[float, Field(ge=0.2, le=3600)] = 15.0
    pool_size: Annotated[int, Field(ge=2, le=100)] = 8
    llm_url: Url | None = None
    llm_key: SecretStr | None = None
    embed_url: Url | None = None
    embed_key: SecretStr | None = None
    rerank_url: Url | None = None
    rerank_key: SecretStr | None = None
    serving_home: Path | None = None
    serving_idle_seconds: Annotated[float, Field(ge=1, le=7 * 86_400)] = 900.0
    kv_cache_gib: Annotated[float, Field(gt=0, le=1024)] = 1.0
    prices: Mapping[str, Price] = {}

    @classmethod
    def read(cls, **given: object) -> Settings:
        """Settings from the environment; keyword arguments win.

        Raises:
            SpecError: a variable does not fit, named with its rule.
        """
        try:
            return cls(**given)  # type: ignore[arg-type]
        except ValidationError as error:
            faults = [f"{_variable(e['loc'])}: {e['msg'].removeprefix('Value error, ')}" for e in error.errors()]
            raise SpecError("; ".join(faults), where="settings", hint="change or unset it") from None
        except SettingsError as error:  # of WORKBENCH_PRICES, the only one that is JSON
            raise SpecError(
                f"WORKBENCH_PRICES: this is no JSON: {error.__cause__}", where="settings", hint=_PRICES
            ) from None


def _variable(path: Sequence[int | str]) -> str:
    name, *inside = map(str, path) if path else [""]
    variable = name if name.startswith("WORKBENCH_") else f"WORKBENCH_{name.upper()}"
    return ".".join([variable, *inside])


def child_environment(settings: Settings) -> dict[str, str]:
    """The environment of a process that is to see these very settings, and this very code, also from a checkout."""
    found = {name: value for name, value in os.environ.items() if not name.startswith("WORKBENCH_")}
    for name, field in Settings.model_fields.items():
        value = getattr(settings, name)
        if isinstance(value, SecretStr):
            value = value.get_secret_value()
        elif isinstance(value, Path):
            value = value.expanduser().resolve()
        elif isinstance(value, Mapping):
            value = json.dumps({key: price.model_dump(exclude_none=True) for key, price in value.items()})
        if value is not None:
            alias = field.validation_alias if isinstance(field.validation_alias, str) else f"WORKBENCH_{name.upper()}"
            found[alias] = str(value)
    root = str(Path(__file__).resolve().parent.parent)
    if root not in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        found["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [found.get("PYTHONPATH")])])
    return found

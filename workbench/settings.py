"""Settings of this machine and person: where the database is, where files go. Never part of a fingerprint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

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


class Settings(BaseSettings):
    """Read from `WORKBENCH_*` environment variables.

    `database_url` empty means the embedded PostgreSQL in `home`. `lease_seconds` is how long a silent
    process keeps the work it claimed.

    `llm_url` is an OpenAI-compatible service (".../v1") that answers instead of a vLLM server of our own;
    `embed_url` and `rerank_url` serve specs with `via = "server"`. Our own servers are shared by all
    processes of a person on a machine: their state lies in `serving_home` (default: a folder of that person
    in /tmp: its path must be short), they stop after `serving_idle_seconds`, and on a CPU each keeps
    `kv_cache_gib` GiB of key-value cache.
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


def _variable(path: Sequence[int | str]) -> str:
    name = str(path[0]) if path else ""
    return name if name.startswith("WORKBENCH_") else f"WORKBENCH_{name.upper()}"

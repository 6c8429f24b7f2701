"""Settings of this machine and person: where the database is, where files go. Never part of a fingerprint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from workbench.errors import SpecError


def _named(home: Path) -> Path:
    if str(home) in ("", "."):
        raise ValueError("this names no folder of its own; give one, such as .workbench")
    return home


class Settings(BaseSettings):
    """Read from `WORKBENCH_*` environment variables.

    `database_url` empty means the embedded PostgreSQL in `home`. `lease_seconds` is how long a silent
    process keeps the work it claimed.
    """

    model_config = SettingsConfigDict(env_prefix="WORKBENCH_", frozen=True, extra="ignore", populate_by_name=True)

    home: Annotated[Path, Field(validation_alias="WORKBENCH_HOME"), AfterValidator(_named)] = Path(".workbench")
    database_url: SecretStr | None = None
    db_schema: Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_]{0,39}$", validation_alias="WORKBENCH_SCHEMA")] = (
        "workbench"
    )
    lease_seconds: Annotated[float, Field(ge=0.2, le=3600)] = 15.0
    pool_size: Annotated[int, Field(ge=2, le=100)] = 8

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

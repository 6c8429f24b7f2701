"""What every spec shares: strict reading, identity, and the fingerprint of a result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer


def canonical_json(value: Any) -> str:
    """JSON with sorted keys, no blanks, no NaN: equal values have equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON of a value, as 64 hexadecimal digits."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def fingerprint(kind: str, code_version: int, spec: Any, inputs: Mapping[str, str]) -> str:
    """The identity of a stage's output: kind, code version, spec and the fingerprints of its inputs."""
    body = spec.identity() if isinstance(spec, Spec) else spec
    return digest({"kind": kind, "code": code_version, "spec": body, "inputs": dict(inputs)})


class Spec(BaseModel):
    """Base of all specs: frozen, strict, no unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
    not_identity: ClassVar[frozenset[str]] = frozenset()
    """Fields that cannot change an output (and so are not in the fingerprint)."""

    def identity(self) -> dict[str, Any]:
        """The fields that can change an output and differ from their default; `kind` is always there."""
        body = self.model_dump(mode="json", exclude_defaults=True, exclude=set(self.not_identity))
        if "kind" in type(self).model_fields:
            body["kind"] = self.kind  # type: ignore[attr-defined]
        return body

    @model_serializer(mode="wrap")
    def _keep_kind(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        body: dict[str, Any] = handler(self)
        return {"kind": self.kind, **body} if hasattr(self, "kind") else body


Tokens = Annotated[int, Field(ge=1, le=1_000_000)]
Depth = Annotated[int, Field(ge=1, le=10_000)]
Name = Annotated[str, Field(min_length=1, max_length=200)]

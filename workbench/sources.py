"""What a person's own function is made of: its source, the functions it calls, the values it closes over.

A key narrower than the computation would hand out results of another function. So the identity of a
callable holds its source text, the values of the globals and closure variables that it reads, and the
same of every function of its module that it calls. Installed packages are known by their versions instead.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import pickle
import types
from collections.abc import Callable
from typing import Any

from workbench.errors import SpecError


def source_digest(function: Callable[..., Any]) -> str:
    """SHA-256 over all that a callable's results can depend on, as 64 hexadecimal digits.

    Raises:
        SpecError: its source cannot be read, or it reads a value that cannot be told apart.
    """
    parts: list[str] = []
    _collect(function, parts, set())
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _collect(function: Callable[..., Any], parts: list[str], seen: set[int]) -> None:
    if id(function) in seen:
        return
    seen.add(id(function))
    try:
        parts.append(inspect.getsource(function))
    except (OSError, TypeError) as error:
        raise SpecError(
            f"the source of {function!r} cannot be read, so its results could not be identified",
            hint="define it with `def` in a cell or module",
        ) from error
    body = inspect.unwrap(function) if inspect.isroutine(function) else type(function).__call__
    if not inspect.isfunction(body):
        return
    reads = inspect.getclosurevars(body)
    for name, value in sorted({**reads.globals, **reads.nonlocals}.items()):
        if isinstance(value, types.ModuleType) or _foreign(value, function):
            continue
        if inspect.isfunction(value):
            _collect(value, parts, seen)
        elif inspect.isclass(value):
            parts.append(inspect.getsource(value))
        else:
            parts.append(f"{name}={_told(name, value, function)}")


def _foreign(value: Any, function: Callable[..., Any]) -> bool:
    """Whether a function or class comes from another top-level package than the one that reads it."""
    if not (inspect.isroutine(value) or inspect.isclass(value)):
        return False
    home = getattr(value, "__module__", None) or "builtins"
    return str(home).partition(".")[0] != str(function.__module__).partition(".")[0]


def _told(name: str, value: Any, function: Callable[..., Any]) -> str:
    """A value as text: equal values have equal texts, and no two others do."""
    try:
        return json.dumps(value, sort_keys=True)
    except (TypeError, ValueError):
        pass
    try:
        return hashlib.sha256(pickle.dumps(value)).hexdigest()
    except Exception as error:  # pickling runs the object's own code
        raise SpecError(
            f"{function.__module__}:{getattr(function, '__qualname__', function)} reads {name!r}, a"
            f" {type(value).__name__} that cannot be identified",
            hint="pass what it needs as a plain value, or build it inside the function",
        ) from error

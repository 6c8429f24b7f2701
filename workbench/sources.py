"""What a person's own function is made of: its code, the functions it calls, the values it reads.

A key narrower than the computation would hand out the results of another function. So the identity of a
callable holds its source, its defaults, the globals and closure variables that it or any code nested in it
reads, every layer of its decorators, and the same of each function of a person's own files that it calls.
What comes from installed packages is known by distribution and version.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import inspect
import pickle
import sys
import sysconfig
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from workbench.errors import SpecError


def source_digest(function: Callable[..., Any]) -> str:
    """SHA-256 over all that a callable's results can depend on, as 64 hexadecimal digits.

    Raises:
        SpecError: its source cannot be read or was edited after it was loaded, or it reads a value
            that cannot be identified.
    """
    if inspect.isbuiltin(function) or isinstance(function, types.MethodWrapperType):
        raise SpecError(
            f"the source of {function!r} cannot be read, so its results could not be identified", hint=_HINT
        )
    found: dict[int, str] = {}
    _follow(function, found, getattr(function, "__qualname__", repr(function)))
    return hashlib.sha256("\0".join(found.values()).encode()).hexdigest()


def _follow(value: Any, found: dict[int, str], name: str) -> None:
    """Add what a value is made of to `found`, once each."""
    if id(value) in found:
        return
    if isinstance(value, types.MethodType):
        _follow(value.__func__, found, name)
        found[id(value)] = _told(name, vars(value.__self__) if hasattr(value.__self__, "__dict__") else value.__self__)
    elif isinstance(value, functools.partial):
        found[id(value)] = _told(name, (value.args, value.keywords))
        _follow(value.func, found, name)
    elif isinstance(value, types.ModuleType) or (package := _package(value)) == "":
        found[id(value)] = getattr(value, "__name__", name)  # of the standard library, or a module: by name
    elif package is not None:
        found[id(value)] = f"{package}:{getattr(value, '__qualname__', name)}"
    elif inspect.isfunction(value):
        found[id(value)] = _source(value)
        for part, read in _reads(value):
            _follow(read, found, part)
    elif inspect.isclass(value):
        found[id(value)] = f"class {value.__name__}"
        for part, member in [*sorted(vars(value).items()), *((b.__name__, b) for b in value.__bases__)]:
            plain = getattr(member, "fget", None) or getattr(member, "__func__", member)
            if inspect.isfunction(plain) or inspect.isclass(plain):
                _follow(plain, found, part)
            elif not part.startswith("__"):
                found[id(member)] = f"{part}={_told(part, member)}"
    elif callable(value):
        _follow(type(value), found, name)
        found[id(value)] = _told(name, vars(value) if hasattr(value, "__dict__") else value)
    else:
        found[id(value)] = f"{name}={_told(name, value)}"


_HINT = "define it with `def` in a cell or module"


def _source(value: Any) -> str:
    try:
        text = inspect.getsource(value)
    except (OSError, TypeError) as error:
        raise SpecError(
            f"the source of {value!r} cannot be read, so its results could not be identified", hint=_HINT
        ) from error
    if inspect.isfunction(value) and not _is_of(value.__code__):
        raise SpecError(
            f"{value.__module__}:{value.__qualname__} was edited after it was loaded",
            hint="reload its module or restart the kernel, so that what runs is what is read",
        )
    return text


def _is_of(code: types.CodeType) -> bool:
    """Whether the file a function came from still holds its code; what has no file cannot have changed."""
    path = Path(code.co_filename)
    if not path.is_file():
        return True
    try:
        module = compile(path.read_text(encoding="utf-8"), str(path), "exec", dont_inherit=True)
    except (OSError, SyntaxError, ValueError):
        return False
    wanted = (code.co_name, code.co_code, _constants(code))
    return any((c.co_name, c.co_code, _constants(c)) == wanted for c in _nested(module))


def _constants(code: types.CodeType) -> tuple[Any, ...]:
    return tuple(repr(c) for c in code.co_consts if not isinstance(c, types.CodeType))


def _nested(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _nested(constant)


def _reads(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """Name and value of all that a function reads from outside itself."""
    yield "defaults", (function.__defaults__, function.__kwdefaults__)
    if hasattr(function, "__wrapped__"):
        yield "wrapped", function.__wrapped__
    names = sorted({name for code in _nested(function.__code__) for name in code.co_names})
    # An attribute's name may equal a global's: then the global is told too, which costs nothing but a new key.
    yield from ((name, function.__globals__[name]) for name in names if name in function.__globals__)
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # a name that is bound later, as of a function that calls itself
            continue


def _package(value: Any) -> str | None:
    """Name and version of the installed distribution that a function or class is from, "" for the standard
    library, None for a person's own."""
    if not (inspect.isfunction(value) or inspect.isclass(value) or inspect.isbuiltin(value)):
        return None
    top = str(getattr(value, "__module__", None) or "builtins").partition(".")[0]
    if top in sys.stdlib_module_names and top != "__main__":
        return ""
    path = str(getattr(sys.modules.get(top), "__file__", None) or "")
    if not any(path.startswith(sysconfig.get_path(kind)) for kind in ("purelib", "platlib")):
        return None
    for distribution in _distributions().get(top, []):
        return f"{distribution} {importlib.metadata.version(distribution)}"
    return top


@functools.cache
def _distributions() -> Mapping[str, list[str]]:
    return importlib.metadata.packages_distributions()


def _told(name: str, value: Any) -> str:
    """A value as text that no other value has, the same in every process."""
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return f"{type(value).__name__}:{value!r}"
    if isinstance(value, list | tuple):
        return f"{type(value).__name__}[{','.join(_told(name, v) for v in value)}]"
    if isinstance(value, set | frozenset):
        return f"set[{','.join(sorted(_told(name, v) for v in value))}]"
    if isinstance(value, dict):
        return f"dict[{','.join(f'{_told(name, k)}={_told(name, v)}' for k, v in value.items())}]"
    if inspect.isfunction(value) or inspect.isclass(value):
        return source_digest(value)
    try:
        return hashlib.sha256(pickle.dumps(value, protocol=4)).hexdigest()
    except Exception as error:  # pickling runs the object's own code
        raise SpecError(
            f"a function reads {name!r}, a {type(value).__name__} that cannot be identified",
            hint="pass what it needs as a plain value, or build it inside the function",
        ) from error

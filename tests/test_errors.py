"""The tree in the docstring is the tree of classes; a message says what, where and the next step."""

from __future__ import annotations

import inspect
import re

import pytest

from workbench import errors
from workbench.errors import DatasetError, FrameError, WorkbenchError, did_you_mean


def drawn() -> dict[str, str | None]:
    """Class -> parent, as the docstring draws them (four columns a level)."""
    tree: dict[str, str | None] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"(?:(?P<bars>[│ ]*)[├└]── (?P<name>\w+)|(?P<root>WorkbenchError)$)", line)
        if not match:
            continue
        level = 0 if match["root"] else len(match["bars"]) // 4 + 1
        name = match["root"] or match["name"]
        del path[level:]
        tree[name] = path[-1] if path else None
        path.append(name)
    return tree


def public_parent(kind: type[BaseException]) -> str | None:
    while (kind := kind.__mro__[1]).__name__.startswith("_"):
        pass
    return kind.__name__ if issubclass(kind, WorkbenchError) else None


CLASSES = {
    name: kind
    for name, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, BaseException) and not name.startswith("_")
}


def test_the_docstring_draws_the_classes() -> None:
    assert len(CLASSES) >= 11
    assert drawn() == {name: public_parent(kind) for name, kind in CLASSES.items()}


def test_exit_codes_are_those_of_the_docstring() -> None:
    text = errors.__doc__ or ""
    stated = {name: int(code) for name, code in re.findall(r"── (\w+) .*\(exit code (\d+)\)", text)}
    assert {"InputError": 2, "ServiceError": 2, "StageError": 1}.items() <= stated.items()
    for name, kind in CLASSES.items():
        expected = next((code for of, code in stated.items() if issubclass(kind, CLASSES[of])), 1)
        assert kind.exit_code == expected, name


@pytest.mark.parametrize("kind", [k for k in CLASSES.values() if not issubclass(k, errors._Faults)])
def test_a_message_says_what_where_and_the_next_step(kind: type[WorkbenchError]) -> None:
    assert str(kind("it broke", where="a.toml", hint="mend it")) == "a.toml: it broke (mend it)"
    assert str(kind("it broke")) == "it broke"
    error = kind("it broke", where="a.toml")
    assert (str(error), error.what, error.where, error.hint) == ("a.toml: it broke", "it broke", "a.toml", None)


@pytest.mark.parametrize("kind", [DatasetError, FrameError])
def test_faults_are_all_listed(kind: type[errors._Faults]) -> None:
    error = kind("two faults", ["one", "two"], where="corpus", hint="mend them")
    assert str(error).splitlines() == ["corpus: two faults (mend them)", "  - one", "  - two"]
    assert error.faults == ("one", "two")


def test_did_you_mean_names_the_closest_or_all() -> None:
    known = ["recursive", "fixed", "fixd"]
    assert did_you_mean("recusive", known) == "did you mean 'recursive'?"
    assert did_you_mean("fixe", known) == "did you mean 'fixed' or 'fixd'?"
    assert did_you_mean("zzzz", known) == "known: fixd, fixed, recursive"

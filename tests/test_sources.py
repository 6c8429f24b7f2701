"""The identity of a person's function: all that its results can depend on, and nothing else."""

from __future__ import annotations

import importlib.util
import linecache
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from workbench.errors import SpecError
from workbench.sources import source_digest


@pytest.fixture
def load(tmp_path: Path) -> Callable[[str, str], Any]:
    """Writes a module and imports it from its file, under any name."""

    def one(name: str, text: str) -> Any:
        path = tmp_path / f"{name}_{len(list(tmp_path.iterdir()))}.py"
        path.write_text(text, encoding="utf-8")
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return one


BASE = """
import re
SIZE = 3
PATTERN = re.compile("x")
UNUSED = 1

def helper(text):
    return len(text)

def chunks(text):
    return [(0, helper(text) + SIZE)] if PATTERN.search(text) else []
"""


CLASS = """
class S:
    def __init__(self, n):
        self.n = n
    def f(self, text):
        return [text[: self.n]]
    __call__ = f
"""


DECORATED = """
from functools import wraps

def first(k):
    def decorate(function):
        @wraps(function)
        def wrapper(text):
            return function(text)[:k]
        return wrapper
    return decorate

@first({})
def f(text):
    return text.split()
"""


def test_two_closures_of_one_factory_differ() -> None:
    def factory(size: int) -> Callable[[str], list[str]]:
        def chunks(text: str) -> list[str]:
            return [text[:size]]

        return chunks

    assert source_digest(factory(3)) != source_digest(factory(4))
    assert source_digest(factory(3)) == source_digest(factory(3))


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("SIZE = 3", "SIZE = 4", False),
        ('re.compile("x")', 're.compile("y")', False),
        ("return len(text)", "return len(text) - 1", False),
        ("if PATTERN", "if  PATTERN", False),
        ("UNUSED = 1", "UNUSED = 2", True),
        ("import re\n", "import re, json\n", True),
    ],
)
def test_what_a_function_reads_is_in_its_identity(
    load: Callable[[str, str], Any], old: str, new: str, same: bool
) -> None:
    assert old in BASE
    before, after = load("mine", BASE), load("mine", BASE.replace(old, new))
    assert (source_digest(before.chunks) == source_digest(after.chunks)) is same


def test_a_moved_function_keeps_its_identity(load: Callable[[str, str], Any]) -> None:
    assert source_digest(load("here", BASE).chunks) == source_digest(load("there", BASE).chunks)


def test_recursion_and_callable_objects(load: Callable[[str, str], Any]) -> None:
    module = load(
        "deep", "def even(n):\n    return n == 0 or odd(n - 1)\n\ndef odd(n):\n    return n != 0 and even(n - 1)\n"
    )
    assert source_digest(module.even) != source_digest(module.odd)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param(
            "MIN = 1\ndef f(text):\n    return [p for p in text.split() if len(p) > MIN]\n",
            "MIN = 2\ndef f(text):\n    return [p for p in text.split() if len(p) > MIN]\n",
            id="global in a comprehension",
        ),
        pytest.param(
            "SIZE = 1\ndef f(text, size=SIZE):\n    return [text[:size]]\n",
            "SIZE = 2\ndef f(text, size=SIZE):\n    return [text[:size]]\n",
            id="default argument",
        ),
        pytest.param(CLASS + "f = S(1).f\n", CLASS + "f = S(2).f\n", id="bound method"),
        pytest.param(CLASS + "f = S(1)\n", CLASS + "f = S(2)\n", id="callable object"),
        pytest.param(DECORATED.format(1), DECORATED.format(2), id="decorator"),
        pytest.param(
            "from functools import partial\ndef g(text, n):\n    return [text[:n]]\nf = partial(g, n=1)\n",
            "from functools import partial\ndef g(text, n):\n    return [text[:n]]\nf = partial(g, n=2)\n",
            id="partial",
        ),
    ],
)
def test_no_two_computations_share_an_identity(load: Callable[[str, str], Any], one: str, other: str) -> None:
    assert source_digest(load("mine", one).f) == source_digest(load("mine", one).f)
    assert source_digest(load("mine", one).f) != source_digest(load("mine", other).f)


def test_an_edited_file_is_not_what_runs(load: Callable[[str, str], Any]) -> None:
    module = load("mine", BASE)
    source_digest(module.chunks)
    Path(module.__file__).write_text(BASE.replace("return len(text)", "return len(text) - 1"), encoding="utf-8")
    linecache.checkcache()
    with pytest.raises(SpecError, match="edited after it was loaded"):
        source_digest(module.chunks)


def test_sets_have_one_identity_in_every_process(tmp_path: Path) -> None:
    text = "STOP = {'the', 'a', 'of', 'and'}\ndef f(text):\n    return [w for w in text.split() if w not in STOP]\n"
    (tmp_path / "stopping.py").write_text(text, encoding="utf-8")
    command = "import stopping; from workbench.sources import source_digest; print(source_digest(stopping.f))"
    found = {
        subprocess.run(
            [sys.executable, "-c", command],
            env=os.environ | {"PYTHONPATH": str(tmp_path), "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(found) == 1


def test_a_package_is_known_by_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    from polars import concat

    def chunks(text: str) -> object:
        return concat(text)

    before = source_digest(chunks)
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.0.1")
    assert source_digest(chunks) != before


def test_what_cannot_be_identified_is_refused() -> None:
    lock = threading.Lock()

    def chunks(text: str) -> list[str]:
        with lock:
            return [text]

    with pytest.raises(SpecError, match="reads 'lock'"):
        source_digest(chunks)
    with pytest.raises(SpecError, match="cannot be read"):
        source_digest(eval("lambda text: [text]"))

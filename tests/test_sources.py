"""The identity of a person's function: all that its results can depend on, and nothing else."""

from __future__ import annotations

import importlib.util
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


def test_what_cannot_be_identified_is_refused() -> None:
    lock = threading.Lock()

    def chunks(text: str) -> list[str]:
        with lock:
            return [text]

    with pytest.raises(SpecError, match="reads 'lock'"):
        source_digest(chunks)
    with pytest.raises(SpecError, match="cannot be read"):
        source_digest(eval("lambda text: [text]"))

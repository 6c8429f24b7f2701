"""Our figures against published ones, by the script that makes the table of docs/metrics.md."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from workbench.lab import Lab

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location("reference", ROOT / "benchmarks" / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["reference"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("table", "figures"), [("chroma", 32), ("anthropic", 24)])
def test_published_figures(
    table: str, figures: int, reference: ModuleType, open_lab: Callable[..., Lab], shared_data: Path
) -> None:
    pytest.importorskip("torch")
    lines = list(getattr(reference, table)(open_lab(), shared_data))
    assert len(lines) == figures
    allowed = reference.TOLERANCE[table] + 1e-6  # published figures are rounded to six decimals
    assert [line for line in lines if abs(line.difference) > allowed] == []

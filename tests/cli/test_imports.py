"""What an import may cost: rules on modules, because seconds depend on the machine."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = {"polars", "pydantic", "psycopg", "torch", "numpy", "rich", "typer", "transformers", "altair", "nbconvert"}
OF_THE_COMMAND_LINE = {"rich", "typer", "pydantic"}  # Typer reads values with pydantic where it is there


def imported(code: str) -> set[str]:
    """Names of the top modules that are there after some code, in a fresh interpreter."""
    code += "\nimport json, sys; print(json.dumps(sorted({m.partition('.')[0] for m in sys.modules})))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    return set(json.loads(run.stdout.splitlines()[-1]))


def test_importing_the_package_loads_nothing_of_weight() -> None:
    assert not imported("import workbench; workbench.__version__; workbench.open") & HEAVY


@pytest.mark.parametrize("arguments", [["version"], ["--help"], ["run", "--help"], ["--version"]], ids=" ".join)
def test_the_command_line_loads_what_a_command_needs(arguments: list[str]) -> None:
    code = (
        f"from workbench import cli\ntry: cli.main({arguments})\nexcept SystemExit as stopped: assert not stopped.code"
    )
    assert not imported(code) & (HEAVY - OF_THE_COMMAND_LINE)


def test_opening_a_lab_needs_no_model() -> None:
    assert not imported("import workbench.lab, workbench.reports") & {"torch", "transformers", "papermill"}

"""The experiments that ship with the workbench, found in a source checkout or in an installed package."""

from __future__ import annotations

from pathlib import Path

from workbench.errors import InputError, did_you_mean


def experiment(name: str) -> Path:
    """The TOML file of a bundled experiment.

    Raises:
        InputError: no experiment of that name.
    """
    package = Path(__file__).parents[1]
    folders = [package / "_share" / "experiments", package.parent / "experiments"]
    for folder in folders:
        if (folder / f"{name}.toml").is_file():
            return folder / f"{name}.toml"
    known = [path.stem for folder in folders for path in folder.glob("*.toml")]
    raise InputError(f"no bundled experiment {name!r}", hint=did_you_mean(name, known))

"""Compile requirements.lock (`make lock`): every transitive pin for Python 3.11 to 3.13 on Linux and macOS.

The header says how much a set-up downloads, so that it can be announced before it starts.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from packaging.markers import Marker
from packaging.tags import Tag
from packaging.utils import parse_wheel_filename

ROOT = Path(__file__).resolve().parent.parent
TORCH_CPU_BYTES = 190_000_000  # the Linux wheel on PyPI is the CUDA build; the set-up takes the CPU build
PLATFORMS = {
    "linux-x86_64": ("linux", "x86_64", re.compile(r"manylinux.*x86_64|linux_x86_64")),
    "linux-aarch64": ("linux", "aarch64", re.compile(r"manylinux.*aarch64")),
    "darwin-arm64": ("darwin", "arm64", re.compile(r"macosx.*(arm64|universal2)")),
}
COMPILE = [
    *("uv", "pip", "compile", "--universal", "--python-version", "3.11", "--quiet", "--no-annotate"),
    *("--no-emit-index-url", "--no-header", "--all-extras", "--group", "dev"),
    *("--override", "requirements.overrides", "pyproject.toml"),
]


def main() -> None:
    uv = Path(sys.executable).with_name("uv")
    with tempfile.TemporaryDirectory() as folder:
        lock, sized = Path(folder) / "lock.txt", Path(folder) / "pylock.toml"
        command = [str(uv), *COMPILE[1:]]
        subprocess.run([*command, "-o", str(lock)], cwd=ROOT, check=True)
        subprocess.run([*command, "--format", "pylock.toml", "-o", str(sized)], cwd=ROOT, check=True)
        packages = tomllib.loads(sized.read_text(encoding="utf-8"))["packages"]
        lines = [
            "# Written by `make lock`; installed as it is, without resolving. Python 3.11 to 3.13.",
            *(f"# download {name}: about {size(packages, *where) / 1e6:,.0f} MB" for name, where in PLATFORMS.items()),
        ]
        text = "\n".join(lines) + "\n" + lock.read_text(encoding="utf-8")
    (ROOT / "requirements.lock").write_text(text, encoding="utf-8")
    print("\n".join(lines))


def size(packages: list[dict[str, object]], system: str, machine: str, wanted: re.Pattern[str]) -> int:
    """Bytes of the wheels (or sources) that Python 3.11 takes on a platform."""
    environment = {
        "sys_platform": system,
        "platform_machine": machine,
        "python_version": "3.11",
        "python_full_version": "3.11.9",
        "platform_python_implementation": "CPython",
        "implementation_name": "cpython",
        "platform_system": {"linux": "Linux", "darwin": "Darwin"}[system],
        "os_name": "posix",
    }
    total = 0
    for package in packages:
        if "marker" in package and not Marker(str(package["marker"])).evaluate(environment):
            continue
        if package["name"] == "torch" and system == "linux":
            total += TORCH_CPU_BYTES
            continue
        wheels = [w for w in package.get("wheels", []) if fits(w["name"] if "name" in w else w["url"], wanted)]  # type: ignore[attr-defined]
        found = wheels or [s for s in [package.get("sdist")] if s]
        total += int(found[0].get("size", 0)) if found else 0
    return total


def fits(url: str, wanted: re.Pattern[str]) -> bool:
    tags: frozenset[Tag] = parse_wheel_filename(url.rsplit("/", 1)[-1].replace("%2B", "+"))[3]
    return any(
        (tag.platform == "any" or wanted.fullmatch(tag.platform))
        and (tag.interpreter in ("py3", "py2", "cp311") or tag.abi == "abi3")
        for tag in tags
    )


if __name__ == "__main__":
    main()

"""Make the virtual environment: `python tools/setup_environment.py .venv`. Standard library only.

Creates the environment, installs uv into it, says how much will be downloaded, and installs the lock
exactly as it is (no re-resolving), then the project itself.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"
UV = re.search(r"^uv==(\S+)", LOCK.read_text(encoding="utf-8"), re.MULTILINE)


def main() -> None:
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        sys.exit(f"Python 3.11 to 3.13 is needed, this is {platform.python_version()}: set PYTHON=python3.12, say")
    folder = Path(sys.argv[1])
    binaries = folder / "bin"
    if not (binaries / "python").exists():
        print(f"creating {folder} with Python {platform.python_version()}", flush=True)
        venv.create(folder, with_pip=True)
    assert UV is not None, "the lock pins uv"
    run(binaries / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", UV[0])
    print(f"installing {LOCK.name}: {download_size()}", flush=True)
    # The environment's own settings decide where packages come from; torch alone needs a hint.
    links = os.environ.get("PIP_FIND_LINKS")
    torch = ["--find-links", links] if links else ["--torch-backend", "cpu"]
    install = [binaries / "uv", "pip", "install", "--quiet", "--python", binaries / "python", "--no-deps"]
    run(*install, "-r", LOCK, *torch)
    run(*install, "--editable", ROOT)
    print("compiling bytecode", flush=True)
    library = next((folder / "lib").glob("python3*"))
    # Some packages ship files for other Python versions: those do not compile, and nobody imports them.
    subprocess.run(
        [binaries / "python", "-m", "compileall", "-q", "-j", "0", library], check=False, capture_output=True
    )


def download_size() -> str:
    """The line of the lock that `make lock` wrote for this platform."""
    here = f"{sys.platform}-{platform.machine()}"
    sizes = dict(re.findall(r"^# download (\S+): (.*)$", LOCK.read_text(encoding="utf-8"), re.MULTILINE))
    return sizes.get(here, next(iter(sizes.values()), "size unknown")) + ", less what the cache holds"


def run(*command: object) -> None:
    done = subprocess.run([str(part) for part in command], check=False)
    if done.returncode:
        sys.exit(f"failed: {' '.join(str(part) for part in command)}")


if __name__ == "__main__":
    main()

"""What tests of servers share: waiting, asking, and looking for what is left."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from workbench.serving.spec import Endpoint


def until(condition: Callable[[], object], seconds: float = 20.0) -> float:
    """Wait for something to become true; how long it took."""
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < seconds, f"not within {seconds} s"
        time.sleep(0.02)
    return time.monotonic() - begun


def get(endpoint: Endpoint, path: str = "/v1/models", *, key: str = "", body: object = None) -> tuple[int, Any]:
    """Status and JSON of a GET (with a body: a POST), with the endpoint's key or another."""
    connection = http.client.HTTPConnection(urlsplit(endpoint.url).netloc, timeout=120)
    headers = {"Authorization": f"Bearer {key or endpoint.key}", "Content-Type": "application/json"}
    connection.request("POST" if body else "GET", path, json.dumps(body) if body else None, headers)
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response.status, json.loads(body or b"null")


def alive(pid: int) -> bool:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def processes_of(home: Path) -> list[psutil.Process]:
    """Supervisors of a home, all that descends from them, and orphans: every program works in a folder of the home."""
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter(["cmdline", "cwd", "status"]):
        words = [*(process.info["cmdline"] or []), process.info["cwd"] or ""]
        if process.info["status"] != psutil.STATUS_ZOMBIE and any(word.startswith(f"{home}/") for word in words):
            with suppress(psutil.NoSuchProcess):
                found |= {p.pid: p for p in (process, *process.children(recursive=True))}
    return list(found.values())


def is_clean(home: Path) -> bool:
    """Nothing runs, and nothing lies there but the lock and logs of failures."""
    return not processes_of(home) and {entry.name for entry in home.iterdir()} <= {"lock", "logs"}


def shared_memory(processes: list[psutil.Process]) -> set[Path]:
    """Files in /dev/shm that processes have mapped."""
    maps = (Path(f"/proc/{process.pid}/maps") for process in processes)
    lines = (line for file in maps if file.exists() for line in file.read_text().splitlines())
    return {Path(line.split()[5]) for line in lines if "/dev/shm/" in line and "(deleted)" not in line}

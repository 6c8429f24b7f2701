"""A program that behaves like a model server, for milliseconds instead of gigabytes; and how it is run.

It is told what to do by arguments of the spec: `fail` (say this and end), `fail-once` (a file: port taken while it is
not there), `silent` (never ready), `busy` (a file: requests run while it is there), `engine` (spawn a child that
ignores SIGTERM, in a session of its own), `need` (GiB of memory).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"


def serve(port: int, options: dict[str, str]) -> None:
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    key, looks = os.environ["VLLM_API_KEY"], 0
    with Path(os.environ["FAKE_STARTS"]).open("a") as starts:
        starts.write(f"{os.getpid()}\n")
    sys.stderr.write(f"Starting to load model {options['name']}\n")
    if "engine" in options:
        subprocess.Popen([sys.executable, "-ISc", STUBBORN], start_new_session=True)
    if "fail" in options:
        sys.stderr.write(f"{options['fail']} {key}\n")
        sys.exit(3)
    if "fail-once" in options and not Path(options["fail-once"]).exists():
        Path(options["fail-once"]).touch()
        sys.exit("OSError: [Errno 98] Address already in use")
    if "silent" in options:
        time.sleep(600)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            nonlocal looks
            status, body = 200, ""
            if self.path == "/metrics":
                looks += 1
                busy = "busy" in options and Path(options["busy"]).exists()
                body = f'vllm:num_requests_running{{engine="0"}} {float(busy)}\n'
            elif self.path.startswith("/v1"):
                status = 200 if self.headers["Authorization"] == f"Bearer {key}" else 401
                body = json.dumps({"pid": os.getpid(), "looks": looks, "offline": os.environ.get("HF_HUB_OFFLINE")})
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            pass

    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever(0.05)


if __name__ == "__main__":
    serve(int(sys.argv[1]), json.loads(sys.argv[2]))
else:
    from workbench.serving.spec import GIB, Need, ServerSpec
    from workbench.serving.vllm import Vllm

    class Fake(Vllm):
        """Runs this file in vLLM's place; its log is read as vLLM's is."""

        _package = ("fake", "1")

        def __init__(self, starts: Path) -> None:
            self.starts = starts

        def pids(self) -> list[int]:
            """Of every program that was started, in order."""
            return [int(line) for line in self.starts.read_text().split()] if self.starts.exists() else []

        @property
        def identity(self) -> Mapping[str, str]:
            return {"package": "fake"}

        def command(self, spec: ServerSpec, port: int) -> list[str]:
            options = {"name": spec.served_name, **spec.arguments}
            return [sys.executable, "-I", "-S", __file__, str(port), json.dumps(options)]

        def environment(self, spec: ServerSpec, key: str, run: Path) -> dict[str, str]:
            return {**os.environ, "VLLM_API_KEY": key, "FAKE_STARTS": str(self.starts), "TMPDIR": str(run)}

        def need(self, spec: ServerSpec) -> Need:
            return Need(int(float(spec.arguments.get("need", 1)) * GIB))

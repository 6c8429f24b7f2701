"""The program of a vLLM server: vLLM's own main, in processes that the kernel kills with their parent.

Run by path. vLLM's engine and workers are spawned by multiprocessing, which imports this file in each of them under
the name `__mp_main__`; left to themselves they outlive an API process that is killed, and keep its memory.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

if __name__ in ("__main__", "__mp_main__"):  # the package is found from here, behind everything else
    sys.path.append(str(Path(__file__).resolve().parents[2]))

from workbench.processes import die_with_parent, identity

if __name__ == "__mp_main__":
    die_with_parent(os.getppid())
    if identity(os.getsid(0)) is None:  # the API process leads the session: it was killed while we started
        os._exit(1)

if __name__ == "__main__":
    from vllm.entrypoints.launchers.api_server.entry import main

    main()  # type: ignore[no-untyped-call]

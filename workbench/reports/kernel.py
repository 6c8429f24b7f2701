"""Runs a notebook with papermill in a kernel of its own: this interpreter, these settings, gone afterwards.

No registered kernel is asked for: one named python3 may be missing or belong to another environment.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from workbench.errors import ReportError
from workbench.settings import Settings, child_environment

if TYPE_CHECKING:
    from nbformat import NotebookNode

START_SECONDS, CELL_SECONDS = 120, 600
"""How long the kernel may take to answer, and one cell to end."""

_LAUNCH = (
    "import sys; sys.modules['rfc3987_syntax'] = None; sys.path[:] = [p for p in sys.path if p];"
    " from ipykernel.kernelapp import launch_new_instance; launch_new_instance()"
)
"""Without rfc3987_syntax: altair imports jsonschema, which would spend over a second on a grammar of IRIs.
Without the working directory on the path, as the launcher of ipykernel does it."""


def run_notebook(source: Path, parameters: Mapping[str, Any], settings: Settings) -> NotebookNode:
    """Execute a notebook over the store that the settings name; returns it with its outputs.

    Settings, credentials among them, reach the kernel as environment variables only.

    Raises:
        ReportError: a cell failed, or the kernel did not start, died or took too long.
    """
    with tempfile.TemporaryDirectory(prefix="workbench-report-") as folder:
        try:
            with _kernel(settings, Path(folder)) as manager:
                return _execute(source, parameters, manager)
        except (RuntimeError, TimeoutError, OSError) as error:  # nbclient's errors derive from these
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise ReportError(
                f"the notebook did not run to its end: {reason}", where=source.name, hint="run the report again"
            ) from error


def _execute(source: Path, parameters: Mapping[str, Any], manager: Any) -> NotebookNode:
    # Imported only now, while the kernel starts: both take more than a second.
    from papermill.exceptions import PapermillExecutionError
    from papermill.execute import execute_notebook

    try:
        return cast(
            "NotebookNode",
            execute_notebook(
                source,
                None,
                parameters=dict(parameters),
                kernel_name="python3",
                language="python",
                progress_bar=False,
                start_timeout=START_SECONDS,
                execution_timeout=CELL_SECONDS,
                km=manager,
            ),
        )
    except PapermillExecutionError as error:
        line = str(error.source).strip().partition("\n")[0]
        raise ReportError(
            f"a cell failed: {error.ename}: {error.evalue}",
            where=f"{source.name}, cell {line!r}",
            hint="nothing was written; the sweep itself is in the store",
        ) from None


@contextlib.contextmanager
def _kernel(settings: Settings, folder: Path) -> Iterator[Any]:
    """A started kernel; whatever happens inside, it is gone at the end."""
    from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager
    from jupyter_core.utils import run_sync

    spec = KernelSpec(
        argv=[sys.executable, "-c", _LAUNCH, "-f", "{connection_file}"],
        display_name="Python 3",
        language="python",
        metadata={"supported_encryption": ["curve"]},
    )

    class OurSpec(KernelSpecManager):  # type: ignore[misc, unused-ignore]
        def get_kernel_spec(self, kernel_name: str) -> KernelSpec:  # noqa: ARG002
            return spec

    clients: list[Any] = []

    class OurKernel(AsyncKernelManager):  # type: ignore[misc, unused-ignore]
        def client(self, **options: Any) -> Any:
            # Papermill leaves the sockets of its client to us, together with the kernel.
            clients.append(super().client(**options))
            return clients[-1]

    manager = OurKernel(
        kernel_spec_manager=OurSpec(),
        connection_file=str(folder / "kernel.json"),
        transport_encryption="required",  # it listens on loopback, where others may listen in
        shutdown_wait_time=2.0,
    )
    done = False
    try:
        run_sync(manager.start_kernel)(env=environment(settings, folder), cwd=str(folder))
        yield manager
        done = True
    finally:
        # At the end of the notebook the lab is closed and nothing is left to save: no need to ask politely.
        with contextlib.suppress(asyncio.CancelledError):
            for client in clients:
                client.stop_channels()
            if manager.has_kernel:
                run_sync(manager.shutdown_kernel)(now=done)
            run_sync(manager.cleanup_resources)()


def environment(settings: Settings, folder: Path) -> dict[str, str]:
    """The kernel's environment: ours, with `WORKBENCH_*` exactly as the settings say and no personal IPython."""
    found = child_environment(settings)
    found |= {"IPYTHONDIR": str(folder / "ipython"), "PYDEVD_DISABLE_FILE_VALIDATION": "1", "PYTHONWARNINGS": "ignore"}
    return found

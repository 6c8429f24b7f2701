"""The way to a Temporal server: the one that a standard configuration names, else the embedded one of a home.

The standard configuration is Temporal's own: `TEMPORAL_ADDRESS` and its sisters (`TEMPORAL_NAMESPACE`,
`TEMPORAL_API_KEY`, `TEMPORAL_TLS_...`), or a profile (`TEMPORAL_PROFILE`) of the file that `temporal config` writes.
Only when it gives an address does any of it count: a key is never sent to a server that it was not meant for.
"""

from __future__ import annotations

import asyncio
import atexit
import functools
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.errors import ServiceError
from workbench.sweeps.temporal.server import INSTALL, address_of

if TYPE_CHECKING:
    from temporalio.client import Client
    from temporalio.converter import DataConverter
    from temporalio.runtime import Runtime

PATIENCE = 10.0  # seconds
_PAUSE = 0.1
_EMBEDDED = "`workbench sweep --engine temporal` with the same WORKBENCH_HOME starts one; or set TEMPORAL_ADDRESS"
_CONFIGURED = "start it, or check TEMPORAL_ADDRESS, TEMPORAL_PROFILE and Temporal's configuration file"


def configured() -> bool:
    """Whether a standard configuration names a server; then nothing embedded is needed.

    Raises:
        ServiceError: the configuration cannot be read, or the package temporalio is missing.
    """
    return bool(_configuration())


async def connect(
    home: Path | None = None, address: str | None = None, *, data_converter: DataConverter | None = None
) -> Client:
    """A client of the server that a standard configuration names, else of the one at `address`, else in `home`.

    A server that no configuration names is ours, and may be on its way back when it fails us: it is asked again for
    `PATIENCE` seconds. `data_converter` defaults to the SDK's own.

    Raises:
        ServiceError: no server is known, it does not answer, or it turns us away; with its address and the cause.
    """
    options = _configuration()
    from temporalio.client import Client

    hint = _CONFIGURED if options else _EMBEDDED
    named = options.pop("target_host", None)
    if data_converter:
        options["data_converter"] = data_converter
    runtime, deadline = _runtime(os.getpid()), time.monotonic() + PATIENCE
    while True:
        target = named or address or (address_of(home) if home else None)  # read anew: it may move
        if target is None:
            raise ServiceError("no Temporal server is known", where=str(home or "settings"), hint=hint)
        try:
            async with asyncio.timeout(PATIENCE):
                return await Client.connect(target, runtime=runtime, **options)
        except (RuntimeError, ValueError, TimeoutError) as error:
            if named or time.monotonic() > deadline:
                where = target.rpartition("@")[2]
                raise ServiceError(f"no Temporal server: {_reason(error)}", where=where, hint=hint) from error
        await asyncio.sleep(_PAUSE)


def _configuration() -> dict[str, Any]:
    """What a standard configuration gives to `Client.connect`; {} if it names no server."""
    try:
        from temporalio.envconfig import ClientConfig
    except ImportError as error:
        raise ServiceError(f"Temporal needs package {error.name or 'temporalio'}", hint=INSTALL) from error
    try:
        found = dict(ClientConfig.load_client_connect_config())
    except (RuntimeError, ValueError, OSError) as error:
        # The parser quotes the line that it stumbles over, which may hold a key: neither shown nor chained.
        lines = str(error).strip().splitlines()
        what = f"{lines[0]}: {lines[-1]}" if len(lines) > 1 else str(error)
        raise ServiceError(
            f"Temporal's configuration cannot be read: {what}",
            where=os.environ.get("TEMPORAL_CONFIG_FILE", "TEMPORAL_* variables or Temporal's configuration file"),
            hint="correct it, or unset TEMPORAL_PROFILE and TEMPORAL_CONFIG_FILE to do without",
        ) from None
    return found if "target_host" in found else {}


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"it did not answer within {PATIENCE:.0f} seconds"
    if "Connection refused" in str(error):
        return "nothing listens there"
    if "dns error" in str(error):
        return "there is no such host"
    return str(error).removeprefix("Failed client connect: ").partition("\n")[0][:300]


@functools.lru_cache(maxsize=1)
def _runtime(pid: int) -> Runtime:  # noqa: ARG001  (a runtime does not survive a fork: one for each process)
    """The SDK's core without its log on stderr: what fails for good arrives as an exception."""
    from temporalio.runtime import LoggingConfig, Runtime, TelemetryConfig

    # A thread of the core that still hands over its last result while the interpreter shuts down aborts the process
    # (github.com/temporalio/sdk-python/issues/300): let it have the interpreter first.
    atexit.register(time.sleep, 0.05)
    return Runtime(telemetry=TelemetryConfig(logging=LoggingConfig(filter="OFF")))

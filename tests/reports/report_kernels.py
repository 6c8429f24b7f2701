"""Kernels that this process has started and not ended."""

from __future__ import annotations

import time

import psutil


def kernels() -> list[str]:
    """Command lines of kernels that this process started."""
    found = []
    for child in psutil.Process().children(recursive=True):
        try:
            line = " ".join(child.cmdline())
        except psutil.Error:
            continue
        if "ipykernel" in line:
            found.append(line)
    return found


def no_kernel_left(seconds: float = 5) -> bool:
    end = time.monotonic() + seconds
    while kernels() and time.monotonic() < end:
        time.sleep(0.05)
    return not kernels()

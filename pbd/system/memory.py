"""Memory that this process uses and that its host has free, in bytes."""

import contextlib
import math
import sys
from pathlib import Path

from pbd.system.devices import has_accelerator


def memory_in_use() -> int:
    """Return the bytes that this process holds now, on its accelerator if it has one, else of its host's memory."""
    if has_accelerator():
        return _accelerator_memory()["current"]
    held = _kernel_bytes("/proc/self/status", "VmRSS")
    return peak_memory() if held is None else held


def peak_memory() -> int:
    """Return the most bytes that this process has held, on its accelerator if it has one, else of its host's memory."""
    if has_accelerator():
        return _accelerator_memory()["peak"]
    most = _kernel_bytes("/proc/self/status", "VmHWM")
    if most is not None:
        return most
    import resource  # on Linux it counts what the process that started this one held, too

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def _kernel_bytes(path: str, name: str) -> int | None:
    """Return a figure of Linux' /proc, which gives them in KiB; `None` where there is none."""
    try:
        with open(path, encoding="ascii") as lines:
            return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
    except (OSError, StopIteration):
        return None


def _accelerator_memory() -> dict[str, int]:
    """Return what TensorFlow knows of a GPU; zeros where there is another backend, or another accelerator."""
    try:
        import tensorflow as tf

        return tf.config.experimental.get_memory_info("GPU:0")
    except (ImportError, RuntimeError, ValueError):
        return {"current": 0, "peak": 0}


def free_memory() -> int | None:
    """Return how many bytes a worker can still take; `None` where the system does not say, and on accelerators."""
    return None if has_accelerator() else free_host_memory()


def free_host_memory() -> int | None:
    """Return how many bytes of the host's memory are free; `None` where the system does not say.

    A container has what its control group leaves it.
    """
    free = _kernel_bytes("/proc/meminfo", "MemAvailable")
    return None if free is None else int(min(free, _free_in_group()))


def _free_in_group(root: Path = Path("/sys/fs/cgroup")) -> float:
    """Return what the control group leaves, the files that it only caches not counted (both versions of the kernel's).

    Source: https://docs.kernel.org/admin-guide/cgroup-v2.html and cgroup-v1/memory.html.
    """
    for limit, used, cached in (
        ("memory.max", "memory.current", "file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_cache"),
    ):
        with contextlib.suppress(OSError, ValueError, KeyError):  # a limit that is none reads "max"
            stat = (root / limit).with_name("memory.stat").read_text().split()
            files = int(dict(zip(stat[::2], stat[1::2], strict=True))[cached])
            return max(0, int((root / limit).read_text()) - int((root / used).read_text()) + files)
    return math.inf

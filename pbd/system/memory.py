"""Memory that this process uses and that its host has free, in bytes."""

import contextlib
import math
import sys
from pathlib import Path

import psutil

from pbd.system import backend
from pbd.system.devices import has_accelerator


def memory_in_use() -> int:
    """Return the bytes that this process uses now, on its accelerator if it has one, else in host memory."""
    return _accelerator_memory()["current"] if has_accelerator() else psutil.Process().memory_info().rss


def peak_memory() -> int:
    """Return the largest number of bytes that this process has used, on its accelerator if any, else in host memory."""
    return _accelerator_memory()["peak"] if has_accelerator() else peak_host_memory()


def reset_peak() -> int:
    """Let `peak_host_memory` count from now on, and return the bytes of host memory in use; on Linux alone.

    Raises:
        OSError: this is not Linux.
    """
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # proc_pid_clear_refs(5)
    return psutil.Process().memory_info().rss


def peak_host_memory() -> int:
    """Return the largest number of bytes of host memory that this process has used."""
    # On Linux ru_maxrss also counts the process that started this one, and psutil has no peak there.
    with contextlib.suppress(OSError, StopIteration), open("/proc/self/status", encoding="ascii") as lines:
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _accelerator_memory() -> dict[str, int]:
    """Return the backend's figures of its first accelerator; zeros where it has none."""
    try:
        return _FIGURES[backend.name()]()
    except (ImportError, RuntimeError, ValueError, KeyError):
        return {"current": 0, "peak": 0}


def _of_tensorflow() -> dict[str, int]:
    import tensorflow as tf

    return tf.config.experimental.get_memory_info("GPU:0")


def _of_jax() -> dict[str, int]:
    import jax

    figures = jax.local_devices()[0].memory_stats() or {}
    return {"current": figures["bytes_in_use"], "peak": figures["peak_bytes_in_use"]}


def _of_torch() -> dict[str, int]:
    import torch

    return {"current": torch.cuda.memory_allocated(), "peak": torch.cuda.max_memory_allocated()}


_FIGURES = {"tensorflow": _of_tensorflow, "jax": _of_jax, "torch": _of_torch}


def free_device_memory() -> int:
    """Return how many bytes are free where JAX computes: of its first accelerator, or of the host."""
    import jax

    figures = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" not in figures:
        return free_host_memory()
    return figures["bytes_limit"] - figures["bytes_in_use"]


def free_memory() -> int | None:
    """Return how many bytes of host memory a worker can still use; `None` if it computes on an accelerator."""
    return None if has_accelerator() else free_host_memory()


def free_host_memory() -> int:
    """Return how many bytes of host memory are free, within the limit of this process's control group."""
    return int(min(psutil.virtual_memory().available, _free_in_group()))


def _free_in_group(root: Path = Path("/sys/fs/cgroup")) -> float:
    """Return the bytes below the control group's limit, with its file cache counted as free; infinity without a limit.

    Source: https://docs.kernel.org/admin-guide/cgroup-v2.html and cgroup-v1/memory.html.
    """
    for limit, used, cached in (
        ("memory.max", "memory.current", "file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_cache"),
    ):
        with contextlib.suppress(OSError, ValueError, KeyError):  # "max" is no limit
            stat = (root / limit).with_name("memory.stat").read_text().split()
            files = int(dict(zip(stat[::2], stat[1::2], strict=True))[cached])
            return max(0, int((root / limit).read_text()) - int((root / used).read_text()) + files)
    return math.inf

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


def _free_in_group(root: Path = Path("/sys/fs/cgroup"), groups: Path = Path("/proc/self/cgroup")) -> float:
    """Return the bytes below the limits of this process's control groups; infinity without a limit.

    Source: https://docs.kernel.org/admin-guide/cgroup-v2.html and cgroup-v1/memory.html.

    Args:
        root: the folder in which control groups are mounted; in a container, this is the group of the container.
        groups: the file that names the groups of this process, such as those of a Slurm job.
    """
    folders = {(root, _VERSION_2), (root / "memory", _VERSION_1)}
    with contextlib.suppress(OSError, ValueError):
        for line in groups.read_text(errors="surrogateescape").splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers or "memory" in controllers.split(","):
                top, names = (root / "memory", _VERSION_1) if controllers else (root, _VERSION_2)
                below = Path(path.lstrip("/"))
                folders |= {(top / each, names) for each in (below, *below.parents)}  # a limit holds for what is below
    return min(_free_in(folder, *names) for folder, names in folders)


_VERSION_1 = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache"
_VERSION_2 = "memory.max", "memory.current", "file"
"""The files of a control group with its limit and its use, and the entry of `memory.stat` with its file cache."""


def _free_in(folder: Path, limit: str, used: str, cached: str) -> float:
    """Return the bytes below the limit of a group, with its file cache counted as free; infinity without a limit."""
    with contextlib.suppress(OSError, ValueError, KeyError):  # "max" is no limit
        stat = (folder / "memory.stat").read_text().split()
        files = int(dict(zip(stat[::2], stat[1::2], strict=True))[cached])
        return max(0, int((folder / limit).read_text()) - int((folder / used).read_text()) + files)
    return math.inf

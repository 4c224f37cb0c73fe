"""Which device, how many threads and how much memory this process uses; settled before any backend is loaded."""

import errno
import importlib.util
import json
import os
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import threadpoolctl

from pbd.errors import EnvironmentMismatchError

_CLAIMED = "PBD_CLAIMED"  # the process that set some of these settings itself, and to what
_SEATS: dict[int, socket.socket] = {}
_local_workers = 1


@dataclass(frozen=True)
class Share:
    """What one worker has of its host; see `claim`."""

    local_rank: int = 0
    local_workers: int = 1
    threads: int | None = None
    verbose: bool = False

    def claim(self) -> int:
        """Take it for this process; return its CPU threads.

        Raises:
            EnvironmentMismatchError: there are GPUs, but fewer than workers.
        """
        return claim(self.local_rank, self.local_workers, self.threads, self.verbose)


def physical_gpus() -> int:
    """Return the number of NVIDIA GPUs of this host, 0 where the driver or its Python binding is absent."""
    return len(gpu_ids())


def gpu_ids() -> tuple[str, ...]:
    """Return what the driver calls each of this host's NVIDIA GPUs, whichever of them a container sees."""
    if importlib.util.find_spec("pynvml") is None:
        return ()
    import pynvml

    try:
        pynvml.nvmlInit()
        handles = map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
        return tuple(str(pynvml.nvmlDeviceGetUUID(handle)) for handle in handles)
    except pynvml.NVMLError:
        return ()


def claim(local_rank: int, local_workers: int, threads: int | None = None, verbose: bool = False) -> int:
    """Give this process its share of the host: one GPU by local rank where there are any, and its part of the cores.

    Args:
        local_rank: this worker's number among those of the same host, from 0.
        local_workers: how many workers share the host.
        threads: CPU threads of this worker; by default the host's cores shared out evenly.
        verbose: leave the backend's own log messages on.

    Where a backend is loaded already (a teacher was handed over from Python), its own settings stay.

    Returns:
        The CPU threads that this process was given, by this call or by the environment.

    Raises:
        EnvironmentMismatchError: there are GPUs, but fewer than workers.
    """
    global _local_workers
    _local_workers = local_workers
    forget_inherited()
    given = threads is not None
    threads = threads or max(1, available_cores() // local_workers)
    settings = {
        "TF_NUM_INTRAOP_THREADS": str(threads),
        "TF_NUM_INTEROP_THREADS": "1" if local_workers > 1 or threads == 1 else "2",  # each computes, too
        "OMP_NUM_THREADS": str(threads),
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # JAX: a worker and the process that trains for it share the GPU
    }
    if not verbose:
        settings["TF_CPP_MIN_LOG_LEVEL"] = "3"
    gpus = physical_gpus()
    if gpus and "CUDA_VISIBLE_DEVICES" not in os.environ:
        if local_workers > gpus:
            raise EnvironmentMismatchError(
                f"one worker needs one GPU. Received: {local_workers} workers, {gpus} GPUs on this host. "
                "Start fewer workers, or set CUDA_VISIBLE_DEVICES to share them or to use the CPU."
            )
        settings["CUDA_VISIBLE_DEVICES"] = str(local_rank)
    if "tensorflow" not in sys.modules:
        ours = [name for name in settings if name not in os.environ or (given and "THREADS" in name)]
        os.environ.update({name: settings[name] for name in ours})
        before = json.loads(os.environ.get(_CLAIMED) or "{}")
        os.environ[_CLAIMED] = json.dumps(before | {name: settings[name] for name in ours} | {"pid": os.getpid()})
        threadpoolctl.threadpool_limits(threads, user_api="blas")  # NumPy is loaded by now and reads no environment
    return int(os.environ.get("TF_NUM_INTRAOP_THREADS") or threads)


def forget_inherited() -> None:
    """Drop what another process claimed for itself before it started this one; what its user set stays."""
    claimed = json.loads(os.environ.get(_CLAIMED) or "{}")
    if claimed.pop("pid", os.getpid()) != os.getpid():
        for name, value in {**claimed, _CLAIMED: os.environ[_CLAIMED]}.items():
            if os.environ.get(name) == value:
                del os.environ[name]


def take_seat(gpus: Sequence[str], preferred: int = 0) -> int:
    """Return the number of a GPU of this host that no other process took by this call; it is held until this one ends.

    Args:
        gpus: what they are called.
        preferred: the number taken where it is free; the first free one otherwise.

    Raises:
        EnvironmentMismatchError: all are taken.
    """
    if _SEATS:  # taken before, by a call after which something else failed
        return next(iter(_SEATS))
    for seat in sorted(range(len(gpus)), key=lambda seat: seat != preferred):
        taken = socket.socket(socket.AF_UNIX)
        try:
            taken.bind(f"\0pbd-{gpus[seat]}")  # not a file but a name of the kernel's: it falls free when we end
        except OSError as error:
            taken.close()
            if error.errno != errno.EADDRINUSE:
                raise
        else:
            _SEATS[seat] = taken
            return seat
    raise EnvironmentMismatchError(
        f"one worker needs one GPU. Received: another worker, with all {len(gpus)} GPUs of this host taken. "
        "Start fewer workers, or set CUDA_VISIBLE_DEVICES to share them or to use the CPU."
    )


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def has_accelerator() -> bool:
    """Return whether the loaded Keras backend computes on an accelerator."""
    import keras

    return any(not name.startswith("cpu") for name in keras.distribution.list_devices())


def local_workers() -> int:
    """Return how many workers shared this host when this one took its share."""
    return _local_workers


def compiles_with_xla() -> bool:
    """Return whether training steps are compiled by XLA: on accelerators; on CPUs it ran 4 to 6 times slower."""
    return has_accelerator()


def describe() -> str:
    """Return the device of this process in words, for the report."""
    import platform

    import keras

    device = ", ".join(keras.distribution.list_devices()) or "cpu"
    threads = os.environ.get("TF_NUM_INTRAOP_THREADS", "?")
    return f"{device}; {_processor_name() or platform.machine()}; {threads} of {available_cores()} threads per worker"


def _processor_name() -> str | None:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), None)
    except OSError:
        return None

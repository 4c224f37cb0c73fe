"""Which device and how many threads this process uses; decided before any backend is loaded."""

import importlib
import importlib.util
import logging
import os
import socket
import sys

import threadpoolctl

from pbd.errors import EnvironmentMismatchError

SEAT = "pbd-gpu"
_CLAIMED = "PBD_CLAIMED"  # the process that set some of these settings itself, and their names
_SEATS: list[socket.socket] = []


def physical_gpus() -> int:
    """Return the number of NVIDIA GPUs of this host, 0 where the driver or its Python binding is absent."""
    if importlib.util.find_spec("pynvml") is None:
        return 0
    import pynvml

    try:
        pynvml.nvmlInit()
        return pynvml.nvmlDeviceGetCount()
    except pynvml.NVMLError:
        return 0


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
    forget_inherited()
    given = threads is not None
    threads = threads or max(1, available_cores() // local_workers)
    settings = {
        "TF_NUM_INTRAOP_THREADS": str(threads),
        "TF_NUM_INTEROP_THREADS": "1" if local_workers > 1 else "2",
        "OMP_NUM_THREADS": str(threads),
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",
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
        before = os.environ.get(_CLAIMED, str(os.getpid())).split()
        os.environ[_CLAIMED] = " ".join([*before, *(name for name in ours if name not in before)])
        threadpoolctl.threadpool_limits(threads, user_api="blas")  # NumPy is loaded by now and reads no environment
    return int(os.environ.get("TF_NUM_INTRAOP_THREADS") or threads)


def forget_inherited() -> None:
    """Drop what another process claimed for itself before it started this one; what its user set stays."""
    claimant, *names = os.environ.get(_CLAIMED, "").split() or [str(os.getpid())]
    if int(claimant) != os.getpid():
        for name in (*names, _CLAIMED):
            os.environ.pop(name, None)


def take_seat(seats: int, preferred: int = 0) -> int:
    """Return the number of a GPU of this host that no other process took by this call; it is held until this one ends.

    Args:
        seats: how many GPUs there are.
        preferred: taken where it is free; the first free one otherwise.

    Raises:
        EnvironmentMismatchError: all are taken.
    """
    for seat in sorted(range(seats), key=lambda seat: seat != preferred):
        taken = socket.socket(socket.AF_UNIX)
        try:
            taken.bind(f"\0{SEAT}-{seat}")  # a name of the kernel's, not a file: it falls free however a process ends
        except OSError:
            taken.close()
            continue
        _SEATS.append(taken)
        return seat
    raise EnvironmentMismatchError(
        f"one worker needs one GPU. Received: another worker, with all {seats} GPUs of this host taken. "
        "Start fewer workers, or set CUDA_VISIBLE_DEVICES to share them or to use the CPU."
    )


def load_backend() -> None:
    """Import Keras and its backend, without the notices that TensorFlow's libraries print before logging is set up."""
    if "keras" in sys.modules or os.environ.get("TF_CPP_MIN_LOG_LEVEL") != "3":
        return
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        importlib.import_module("keras")
    except ImportError as error:
        raise EnvironmentMismatchError(
            f"Keras needs a backend. Received: {error}. Install one: pip install 'pbd[cpu]' or 'pbd[gpu]'."
        ) from error
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def has_accelerator() -> bool:
    """Return whether the loaded Keras backend computes on an accelerator."""
    import keras

    return any(not name.startswith("cpu") for name in keras.distribution.list_devices())


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

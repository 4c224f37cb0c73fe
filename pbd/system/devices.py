"""The GPU, CPU threads and memory settings of a process, set before a backend is loaded."""

import contextlib
import errno
import importlib.util
import json
import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs
import threadpoolctl

from pbd.errors import EnvironmentMismatchError
from pbd.system import backend, processor

_CLAIMED = "PBD_CLAIMED"
"""Environment variable: what a process claimed for itself as JSON, with its process id. Child processes inherit it."""
_LOCAL_WORKERS = "PBD_LOCAL_WORKERS"
"""Environment variable: the number of workers on this host."""
_THREADS = "TF_NUM_INTRAOP_THREADS"
_WORKER_THREADS = "PBD_WORKER_THREADS"
"""Environment variable: the threads of each worker on this host, if this process has another number."""
SHORTEST_COMPILATION_S = 0.1
"""What JAX compiles in less time is not written to the cache."""
_GPU_LOCKS: dict[int, socket.socket] = {}


@dataclass(frozen=True)
class Share:
    """One worker's share of its host: one GPU by local rank if there are any, and a part of the cores."""

    local_rank: int = 0
    """This worker's number among the workers of the same host, from 0."""
    local_workers: int = 1
    threads: int | None = None
    """CPU threads of this worker; by default the host's cores divided by its workers."""
    verbose: bool = False
    """Whether the backend's own log messages are shown."""
    leads: bool = False
    """Whether this process computes only while all workers wait: then it has all cores by default."""

    def settings(self) -> dict[str, str]:
        """Return the environment variables that give a new process this share.

        Variables that the user has set are left out, except thread counts if `threads` is given.

        Raises:
            EnvironmentMismatchError: there are GPUs, but fewer than workers.
        """
        threads = self._threads(1 if self.leads else self.local_workers)
        settings = {
            _THREADS: str(threads),
            # One pool computes at a time if workers share the host: each inter-op thread adds intra-op threads.
            "TF_NUM_INTEROP_THREADS": "1" if self.local_workers > 1 or threads == 1 else "2",
            "OMP_NUM_THREADS": str(threads),  # torch's, too
            "PJRT_NPROC": str(threads),  # the thread pools of JAX on CPUs
            "TF_FORCE_GPU_ALLOW_GROWTH": "true",
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # a JAX worker and its training process share the GPU
        }
        if backend.name() == "jax":
            settings |= {
                "JAX_COMPILATION_CACHE_DIR": str(_compilation_cache()),
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": str(SHORTEST_COMPILATION_S),
            }
        if not self.verbose:
            settings["TF_CPP_MIN_LOG_LEVEL"] = "3"
        if "CUDA_VISIBLE_DEVICES" not in os.environ and (gpus := physical_gpus()):
            if self.local_workers > gpus:
                raise EnvironmentMismatchError(
                    f"one worker needs one GPU. Received: {self.local_workers} workers, {gpus} GPUs on this host. "
                    "Start fewer workers, or set CUDA_VISIBLE_DEVICES to share them or to use the CPU."
                )
            settings["CUDA_VISIBLE_DEVICES"] = str(self.local_rank)
        threads_set, claimed = self.threads is not None, _claims()
        missing = {
            name: value
            for name, value in settings.items()
            if os.environ.get(name) in (None, claimed.get(name))
            or (threads_set and name.endswith(("_THREADS", "_NPROC")))
        }
        if self.leads and _THREADS in missing:
            missing[_WORKER_THREADS] = str(self._threads(self.local_workers))
        return missing | {_LOCAL_WORKERS: str(self.local_workers)}

    def _threads(self, workers: int) -> int:
        return self.threads or max(1, available_cores() // workers)

    def claim(self) -> int:
        """Apply the share to this process until it ends, not for a block; return its number of CPU threads.

        A loaded backend keeps its own settings (a teacher was passed from Python): then nothing is set.

        Raises:
            EnvironmentMismatchError: there are GPUs, but fewer than workers.
        """
        forget_inherited()
        settings = self.settings()
        threads = int(settings.get(_THREADS) or os.environ[_THREADS])
        if backend.is_loaded():
            settings = {_LOCAL_WORKERS: settings[_LOCAL_WORKERS]}
        else:  # NumPy's BLAS is loaded and no longer reads the environment
            threadpoolctl.threadpool_limits(threads, user_api="blas")
        os.environ.update(settings)
        os.environ[_CLAIMED] = json.dumps(_claims() | settings | {"pid": os.getpid()})
        return threads


@contextlib.contextmanager
def claimed(share: Share) -> Iterator[None]:
    """Claim a share for the block; then restore the environment variables and the limits of all thread pools.

    A backend that is loaded in the block keeps its own thread pools for the life of the process.

    Raises:
        EnvironmentMismatchError: there are GPUs, but fewer than workers.
    """
    before = dict(os.environ)
    # With a loaded backend a claim sets no limits, and to look at all libraries takes longer than the claim.
    with contextlib.nullcontext() if backend.is_loaded() else _restored_thread_pools():
        share.claim()
        changed = {name for name in before | os.environ if before.get(name) != os.environ.get(name)}
        try:
            yield
        finally:
            for name in changed:
                os.environ.pop(name, None)
            os.environ.update({name: before[name] for name in changed & before.keys()})


@contextlib.contextmanager
def _restored_thread_pools() -> Iterator[None]:
    """Restore the limits of all thread pools at the end of the block, and lift those that it set for libraries."""
    controller = threadpoolctl.ThreadpoolController()
    libraries = {library.filepath for library in controller.lib_controllers}
    with controller.limit():  # without a limit it only restores the limits at the end
        try:
            yield
        finally:
            _unlimit_other_libraries(libraries)


def _unlimit_other_libraries(earlier_libraries: set[str]) -> None:
    """Set libraries that were loaded during a claim to the number of threads that they use without a claim."""
    controller = threadpoolctl.ThreadpoolController()
    loaded = [library.filepath for library in controller.lib_controllers if library.filepath not in earlier_libraries]
    if loaded:
        requested = os.environ.get("OMP_NUM_THREADS", "")
        controller.select(filepath=loaded).limit(limits=int(requested) if requested.isdecimal() else available_cores())


def forget_inherited() -> None:
    """Remove the environment variables that a parent process claimed for itself; the user's own stay.

    Dask starts a lost local worker from the coordinator's environment.
    """
    claimed_by_parent = _claims()
    if claimed_by_parent.pop("pid", os.getpid()) != os.getpid():
        for name, value in {**claimed_by_parent, _CLAIMED: os.environ[_CLAIMED]}.items():
            if os.environ.get(name) == value:
                del os.environ[name]


def _claims() -> dict[str, Any]:
    return json.loads(os.environ.get(_CLAIMED) or "{}")


def local_workers() -> int:
    """Return the number of workers on this host, as claimed; 1 without a claim."""
    return int(os.environ.get(_LOCAL_WORKERS, "1"))


def reserve_gpu(gpus: Sequence[str], preferred: int = 0) -> int:
    """Reserve a GPU of this host among all processes that call this, until the process ends; return its index.

    Args:
        gpus: the GPUs' identifiers.
        preferred: the index that is reserved if it is free; the first free one otherwise.

    Raises:
        EnvironmentMismatchError: all are reserved.
    """
    if _GPU_LOCKS:  # reserved by an earlier call, after which set-up failed
        return next(iter(_GPU_LOCKS))
    for index in sorted(range(len(gpus)), key=lambda index: index != preferred):
        lock = socket.socket(socket.AF_UNIX)
        try:
            lock.bind(f"\0pbd-{gpus[index]}")  # an abstract address is no file: the kernel frees it with the process
        except OSError as error:
            lock.close()
            if error.errno != errno.EADDRINUSE:
                raise
        else:
            _GPU_LOCKS[index] = lock
            return index
    raise EnvironmentMismatchError(
        f"one worker needs one GPU. Received: another worker, with all {len(gpus)} GPUs of this host taken. "
        "Start fewer workers, or set CUDA_VISIBLE_DEVICES to share them or to use the CPU."
    )


def physical_gpus() -> int:
    """Return the number of NVIDIA GPUs of this host, 0 without the driver or its Python binding."""
    return len(gpu_ids())


def gpu_ids() -> tuple[str, ...]:
    """Return the UUIDs of this host's NVIDIA GPUs, including those that CUDA_VISIBLE_DEVICES hides."""
    if importlib.util.find_spec("pynvml") is None:
        return ()
    import pynvml

    try:
        pynvml.nvmlInit()
        handles = map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
        return tuple(str(pynvml.nvmlDeviceGetUUID(handle)) for handle in handles)
    except pynvml.NVMLError:
        return ()


def process_threads() -> int:
    """Return the number of CPU threads with which the backend of this process computes."""
    return int(os.environ.get(_THREADS) or 0) or available_cores()


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def names() -> list[str]:
    """Return the devices of the loaded Keras backend, such as `cpu:0` or `gpu:0`: those of its default kind."""
    if backend.name() != "torch":
        import keras

        return keras.distribution.list_devices()
    import torch

    kind = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return [f"{kind.type}:{index}" for index in range(torch.accelerator.device_count())] if kind else ["cpu:0"]


def has_accelerator() -> bool:
    """Return whether the loaded Keras backend computes on an accelerator."""
    return any(not name.startswith("cpu") for name in names())


def compiles_with_xla() -> bool:
    """Return whether to compile with XLA, Keras' `jit_compile`.

    JAX runs operation by operation without it. TensorFlow's steps took 4 to 6 times as long with it on CPUs. In torch
    it stands for another compiler, which takes longer than most trainings here.
    """
    return backend.name() == "jax" or (backend.name() == "tensorflow" and has_accelerator())


def _compilation_cache() -> Path:
    """Return the folder of what JAX has compiled, shared by all workers and runs on hosts with this kind of CPU.

    JAX's own keys do not tell CPUs apart, and instructions that a CPU lacks would end the process.
    """
    return platformdirs.user_cache_path("pbd") / "jax" / processor.kind()


def describe() -> str:
    """Return the device, the backend and the threads of this process in words, for the report."""
    import platform

    threads = os.environ.get(_WORKER_THREADS) or os.environ.get(_THREADS, "?")
    return (
        f"{', '.join(names())} ({backend.name()}); {processor.name() or platform.machine()}; "
        f"{threads} of {available_cores()} threads per worker"
    )

"""Refusals of hosts: GPUs, backends and run directories that a worker does not see; remedies are followed, and work."""

import socket
import sys
from typing import Any

import pytest

from pbd.executors.dask import worker
from pbd.system import backend, devices
from tests.helpers.remedies import in_message, refusal

pytestmark = pytest.mark.fast


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(devices, "gpu_ids", lambda: ("GPU-a", "GPU-b"))
    return monkeypatch


@pytest.mark.parametrize("visible", ["0", "0,1", ""])
def test_fewer_workers_are_started_or_gpus_are_shared(two_gpus: pytest.MonkeyPatch, visible: str) -> None:
    message = refusal(lambda: devices.Share(2, local_workers=3).settings(), "Start fewer workers,")
    assert devices.Share(1, local_workers=2).settings()["CUDA_VISIBLE_DEVICES"] == "1"
    two_gpus.setenv(in_message(r"or set (\w+) to share them or to use the CPU", message), visible)
    assert "CUDA_VISIBLE_DEVICES" not in devices.Share(2, local_workers=3).settings(), "that of the user holds"


def test_dask_workers_share_gpus_that_are_all_taken(two_gpus: pytest.MonkeyPatch) -> None:
    """The other workers of the host are played by sockets of the same names."""
    names = ("GPU-remedy-a", "GPU-remedy-b")
    two_gpus.setattr(devices, "gpu_ids", lambda: names)
    two_gpus.setattr(devices, "_GPU_LOCKS", {})
    others = [socket.socket(socket.AF_UNIX) for _ in names]
    for other, name in zip(others, names, strict=True):
        other.bind(f"\0pbd-{name}")
    message = refusal(lambda: devices.reserve_gpu(devices.gpu_ids()), "with all 2 GPUs of this host taken")
    opened: list[devices.Share] = []
    two_gpus.setattr("distributed.get_worker", lambda: DaskWorker)
    two_gpus.setattr(worker, "_open", lambda share, threads, settings: opened.append(share))
    two_gpus.setattr(devices.Share, "claim", lambda share: 1)
    with two_gpus.context() as shared:
        shared.setenv(in_message(r"or set (\w+) to share them", message), "0")
        worker._first_state(SETTINGS)
    others.pop().close()
    assert "Start fewer workers" in message
    worker._first_state(SETTINGS)
    assert [share.local_rank for share in opened] == [0, 1]
    for lock in (*others, *devices._GPU_LOCKS.values()):
        lock.close()


class DaskWorker:
    """The worker of this process."""

    name, address = "worker-0", "tcp://127.0.0.1:1"


SETTINGS: Any = type("Settings", (), {"workers_of_host": {}, "config": devices.Share(threads=None)})
SETTINGS.config = type("Config", (), {"threads_per_worker": None, "verbose": False})


@pytest.mark.parametrize("level", ["2", "3"])
def test_a_backend_is_installed(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", level)
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")
    monkeypatch.delitem(sys.modules, "keras", raising=False)
    imported: list[str] = []

    def import_module(name: str) -> None:
        imported.append(name)
        if len(imported) == 1:
            raise ModuleNotFoundError("No module named 'tensorflow'")

    monkeypatch.setattr(backend.importlib, "import_module", import_module)
    message = refusal(backend.load, "Install one: pip install 'pbd[cpu]' or 'pbd[gpu]'")
    assert "Received: tensorflow, No module named 'tensorflow'" in message
    assert "'pbd[jax]', 'pbd[jax-cuda]' or 'pbd[torch]'" in message
    backend.load()
    assert imported == ["keras", "keras"]

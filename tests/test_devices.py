"""The share of the host that a worker claims, decided by environment before any backend loads."""

import sys

import pytest

from pbd import devices
from pbd.errors import EnvironmentMismatchError

pytestmark = pytest.mark.fast

NAMES = ("TF_NUM_INTRAOP_THREADS", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")


@pytest.fixture
def bare_host(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A host of eight cores and two GPUs, with nothing set and nothing loaded."""
    for name in NAMES:
        monkeypatch.setenv(name, "")  # so that it is put back afterwards
        monkeypatch.delenv(name)
    monkeypatch.setattr(devices, "available_cores", lambda: 8)
    monkeypatch.setattr(devices, "physical_gpus", lambda: 2)
    monkeypatch.delitem(sys.modules, "tensorflow", raising=False)
    return monkeypatch


def claimed() -> tuple[str | None, ...]:
    import os

    return tuple(os.environ.get(name) for name in NAMES)


def test_workers_share_cores_and_take_a_gpu_each(bare_host: pytest.MonkeyPatch) -> None:
    devices.claim(local_rank=1, local_workers=2)
    assert claimed() == ("4", "4", "1")


def test_a_flag_beats_the_environment_and_the_environment_beats_the_default(bare_host: pytest.MonkeyPatch) -> None:
    bare_host.setenv("TF_NUM_INTRAOP_THREADS", "7")
    devices.claim(0, 1)
    assert claimed()[0] == "7"
    devices.claim(0, 1, threads=3)
    assert claimed()[0] == "3"


def test_more_workers_than_gpus_is_refused_unless_the_user_shares_them(bare_host: pytest.MonkeyPatch) -> None:
    with pytest.raises(EnvironmentMismatchError, match="3 workers, 2 GPUs"):
        devices.claim(0, 3)
    bare_host.setenv("CUDA_VISIBLE_DEVICES", "0")
    devices.claim(2, 3)
    assert claimed()[2] == "0"

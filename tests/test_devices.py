"""The share of the host that a worker claims, decided by environment before any backend loads."""

import contextlib
import subprocess
import sys
from pathlib import Path

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


HOLD = """
import sys, time
from pbd import devices
from pbd.errors import PbdError
try:
    print(devices.take_seat(2, preferred=int(sys.argv[1])), flush=True)
except PbdError as error:
    print(error, flush=True)
sys.stdin.read()
"""


def test_no_two_processes_take_one_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))

    def sit(preferred: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", HOLD, str(preferred)]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    with contextlib.ExitStack() as stack:
        first, second, third = [stack.enter_context(sit(1)) for _ in range(3)]
        said = sorted(process.stdout.readline().strip() for process in (first, second, third))
        assert said[:2] == ["0", "1"]
        assert "all 2 GPUs of this host taken" in said[2]
        for process in (first, second, third):
            process.kill()
            process.wait()
        again = stack.enter_context(sit(1))
        assert again.stdout.readline().strip() == "1", "a seat falls free when its process dies"
        again.kill()

"""The share of its host that a worker claims, and what is restored after a claim."""

import contextlib
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pbd.errors import EnvironmentMismatchError
from pbd.system import backend, devices, imports, memory
from tests.helpers.cluster import PATIENCE_S

pytestmark = pytest.mark.fast

NAMES = ("TF_NUM_INTRAOP_THREADS", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")


@pytest.fixture
def bare_host(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A host of eight cores and two GPUs, with nothing set and nothing loaded."""
    for name in (*NAMES, "TF_NUM_INTEROP_THREADS", "PBD_CLAIMED", "PBD_LOCAL_WORKERS", "PBD_WORKER_THREADS"):
        monkeypatch.setenv(name, "")  # so that it is put back afterwards
        monkeypatch.delenv(name)
    monkeypatch.setattr(devices, "available_cores", lambda: 8)
    monkeypatch.setattr(devices, "physical_gpus", lambda: 2)
    monkeypatch.setattr(backend, "is_loaded", lambda: False)
    return monkeypatch


def environment() -> tuple[str | None, ...]:
    return tuple(os.environ.get(name) for name in NAMES)


def test_workers_share_cores_and_take_a_gpu_each(bare_host: pytest.MonkeyPatch) -> None:
    devices.Share(local_rank=1, local_workers=2).claim()
    assert environment() == ("4", "4", "1")


@pytest.mark.parametrize(("workers", "threads", "at_once"), [(1, 1, "1"), (1, None, "2"), (1, 4, "2"), (2, 4, "1")])
def test_a_worker_of_one_thread_computes_one_operation_at_a_time(
    workers: int, threads: int | None, at_once: str, bare_host: pytest.MonkeyPatch
) -> None:
    devices.Share(0, workers, threads).claim()
    assert os.environ["TF_NUM_INTEROP_THREADS"] == at_once


def test_the_process_that_leads_has_all_cores_and_its_workers_their_share(bare_host: pytest.MonkeyPatch) -> None:
    bare_host.setattr(devices, "names", lambda: ["cpu:0"])
    worker, leading = devices.Share(0, 2), devices.Share(0, 2, leads=True)
    leading.claim()
    assert environment()[:2] == ("8", "8")
    assert devices.describe().endswith("4 of 8 threads per worker")
    assert worker.settings()["TF_NUM_INTRAOP_THREADS"] == "4", "the claim is not a choice of the user"
    assert devices.Share(0, 2, threads=3, leads=True).settings()["TF_NUM_INTRAOP_THREADS"] == "3"


def test_threads_that_the_user_has_set_hold_for_all_processes(bare_host: pytest.MonkeyPatch) -> None:
    bare_host.setattr(devices, "names", lambda: ["cpu:0"])
    bare_host.setenv("TF_NUM_INTRAOP_THREADS", "7")
    devices.Share(0, 2, leads=True).claim()
    assert environment()[0] == "7"
    assert "TF_NUM_INTRAOP_THREADS" not in devices.Share(0, 2).settings()
    assert devices.describe().endswith("7 of 8 threads per worker")


def test_a_flag_beats_the_environment_and_the_environment_beats_the_default(bare_host: pytest.MonkeyPatch) -> None:
    bare_host.setenv("TF_NUM_INTRAOP_THREADS", "7")
    devices.Share().claim()
    assert environment()[0] == "7"
    devices.Share(threads=3).claim()
    assert environment()[0] == "3"


def test_more_workers_than_gpus_is_refused_unless_the_user_shares_them(bare_host: pytest.MonkeyPatch) -> None:
    with pytest.raises(EnvironmentMismatchError, match="3 workers, 2 GPUs"):
        devices.Share(0, 3).claim()
    bare_host.setenv("CUDA_VISIBLE_DEVICES", "0")
    devices.Share(2, 3).claim()
    assert environment()[2] == "0"


def test_hidden_packages_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    with imports.hidden("colorsys", "json", "no_such_module"):
        with pytest.raises(ImportError):
            import colorsys
        import json
    import colorsys

    assert sys.modules["json"] is json
    assert sys.modules["colorsys"] is colorsys
    assert "no_such_module" not in sys.modules


def test_a_child_takes_its_own_share_and_keeps_what_the_user_set() -> None:
    """Dask restarts a lost worker from the coordinator, which by then has claimed its own share."""
    child = "import os; from pbd.system import devices; devices.forget_inherited(); print(dict(os.environ))"
    parent = "from pbd.system import devices; import os, subprocess, sys; devices.Share().claim(); "
    parent += "os.environ['TF_NUM_INTEROP_THREADS'] = '9'; "  # after the claim, for its children
    parent += f"subprocess.run([sys.executable, '-c', {child!r}], check=True)"
    users = {"CUDA_VISIBLE_DEVICES": "3", "TF_FORCE_GPU_ALLOW_GROWTH": "false"}
    command, inherited = [sys.executable, "-c", parent], {"PATH": os.environ["PATH"]} | users
    output = subprocess.run(
        command, env=inherited, capture_output=True, text=True, check=True, timeout=PATIENCE_S
    ).stdout
    for name in (
        "TF_NUM_INTRAOP_THREADS",
        "OMP_NUM_THREADS",
        "TF_CPP_MIN_LOG_LEVEL",
        "PBD_CLAIMED",
        "PBD_LOCAL_WORKERS",
    ):
        assert f"'{name}" not in output
    for name, value in {**users, "TF_NUM_INTEROP_THREADS": "9"}.items():
        assert f"'{name}': '{value}'" in output


HOLD = """
import sys, time
from pbd.system import devices
from pbd.errors import PbdError
try:
    gpus = [f"{sys.argv[2]}-{number}" for number in range(2)]
    print(devices.reserve_gpu(gpus, preferred=int(sys.argv[1])), flush=True)
    assert devices.reserve_gpu(gpus) == devices.reserve_gpu(gpus, preferred=1), "a process reserves one GPU"
except PbdError as error:
    print(error, flush=True)
sys.stdin.read()
"""


def test_no_two_processes_take_one_gpu(tmp_path: Path) -> None:
    def reserve(preferred: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", HOLD, str(preferred), str(tmp_path)]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    with contextlib.ExitStack() as stack:
        first, second, third = [stack.enter_context(reserve(1)) for _ in range(3)]
        lines = sorted(process.stdout.readline().strip() for process in (first, second, third))
        assert lines[:2] == ["0", "1"]
        assert "all 2 GPUs of this host taken" in lines[2]
        for process in (first, second, third):
            process.kill()
            process.wait()
        fourth = stack.enter_context(reserve(1))
        assert fourth.stdout.readline().strip() == "1", "the GPU is free when its process has died"
        fourth.kill()


CLAIM = """
import json, os, threadpoolctl
import numpy
from pbd.system import devices

def state():
    return dict(os.environ), {lib["filepath"]: lib["num_threads"] for lib in threadpoolctl.threadpool_info()}

before = state()
try:
    with devices.claimed(devices.Share(threads=1)):
        environment, threads = state()
        assert environment["OMP_NUM_THREADS"] == environment["TF_NUM_INTRAOP_THREADS"] == "1"
        assert set(threads.values()) == {1}
        with devices.claimed(devices.Share(threads=1)):
            import scipy.linalg  # brings a BLAS of its own
        os.environ["OF_THE_CALLER"] = "kept"
        raise KeyError
except KeyError:
    pass
assert os.environ.pop("OF_THE_CALLER") == "kept"
environment, threads = state()
assert environment == before[0], set(environment.items()) ^ set(before[0].items())
assert len(threads) > len(before[1])
assert set(threads.values()) == set(before[1].values()), (before[1], threads)
"""


@pytest.mark.skipif(devices.available_cores() < 2, reason="one thread is all there is")
@pytest.mark.parametrize("user", [{}, {"OMP_NUM_THREADS": "2", "TF_NUM_INTRAOP_THREADS": "3", "PBD_CLAIMED": "{}"}])
def test_a_claim_for_a_block_is_undone(user: dict[str, str]) -> None:
    inherited = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)} | user
    done = subprocess.run(
        [sys.executable, "-c", CLAIM], env=inherited, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == 0, done.stderr


VERSION_2 = {"memory.max": "5000\n", "memory.current": "3000\n", "memory.stat": "anon 1900\nfile 1000\n"}
VERSION_1 = {
    "memory/memory.limit_in_bytes": "5000\n",
    "memory/memory.usage_in_bytes": "3000\n",
    "memory/memory.stat": "cache 0\ntotal_cache 1000\n",
}


@pytest.mark.parametrize("files", [VERSION_2, VERSION_1], ids=["version 2", "version 1"])
def test_a_container_may_use_what_its_group_leaves_and_what_it_only_caches(
    tmp_path: Path, files: dict[str, str]
) -> None:
    (tmp_path / "memory").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert memory._free_in_group(tmp_path) == 3000


@pytest.mark.parametrize(
    ("files", "line"), [(VERSION_2, "0::/slurm/job_7/step_0"), (VERSION_1, "4:cpu,memory:/slurm/job_7/step_0")]
)
def test_a_job_may_use_what_the_groups_above_it_leave(tmp_path: Path, files: dict[str, str], line: str) -> None:
    (tmp_path / "groups").write_text(f"9:pids:/\n{line}\n")
    top = tmp_path / "memory" if "memory" in line else tmp_path
    job = top / "slurm" / "job_7"
    (job / "step_0").mkdir(parents=True)
    for folder, limit in ((job / "step_0", "9000"), (job, "5000"), (top, "8000")):
        for name, text in files.items():
            (folder / Path(name).name).write_text(text.replace("5000", limit))
    assert memory._free_in_group(tmp_path, tmp_path / "groups") == 3000


def test_without_a_limit_a_group_leaves_everything(tmp_path: Path) -> None:
    assert memory._free_in_group(tmp_path) == math.inf
    for name, text in (VERSION_2 | {"memory.max": "max\n"}).items():
        (tmp_path / name).write_text(text)
    assert memory._free_in_group(tmp_path) == math.inf


@pytest.mark.skipif(sys.platform != "linux", reason="what is started by a large process only counts its memory there")
def test_the_memory_of_the_process_that_started_this_one_is_not_its_own() -> None:
    child = "from pbd.system import memory; memory.has_accelerator = bool; print(memory.peak_memory())"
    start = (
        "import subprocess, sys\nlarge = bytearray(400_000_000)\nlarge[::4096] = bytes(len(large[::4096]))\n"
        f"subprocess.run([sys.executable, '-c', {child!r}], check=True)"
    )
    done = subprocess.run([sys.executable, "-c", start], capture_output=True, text=True, check=True, timeout=PATIENCE_S)
    assert 1e6 < int(done.stdout) < 200e6

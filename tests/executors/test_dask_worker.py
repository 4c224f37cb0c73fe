"""What a Dask worker keeps between the tasks of runs that have different settings."""

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace

import distributed
import pytest

from pbd.config import ExecutionConfig
from pbd.executors.dask import worker
from pbd.system import devices
from pbd.system.keras_state import KerasSetup

pytestmark = pytest.mark.fast


@dataclass(eq=False)
class Runner:
    """A task runner that works whenever the test says so."""

    works: bool = False
    released: list[bool] = field(default_factory=list)

    def release(self) -> bool:
        self.released.append(not self.works)
        return not self.works

    def close(self) -> None:
        assert not self.works, "its work is killed"


@pytest.fixture
def set_up(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], Runner]:
    """Set up a worker in this process for a run with a stall limit; return its runner."""
    here = SimpleNamespace(listen_address="tcp://127.0.0.1:1", address="tcp://127.0.0.1:1", name="0")
    monkeypatch.setattr(distributed, "get_worker", lambda: here)
    monkeypatch.setattr(devices.Share, "claim", lambda share: 1)
    monkeypatch.setattr(devices, "gpu_ids", lambda: ())
    monkeypatch.setattr(worker.runner, "open_runner", lambda *_: Runner())
    monkeypatch.setattr(worker, "_current", None)
    monkeypatch.setattr(worker, "_replaced", [])

    def set_up(stall_limit_s: float) -> Runner:
        config = ExecutionConfig(executor="dask", stall_limit=stall_limit_s, isolate=True)
        runner = worker.set_up_worker(worker.Settings(config, {}, f"run {stall_limit_s}", KerasSetup(backend="jax")))
        assert isinstance(runner, Runner)
        return runner

    return set_up


def test_runs_with_other_settings_do_not_end_the_work_of_each_other(set_up: Callable[[float], Runner]) -> None:
    first = set_up(100.0)
    first.works = True
    second = set_up(200.0)
    assert second is not first
    second.works = True
    assert (set_up(100.0), set_up(200.0), set_up(100.0)) == (first, second, first)
    first.works = second.works = False
    worker.end_run("run 200.0")
    assert first.released[-1]
    assert second.released[-1]


def test_an_idle_runner_is_replaced(set_up: Callable[[float], Runner]) -> None:
    first = set_up(100.0)
    assert set_up(100.0) is first
    assert not first.released
    set_up(200.0)
    assert first.released == [True]
    assert worker._replaced == []

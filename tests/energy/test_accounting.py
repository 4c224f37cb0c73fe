"""Whose the joules of a run are: blocks and workers of several hosts, of which some are lost or have no meter."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from pbd import energy
from pbd.energy import Reading, accounting, unread
from pbd.energy.replay import Recording, replay
from pbd.energy.sensors import Device
from pbd.executors.dask.cluster import WorkersSnapshot
from pbd.executors.dask.energy import ClusterMeters, begin, end, read
from pbd.records import BlockKey, BlockResult, WorkerReport
from tests.helpers.cluster import PATIENCE_S

SECONDS = 10


def of_host(host: str, watts: Sequence[float | None] = (100.0,) * (SECONDS + 1), clock_s: float = 0.0) -> Reading:
    """Return what a host read whose clock shows this when the block phase begins."""
    package = Device("package", "0", "rapl", host, host)
    return replay([clock_s + second for second in range(len(watts))], [Recording(package, watts)])


def without_meter(host: str, clock_s: float = SECONDS) -> Reading:
    return Reading(clock_s, clock_s, (), (host,))


class Shown:
    """A meter that shows one reading after the other, and the last again and again."""

    def __init__(self, *readings: Reading) -> None:
        self._readings = list(readings)

    def read(self) -> Reading:
        return self._readings.pop(0) if len(self._readings) > 1 else self._readings[0]


def account(here: Reading, others: Mapping[int, Reading]) -> accounting.EnergyAccount:
    began = dataclasses.replace(here, ended_s=here.started_s, traces=())
    return accounting.EnergyAccount(Shown(began, here), lambda: others)


def block(layer: str, worker: int, started_s: float, seconds: float, **changes: object) -> BlockResult:
    return BlockResult(layer, "trained", "x", worker=worker, started_s=started_s, seconds=seconds, **changes)


def by_layer(blocks_j: Mapping[BlockKey, float | None]) -> dict[str, float | None]:
    return {key.layer: joules for key, joules in blocks_j.items()}


@pytest.mark.fast
def test_two_workers_of_one_host_share_what_it_spends() -> None:
    kept = account(of_host("one"), dict.fromkeys(range(2), without_meter("one")))
    results = [block("a", 0, 0.0, 6.0), block("b", 1, 0.0, 10.0), block("c", 1, 0.0, 10.0)]
    shares = kept.shares(results, SECONDS)
    assert by_layer(shares.blocks_j) == pytest.approx({"a": 300.0, "b": 250.0, "c": 250.0})
    assert (shares.busy_j, shares.idle_j) == (pytest.approx({0: 300.0, 1: 500.0}), pytest.approx({0: 200.0, 1: 0.0}))
    assert sum(shares.blocks_j.values()) + sum(shares.idle_j.values()) == pytest.approx(kept.read().total_j)
    assert [result.energy_j for result in shares.with_energy(results)] == pytest.approx([300.0, 250.0, 250.0])
    rows = shares.with_worker_energy([WorkerReport(1, 10.0, 0.0), WorkerReport(2, 0.0, 10.0)])
    assert [(row.busy_j, row.idle_j) for row in rows] == [(pytest.approx(500.0), pytest.approx(0.0)), (None, None)]


@pytest.mark.fast
def test_hosts_with_clocks_of_their_own_are_shared_out_one_by_one() -> None:
    """The coordinator's host has no worker, as with Dask: what it spends is the run's, and no worker's."""
    others = {0: of_host("one", clock_s=5000.0), 1: without_meter("one", 5010.0), 2: of_host("two", (400.0,) * 11, -70)}
    kept = account(of_host("here"), others)
    shares = kept.shares([block("a", 0, 0.0, 10.0), block("b", 2, 0.0, 5.0)], SECONDS)
    assert by_layer(shares.blocks_j) == pytest.approx({"a": 500.0, "b": 2000.0})
    assert shares.idle_j == pytest.approx({0: 0.0, 1: 500.0, 2: 2000.0})
    said = kept.summary(resumed=False)
    assert (said["total_j"], said["hosts"], said["partial"]) == (pytest.approx(6000.0), 3, False)


@pytest.mark.fast
def test_a_block_that_all_train_together_is_charged_for_all_and_one_that_was_found_for_nothing() -> None:
    others = {0: without_meter("here"), 1: of_host("two", (400.0,) * 11)}
    kept = account(of_host("here"), others)
    shares = kept.shares([block("a", 0, 0.0, 10.0, shared=True), block("b", 0, 0.0, 10.0, from_journal=True)], SECONDS)
    assert by_layer(shares.blocks_j) == pytest.approx({"a": 5000.0})
    assert shares.busy_j == pytest.approx({0: 1000.0, 1: 4000.0})


@pytest.mark.fast
def test_a_meter_that_is_lost_while_blocks_train_is_named_and_nothing_is_made_up() -> None:
    lost = of_host("here", [100.0] * 6 + [None] * 5)
    kept = account(lost, {0: without_meter("here")})
    shares = kept.shares([block("a", 0, 0.0, 4.0), block("b", 0, 4.0, 6.0)], SECONDS)
    assert by_layer(shares.blocks_j) == {"a": pytest.approx(400.0), "b": None}
    assert (shares.busy_j, shares.idle_j) == ({0: None}, {0: None})
    said = kept.summary(resumed=False)
    assert (said["total_j"], said["partial"]) == (pytest.approx(500.0), True)
    assert said["notes"] == ["package-0 (rapl): lost after 5 s: the recording has no value here"]


@pytest.mark.fast
def test_a_host_that_is_lost_keeps_what_it_had_read_and_one_without_a_meter_is_missed() -> None:
    others = {0: without_meter("here"), 1: of_host("two"), 2: without_meter("three")}
    began, halfway = dataclasses.replace(of_host("here"), ended_s=0.0, traces=()), of_host("here")
    whole = of_host("here", (100.0,) * 21)
    kept = accounting.EnergyAccount(Shown(began, halfway, halfway, whole), lambda: dict(others))
    shares = kept.shares([block("a", 1, 0.0, 10.0), block("b", 2, 0.0, 10.0)], SECONDS)
    assert by_layer(shares.blocks_j) == {"a": pytest.approx(1000.0), "b": None}
    del others[1]
    said = kept.summary(resumed=True)
    assert (said["total_j"], said["partial"]) == (pytest.approx(3000.0), True)
    assert said["notes"] == [
        "package-0 (rapl): read for 10 of 20 s",
        "only 2 of 3 hosts are measured",
        accounting.RESUMED,
    ]


@pytest.mark.fast
def test_without_a_meter_there_are_no_joules_and_one_line_says_why() -> None:
    nothing = unread("Processors are measured so. Received: nothing. Do this.")
    kept = accounting.EnergyAccount(Shown(nothing), lambda: dict.fromkeys(range(2), unread()))
    shares = kept.shares([block("a", 0, 0.0, 10.0)], SECONDS)
    assert shares == accounting.EnergyShares({BlockKey("a", "x"): None}, {0: None, 1: None}, {0: None, 1: None})
    said = kept.summary(resumed=True)
    assert (said["source"], said["total_j"], said["partial"]) == ("none", None, False)
    assert said["notes"] == ["Processors are measured so. Received: nothing. Do this."]


@pytest.mark.fast
def test_a_meter_that_answers_again_is_no_longer_complained_of() -> None:
    whole = of_host("here")
    began = dataclasses.replace(whole, ended_s=0.0, traces=())
    silent = dataclasses.replace(without_meter("here"), notes=(energy.NO_ANSWER,))
    kept = accounting.EnergyAccount(Shown(began, silent, whole), lambda: {0: without_meter("here")})
    assert kept.summary(resumed=False)["notes"] == [energy.NO_ANSWER]
    said = kept.summary(resumed=False)
    assert (said["total_j"], said["notes"]) == (pytest.approx(1000.0), [])


class FakeCluster:
    """Workers of Dask on hosts of their own."""

    def __init__(self, host_of: dict[str, str]) -> None:
        self.host_of, self.begun, self.ended = host_of, list[str](), list[str]()

    def snapshot(self) -> WorkersSnapshot:
        return WorkersSnapshot(frozenset(self.host_of), frozenset(self.host_of))

    def number(self, address: str) -> int:
        return int(address[-1])

    def ask(self, workers: Sequence[str] | None, function: object, *arguments: object) -> dict[str, object]:
        there = [worker for worker in self.host_of if workers is None or worker in workers]
        {begin: self.begun, end: self.ended}.get(function, []).extend(there)
        if function is not read:
            return {worker: self.host_of[worker] for worker in there}
        return {w: (of_host if w in self.begun else without_meter)(self.host_of[w]) for w in there}


@pytest.mark.fast
def test_one_dask_worker_of_each_further_host_measures_it() -> None:
    cluster = FakeCluster({"w0": "here", "w1": "there", "w2": "there", "w3": "far"})
    meters = ClusterMeters(cluster, "here")
    assert sorted(cluster.begun) == ["w1", "w3"]
    found = meters.read()
    assert {worker: (reading.hosts[0], reading.total_j) for worker, reading in found.items()} == {
        0: ("here", None),
        1: ("there", pytest.approx(1000.0)),
        2: ("there", None),
        3: ("far", pytest.approx(1000.0)),
    }
    del cluster.host_of["w3"]
    cluster.host_of["w4"] = "new"
    found = meters.read()
    assert (found[3].hosts, found[3].total_j, found[4].hosts) == (("far",), None, ("new",))
    assert "did not answer" in found[3].notes[0]
    meters.end()
    assert cluster.ended == ["w1"]


RANKS = """
import json, sys, time
from pathlib import Path
from mpi4py import MPI
from pbd import energy
from pbd.config import ExecutionConfig
from pbd.energy import accounting, host_meter
from pbd.executors.mpi import world
from pbd.executors.mpi.executor import MpiExecutor
from pbd.scheduling import schedulers
from tests.helpers.fakes import steady
from tests.helpers.sleep_tasks import Sleeper, sleeping
rank = MPI.COMM_WORLD.Get_rank()
host = energy.host_identity()
if sys.argv[2] == "two hosts":
    host, now = f"host {rank}", time.time
    world._local_position = lambda comm: (0, 1)
    host_meter.host_identity = lambda: host
    time.time = lambda: now() + 1000 * rank
host_meter.detect = lambda: energy.DetectedSensors(host, (steady([100.0, 300.0][rank], host),))
executor = MpiExecutor(ExecutionConfig(isolate=False))
if executor.coordinates:
    tasks, costs = sleeping([0.8, 0.4])
    sleeper = Sleeper(Path(sys.argv[1]), {"conv0": 0.8, "conv1": 0.4})
    time.sleep(0.5)  # a run has a backend to load before it begins, and the other rank has not
    with accounting.account(executor.readings) as account:
        assignment = schedulers.SCHEDULERS["round_robin"](tasks, costs, 2)
        began = time.monotonic()
        results = list(executor.run(sleeper, assignment, lambda _: None))
        seconds = time.monotonic() - began
        shares = account.shares(results, seconds)
        said = account.summary(resumed=False)
    took_s = {result.layer: result.seconds for result in results}
    blocks_j = {key.layer: joules for key, joules in shares.blocks_j.items()}
    print(json.dumps([took_s, blocks_j, list(shares.busy_j.values()), list(shares.idle_j.values()), seconds, said]))
    executor.finish("done")
else:
    executor.serve()
"""


@pytest.mark.system
@pytest.mark.parametrize("hosts", ["one host", "two hosts"])
def test_one_rank_of_each_host_measures_it(hosts: str, tmp_path: Path) -> None:
    """Both ranks have a meter in reach; on two hosts, one draws 100 W, the other one 300 W and lives in the future."""
    mpirun = Path(sys.executable).parent / "mpirun"
    command = [mpirun, "-n", "2", sys.executable, "-c", RANKS, str(tmp_path), hosts]
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "0"}  # ranks load TensorFlow only to keep it quiet
    environment = os.environ | quiet | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    took_s, blocks_j, busy_j, idle_j, seconds, said = json.loads(done.stdout)
    assert took_s["conv0"] >= 0.8, "busy cores take longer"
    assert took_s["conv1"] >= 0.4
    watts = (50.0, 50.0) if hosts == "one host" else (100.0, 300.0)
    assert [sum(pair) for pair in zip(busy_j, idle_j, strict=True)] == pytest.approx(
        [each * seconds for each in watts], rel=0.02
    )
    drawn_j = {name: took_s[name] * each for name, each in zip(("conv0", "conv1"), watts, strict=True)}
    assert blocks_j == pytest.approx(drawn_j, rel=0.1)
    assert busy_j == pytest.approx(list(blocks_j.values()))
    assert (said["source"], said["partial"], said["hosts"]) == ("rapl", False, 1 if hosts == "one host" else 2)
    assert said["total_j"] == pytest.approx(sum(watts) * said["seconds"], rel=0.03)

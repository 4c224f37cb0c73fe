"""Joules from recordings: their sum, counters that go round, what is missing, and whose they are."""

import itertools
import math
import threading
from collections.abc import Callable, Sequence

import pytest

from pbd import energy
from pbd.energy import Activity, Reading
from pbd.energy.meter import MAX_SAMPLES
from pbd.energy.replay import Recording, replay
from pbd.energy.sensors import Counter, Device
from tests.helpers.cluster import PATIENCE_S

pytestmark = pytest.mark.fast

HOUR = [float(second) for second in range(3601)]
RANGE_UJ = 65_532_610_987
"""What a Xeon gives as max_energy_range_uj."""


def device(kind: str = "package", number: str = "0", source: str = "rapl", host: str = "one") -> Device:
    return Device(kind, number, source, host, f"{host}/{kind}-{number}")


def registers(joules: Sequence[float], joules_per_count: float, counts: int, first: int = 0) -> list[int]:
    """Return what a register shows that stood at `first`, when so many joules were spent."""
    return [(first + round(spent / joules_per_count)) % counts for spent in joules]


@pytest.mark.parametrize(
    ("watts", "wanted_j"),
    [
        (lambda second: 150.0, 150.0 * 3600),
        (lambda second: 300.0 * second / 3600, 300.0 * 3600 / 2),
        (lambda second: 150 + 100 * math.sin(2 * math.pi * second / 45), 150.0 * 3600),
    ],
    ids=["constant", "ramp", "sine"],
)
def test_power_is_integrated(watts: Callable[[float], float], wanted_j: float) -> None:
    reading = replay(HOUR, [Recording(device("gpu", source="nvml"), [watts(second) for second in HOUR])])
    assert reading.total_j == pytest.approx(wanted_j, rel=1e-3)
    assert (reading.source, reading.partial, reading.seconds) == ("nvml", False, 3600.0)


def test_uneven_moments_are_weighed_by_their_length() -> None:
    times = [0.0, 0.5, 4.0, 10.0]
    reading = replay(times, [Recording(device(), [2 * moment for moment in times])])
    assert reading.total_j == pytest.approx(100.0)


@pytest.mark.parametrize(
    ("joules_per_count", "counts"), [(1e-6, RANGE_UJ), (0.5**16, 2**32)], ids=["RAPL", "AMD's registers"]
)
def test_counters_go_round_as_often_as_they_like(joules_per_count: float, counts: int) -> None:
    spent = [280.0 * second for second in HOUR]  # a little over a million joules: fifteen times round
    shown = registers(spent, joules_per_count, counts, first=counts - 1000)
    assert sum(late < early for early, late in itertools.pairwise(shown)) >= 15
    reading = replay(HOUR, [Recording(device(), shown, joules_per_count, counts)])
    assert reading.total_j == pytest.approx(spent[-1], rel=1e-6)
    assert not reading.partial


def test_a_counter_that_was_not_read_for_long_is_not_trusted() -> None:
    times = [0.0, 1.0, 500.0, 501.0]
    shown = registers([200.0 * moment for moment in times], 1e-6, RANGE_UJ)
    reading = replay(times, [Recording(device(), shown, 1e-6, RANGE_UJ)])
    assert reading.partial
    assert "499 s" in reading.faults[0]


def test_a_counter_that_misses_a_moment_loses_nothing() -> None:
    reading = replay(range(4), [Recording(device(), [0, None, None, 3_000_000], 1e-6, RANGE_UJ)])
    assert reading.total_j == pytest.approx(3.0)
    assert not reading.partial


def test_power_that_was_unknown_for_a_moment_is_not_made_up() -> None:
    reading = replay(range(5), [Recording(device(), [10.0, 10.0, None, 10.0, 10.0])])
    assert reading.total_j == pytest.approx(20.0)
    assert reading.partial


def test_a_counter_that_begins_anew_is_reported() -> None:
    reading = replay(range(3), [Recording(device("gpu"), [5_000, 6_000, 500], 1e-3)])
    assert reading.total_j == pytest.approx(1.0)
    assert reading.partial


def test_a_meter_that_disappears_in_the_middle_makes_the_reading_partial() -> None:
    gone = Recording(device("gpu", source="nvml"), [50.0] * 4 + [None] * 6)
    stays = Recording(device(), [20.0] * 10)
    reading = replay(range(10), [gone, stays])
    assert reading.partial
    assert reading.faults == ("gpu-0 (nvml): lost after 3 s: the recording has no value here",)
    assert reading.by_kind_j == pytest.approx({"gpu": 150.0, "package": 180.0})
    assert reading.as_json()["partial"] is True


def test_cores_are_part_of_their_package() -> None:
    recordings = [Recording(device("package"), [30.0] * 2), Recording(device("core", "0"), [10.0] * 2)]
    reading = replay([0.0, 1.0], recordings)
    assert reading.total_j == pytest.approx(30.0)
    assert reading.by_kind_j == pytest.approx({"package": 30.0, "core": 10.0})


def test_the_joules_between_two_moments() -> None:
    reading = replay(HOUR, [Recording(device(), [100.0] * 1801 + [300.0] * 1800)])
    assert reading.between(0.5, 1000.25).total_j == pytest.approx(999.75 * 100)
    assert reading.between(2000.0, 9999.0).total_j == pytest.approx(1600 * 300)
    assert reading.between(-5.0, 0.0).total_j == 0.0
    halves = reading.between(0.0, 1234.5).joules_at(2000.0) + reading.between(1234.5, 3600.0).total_j
    assert halves == pytest.approx(reading.total_j)


def test_a_long_run_takes_little_memory_and_loses_no_joules() -> None:
    days = range(100_000)
    reading = replay(days, [Recording(device(), [float(second % 7) for second in days])])
    assert len(reading.traces[0].times_s) <= MAX_SAMPLES
    assert reading.total_j == pytest.approx(3.0 * days[-1], rel=1e-4)
    assert reading.between(10_000.0, 90_000.0).total_j == pytest.approx(3.0 * 80_000, rel=1e-3)
    assert reading.seconds == days[-1]


def of_worker(host: str, seconds: int, *watched: Device) -> Reading:
    recordings = [Recording(one, [100.0] * (seconds + 1)) for one in watched]
    return replay(range(seconds + 1), recordings) if recordings else Reading(0.0, seconds, (), (host,), ("none",))


def test_workers_of_one_host_count_it_once() -> None:
    package = device()
    merged = energy.merge(
        [of_worker("one", 99, package), of_worker("one", 100, package), of_worker("one", 98, package)]
    )
    assert merged.total_j == pytest.approx(100.0 * 100)
    assert not merged.partial
    assert merged.as_json()["hosts"] == 1


def test_workers_that_each_see_a_gpu_of_their_own_are_added_up() -> None:
    shared = device()
    gpus = [Device("gpu", "0", "nvml", "one", f"GPU-{number}") for number in range(2)]
    merged = energy.merge([of_worker("one", 10, shared, gpu) for gpu in gpus])
    assert merged.by_kind_j == pytest.approx({"package": 1000.0, "gpu": 2000.0})
    assert merged.source == "rapl+nvml"


def test_hosts_are_added_up_and_one_without_a_meter_is_missed() -> None:
    with_meters = [of_worker(host, 10, device(host=host)) for host in ("one", "two")]
    assert energy.merge(with_meters).total_j == pytest.approx(2000.0)
    assert energy.merge(with_meters).of_host("two").total_j == pytest.approx(1000.0)
    three = energy.merge([*with_meters, of_worker("three", 10)])
    assert three.total_j == pytest.approx(2000.0)
    assert three.partial
    assert "2 of 3 hosts" in three.faults[0]
    assert three.notes == ("none",)


def test_a_worker_that_measured_only_half_of_the_run_is_noticed() -> None:
    merged = energy.merge([of_worker("one", 100, device()), of_worker("two", 50, device(host="two"))])
    assert "50 of 100 s" in merged.faults[0]


def test_nothing_measured_is_none_not_zero() -> None:
    reading = energy.merge([of_worker("one", 10), of_worker("two", 10)])
    said = reading.as_json()
    assert (said["source"], said["total_j"], said["partial"], said["notes"]) == ("none", None, False, ["none"])
    attribution = energy.attribute(reading, [Activity(0, 0.0, 5.0)], [0, 1])
    assert attribution.activities_j == (None,)
    assert attribution.busy_j == attribution.idle_j == {0: None, 1: None}


def test_a_hosts_joules_are_shared_out_to_the_last() -> None:
    reading = replay(range(11), [Recording(device(), [100.0] * 6 + [300.0] * 5)])
    activities = [
        Activity(0, 0.0, 10.0),
        Activity(1, 0.0, 4.0),
        Activity(1, 0.0, 4.0),
        Activity(1, 6.0, 12.0),
        Activity(7, 0.0, 10.0),
    ]
    attribution = energy.attribute(reading, activities, [0, 1])
    until_4, until_6, whole = (reading.joules_at(moment) for moment in (4.0, 6.0, 10.0))
    assert attribution.activities_j[:3] == pytest.approx((whole / 2, until_4 / 4, until_4 / 4))
    assert attribution.activities_j[3:] == pytest.approx(((whole - until_6) / 2, 0.0))
    assert attribution.idle_j == pytest.approx({0: 0.0, 1: (until_6 - until_4) / 2})
    assert sum(attribution.busy_j.values()) + sum(attribution.idle_j.values()) == pytest.approx(reading.total_j)


def test_a_meter_reads_by_itself_and_stops() -> None:
    shown, enough = [0], threading.Event()

    class Watched(Counter):
        reads = 0

        def advance(self, now_s: float) -> float:
            self.reads += 1
            if self.reads > 3:
                enough.set()
            return super().advance(now_s)

    watched = Watched(device(), lambda: shown[0], 1e-6, RANGE_UJ)
    with energy.measure(energy.DetectedSensors("one", (watched,)), interval_s=0.001) as meter:
        shown[0] = 1_000_000
        assert enough.wait(PATIENCE_S)
        halfway = meter.read()
        shown[0] = 3_000_000
    shown[0] = 9_000_000
    whole, reads = meter.read(), watched.reads
    assert halfway.total_j == pytest.approx(1.0)
    assert whole.total_j == pytest.approx(3.0)
    assert whole.between(halfway.ended_s, whole.ended_s).total_j == pytest.approx(2.0)
    assert meter.read() == whole
    assert watched.reads == reads


def test_a_meter_that_fails_costs_only_its_joules() -> None:
    def fails() -> energy.DetectedSensors:
        raise TypeError("no such thing")

    meter = energy.HostMeter(fails)
    meter.wait()
    reading = meter.read()
    assert (reading.total_j, reading.hosts) == (None, (energy.host_identity(),))
    assert "no such thing" in reading.notes[0]
    meter.stop()


def test_a_driver_that_hangs_does_not_hang_what_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy.host_meter, "ANSWER_LIMIT_S", 0.05)
    goes_on = threading.Event()
    hanging = Counter(device(), lambda: int(goes_on.wait(PATIENCE_S)), 1e-6, RANGE_UJ)
    with energy.measure(energy.DetectedSensors("one", (hanging,))) as meter:
        reading = meter.read()
    assert reading.total_j is None
    assert "did not answer" in reading.notes[0]
    goes_on.set()


def test_a_loss_is_known_from_the_later_of_two_readings() -> None:
    before = of_worker("one", 5, device())
    after = replay(range(7), [Recording(device(), [100.0] * 6 + [None])])
    assert "lost after 5 s" in energy.merge([before, after]).faults[0]


def test_a_reading_is_told_by_another_clock() -> None:
    reading = replay(range(11), [Recording(device(), [100.0] * 6 + [300.0] * 5)])
    moved = reading.with_end(1010.0)
    assert (moved.started_s, moved.ended_s, moved.total_j) == (1000.0, 1010.0, reading.total_j)
    assert moved.between(1003.0, 1007.5).total_j == pytest.approx(reading.between(3.0, 7.5).total_j)


def test_what_was_not_read_is_not_shared_out() -> None:
    reading = replay(range(11), [Recording(device(), [100.0] * 6 + [None] * 5)])
    activities = [Activity(0, 0.0, 5.0), Activity(0, 4.0, 8.0), Activity(1, 7.0, 9.0), Activity(1, -1.0, 3.0)]
    attribution = energy.attribute(reading, activities, [0, 1])
    assert attribution.activities_j == (pytest.approx(225.0), None, None, pytest.approx(150.0))
    assert attribution.busy_j == attribution.idle_j == {0: None, 1: None}

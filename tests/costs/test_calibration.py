"""Calibration on a tiny real net: figures that can be scheduled by, kept between runs, and nothing else changed."""

import dataclasses
import json
import logging
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pbd import blocks
from pbd.errors import UsageError
from pbd.records import BlockKey
from pbd.scheduling.cost_table import CostTable, Workload
from tests.helpers.fakes import make_task

DECOUPLED = {"decoupled_r2": blocks.get("decoupled_r2")}
WORK = Workload(epochs=3, steps_per_epoch=3, check_batches=3, fit_batches=3, score_batches=3)


def designs(name: str) -> dict[str, Any]:
    return {name: blocks.get(name)}


def decoupled(layer: str) -> BlockKey:
    return BlockKey(layer, "decoupled_r2")


def phase_of(seconds: float) -> Callable[[CostTable, Workload], float]:
    """Return a prediction of the block phase that is always this long."""
    return lambda table, work: seconds


LONG_PHASE = phase_of(1000.0)


def noise_data(batch_size: int = 8, count: int = 24) -> Any:
    from pbd.data import Dataset, IndexedSplit
    from pbd.data.images import ArrayImages

    pixels = np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)
    split = IndexedSplit.whole(ArrayImages(pixels, (16, 16, 3)), np.zeros(count, np.int32))
    shape = (16, 16, 3)
    return Dataset("noise", split, split, split, None, shape, batch_size, augment="flip", preprocess="unit", seed=0)


@pytest.fixture(scope="module")
def setup() -> Any:
    import keras

    from pbd.blockwise.tasks import enumerate_tasks
    from pbd.costs import layer_timing
    from pbd.networks import graph

    keras.utils.set_random_seed(3)
    inputs = x = keras.Input((16, 16, 3))
    for name in ("stem", "first", "second", "third"):
        x = keras.layers.Conv2D(8, 3, padding="same", activation="relu", name=name)(x)
    x = keras.layers.Conv2D(16, 3, strides=2, padding="same", name="wide")(x)
    outputs = keras.layers.Dense(4)(keras.layers.Dropout(0.1)(keras.layers.GlobalAveragePooling2D()(x)))
    teacher = graph.flatten(keras.Model(inputs, outputs, name="tiny"))
    tasks = tuple(task for task in enumerate_tasks(teacher, blocks.get("decoupled_r2")) if not task.skip_reason)
    return layer_timing.Setup(teacher, tasks, noise_data(), DECOUPLED, "fitted", load_s=0.25)


@pytest.fixture(scope="module")
def table(setup: Any) -> Any:
    from pbd.costs import layer_timing

    return layer_timing.calibrate(setup)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def calibrations(table: Any, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The time limit of each calibration that was requested; none is executed."""
    from pbd.costs import calibration

    asked: list[Any] = []
    monkeypatch.setattr(calibration, "calibrate", lambda setup, limit_s: (asked.append(limit_s), table)[1])
    return asked


def test_every_layer_gets_figures_and_a_deeper_prefix_costs_no_less(setup: Any, table: Any) -> None:
    assert [key.layer for key in table.tasks] == ["first", "second", "third", "wide"]
    times = list(table.tasks.values())
    assert all(t.prefix_s > 0 and t.block_once_s > 0 and t.group_once_s > 0 and t.gather_s > 0 for t in times)
    assert [t.prefix_s for t in times] == sorted(t.prefix_s for t in times)
    assert all(t.load_s == 0.25 for t in times)
    assert table.source.startswith("calibrated on ")
    costs = table.costs(setup.workload(3), grouped=True)
    assert costs.load_s(setup.tasks) > max(costs.task_s(task) for task in setup.tasks)


def test_blocks_of_one_kind_are_timed_once(table: Any) -> None:
    for part in ("step_s", "check_s", "target_s", "gather_s"):
        assert len({getattr(table.tasks[decoupled(name)], part) for name in ("first", "second", "third")}) == 1


def test_calibration_changes_neither_the_teacher_nor_what_randomness_hangs_on(setup: Any) -> None:
    from pbd.costs import layer_timing

    weights, draws = setup.teacher.get_weights(), random.getstate()
    tasks = (dataclasses.replace(setup.tasks[-1], design="two_layer_skip"),)
    one_layer = dataclasses.replace(setup, tasks=tasks, designs=designs("two_layer_skip"), block_init="kernel")
    measured = layer_timing.calibrate(one_layer)
    assert measured.tasks[tasks[0].key].gather_s > 0  # the paper's designs look at images even then
    assert random.getstate() == draws
    assert setup.teacher.trainable_variables
    assert all(layer.trainable for layer in setup.teacher.layers)
    for before, after in zip(weights, setup.teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)


def test_the_workload_counts_what_training_reads(setup: Any) -> None:
    work = setup.workload(5)
    assert dataclasses.astuple(work) == (5, 3, 3, 3, 3)
    noise = dataclasses.replace(setup, block_init="noise")
    assert noise.workload(5).fit_batches == 0
    assert dataclasses.replace(noise, block_init="kernel").workload(5).fit_batches == 0
    assert dataclasses.replace(noise, block_init="kernel", designs=designs("two_layer")).workload(5).fit_batches == 3


@pytest.mark.usefixtures("cache")
def test_workers_that_outnumber_the_cores_are_predicted_to_slow_each_other_down(
    setup: Any, table: Any, calibrations: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pbd.costs import calibration

    monkeypatch.setattr(calibration.devices, "available_cores", lambda: 2)
    for workers, factor in ((1, 1), (2, 1), (5, 2.5)):
        monkeypatch.setattr(calibration.devices, "local_workers", lambda workers=workers: workers)
        chosen = calibration.choose("auto", None, setup, WORK, LONG_PHASE)
        assert chosen.tasks == {key: times.scaled(factor) for key, times in table.tasks.items()}
    assert chosen.source == f"{table.source}, times 2.5: 5 workers on 2 cores"
    assert len(calibrations) == 1, "the cached table is not scaled"
    assert calibration.choose("costs.json", table, setup, WORK, LONG_PHASE) is table


def test_a_calibration_is_kept_for_the_next_run(setup: Any, table: Any, cache: Path, calibrations: list[Any]) -> None:
    from pbd.costs import calibration

    assert calibration.choose("auto", None, setup, WORK, LONG_PHASE) == table
    assert calibration.choose("auto", None, setup, WORK, LONG_PHASE) == table
    assert calibration.choose("auto", None, setup, WORK, None) == table
    assert len(calibrations) == 1
    calibration.choose("calibrate", None, setup, WORK, None)
    assert len(calibrations) == 2
    (kept,) = (cache / "pbd" / "costs").iterdir()
    assert json.loads(kept.read_text())["tasks"].keys() == set(map(str, table.tasks))


def test_other_blocks_batches_data_and_layers_are_measured_anew(setup: Any, cache: Path) -> None:
    from pbd.costs import calibration

    data = setup.dataset
    others = [
        dataclasses.replace(
            setup, tasks=tuple(dataclasses.replace(task, design="decoupled_r1") for task in setup.tasks)
        ),
        dataclasses.replace(setup, block_init="noise"),
        dataclasses.replace(setup, tasks=setup.tasks[1:]),
        dataclasses.replace(setup, dataset=dataclasses.replace(data, batch_size=4)),
        dataclasses.replace(setup, dataset=dataclasses.replace(data, augment="none")),
    ]
    assert len({calibration.cache_path(one) for one in [setup, *others]}) == 6


@pytest.mark.usefixtures("cache")
def test_the_name_of_the_data_counts_only_if_they_are_files(setup: Any) -> None:
    from pbd.costs import calibration
    from pbd.data import IndexedSplit
    from pbd.data.images import FileImages

    def path(name: str, split: Any) -> Path:
        data = dataclasses.replace(setup.dataset, name=name, train=split)
        return calibration.cache_path(dataclasses.replace(setup, dataset=data))

    arrays, files = setup.dataset.train, IndexedSplit.whole(FileImages(["a.png"] * 24, (16, 16, 3)), np.zeros(24))
    assert path("runs/1/data.npz", arrays) == path("runs/2/data.npz", arrays)
    assert path("images", files) != path("other_images", files)


@pytest.mark.parametrize("damage", [lambda text: text[: len(text) // 2], lambda text: text.replace("8", "-8")])
def test_a_damaged_calibration_is_measured_again(
    setup: Any,
    cache: Path,
    calibrations: list[Any],
    damage: Callable[[str], str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    from pbd.costs import calibration

    calibration.choose("auto", None, setup, WORK, LONG_PHASE)
    kept = calibration.cache_path(setup)
    kept.write_text(damage(kept.read_text()))
    with caplog.at_level(logging.WARNING):
        calibration.choose("auto", None, setup, WORK, LONG_PHASE)
    assert len(calibrations) == 2
    assert str(kept) in caplog.text
    calibration.choose("auto", None, setup, WORK, LONG_PHASE)
    assert len(calibrations) == 2


@pytest.mark.usefixtures("cache")
def test_costs_are_estimated_if_they_decide_nothing_or_the_phase_is_short(setup: Any, calibrations: list[Any]) -> None:
    from pbd.costs import calibration

    for source, makespan_s in (("auto", None), ("macs", LONG_PHASE), ("auto", phase_of(90.0))):
        estimated = calibration.choose(source, None, setup, WORK, makespan_s)
        assert estimated.source.startswith("multiply-accumulates")
        assert estimated.tasks.keys() == set(setup.keys)
    assert not calibrations


@pytest.mark.usefixtures("cache")
def test_a_calibration_is_limited_to_a_tenth_of_the_block_phase_unless_requested(
    setup: Any, calibrations: list[Any]
) -> None:
    from pbd.costs import calibration

    calibration.choose("auto", None, setup, WORK, phase_of(120.0))
    calibration.choose("calibrate", None, setup, WORK, phase_of(1.0))
    assert calibrations == [pytest.approx(12.0), math.inf]


def test_a_calibration_beyond_its_limit_is_not_cached(
    setup: Any, table: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pbd.costs import calibration

    clock = iter([0.0, 13.0])
    monkeypatch.setattr(calibration, "calibrate", lambda setup, limit_s: table)
    monkeypatch.setattr(calibration.time, "monotonic", lambda: next(clock))
    assert calibration.choose("auto", None, setup, WORK, phase_of(120.0)) == table
    assert not list(cache.rglob("*.json"))


def test_after_the_time_limit_one_kind_of_layer_is_timed_and_others_are_scaled(setup: Any, table: Any) -> None:
    from pbd.costs import layer_timing

    partial = layer_timing.calibrate(setup, time_limit_s=0.0)
    assert list(partial.tasks) == list(table.tasks)
    assert "(1 of 2 kinds of layer; the others are scaled by multiply-accumulates)" in partial.source
    first, wide = (partial.tasks[decoupled(name)] for name in ("first", "wide"))
    macs = {task.layer.name: task.macs for task in setup.tasks}
    assert wide.gather_s / first.gather_s == pytest.approx(macs["wide"] / macs["first"])
    assert wide.block_once_s == first.block_once_s > 0
    assert [times.prefix_s for times in partial.tasks.values()] == sorted(t.prefix_s for t in partial.tasks.values())


@pytest.mark.usefixtures("cache")
def test_what_cannot_be_timed_is_estimated(
    setup: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from pbd.costs import calibration

    def fail(*_: Any) -> None:
        raise MemoryError("no\n  room")

    monkeypatch.setattr(calibration, "calibrate", fail)
    with caplog.at_level(logging.WARNING):
        assert calibration.choose("calibrate", None, setup, WORK, LONG_PHASE).source.startswith("multiply-accumulates")
    assert "MemoryError: no room" in caplog.text


def test_a_table_that_is_given_is_taken_if_it_is_of_this_teacher(setup: Any, table: Any) -> None:
    from pbd.costs import calibration

    assert calibration.choose("costs.json", table, setup, WORK, LONG_PHASE) is table
    other = dataclasses.replace(table, conditions=dataclasses.replace(table.conditions, teacher="another"))
    with pytest.raises(UsageError, match=f"another.*{table.conditions.teacher}"):
        calibration.choose("costs.json", other, setup, WORK, LONG_PHASE)


def test_the_digest_is_of_the_structure_and_not_of_the_weights(setup: Any) -> None:
    import keras

    from pbd.costs import layer_timing
    from pbd.networks import graph

    digest = layer_timing.structure_digest(setup.teacher)
    twin = graph.flatten(setup.teacher)
    twin.set_weights([weight + 1.0 for weight in twin.get_weights()])
    assert layer_timing.structure_digest(twin) == digest
    third = keras.layers.Flatten()(twin.get_layer("third").output)
    shallower = keras.Model(twin.inputs[0], keras.layers.Dense(4)(third))
    assert layer_timing.structure_digest(shallower) != digest


@pytest.mark.parametrize("count", [1, 2, 6, 7, 40])
def test_few_depths_are_timed_the_shallowest_and_the_deepest_among_them(count: int) -> None:
    from pbd.costs.layer_timing import prefix_times

    tasks = [make_task(at, prefix_macs=1_000 * (at + 1)) for at in range(count)]
    timed = [task.layer.index for task in prefix_times.depths(tasks[::-1])]
    assert len(timed) == min(count, prefix_times.MAX_DEPTHS)
    assert timed == sorted(timed)
    assert (timed[0], timed[-1]) == (0, count - 1)


def test_a_step_time_is_the_median_behind_the_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    from pbd.costs.layer_timing import step_time

    taken = iter([5.0, 1.0, 1.0, 30.0, 1.0, 1.2])
    monkeypatch.setattr(step_time, "seconds", lambda step: next(taken))
    monkeypatch.setattr(step_time, "ENOUGH_S", 0.0)
    assert step_time.time_step(lambda: None) == step_time.StepTime(typical_s=1.0, once_s=4.0)

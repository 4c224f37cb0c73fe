"""What a group is predicted to take, beside what it takes."""

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from pbd.blocks.initialisation import FIT_COPIES, GATHER_COPIES
from pbd.blockwise.scoring import TENSOR_COPIES
from pbd.costs.memory import OVERHEAD, USABLE_FRACTION, Footprint, TaskMemory
from pbd.records import BlockTask
from tests.helpers.fakes import make_task

MEASURE = """
import json, sys
from pbd.system import backend, devices
devices.Share(threads=1).claim()
backend.dedicate_process()
backend.load()
import keras
from pbd.blockwise.context import TrainingContext
from pbd.blockwise.tasks import enumerate_tasks
from pbd.blockwise.train_group import train_group
from pbd import blocks
from pbd.costs import memory
from pbd.config import DataConfig, TrainingConfig
from pbd.run_dir.journal import Journal
from pbd.records import TaskGroup

inputs = x = keras.Input((32, 32, 1))
for number in range(4):
    x = keras.layers.Conv2D(64, 3, padding="same", activation="relu", name=f"conv{number}")(x)
model = keras.Model(inputs, keras.layers.Dense(10)(keras.layers.GlobalAveragePooling2D()(x)))
journal = Journal.create(sys.argv[1], {})
path = str(journal.file("teacher.keras"))
model.save(path)
data = DataConfig(dataset="digits", train_limit=256, batch_size=128)
training_config = TrainingConfig(epochs=1)
design = blocks.get(sys.argv[2])
context = TrainingContext(path, data, (32, 32, 1), training_config, {design.name: design}, sys.argv[3], 0, journal)
tasks = tuple(task for task in enumerate_tasks(model, design) if task.skip_reason is None)
predicted = memory.footprint(context, tasks)
results = train_group(context, TaskGroup(tasks), lambda event: None)
print(json.dumps([len(tasks), predicted.base, predicted.peak(tasks), results[0].peak_bytes]))
"""


@pytest.mark.system
@pytest.mark.parametrize(("block", "block_init"), [("decoupled_r2", "fitted"), ("two_layer", "noise")])
def test_a_group_takes_what_was_predicted(tmp_path: Path, block: str, block_init: str) -> None:
    arguments = [sys.executable, "-c", MEASURE, f"{tmp_path}/run", block, block_init]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300, check=True)
    layers, base, predicted, taken = json.loads(done.stdout.splitlines()[-1])
    print(
        f"{layers} layers: {base / 1e6:.0f} MB before, {predicted / 1e6:.0f} MB predicted, {taken / 1e6:.0f} MB taken"
    )
    assert layers == 3
    assert taken - base > 200e6, "enough to tell"
    assert predicted - base < 3 * (taken - base)
    assert predicted > 0.95 * taken


def test_the_phase_that_takes_most_counts() -> None:
    tasks = [make_task(0), make_task(1)]

    def peak(features: int, activations: int, moment: int, collective: int = 1) -> int:
        each = TaskMemory(features, activations, weights=7, moment=moment)
        return Footprint(1_000, {task.key: each for task in tasks}).peak(tasks, collective) - OVERHEAD - 1_014

    assert peak(100, 50, 0) == 300, "learning"
    assert peak(100, 50, 1) == 2 * GATHER_COPIES * 100 + 2, "gathering statistics"
    assert peak(1, 1, 100) == 200 + 2 * FIT_COPIES * 100, "fitting first weights, a layer at a time"
    assert peak(100, 50, 0, collective=2) == 150
    assert peak(100, 50, 1, collective=2) == GATHER_COPIES * 100 + 1, "one block each, over whole batches"
    parts = {task.key: TaskMemory(1, 1, 0, 0) for task in tasks}
    scored = Footprint(0, parts, batch_size=10, variant=100, most_scored=300 * 10)
    assert scored.peak(tasks) - OVERHEAD == TENSOR_COPIES * 300 * 8, "scoring the network and two variants"
    assert dataclasses.replace(scored, batch_size=5).peak(tasks) - OVERHEAD == TENSOR_COPIES * 300 * 5
    assert dataclasses.replace(scored, variant=10**12).peak(tasks) - OVERHEAD == TENSOR_COPIES * 3 * 10**12, "an image"
    assert peak(100, 50, 1, collective=8) == GATHER_COPIES * 100 + 1, "six of them have none to begin"


def test_blocks_of_a_layer_share_its_features_and_its_statistics() -> None:
    one, other, deeper = make_task(0, design="one"), make_task(0, design="other"), make_task(1, design="other")
    parts = {
        one.key: TaskMemory(features=100, activations=1, weights=0, moment=70),
        other.key: TaskMemory(features=100, activations=2, weights=0, moment=0),
        deeper.key: TaskMemory(features=30, activations=4, weights=0, moment=0),
    }

    def peak(*tasks: BlockTask, moment: int = 70) -> int:
        changed = parts | {one.key: dataclasses.replace(parts[one.key], moment=moment)}
        return Footprint(0, changed).peak(tasks) - OVERHEAD

    assert peak(one, other, moment=0) == 100 + 1 + 2
    assert peak(one, other, deeper, moment=0) == 100 + 1 + 2 + 30 + 4
    assert peak(one, other) == peak(other, one) == 70 + max(GATHER_COPIES * 100, 2 * FIT_COPIES * 70)


def test_other_workers_that_have_loaded_nothing_yet_will_take_as_much() -> None:
    alone = Footprint(base=2, tasks={}, free=18, local_workers=1)
    assert alone.budget(None).limit == pytest.approx(USABLE_FRACTION * 20)
    assert dataclasses.replace(alone, local_workers=4).budget(None).limit == pytest.approx(USABLE_FRACTION * 5)
    assert dataclasses.replace(alone, free=None).budget(None).limit == math.inf
    assert alone.budget(3.0).limit == 3e9

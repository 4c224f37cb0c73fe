"""Choose where predicted costs come from: a given table, one measured before, a new measurement, or an estimate."""

import hashlib
import json
import logging
import os
import statistics
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import keras

from pbd.blockwise.context import TrainingContext, load
from pbd.costs.layer_timing import Setup, calibrate
from pbd.errors import PbdError
from pbd.networks import cost
from pbd.networks.cost import count_macs
from pbd.records import BlockTask
from pbd.run_dir.journal import write_atomically
from pbd.scheduling import cost_table
from pbd.scheduling.cost_table import CostTable, Workload
from pbd.system import devices

_log = logging.getLogger(__name__)


def predict(
    context: TrainingContext,
    tasks: tuple[BlockTask, ...],
    wanted: str,
    given: CostTable | None,
    workers: int,
) -> tuple[CostTable, Workload]:
    """Return what each layer takes, and how often; called where a worker trains, on its device.

    Args:
        context: of the run.
        tasks: every layer that the run trains, those done before included.
        wanted: see `choose`.
        given: see `choose`.
        workers: how many there are to share the tasks among.
    """
    started = time.perf_counter()
    teacher, dataset = load(context)
    load_s = time.perf_counter() - started
    setup = Setup(teacher, tasks, dataset, context.designs, context.block_init, load_s)
    return choose(wanted, given, setup, workers), setup.workload(context.training.epochs)


def choose(wanted: str, given: CostTable | None, setup: Setup, workers: int) -> CostTable:
    """Return the table that predictions are made from.

    Args:
        wanted: `auto` (one that was measured before on this device, else a new one if there are several workers to
            share the work among, else multiply-accumulates), `calibrate` (measure now), `macs`, or a path.
        given: what the path holds, if it is one.
        setup: what is to be predicted.
        workers: how many there are to share the tasks among.

    Raises:
        UsageError: `given` was made for another teacher, block or batch size.
    """
    if given is not None:
        given.check(setup.conditions, setup.layer_names)
        return given
    path = cache_path(setup)
    known = _cached(path, setup) if wanted == "auto" else None
    if known is not None:
        return known
    if wanted == "macs" or (wanted == "auto" and workers == 1):
        return estimate(setup)
    try:
        table = calibrate(setup)
    except Exception as error:  # a layer that cannot be timed must not cost the run: training deals with it
        _log.warning("calibration failed (%s): costs are estimated from multiply-accumulates.", error)
        return estimate(setup)
    try:
        write_atomically(path, json.dumps(table.as_json(), indent=2).encode())
    except OSError as error:
        _log.warning("the calibration cannot be kept for the next run: %s", error)
    return table


def cache_path(setup: Setup) -> Path:
    """Return where a calibration for this teacher, block, data and device is kept between runs."""
    data = setup.dataset
    key = [asdict(setup.conditions), devices.describe(), sorted(setup.layer_names)]
    key += [data.name, list(data.image_shape), data.augment, data.preprocess]
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "pbd" / "costs" / f"{setup.conditions.teacher}-{digest}.json"


def _cached(path: Path, setup: Setup) -> CostTable | None:
    """Return the table kept there, `None` where there is none that can be used."""
    if not path.exists():
        return None
    try:
        table = cost_table.read_table(path)
        table.check(setup.conditions, setup.layer_names)
    except PbdError as error:
        _log.warning("%s cannot be used (%s): costs will be measured again.", path, error)
        return None
    return table


def estimate(setup: Setup) -> CostTable:
    """Return a table from multiply-accumulates and the rate at which this device runs the teacher forward."""
    images, _ = next(iter(setup.dataset.training_batches(0, 1)))
    rate = forward_rate(setup.teacher, images)
    macs = cost.count_macs(setup.teacher)
    return cost_table.table_from_macs(setup.conditions, devices.describe(), setup.tasks, macs, rate)


def forward_rate(model: keras.Model, images: Any, repeats: int = 3) -> float:
    """Return the multiply-accumulates per second of the model's forward pass on these images, the median of a few."""
    model.predict_on_batch(images)
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        model.predict_on_batch(images)
        seconds.append(time.perf_counter() - started)
    return count_macs(model) * len(images) / statistics.median(seconds)

"""The source of the predicted costs: a requested table, a cached calibration, a new one, or an estimate from MACs."""

import hashlib
import json
import logging
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import keras
import platformdirs

from pbd.blockwise.context import TrainingContext, load
from pbd.costs.layer_timing import Setup, calibrate
from pbd.errors import PbdError, describe
from pbd.networks.cost import count_macs
from pbd.records import BlockTask
from pbd.run_dir.atomic import write_atomically
from pbd.scheduling import cost_table
from pbd.scheduling.cost_table import CostTable, Workload
from pbd.system import devices

CALIBRATION_SHARE = 0.1
"""The largest share of the predicted block phase that an automatic calibration may take."""
MIN_CALIBRATION_S = 10.0
"""The seconds of a calibration of a small network (measured: 11.6 s for digits_cnn on 4 ranks with 2 cores). With a
shorter time limit, calibration is skipped."""

Makespan = Callable[[CostTable, Workload], float]
"""Predicts the seconds of the block phase from a cost table and the number of batches."""

_log = logging.getLogger(__name__)


def load_workload(context: TrainingContext, tasks: tuple[BlockTask, ...]) -> tuple[Workload, float]:
    """Load the teacher and the data in a worker; return the number of batches of training, and the seconds of loading.

    Args:
        context: The teacher, the data and the settings of the run.
        tasks: All tasks of the run, including those already done.
    """
    started = time.perf_counter()
    load(context)
    load_s = time.perf_counter() - started
    return _setup(context, tasks, load_s).workload(context.training.block_epochs), load_s


def predict(
    context: TrainingContext,
    tasks: tuple[BlockTask, ...],
    work: Workload,
    load_s: float,
    requested: CostTable | None,
    makespan_s: Makespan | None,
    source: str,
) -> CostTable:
    """Return the cost of each layer; called in a worker, on its device.

    Args:
        context: The teacher, the data and the settings of the run.
        tasks: All tasks of the run, including those already done.
        work: See `choose`.
        load_s: The seconds of loading the teacher and the data.
        requested: See `choose`.
        makespan_s: See `choose`.
        source: See `choose`.
    """
    return choose(source, requested, _setup(context, tasks, load_s), work, makespan_s)


def _setup(context: TrainingContext, tasks: tuple[BlockTask, ...], load_s: float) -> Setup:
    teacher, dataset = load(context)
    return Setup(teacher, tasks, dataset, context.designs, context.block_init, load_s)


def choose(
    source: str, requested: CostTable | None, setup: Setup, work: Workload, makespan_s: Makespan | None
) -> CostTable:
    """Return the cost table from this source.

    Args:
        source: `auto` (a cached calibration of this device; else a calibration, if the predicted block phase is long
            enough; else multiply-accumulates), `calibrate` (a full calibration), `macs`, or a path.
        requested: The table at the path, if `source` is one.
        setup: The layers, and what they are timed with.
        work: The number of batches.
        makespan_s: Predicts the block phase. `None` if no decision depends on the costs: `auto` then never calibrates.

    Raises:
        UsageError: `requested` was made for another teacher, block or batch size.
    """
    if requested is not None:
        requested.check(setup.conditions, setup.keys)
        return requested
    if source == "calibrate":
        return _on_shared_cores(_calibrated_or_estimated(setup, math.inf))
    cached = _read_cache(setup) if source == "auto" else None
    if cached is not None:
        return _on_shared_cores(cached)
    table = _on_shared_cores(estimate(setup))
    if source == "macs" or makespan_s is None:
        return table
    time_limit_s = CALIBRATION_SHARE * makespan_s(table, work)
    if time_limit_s <= MIN_CALIBRATION_S:
        return table
    return _on_shared_cores(_calibrated_or_estimated(setup, time_limit_s))


def _on_shared_cores(table: CostTable) -> CostTable:
    """Return the costs scaled for a host on which all workers train; they were measured by one worker alone.

    Workers that outnumber the cores slow each other down. In the digits job of four workers on two cores, 5.5 s were
    predicted without this factor of 2, and 10.5 s measured.
    """
    workers, cores = devices.local_workers(), devices.available_cores()
    if workers <= cores:
        return table
    return table.scaled(workers / cores, f"{workers} workers on {cores} cores")


def _calibrated_or_estimated(setup: Setup, time_limit_s: float) -> CostTable:
    """Calibrate within the time limit, and cache a complete calibration; estimate the costs if calibration fails."""
    began = time.monotonic()
    try:
        table = calibrate(setup, time_limit_s)
    except Exception as error:  # a layer that cannot be timed must not end the run: training handles its failure
        _log.warning("calibration failed (%s): costs are estimated from multiply-accumulates.", describe(error))
        return estimate(setup)
    if time.monotonic() - began < time_limit_s:  # else later kinds of layer may have been scaled, not timed
        _write_cache(setup, table)
    return table


def cache_path(setup: Setup) -> Path:
    """Return the path of the cached calibration for this teacher, block, data and device."""
    data = setup.dataset
    key: list[object] = [asdict(setup.conditions), devices.describe(), sorted(map(str, setup.keys))]
    # Arrays cost the same whatever they are called; those from Python have the name of a file in the run directory.
    key += [None if data.digest_is_complete else data.name, len(data.train)]
    key += [list(data.image_shape), data.augment, data.preprocess]
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    return platformdirs.user_cache_path("pbd") / "costs" / f"{setup.conditions.teacher}-{digest}.json"


def _read_cache(setup: Setup) -> CostTable | None:
    """Return the cached table; `None` if there is no usable one."""
    path = cache_path(setup)
    if not path.exists():
        return None
    try:
        table = cost_table.read_table(path)
        table.check(setup.conditions, setup.keys)
    except PbdError as error:
        _log.warning("the cached calibration %s cannot be used (%s) and is ignored.", path, error)
        return None
    return table


def _write_cache(setup: Setup, table: CostTable) -> None:
    try:
        write_atomically(cache_path(setup), json.dumps(table.as_json(), indent=2).encode())
    except OSError as error:
        _log.warning("the calibration cannot be cached for later runs: %s", error.strerror or error)


def estimate(setup: Setup) -> CostTable:
    """Return a table from multiply-accumulates and the rate of the teacher's forward pass on this device."""
    images, _ = next(iter(setup.dataset.training_batches(0, 1)))
    rate = forward_rate(setup.teacher, images)
    macs = count_macs(setup.teacher)
    return cost_table.table_from_macs(setup.conditions, devices.describe(), setup.tasks, macs, rate)


def forward_rate(model: keras.Model, images: Any, repeats: int = 3) -> float:
    """Return the multiply-accumulates per second of the model's forward pass on these images (median of `repeats`)."""
    model.predict_on_batch(images)  # traces the graph
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        model.predict_on_batch(images)
        seconds.append(time.perf_counter() - started)
    return count_macs(model) * len(images) / statistics.median(seconds)

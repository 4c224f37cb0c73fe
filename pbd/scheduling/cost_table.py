"""The costs of each task on one device, per batch and one-time, measured or estimated; stored as `costs.json`."""

import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from pbd.errors import BadInputError, MissingInputError, UsageError
from pbd.records import BlockKey, BlockResult, BlockTask
from pbd.scheduling.cost_model import TaskCosts

# A training step costs the forward pass, the gradient by the input and the gradient by the weights: three
# times the forward's multiply-accumulates. The frozen prefix only runs forward.
TRAINING_PASSES = 3
# Measured in fresh worker processes with one thread on a busy 2-core AMD EPYC: groups of 1, 2 and 4 blocks of
# digits_cnn took 3.4, 4.6 and 5.7 s for two training steps; with these constants 3.3, 4.7 and 5.0 s are predicted.
GROUP_TRACING_S = 2.0
"""The estimated seconds once per group for tracing the teacher's prefix."""
BLOCK_TRACING_S = 0.5
"""The estimated seconds once per block for building, initialising and tracing it."""
VERSION = 2
SOURCES = ("auto", "calibrate", "macs")
"""The values of `--costs` other than the path of a table."""


@dataclass(frozen=True)
class Workload:
    """The number of batches that training a group processes."""

    epochs: int
    steps_per_epoch: int
    check_batches: int
    """Validation batches of the check after every epoch."""
    fit_batches: int
    """Training batches from which the blocks' initial weights are computed."""
    score_batches: int
    """Validation batches on which the trained blocks are scored."""

    @property
    def steps(self) -> int:
        """Training steps over all epochs."""
        return self.epochs * self.steps_per_epoch

    @property
    def checks(self) -> int:
        """Validation batches of all checks: before training and after every epoch; without epochs, none."""
        return (self.epochs + 1) * self.check_batches if self.epochs else 0

    @property
    def target_batches(self) -> int:
        """Validation batches from which the variance of the layers' outputs is computed; without epochs, none."""
        return self.check_batches if self.epochs else 0


@dataclass(frozen=True)
class TaskTimes:
    """The cost of one task on one device, in seconds."""

    prefix_s: float
    """Per batch of a group whose deepest layer this is: reading it, and the teacher's forward pass up to the layer."""
    step_s: float
    """The block's part of a training step."""
    check_s: float
    """The block's forward pass and error on a validation batch."""
    suffix_s: float
    """The teacher's forward pass after the layer on a batch, as scoring runs it, with folded normalisations."""
    target_s: float = 0.0
    """The moments of the layer's output on a batch."""
    gather_s: float = 0.0
    """The statistics of a batch from which initial weights of the layer's blocks are computed."""
    block_once_s: float = 0.0
    """Once per block: building, tracing, initial weights."""
    group_once_s: float = 0.0
    """Once per group whose deepest layer this is: tracing the prefix."""
    epoch_s: float = 0.0
    """Once per epoch of a group: starting to read the data."""
    load_s: float = 0.0
    """Once per worker: loading the teacher and the data."""

    def group_s(self, work: Workload) -> float:
        """Return the shared cost of a group whose deepest layer this is, without loading."""
        batches = work.steps + work.checks + work.target_batches + work.fit_batches
        # Scoring runs the prefix for the targets, and the whole teacher for its scores.
        scoring_s = work.score_batches * (2 * self.prefix_s + self.suffix_s)
        return self.group_once_s + work.epochs * self.epoch_s + batches * self.prefix_s + scoring_s

    def block_s(self, work: Workload) -> float:
        """Return the cost of the block, without what its layer and its group share."""
        training_s = work.steps * self.step_s + work.checks * self.check_s
        # Scoring runs the block for its error, and swapped into the teacher for its scores.
        scoring_s = work.score_batches * (2 * self.check_s + self.suffix_s)
        return self.block_once_s + training_s + scoring_s

    def layer_s(self, work: Workload) -> float:
        """Return the cost that all blocks of the layer in a group share: the statistics of its inputs and outputs."""
        return work.fit_batches * self.gather_s + work.target_batches * self.target_s

    def shared(self, workers: int) -> "TaskTimes":
        """Return the cost on one of several workers in data parallelism.

        Each worker processes its part of every batch and initialises its part of the blocks. Every worker pays the
        costs that occur once per process.
        """
        per_image = ("prefix_s", "step_s", "check_s", "suffix_s", "target_s", "gather_s")
        return replace(self, **{name: getattr(self, name) / workers for name in per_image})

    def scaled(self, factor: float) -> "TaskTimes":
        """Return the times, each multiplied by the factor."""
        return TaskTimes(**{name: factor * seconds for name, seconds in vars(self).items()})


@dataclass(frozen=True)
class Conditions:
    """The conditions, besides the device, under which a cost table is valid."""

    teacher: str
    """A digest of the teacher's structure, not of its weights."""
    block_init: str
    batch_size: int


@dataclass(frozen=True)
class CostTable:
    """The cost of each task per batch and once, from which any number of images and epochs can be predicted."""

    conditions: Conditions
    device: str
    """A description."""
    source: str
    """The source of the costs, for the report."""
    tasks: Mapping[BlockKey, TaskTimes]

    def costs(self, work: Workload, grouped: bool) -> TaskCosts:
        """Return the cost of each task.

        Args:
            work: The number of batches.
            grouped: Whether the tasks of a worker share the forward pass of the prefix. Every group then includes
                loading the teacher and the data, as a worker's first group; single tasks do not.
        """
        return TaskCosts(
            prefix_s={k: t.group_s(work) + (t.load_s if grouped else 0.0) for k, t in self.tasks.items()},
            block_s={key: times.block_s(work) for key, times in self.tasks.items()},
            grouped=grouped,
            source=self.source,
            layer_s={key: times.layer_s(work) for key, times in self.tasks.items()},
        )

    def scaled(self, factor: float, reason: str) -> "CostTable":
        """Return all costs, each multiplied by the factor; the reason is added to the source."""
        tasks = {key: times.scaled(factor) for key, times in self.tasks.items()}
        return replace(self, tasks=tasks, source=f"{self.source}, times {factor:g}: {reason}")

    def shared(self, workers: int) -> "CostTable":
        """Return the costs on one of several workers in data parallelism, without the exchange of gradients."""
        return replace(self, tasks={key: times.shared(workers) for key, times in self.tasks.items()})

    def check(self, conditions: Conditions, keys: Collection[BlockKey]) -> None:
        """Check that the table was made for these conditions and has these tasks.

        Raises:
            UsageError: The teacher, the blocks' initialisation or the batch size differ, or a task is missing.
        """
        for field in fields(Conditions):
            table_value, run_value = getattr(self.conditions, field.name), getattr(conditions, field.name)
            if table_value != run_value:
                raise UsageError(
                    f"--costs must be a table made with the run's {field.name}. Received: {table_value!r}; the run has "
                    f"{run_value!r}. Give --costs calibrate, or a table of such a run."
                )
        missing = sorted(set(keys) - set(self.tasks))
        if missing:
            raise UsageError(
                "--costs must be a table with every block to train. "
                f"Received: none for {', '.join(map(str, missing[:5]))}. "
                "Give --costs calibrate, or a table of a run that trained them."
            )

    def corrected(self, results: Iterable[BlockResult], work: Workload, grouped: bool, run_dir: str) -> "CostTable":
        """Return the table scaled, group by group, to the measured seconds of a run.

        All tasks of a group are scaled by one factor, such that its predicted time for the trained epochs (some blocks
        stop early) equals its measured time. A group does not count if a block failed, was retried or was read from the
        journal, or if several workers shared the group: its time is then not that of one worker training the group.

        Args:
            results: Results of one group have the same worker and start; results without a worker are ignored.
            work: The number of batches in that run.
            grouped: Whether its tasks shared the prefix.
            run_dir: Its directory, for the source.
        """
        tasks = dict(self.tasks)
        measured = 0
        for group in _measured_groups(results):
            part = replace(self, tasks={r.key: tasks[r.key] for r in group if r.key in tasks})
            predicted_s = part._group_s(group, work, grouped) if len(part.tasks) == len(group) else 0.0
            if predicted_s > 0:
                measured += len(group)
                tasks |= {key: times.scaled(group[0].seconds / predicted_s) for key, times in part.tasks.items()}
        if measured == 0:
            return self
        rest = "" if measured == len(tasks) else f"; {len(tasks) - measured} of {len(tasks)} blocks: {self.source}"
        return replace(self, tasks=tasks, source=f"measured by the run in {run_dir} on {self.device}{rest}")

    def _group_s(self, group: Sequence[BlockResult], work: Workload, grouped: bool) -> float:
        """Return the predicted seconds of a group of these tasks, for the epochs that each was trained."""
        works = {result.key: replace(work, epochs=max(0, len(result.nmse_history) - 1)) for result in group}
        longest = max(works.values(), key=lambda work: work.epochs)
        shared_s = self.costs(longest, grouped).prefix_s
        layers_s: dict[str, float] = {}
        for key, work in works.items():
            layers_s[key.layer] = max(layers_s.get(key.layer, 0.0), self.tasks[key].layer_s(work))
        blocks_s = sum(self.tasks[key].block_s(work) for key, work in works.items())
        return max(shared_s[key] for key in works) + sum(layers_s.values()) + blocks_s

    def as_json(self) -> dict[str, Any]:
        """Return the content of `costs.json`."""
        head = {"version": VERSION, **asdict(self.conditions), "device": self.device, "source": self.source}
        return {**head, "tasks": {str(key): asdict(times) for key, times in self.tasks.items()}}


def _measured_groups(results: Iterable[BlockResult]) -> list[list[BlockResult]]:
    groups: dict[tuple[int, float], list[BlockResult]] = {}
    for result in results:
        if result.worker is not None:
            groups.setdefault((result.worker, result.started_s), []).append(result)
    return [
        group
        for group in groups.values()
        if all(r.status == "trained" and r.attempts == 1 and not r.from_journal and not r.shared for r in group)
    ]


def read_requested(source: str) -> CostTable | None:
    """Return the table if `--costs` is a path, else `None`.

    Raises:
        MissingInputError: The file does not exist or cannot be read.
        BadInputError: The file is not a cost table, or a cost is invalid.
    """
    return None if source in SOURCES else read_table(Path(source))


def read_table(path: Path) -> CostTable:
    """Return the table in a file.

    Raises:
        MissingInputError: The file does not exist or cannot be read.
        BadInputError: The file is not a cost table, or a cost is invalid.
    """
    try:
        return _from_json(json.loads(path.read_bytes()))
    except OSError as error:
        raise MissingInputError(
            f"--costs must be {', '.join(SOURCES)} or a costs.json of a run. Received: {str(path)!r}: "
            f"{error.strerror}. Check the path."
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        message = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())[:200].rstrip(".")
        raise BadInputError(
            f"a cost table must be a file that pbd wrote. Received: {str(path)!r}: {message}. Give --costs calibrate."
        ) from error


def _from_json(content: dict[str, Any]) -> CostTable:
    if content["version"] != VERSION:
        raise ValueError(f"version {content['version']!r}, not {VERSION}")
    tasks = {BlockKey.parse(key): TaskTimes(**times) for key, times in content["tasks"].items()}
    for key, times in tasks.items():
        for part, seconds in vars(times).items():
            if type(seconds) not in (int, float) or not (math.isfinite(seconds) and seconds >= 0):
                raise ValueError(f"{part} of {key} is {seconds!r}, not seconds of at least 0")
    conditions = Conditions(**{field.name: content[field.name] for field in fields(Conditions)})
    return CostTable(conditions, str(content["device"]), str(content["source"]), tasks)


def table_from_macs(
    conditions: Conditions, device: str, tasks: Sequence[BlockTask], teacher_macs: int, macs_per_s: float
) -> CostTable:
    """Estimate a table from multiply-accumulates and constants for tracing.

    Args:
        conditions: The conditions of the run.
        device: A description.
        tasks: The tasks to estimate.
        teacher_macs: The MACs of the whole teacher, per image.
        macs_per_s: The measured rate of the teacher's forward pass on this device.

    Returns:
        A table whose `source` names the rate.

    Raises:
        ValueError: `macs_per_s` is not positive and finite.
    """
    if not (math.isfinite(macs_per_s) and macs_per_s > 0):
        raise ValueError(f"macs_per_s must be positive. Received: {macs_per_s}. Time the teacher's forward again.")
    batch_s = conditions.batch_size / macs_per_s
    times = {
        task.key: TaskTimes(
            prefix_s=batch_s * task.layer.prefix_macs,
            step_s=batch_s * TRAINING_PASSES * task.macs,
            check_s=batch_s * task.macs,
            suffix_s=batch_s * max(0, teacher_macs - task.layer.prefix_macs),
            block_once_s=BLOCK_TRACING_S,
            group_once_s=GROUP_TRACING_S,
        )
        for task in tasks
    }
    rate = f"{macs_per_s / 1e9:.3g} GMAC/s"
    return CostTable(conditions, device, f"multiply-accumulates at the teacher's measured forward rate ({rate})", times)


def interpolated(points: Mapping[int, float], macs: int) -> float:
    """Interpolate the seconds of a prefix linearly in its multiply-accumulates.

    A point that was measured shorter than a shallower prefix is raised to it, because a deeper prefix contains it.

    Args:
        points: Seconds by multiply-accumulates; at least one.
        macs: The MACs of the prefix. Outside the points, the nearest one is returned.
    """
    at = sorted(points)
    return float(np.interp(macs, at, np.maximum.accumulate([points[point] for point in at])))

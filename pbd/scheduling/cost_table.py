"""What each layer takes on one device, per batch and once: measured, or estimated; kept as `costs.json`."""

import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from pbd.errors import BadInputError, MissingInputError, UsageError
from pbd.records import BlockResult, BlockTask
from pbd.scheduling.cost_model import LayerCosts

# A training step costs the forward pass, the gradient by the input and the gradient by the weights: three
# times the forward's multiply-accumulates. The frozen prefix only runs forward.
TRAINING_PASSES = 3
VERSION = 1
NO_FILE = ("auto", "calibrate", "macs")
"""What `--costs` may say other than the path of a table."""


@dataclass(frozen=True)
class Workload:
    """How many batches training a group goes through."""

    epochs: int
    steps_per_epoch: int
    check_batches: int
    """Validation batches that are looked at after every epoch."""
    fit_batches: int
    """Training batches that the blocks' first weights are fitted to."""
    score_batches: int
    """Validation batches on which the trained blocks are scored."""

    @property
    def steps(self) -> int:
        """Training steps in all."""
        return self.epochs * self.steps_per_epoch

    @property
    def checks(self) -> int:
        """Validation batches in all, before training and after every epoch."""
        return (self.epochs + 1) * self.check_batches


@dataclass(frozen=True)
class LayerTimes:
    """What one layer takes on one device, in seconds."""

    prefix_s: float
    """Once per batch of a group whose deepest layer this is: reading it, the teacher's forward up to the layer."""
    step_s: float
    """The block's part of a training step."""
    check_s: float
    """The block's forward and error on a validation batch."""
    suffix_s: float
    """The teacher's forward behind the layer, on a batch, as scoring runs it: with normalisations folded."""
    target_s: float = 0.0
    """The moments of the layer's output on a batch."""
    gather_s: float = 0.0
    """The statistics of a batch that the block's first weights are fitted to."""
    block_once_s: float = 0.0
    """Once per block: building, tracing, its first weights."""
    group_once_s: float = 0.0
    """Once per group whose deepest layer this is: tracing the prefix."""
    epoch_s: float = 0.0
    """Once per epoch of a group: starting to read the data."""
    load_s: float = 0.0
    """Once per worker: loading the teacher and the data."""

    def group_s(self, work: Workload) -> float:
        """Return what a group as deep as this layer pays once for all its blocks, loading aside."""
        batches = work.steps + work.checks + work.check_batches + work.fit_batches
        scoring_s = work.score_batches * (
            2 * self.prefix_s + self.suffix_s
        )  # for the targets, for the teacher's scores
        return self.group_once_s + work.epochs * self.epoch_s + batches * self.prefix_s + scoring_s

    def block_s(self, work: Workload) -> float:
        """Return what the block pays for itself."""
        training_s = work.steps * self.step_s + work.checks * self.check_s + work.check_batches * self.target_s
        scoring_s = work.score_batches * (2 * self.check_s + self.suffix_s)  # its error, and its scores when swapped in
        return self.block_once_s + work.fit_batches * self.gather_s + training_s + scoring_s

    def shared(self, workers: int) -> "LayerTimes":
        """Return the times of one of several workers that train the layer's group together.

        Each sees its part of every batch, and gives its part of the blocks their first weights; what is done once in a
        process, everyone does.
        """
        per_image = ("prefix_s", "step_s", "check_s", "suffix_s", "target_s", "gather_s")
        return replace(self, **{name: getattr(self, name) / workers for name in per_image})

    def scaled(self, factor: float) -> "LayerTimes":
        """Return the times, each multiplied by the factor."""
        return LayerTimes(**{name: factor * seconds for name, seconds in vars(self).items()})


@dataclass(frozen=True)
class Conditions:
    """What a table of costs holds for, besides its device."""

    teacher: str
    """A digest of the teacher's structure, not of its weights."""
    block: str
    block_init: str
    batch_size: int


@dataclass(frozen=True)
class CostTable:
    """What each layer takes, per batch and once: what predictions for any number of images and epochs are made from."""

    conditions: Conditions
    device: str
    """In words."""
    source: str
    """Where the figures come from, for the report."""
    layers: Mapping[str, LayerTimes]

    def costs(self, work: Workload, grouped: bool) -> LayerCosts:
        """Return what whole training takes.

        Args:
            work: how many batches there are.
            grouped: whether the tasks of a worker share one run of the prefix. Each group is then taken to be its
                worker's first, which loads the teacher and the data; single tasks are not.
        """
        return LayerCosts(
            prefix_s={n: t.group_s(work) + (t.load_s if grouped else 0.0) for n, t in self.layers.items()},
            block_s={name: times.block_s(work) for name, times in self.layers.items()},
            grouped=grouped,
            source=self.source,
        )

    def shared(self, workers: int) -> "CostTable":
        """Return what each layer takes one of several workers that train all layers together, exchanges aside."""
        return replace(self, layers={name: times.shared(workers) for name, times in self.layers.items()})

    def check(self, conditions: Conditions, layer_names: Collection[str]) -> None:
        """Check that the table applies to a run with these conditions and layers.

        Raises:
            UsageError: the teacher, the block, its first weights or the batch size differ, or a layer is missing.
        """
        for field in fields(Conditions):
            measured, requested = getattr(self.conditions, field.name), getattr(conditions, field.name)
            if measured != requested:
                raise UsageError(
                    f"--costs needs a table made with the run's {field.name}. Received: {measured!r}, and the run has "
                    f"{requested!r}. Give --costs calibrate, or a table of such a run."
                )
        missing = sorted(set(layer_names) - set(self.layers))
        if missing:
            raise UsageError(
                f"--costs needs a table of every layer to train. Received: none for {', '.join(missing[:5])}. "
                "Give --costs calibrate, or a table of a run that trained them."
            )

    def corrected(self, results: Iterable[BlockResult], work: Workload, grouped: bool, run_dir: str) -> "CostTable":
        """Return the table rescaled, group by group, to the seconds that a run measured.

        A group's layers are all scaled alike, so that for the epochs that its blocks trained (some stop early) it is
        predicted to take what it took. Groups with a failed block tell nothing: part of their time went into retries;
        nor do those of which a part was found done or begun again, or that several workers shared.

        Args:
            results: those of a group share worker and start; ones that no worker stamped are left out.
            work: of that run.
            grouped: whether its tasks shared the prefix.
            run_dir: its directory, for the source.
        """
        layers = dict(self.layers)
        measured = 0
        for group in _measured_groups(results):
            of_group = replace(self, layers={r.layer: layers[r.layer] for r in group if r.layer in layers})
            predicted_s = of_group._group_s(group, work, grouped) if len(of_group.layers) == len(group) else 0.0
            if predicted_s > 0:
                measured += len(group)
                layers |= {
                    name: times.scaled(group[0].seconds / predicted_s) for name, times in of_group.layers.items()
                }
        if measured == 0:
            return self
        rest = "" if measured == len(layers) else f"; {len(layers) - measured} of {len(layers)} layers: {self.source}"
        return replace(self, layers=layers, source=f"measured by the run in {run_dir} on {self.device}{rest}")

    def _group_s(self, group: Sequence[BlockResult], work: Workload, grouped: bool) -> float:
        """Return the predicted seconds of these layers in one group, for the epochs that each of them trained."""
        worked = {result.layer: replace(work, epochs=max(0, len(result.nmse_history) - 1)) for result in group}
        longest = max(worked.values(), key=lambda workload: workload.epochs)
        shared_s = self.costs(longest, grouped).prefix_s
        return max(shared_s[name] for name in worked) + sum(self.layers[n].block_s(w) for n, w in worked.items())

    def as_json(self) -> dict[str, Any]:
        """Return what `costs.json` holds."""
        head = {"version": VERSION, **asdict(self.conditions), "device": self.device, "source": self.source}
        return {**head, "layers": {name: asdict(times) for name, times in self.layers.items()}}


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


def read_requested(costs: str) -> CostTable | None:
    """Return the table in the file that `--costs` names; `None` if it names no file.

    Raises:
        MissingInputError: there is no such file, or it cannot be read.
        BadInputError: it holds something else, or a cost that is none.
    """
    return None if costs in NO_FILE else read_table(Path(costs))


def read_table(path: Path) -> CostTable:
    """Return the table in a file.

    Raises:
        MissingInputError: there is no such file, or it cannot be read.
        BadInputError: it holds something else, or a cost that is none.
    """
    try:
        return _from_json(json.loads(path.read_bytes()))
    except OSError as error:
        raise MissingInputError(
            f"--costs must be {', '.join(NO_FILE)} or a costs.json of a run. Received: {str(path)!r}: "
            f"{error.strerror}. Check the path."
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())[:200].rstrip(".")
        raise BadInputError(
            f"a table of costs must be one that pbd wrote. Received: {str(path)!r}: {reason}. Give --costs calibrate."
        ) from error


def _from_json(content: dict[str, Any]) -> CostTable:
    if content["version"] != VERSION:
        raise ValueError(f"version {content['version']!r}, not {VERSION}")
    layers = {str(name): LayerTimes(**times) for name, times in content["layers"].items()}
    for name, times in layers.items():
        for part, seconds in vars(times).items():
            if type(seconds) not in (int, float) or not (math.isfinite(seconds) and seconds >= 0):
                raise ValueError(f"{part} of {name} is {seconds!r}, not seconds of at least 0")
    conditions = Conditions(**{field.name: content[field.name] for field in fields(Conditions)})
    return CostTable(conditions, str(content["device"]), str(content["source"]), layers)


def table_from_macs(
    conditions: Conditions, device: str, tasks: Sequence[BlockTask], teacher_macs: int, macs_per_s: float
) -> CostTable:
    """Estimate a table from multiply-accumulates alone.

    Args:
        conditions: what the table is for.
        device: in words.
        tasks: the layers to estimate.
        teacher_macs: of the whole teacher, per image.
        macs_per_s: the rate at which this device ran the teacher forward.

    Returns:
        A table whose `source` names the rate.

    Raises:
        ValueError: `macs_per_s` is not positive and finite.
    """
    if not (math.isfinite(macs_per_s) and macs_per_s > 0):
        raise ValueError(f"macs_per_s must be positive. Received: {macs_per_s}. Time the teacher's forward again.")
    batch_s = conditions.batch_size / macs_per_s
    layers = {
        task.layer.name: LayerTimes(
            prefix_s=batch_s * task.layer.prefix_macs,
            step_s=batch_s * TRAINING_PASSES * task.macs,
            check_s=batch_s * task.macs,
            suffix_s=batch_s * max(0, teacher_macs - task.layer.prefix_macs),
        )
        for task in tasks
    }
    rate = f"{macs_per_s / 1e9:.3g} GMAC/s"
    return CostTable(
        conditions, device, f"multiply-accumulates at the teacher's measured forward rate ({rate})", layers
    )


def interpolated(points: Mapping[int, float], macs: int) -> float:
    """Return a prefix's seconds from those of a few others, piecewise linear in its multiply-accumulates.

    What was measured shorter than a shallower prefix counts as long as that one: a deeper prefix contains it.

    Args:
        points: seconds by multiply-accumulates, one or more.
        macs: of the prefix that is asked for; outside the points, it costs what the nearest one does.
    """
    at = sorted(points)
    return float(np.interp(macs, at, np.maximum.accumulate([points[one] for one in at])))

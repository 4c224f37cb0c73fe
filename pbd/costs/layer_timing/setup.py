"""The teacher, layers and data that are timed, and the conditions under which a cost table is valid."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

import keras

from pbd import data
from pbd.blocks import BlockDesign, initialisation
from pbd.blockwise import scoring
from pbd.blockwise.distiller import STOPPING_IMAGES
from pbd.networks import cost, graph
from pbd.records import BlockKey, BlockTask
from pbd.scheduling.cost_table import Conditions, Workload


@dataclass(frozen=True)
class Setup:
    """The layers to predict, and the teacher and data that they are timed with."""

    teacher: keras.Model
    """Flat and functional; it is copied and never changed."""
    tasks: tuple[BlockTask, ...]
    """The layers to train."""
    dataset: data.Dataset
    designs: Mapping[str, BlockDesign]
    """The designs of the tasks, by name."""
    block_init: str
    load_s: float = 0.0
    """The seconds of loading the teacher and the data."""

    @property
    def conditions(self) -> Conditions:
        """The conditions under which a cost table for these layers is valid."""
        return Conditions(structure_digest(self.teacher), self.block_init, self.dataset.batch_size)

    @property
    def keys(self) -> tuple[BlockKey, ...]:
        return tuple(task.key for task in self.tasks)

    @property
    def gathers(self) -> bool:
        """Whether initial weights are computed from images."""
        return any(initialisation.Needs.of(design, self.block_init) for design in self.designs.values())

    def workload(self, epochs: int) -> Workload:
        """Return the number of batches that training a group processes."""
        size, held_out = self.dataset.batch_size, len(self.dataset.validation)
        fit_images = min(initialisation.FIT_IMAGES, len(self.dataset.train)) if self.gathers else 0
        return Workload(
            epochs=epochs,
            steps_per_epoch=self.dataset.steps_per_epoch,
            check_batches=math.ceil(min(STOPPING_IMAGES, held_out) / size),
            fit_batches=math.ceil(fit_images / size),
            score_batches=math.ceil(min(scoring.MOST_IMAGES, held_out) / size),
        )


def structure_digest(teacher: keras.Model) -> str:
    """Return a digest of a flat teacher's layers, shapes and types, which determine its speed; weights do not count."""
    layers = [
        [
            *(type(layer).__name__, layer.compute_dtype, cost.layer_macs(layer), calls),
            *(str(output.shape) for output in keras.tree.flatten(layer.output)),
        ]
        for layer, calls in cost.layer_calls(teacher)
    ]
    names = [layer.name for layer, _ in graph.find_convolutions(teacher)]
    return hashlib.sha256(json.dumps([layers, names]).encode()).hexdigest()[:16]

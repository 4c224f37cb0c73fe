"""The teacher, layers and data that are timed, and the conditions that a table of times holds under."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

import keras

from pbd import data
from pbd.blocks import BlockDesign, initialisation
from pbd.blockwise.distiller import STOPPING_IMAGES
from pbd.networks import cost, graph
from pbd.records import BlockTask
from pbd.scheduling.cost_table import Conditions, Workload


@dataclass(frozen=True)
class Setup:
    """What is to be predicted, and what it is measured with."""

    teacher: keras.Model
    """Flat and functional; it is copied, never changed."""
    tasks: tuple[BlockTask, ...]
    """The layers to train."""
    dataset: data.Dataset
    designs: Mapping[str, BlockDesign]
    """The designs of the tasks, by name."""
    block_init: str
    load_s: float = 0.0
    """What loading the teacher and the data took."""

    @property
    def conditions(self) -> Conditions:
        """What a table for it must have been made for."""
        return Conditions(
            structure_digest(self.teacher), "+".join(self.designs), self.block_init, self.dataset.batch_size
        )

    @property
    def layer_names(self) -> tuple[str, ...]:
        return tuple(task.layer.name for task in self.tasks)

    @property
    def gathers(self) -> bool:
        """Whether first weights are fitted to images."""
        return any(any(initialisation.statistics_needed(d, self.block_init)) for d in self.designs.values())

    def workload(self, epochs: int) -> Workload:
        """Return how many batches a group goes through."""
        size, held_out = self.dataset.batch_size, len(self.dataset.validation)
        fitted = min(initialisation.FIT_IMAGES, len(self.dataset.train)) if self.gathers else 0
        return Workload(
            epochs=epochs,
            steps_per_epoch=self.dataset.steps_per_epoch,
            check_batches=math.ceil(min(STOPPING_IMAGES, held_out) / size),
            fit_batches=math.ceil(fitted / size),
            score_batches=math.ceil(held_out / size),
        )


def structure_digest(teacher: keras.Model) -> str:
    """Return a digest of what decides a flat teacher's speed: its layers' kinds, shapes and types, not its weights."""
    layers = [
        [
            *(type(layer).__name__, layer.compute_dtype, cost.layer_macs(layer), calls),
            *(str(output.shape) for output in keras.tree.flatten(layer.output)),
        ]
        for layer, calls in cost.layer_calls(teacher)
    ]
    names = [layer.name for layer, _ in graph.find_convolutions(teacher)]
    return hashlib.sha256(json.dumps([layers, names]).encode()).hexdigest()[:16]

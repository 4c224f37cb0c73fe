"""Steps that replace layers in stages, each in the network with all earlier replacements."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import keras

from pbd import blocks
from pbd.blockwise.tasks import enumerate_tasks
from pbd.compression.keras_losses import NamedLosses
from pbd.compression.pruning.rounds import RoundFiles
from pbd.compression.step import StepResult
from pbd.config import StudentConfig, TrainingConfig
from pbd.config.settings import BLOCK_INITS
from pbd.config.student import FINE_TUNE_LOSSES
from pbd.config.values import at_least, one_of, positive
from pbd.learning.metrics import Metrics
from pbd.networks import channels
from pbd.networks.cost import count_macs, count_params
from pbd.records import BlockResult, BlockTask
from pbd.run_dir import steps as of_steps
from pbd.student.assemble import swap_blocks
from pbd.student.checkpoints import FineTuneState

if TYPE_CHECKING:
    from pbd.compression.context import Context

Tasks = tuple[BlockTask, ...]


@dataclass(frozen=True)
class Stage:
    """One stage: some layers, and the networks that it has to do with."""

    number: int
    """The number of the stage, from 1."""
    tasks: Tasks
    """One for each layer of the stage, in graph order."""
    first: keras.Model
    """The network before the step."""
    current: keras.Model
    """The network after the stage before."""
    context: "Context"


@dataclass(frozen=True)
class Inserted:
    """The network of a stage with its blocks in place."""

    model: keras.Model
    blocks: Mapping[str, BlockResult]
    """The blocks by layer; blocks that failed are left out."""
    ends: Mapping[str, str]
    """By layer, the name of the operation that ends its block."""
    failures: tuple[str, ...]
    """One line for each block that failed."""

    @property
    def layers(self) -> frozenset[str]:
        """The layers of the blocks."""
        return frozenset(key.rpartition("/")[0] for block in self.blocks.values() for key in block.weights)


@dataclass(frozen=True)
class InStages(NamedLosses, ABC):
    """The settings that steps in stages share, and the loop over the stages."""

    block: str = "two_layer"
    """The design that replaces each layer; see the list of `pbd.distill`."""
    layers: tuple[str, ...] = ()
    """Glob patterns of the layers to replace (default: all); ^ excludes."""
    layers_per_stage: int = 1
    """Layers that are replaced together."""
    block_init: str = "noise"
    """Initial weights of a block: noise (random), kernel (from the layer's kernel), or fitted (refined by least squares
    on a few thousand images)."""
    include_unprofitable: bool = False
    """Also replace layers whose block needs as many multiply-accumulates, and layers with few input channels."""

    def check(self) -> None:
        blocks.get(self.block)
        one_of("block initialisation", self.block_init, BLOCK_INITS)
        at_least("layers_per_stage", self.layers_per_stage, 1)

    @abstractmethod
    def grouped(self, tasks: Tasks) -> list[Tasks]:
        """Return the tasks of each stage.

        Args:
            tasks: the tasks of all layers that are replaced, in graph order.
        """

    @abstractmethod
    def replaced(self, stage: Stage) -> tuple[keras.Model, dict[str, Any]]:
        """Return the network after a stage, and a record of it (see `record`)."""

    def apply(self, model: keras.Model, context: "Context") -> StepResult:
        tasks = self.tasks(model)
        context.check_memory(model, tasks, self.block_init)  # before the first stage, rather than in a late one
        files, stages = RoundFiles(context.journal), self.grouped(tasks)
        current, records = files.read(model)
        for number in range(len(records) + 1, len(stages) + 1):
            tasks = stages[number - 1]
            names = ", ".join(task.layer.name for task in tasks)
            context.display.phase(f"stage {number} of {len(stages)}: {names}")
            current, record = self.replaced(Stage(number, tasks, model, current, context))
            records.append(record)
            files.write(current, records)
            context.forget_checkpoints()
        current = channels.remove_unread(current)
        events = tuple(event for record in records for event in record["events"])
        return StepResult(current, _details(model, current, records), events, context.keeps_zeros)

    def tasks(self, model: keras.Model) -> Tasks:
        """Return the tasks of the layers that are replaced, in graph order.

        Raises:
            BadInputError: there is no layer to replace.
            UsageError: a pattern matches no layer.
        """
        design, include = blocks.get(self.block), self.include_unprofitable
        tasks = enumerate_tasks(model, design, patterns=self.layers, include_unprofitable=include)
        return tuple(task for task in tasks if task.skip_reason is None)

    def insert(self, stage: Stage, training: TrainingConfig) -> Inserted:
        """Train the blocks of a stage on the feature maps of its current network, and put them into it.

        Args:
            stage: the stage.
            training: the training settings of the blocks; without epochs, they keep their initial weights.
        """
        results = stage.context.train_blocks(stage.current, stage.tasks, training, self.block_init)
        trained = {result.layer: result for result in results if result.status == "trained"}
        failures = tuple(
            f"{result.layer} is not replaced: {result.error}" for result in results if result.status != "trained"
        )
        model, ends = swap_blocks(stage.current, stage.tasks, trained)
        return Inserted(model, trained, ends, failures)


def in_groups(tasks: Tasks, size: int) -> list[Tasks]:
    """Return the tasks in groups of this size, in order; the last one may be smaller."""
    return [tasks[start : start + size] for start in range(0, len(tasks), size)]


def tuning(loss: str | None, epochs: int, learning_rate: float, labelled: bool) -> StudentConfig:
    """Return the settings of the training of inserted blocks.

    Args:
        loss: by default cross_entropy or, without labels, kd_mse.
        epochs: passes over the training images.
        learning_rate: the learning rate of Adam, which rises first and decays to zero along a cosine.
        labelled: whether there are labels.
    """
    loss = loss or ("cross_entropy" if labelled else "kd_mse")
    return StudentConfig(fine_tune_epochs=epochs, fine_tune_learning_rate=learning_rate, fine_tune_loss=loss)


def check_tuning(step: InStages, prefix: str = "", least_epochs: int = 0) -> None:
    """Check the settings of `tuning`.

    Args:
        step: has them.
        prefix: the prefix of their names.
        least_epochs: the smallest number of epochs.

    Raises:
        UsageError: one is out of its range.
    """
    loss, epochs, learning_rate = (f"{prefix}{name}" for name in ("loss", "epochs", "learning_rate"))
    if getattr(step, loss) is not None:
        one_of(loss, getattr(step, loss), FINE_TUNE_LOSSES)
    at_least(epochs, getattr(step, epochs), least_epochs)
    positive(learning_rate, getattr(step, learning_rate))


def record(stage: Stage, inserted: Inserted, before: Metrics, tuned: FineTuneState) -> dict[str, Any]:
    """Return a record of a stage.

    Args:
        stage: the stage.
        inserted: its blocks.
        before: metrics of the network with the blocks, before it was trained.
        tuned: the state of that training.
    """
    return {
        "stage": stage.number,
        "layers": [task.layer.name for task in stage.tasks],
        "nmse": {name: block.nmse for name, block in inserted.blocks.items()},
        "inserted": asdict(before),
        "trained": asdict(tuned.best),
        "history": list(tuned.history),
        "events": [f"stage {stage.number}: {event}" for event in (*inserted.failures, *tuned.events)],
    }


def _details(model: keras.Model, student: keras.Model, records: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "replaced": sum(len(record["nmse"]) for record in records),
        of_steps.FAILED_BLOCKS: [
            layer for record in records for layer in record["layers"] if layer not in record["nmse"]
        ],
        "parameters": [count_params(model), count_params(student)],
        "macs": [count_macs(model), count_macs(student)],
        "stages": records,
        "history": [row for record in records for row in record["history"]],
    }

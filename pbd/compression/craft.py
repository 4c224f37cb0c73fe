"""Craft distillation: replaces one layer after the other, in the network with all earlier replacements."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import keras

from pbd.compression import labels, stages
from pbd.compression.stages import InStages, Stage, Tasks
from pbd.config import DistillationConfig, TrainingConfig
from pbd.config.values import at_least, one_of, positive

if TYPE_CHECKING:
    from pbd.data import Dataset

TOP_DOWN, BOTTOM_UP, PARALLEL = "top_down", "bottom_up", "parallel"
ORDERS = (TOP_DOWN, BOTTOM_UP, PARALLEL)


@dataclass(frozen=True)
class Craft(InStages):
    """Craft distillation (Blakeney, dissertation, Texas State University, chapter 4).

    In each stage, blocks learn the feature maps of the network as it is by then, replace their layers, and are trained
    in the network with all other layers frozen. The resulting network is the teacher of the next stage. That training
    ends with the best epoch or with the last one, as the `fine_tune_keep` of the recipe says.

    Example:
        >>> Craft(block="two_layer", order="top_down", epochs=20, tune_epochs=5)
    """

    order: str = TOP_DOWN
    """top_down (from the classifier to the images), bottom_up (the other way), or parallel (all layers in one stage, on
    the feature maps of the network before the step)."""
    epochs: int = 3
    """Passes over the training images for the blocks of a stage."""
    learning_rate: float = 0.01
    """The learning rate of Adam while blocks learn feature maps, with cosine decay to zero."""
    tune_epochs: int = 1
    """Passes over the training images for the blocks of a stage in the network."""
    tune_learning_rate: float = 0.003
    """The learning rate of Adam while the blocks are trained in the network; it rises first and decays to zero along a
    cosine."""
    tune_loss: str | None = None
    """Loss of the blocks in the network: kd_mse, kd_kl (on the network before the step), cross_entropy or mixed
    (default: cross_entropy; without labels kd_mse)."""

    def check(self) -> None:
        super().check()
        one_of("order", self.order, ORDERS)
        at_least("epochs", self.epochs, 0)
        positive("learning_rate", self.learning_rate)
        stages.check_tuning(self, "tune_")

    def check_data(self, dataset: "Dataset") -> None:
        labels.require(self, "tune_loss", self.tune_epochs, dataset)

    def grouped(self, tasks: Tasks) -> list[Tasks]:
        if self.order == PARALLEL:
            return [tasks]
        if self.order == BOTTOM_UP:
            return stages.in_groups(tasks, self.layers_per_stage)
        from_the_end = stages.in_groups(tasks[::-1], self.layers_per_stage)
        return [group[::-1] for group in from_the_end]

    def replaced(self, stage: Stage) -> tuple[keras.Model, dict[str, Any]]:
        context = stage.context
        training = TrainingConfig(epochs=self.epochs, learning_rate=self.learning_rate, patience=0)
        inserted = self.insert(stage, training)
        before = context.evaluate(inserted.model, teacher=stage.first)
        tuned = context.for_new_network().fine_tune(  # zeros of new blocks are no pruned weights
            inserted.model,
            stages.tuning(self.tune_loss, self.tune_epochs, self.tune_learning_rate, context.dataset.labelled),
            initial=before,
            teacher=stage.first,
            first_epoch=(stage.number - 1) * self.tune_epochs,
            distillation=DistillationConfig(from_random_weights=self.block_init == "noise" and self.epochs == 0),
            trainable=inserted.layers,
        )
        return inserted.model, stages.record(stage, inserted, before, tuned)

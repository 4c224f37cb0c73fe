"""The step that replaces layers from the images on, each block trained in the network: progressive distillation."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import keras

from pbd.compression import labels, stages
from pbd.compression.stages import Inserted, InStages, Stage, Tasks
from pbd.config import DistillationConfig, Feature, TrainingConfig
from pbd.config.values import positive

if TYPE_CHECKING:
    from pbd.data import Dataset


@dataclass(frozen=True)
class Progressive(InStages):
    """Progressive blockwise distillation (Wang, Zhao, Li, Tan 2018, IJCAI).

    Stages go from the images to the classifier. The blocks of a stage replace their layers, and are trained in the
    network with a local loss plus `class_weight` times the loss of the classes; earlier and later layers are frozen.
    The local loss is the mean squared error between the feature maps at the end of the stage and those of the network
    before the step. The training ends with the best epoch or with the last one, as the `fine_tune_keep` of the recipe
    says.

    Example:
        >>> Progressive(block="two_layer", layers_per_stage=2, class_weight=1.0, epochs=10)
    """

    class_weight: float = 1.0
    """Weight of the loss of the classes (lambda), added to the local loss."""
    epochs: int = 4
    """Passes over the training images in each stage."""
    learning_rate: float = 0.003
    """Learning rate of Adam in each stage, which rises first and decays to zero along a cosine."""
    loss: str | None = None
    """Loss of the classes: kd_mse, kd_kl (on the network before the step), cross_entropy or mixed (default:
    cross_entropy; without labels kd_mse)."""

    def check(self) -> None:
        super().check()
        positive("class_weight", self.class_weight)
        stages.check_tuning(self, least_epochs=1)

    def check_data(self, dataset: "Dataset") -> None:
        labels.require(self, "loss", self.epochs, dataset)

    def grouped(self, tasks: Tasks) -> list[Tasks]:
        return stages.in_groups(tasks, self.layers_per_stage)

    def replaced(self, stage: Stage) -> tuple[keras.Model, dict[str, Any]]:
        context = stage.context
        inserted = self.insert(stage, TrainingConfig(epochs=0))
        before = context.evaluate(inserted.model, teacher=stage.first)
        trained = context.for_new_network().fine_tune(  # zeros of new blocks are no pruned weights
            inserted.model,
            stages.tuning(self.loss, self.epochs, self.learning_rate, context.dataset.labelled),
            initial=before,
            teacher=stage.first,
            first_epoch=(stage.number - 1) * self.epochs,
            distillation=self.distillation(inserted),
            trainable=inserted.layers,
        )
        return inserted.model, stages.record(stage, inserted, before, trained)

    def distillation(self, inserted: Inserted) -> DistillationConfig:
        """Return the local loss, beside a loss of the classes of weight 1.

        Args:
            inserted: the blocks of the stage.
        """
        if not inserted.ends:
            return DistillationConfig()
        layer, end = list(inserted.ends.items())[-1]
        # Local loss plus lambda times the loss of the classes, divided by lambda.
        local = Feature("mse", end, layer, weight=1.0 / self.class_weight)
        return DistillationConfig((local,), from_random_weights=self.block_init == "noise")

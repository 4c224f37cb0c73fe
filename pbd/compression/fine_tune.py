"""The step that trains a network on the logits of the first one, or on the labels."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import keras

from pbd.compression import keras_losses, labels, layer_losses
from pbd.compression.settings import of_step
from pbd.compression.step import StepResult
from pbd.config import RECIPES, DistillationConfig, StudentConfig
from pbd.config.values import Section, as_kind, one_of
from pbd.errors import UsageError
from pbd.networks import graph

if TYPE_CHECKING:
    from pbd.compression.context import Context
    from pbd.data import Dataset


_NAMES = {
    "epochs": "fine_tune_epochs",
    "loss": "fine_tune_loss",
    "temperature": "temperature",
    "mixup": "mixup",
    "learning_rate": "fine_tune_learning_rate",
    "distillation_weight": "distillation_weight",
    "cutmix": "cutmix",
    "keep": "fine_tune_keep",
    "scope": "fine_tune_scope",
}
"""By the settings of the step, their names in `StudentConfig`."""
_SET_BY_RECIPES = ("epochs", "loss", "temperature", "mixup")
"""The settings of the step that recipes change."""


@dataclass(frozen=True)
class FineTune(Section):
    """Trains the network on the logits of the first network or on the labels; its architecture does not change.

    Example:
        >>> FineTune(epochs=20, loss="kd_kl", temperature=2.0, mixup=1.0)
    """

    epochs: int | None = None
    """Passes over the training images (default: 8, or as the `recipe` says)."""
    loss: Any = None
    """kd_mse (logits of the first network), kd_kl (its softened outputs), cross_entropy (labels), mixed (kd_kl and
    cross_entropy), or a LogitsDistillation, which sets the temperature, as in `DistillInto` (default: kd_mse, or as the
    `recipe` says)."""
    learning_rate: float = StudentConfig.fine_tune_learning_rate
    """The learning rate of Adam, which rises first and decays to zero along a cosine; kernels of small weights have a
    lower one."""
    temperature: float | None = None
    """Divides the logits before the softmax in kd_kl and mixed (default: 4, or as the `recipe` says)."""
    distillation_weight: float = StudentConfig.distillation_weight
    """Weight of the teacher's term in mixed, in [0, 1]; the labels get the rest."""
    mixup: float | None = None
    """Train on weighted sums of two images, with weights drawn from Beta(mixup, mixup); 0: no mixup (default: 0, or as
    the `recipe` says)."""
    cutmix: float = StudentConfig.cutmix
    """Paste a box of another image into each image, which keeps a share drawn from Beta(cutmix, cutmix); 0: no CutMix.
    With mixup as well, either is drawn for each image."""
    keep: str = StudentConfig.fine_tune_keep
    """The epoch whose weights training ends with: best (on the validation images; may be the start), last, or auto:
    last if the first network was already trained and the validation images are a part of the training images, else
    best."""
    scope: str = StudentConfig.fine_tune_scope
    """Layers to train: all, or no_1x1_dense (all but 1x1 convolutions and dense layers)."""
    features: Any = ()
    """Losses between layers of the network and of the first one, which are added, as in `DistillInto`: each a
    `Feature`, its fields as a mapping, or a FeatureDistillation."""
    recipe: str | None = None
    """Other defaults, as in `pbd.distill`; settings that are given win. They are set when the step is made. patient: 80
    epochs of kd_kl at temperature 2 with mixup 1 (arXiv:2106.05237)."""

    def check(self) -> None:
        loss, temperature = keras_losses.read(self.loss, self.temperature)
        object.__setattr__(self, "loss", as_kind("loss", str | None, loss))
        object.__setattr__(self, "temperature", temperature)
        if self.scope == "blocks":
            raise UsageError("a step trains all layers or no_1x1_dense. Received: scope blocks. Give all.")
        if self.recipe is not None:
            one_of("recipe", self.recipe, RECIPES)
        of_recipe = {} if self.recipe is None else RECIPES[self.recipe]
        for name in _SET_BY_RECIPES:
            if getattr(self, name) is None:
                setting = _NAMES[name]
                object.__setattr__(self, name, of_recipe.get(setting, getattr(StudentConfig, setting)))
        object.__setattr__(self, "features", layer_losses.read(self.features))
        _ = self.settings

    @property
    def settings(self) -> StudentConfig:
        """The settings of the fine-tuning.

        Raises:
            UsageError: one is out of its range.
        """
        return of_step(self, _NAMES)

    def check_data(self, dataset: "Dataset") -> None:
        labels.require(self, "loss", self.settings.fine_tune_epochs, dataset)

    def apply(self, model: keras.Model, context: "Context") -> StepResult:
        tuned = graph.flatten(model)
        layer_losses.check(self.features, tuned, context.teacher, context.dataset)
        state = context.fine_tune(tuned, self.settings, distillation=DistillationConfig(self.features))
        return StepResult(tuned, {"history": list(state.history)}, state.events)

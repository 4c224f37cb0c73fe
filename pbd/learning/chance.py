"""Comparison of a classifier's accuracy with chance."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import keras

SIGNIFICANCE = 1e-3
"""A network is better than chance if chance gives as many correct images with at most this probability."""
PERMUTATIONS = 1999


def predicted_classes(model: "keras.Model", images: Any) -> np.ndarray:
    """Return the class that the model predicts for each image, (n,); the model is not traced for it."""
    from pbd.learning.metrics import class_scores
    from pbd.networks import compiled, heads

    logits = compiled.outputs(heads.remove(model), np.asarray(images))
    return np.argmax(class_scores(logits.astype(np.float32)), axis=-1)


@dataclass(frozen=True)
class Predictions:
    """Predicted classes and labels of the same images, each (n,)."""

    classes: np.ndarray
    labels: np.ndarray

    @property
    def correct(self) -> int:
        return int(np.sum(self.classes == self.labels))

    @property
    def accuracy(self) -> float:
        return self.correct / max(1, len(self.labels))

    @property
    def chance(self) -> float:
        """The accuracy of predictions with these frequencies that do not depend on the image.

        This is the expected agreement of Cohen's kappa (Cohen 1960). Unlike one divided by the number of classes, it is
        right for classes of unequal size and for a network that always predicts one class.
        """
        count = max(1, len(self.labels))
        shared = np.intersect1d(self.classes, self.labels)
        return float(sum(np.sum(self.classes == c) * np.sum(self.labels == c) for c in shared)) / count**2

    @property
    def kappa(self) -> float:
        """Cohen's kappa: 0 for chance, 1 if all predictions are correct."""
        chance = self.chance
        return 0.0 if chance == 1.0 else (self.accuracy - chance) / (1.0 - chance)

    @property
    def is_better_than_chance(self) -> bool:
        """Whether a permutation test rejects that predictions and labels are independent, for a one-sided alternative.

        Unlike a binomial test, it keeps its power if one class has nearly all images.
        """
        permuted = np.random.default_rng(0).permuted(np.tile(self.labels, (PERMUTATIONS, 1)), axis=1)
        as_good = int(np.sum(np.sum(permuted == self.classes, axis=1) >= self.correct))
        return (1 + as_good) / (1 + PERMUTATIONS) <= SIGNIFICANCE

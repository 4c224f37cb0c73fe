"""The step that sets single weights to zero: unstructured pruning."""

import math
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import keras

from pbd.compression import labels
from pbd.compression.keras_losses import NamedLosses
from pbd.compression.pruning import schedule, sizes, statistics, weights
from pbd.compression.pruning.rounds import RoundFiles
from pbd.compression.settings import BETWEEN_ROUNDS, of_step
from pbd.compression.step import StepResult
from pbd.config import DistillationConfig, StudentConfig
from pbd.config.values import at_least, one_of
from pbd.errors import UsageError
from pbd.networks import graph

if TYPE_CHECKING:
    from pbd.compression.context import Context
    from pbd.data import Dataset

CONTROLS = ("magnitude", "random", "redraw")


@dataclass(frozen=True)
class PruneWeights(NamedLosses):
    """Sets the smallest weights of kernels to zero, where they stay in all training that follows.

    Biases and normalisations are not pruned. Batch statistics are estimated again, and kept if the divergence from the
    network before falls. The network keeps its shapes: it takes fewer bytes if its file is compressed, and less time
    where a runtime leaves out zeros.

    Example:
        >>> PruneWeights(ratio=0.8, scope="global", per_round=0.15, epochs=1)
    """

    ratio: float = 0.5
    """Share of the weights to set to zero, in (0, 1): of each kernel, or of all together."""
    scope: str = "layer"
    """layer: the same share of each kernel. global: the smallest weights of the network."""
    rounds: int = 1
    """Rounds, each of which sets the same share of what is left to zero, until the ratio is reached."""
    per_round: float | None = None
    """Instead of rounds: the share of what is left that each round sets to zero, such as 0.15 (arXiv:1803.03635)."""
    epochs: int = 0
    """Passes over the training images after each round."""
    control: str = "magnitude"
    """magnitude, or a network with as many zeros to compare with, trained from random weights for as many epochs in
    all: redraw (zeros where magnitude has them) or random (zeros at random places of each kernel)."""
    prune_classifier: bool = False
    """Whether the last dense layer is pruned, too."""
    layers: tuple[str, ...] = ()
    """Glob patterns of the layers to prune (default: all); ^ excludes."""
    loss: str = StudentConfig.fine_tune_loss
    """See `FineTune`."""
    learning_rate: float = StudentConfig.fine_tune_learning_rate
    """Learning rate of Adam in each round, which rises first and decays to zero along a cosine."""

    def check(self) -> None:
        for name, value in (("ratio", self.ratio), ("per_round", self.per_round)):
            if value is not None and not 0.0 < value < 1.0:
                raise UsageError(f"{name} must lie strictly between 0 and 1. Received: {value}. Give 0.5, for example.")
        one_of("scope", self.scope, weights.SCOPES)
        one_of("control", self.control, CONTROLS)
        at_least("rounds", self.rounds, 1)
        at_least("epochs", self.epochs, 0)
        if self.per_round is not None and self.rounds > 1:
            raise UsageError(
                "rounds and per_round exclude each other. "
                f"Received: rounds {self.rounds} and per_round {self.per_round}. Give one of them."
            )
        if self.control != "magnitude" and self.epochs == 0:
            raise UsageError(
                f"control {self.control} trains random weights. Received: epochs 0. Give 1 or more epochs."
            )
        _ = self.training

    @property
    def training(self) -> StudentConfig:
        """The settings of the training after each round.

        Raises:
            UsageError: one is out of its range.
        """
        return of_step(self, BETWEEN_ROUNDS, keep_zeros=True)

    @property
    def shares(self) -> tuple[float, ...]:
        """The share of zeros after each round."""
        left = 1.0 - self.ratio
        if self.per_round is None:
            per_round, rounds = 1.0 - left ** (1.0 / self.rounds), self.rounds
        else:
            per_round = self.per_round
            rounds = max(1, math.ceil(math.log(left) / math.log(1.0 - per_round) - 1e-9))
        before = [schedule.geometric(self.ratio, number, per_round) for number in range(1, rounds)]
        return (*before, self.ratio)

    def check_data(self, dataset: "Dataset") -> None:
        labels.require(self, "loss", self.epochs, dataset)

    def apply(self, model: keras.Model, context: "Context") -> StepResult:
        weights.find_kernels(model, self.layers, self.prune_classifier)
        current, records = graph.flatten(model), list[dict[str, Any]]()
        if self.control != "random":
            current, records = self._pruned(current, model, context)
        if self.control != "magnitude":
            records.append(self._train_control(current, context))
        kernels = weights.find_kernels(current, self.layers, self.prune_classifier)
        before = weights.find_kernels(model, self.layers, self.prune_classifier)
        size = sizes.bytes_of(current, kernels)
        details = sizes.sparsity(kernels) | {
            "bytes": size,
            "bytes_before": sizes.bytes_of(model, before),
            "rounds": records,
            "history": [row for record in records for row in record["history"]],
        }
        events = [*(event for record in records for event in record["events"]), sizes.described(size)]
        return StepResult(current, details, tuple(events), keeps_zeros=True)

    def _pruned(
        self, model: keras.Model, before: keras.Model, context: "Context"
    ) -> tuple[keras.Model, list[dict[str, Any]]]:
        """Return the network after all rounds, and a record of each.

        Args:
            model: a copy of the network, which may change.
            before: the network, which stays as it is.
            context: the context of the step.
        """
        files = RoundFiles(context.journal)
        current, records = files.read(model)
        for number, share in list(enumerate(self.shares, start=1))[len(records) :]:
            context.display.phase(f"pruning weights, round {number} of {len(self.shares)}")
            kernels = weights.find_kernels(current, self.layers, self.prune_classifier)
            weights.apply(kernels, weights.SCOPES[self.scope](weights.magnitudes(kernels), share))
            # The last training changes no zeros, which are all that `redraw` keeps.
            epochs = self.epochs if self.control == "magnitude" or number < len(self.shares) else 0
            events = statistics.re_estimate(current, before, context)
            record = self._train(current, context, number, share, epochs)
            records.append(record | {"events": [*events, *record["events"]]})
            files.write(current, records)
        return current, records

    def _train_control(self, model: keras.Model, context: "Context") -> dict[str, Any]:
        """Draw the weights of a network again and train those that remain, in place; return a record of it."""
        context.display.phase(f"training random weights, {self.control}")
        kernels = weights.find_kernels(model, self.layers, self.prune_classifier)
        if self.control == "redraw":
            masks: weights.Masks = {kernel.name: kernel.values != 0 for kernel in kernels}
        else:
            masks = weights.SCOPES[self.scope](weights.magnitudes(kernels), self.ratio)
            masks = weights.shuffled(masks, context.seed)
        weights.draw_anew(model, context.seed)
        weights.apply(kernels, masks)
        rounds = len(self.shares)
        from_random = DistillationConfig(from_random_weights=True)
        return self._train(model, context, rounds + 1, self.ratio, rounds * self.epochs, from_random)

    def _train(
        self,
        model: keras.Model,
        context: "Context",
        number: int,
        share: float,
        epochs: int,
        distillation: DistillationConfig | None = None,
    ) -> dict[str, Any]:
        """Train a network in place; return a record of it.

        Args:
            model: a network with zeros.
            context: the context of the step.
            number: the number of the round, from 1.
            share: the share of zeros.
            epochs: passes over the training images.
            distillation: see `Context.fine_tune`.
        """
        metrics = context.evaluate(model)
        settings = replace(self.training, fine_tune_epochs=epochs)
        # Each training starts at another epoch of the data, which also tells their checkpoints apart.
        first_epoch = (number - 1) * self.epochs
        state = context.fine_tune(model, settings, metrics, first_epoch=first_epoch, distillation=distillation)
        record = {"round": number, "share": share, "pruned": asdict(metrics), "trained": asdict(state.best)}
        return record | {"history": list(state.history), "events": list(state.events)}

"""The step that removes channels: structured pruning."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import keras

from pbd.compression import labels, layer_losses
from pbd.compression.importance import IMPORTANCES, Subject
from pbd.compression.keras_losses import NamedLosses
from pbd.compression.pruning import refitting, schedule, selection, statistics
from pbd.compression.pruning.rounds import RoundFiles
from pbd.compression.settings import BETWEEN_ROUNDS, of_step
from pbd.compression.step import StepResult
from pbd.config import DistillationConfig, StudentConfig, patterns
from pbd.config.values import at_least, one_of
from pbd.errors import BadInputError, UsageError
from pbd.networks import channels
from pbd.networks.channels import ChannelGroup
from pbd.networks.cost import count_macs, count_params

if TYPE_CHECKING:
    from pbd.compression.context import Context
    from pbd.data import Dataset


@dataclass(frozen=True)
class PruneFilters(NamedLosses):
    """Removes the channels with the lowest scores, with all layers that share them: the network gets smaller.

    The layers behind are refitted by least squares to what the network computed before, without a gradient step. If
    `epochs` is not 0, the network is then trained, on the logits of the first network by default.

    Example:
        >>> PruneFilters(ratio=0.5, importance="taylor", rounds=3, epochs=2)
    """

    ratio: float = 0.3
    """Share of the channels to remove, in (0, 1): of each group of layers that share channels, or of all together."""
    importance: str = "l1"
    """What a channel is scored by: l1 or l2 (norm of its filter), geometric_median (distance to the other filters),
    batch_norm (scale of its normalisation), taylor (effect on the loss), or random."""
    scope: str = "layer"
    """layer: the same share of each group. global: the channels with the lowest scores of the network."""
    rounds: int = 1
    """Rounds in which the share grows to the ratio, fast at first (cubic schedule of AGP, arXiv:1710.01878)."""
    first_ratio: float | None = None
    """Share that the first of several rounds removes, such as 0.1 (default: that of the cubic schedule, which starts
    from 0 before the first round)."""
    epochs: int = 0
    """Passes over the training images after each round."""
    refit: bool = True
    """After each removal, correct the convolutions and dense layers by least squares, kept only if the divergence from
    the network before falls; batch statistics are estimated again."""
    layers: tuple[str, ...] = ()
    """Glob patterns of the layers whose channels may be removed (default: all); ^ excludes. Layers that share channels
    are pruned if all are selected."""
    loss: str = StudentConfig.fine_tune_loss
    """See `FineTune`."""
    learning_rate: float = StudentConfig.fine_tune_learning_rate
    """Learning rate of Adam in each round, which rises first and decays to zero along a cosine."""
    features: Any = ()
    """See `FineTune`."""

    def check(self) -> None:
        if not 0.0 < self.ratio < 1.0:
            raise UsageError(f"ratio must lie strictly between 0 and 1. Received: {self.ratio}. Give 0.3, for example.")
        one_of("importance", self.importance, IMPORTANCES)
        one_of("scope", self.scope, selection.SCOPES)
        at_least("rounds", self.rounds, 1)
        at_least("epochs", self.epochs, 0)
        self._check_first_ratio()
        object.__setattr__(self, "features", layer_losses.read(self.features))
        _ = self.training(keep_zeros=False)

    def _check_first_ratio(self) -> None:
        first = self.first_ratio
        if first is not None and not (0.0 < first < self.ratio and self.rounds > 1):
            raise UsageError(
                "first_ratio must lie strictly between 0 and ratio, with 2 rounds or more. "
                f"Received: {first} with ratio {self.ratio} and rounds {self.rounds}. Leave it out, or raise rounds."
            )

    def training(self, keep_zeros: bool) -> StudentConfig:
        """Return the settings of the training after each round.

        Args:
            keep_zeros: see `StudentConfig`.

        Raises:
            UsageError: one is out of its range.
        """
        return of_step(self, BETWEEN_ROUNDS, keep_zeros=keep_zeros)

    def check_data(self, dataset: "Dataset") -> None:
        labels.require(self, "loss", self.epochs, dataset)

    def apply(self, model: keras.Model, context: "Context") -> StepResult:
        groups = self.groups(model)
        layer_losses.check(self.features, model, context.teacher, context.dataset)
        files = RoundFiles(context.journal)
        current, records = files.read(model)
        for number in range(len(records) + 1, self.rounds + 1):
            context.display.phase(f"removing channels, round {number} of {self.rounds}")
            current, record = self._round(current, groups, number, context)
            records.append(record)
            files.write(current, records)
        events = [event for record in records for event in record["events"]]
        return StepResult(current, _details(model, current, groups, records), tuple(events), context.keeps_zeros)

    def groups(self, model: keras.Model) -> tuple[ChannelGroup, ...]:
        """Return the groups of channels that are pruned.

        Raises:
            UsageError: a pattern matches no layer.
            BadInputError: no channel can be removed.
        """
        groups = channels.find_groups(model)
        patterns.check(self.layers, [name for group in groups for name in group.producers])
        selected = [group for group in groups if all(patterns.selects(self.layers, name) for name in group.producers)]
        if not any(group.fixed is None for group in selected):
            reason = selected[0].fixed if selected else "no group of layers is selected"
            raise BadInputError(
                f"a network must have channels that can be removed. Received: none ({reason}). "
                "Give other layers, or leave this step out."
            )
        return tuple(group for group in selected if group.fixed is None)

    def _round(
        self, model: keras.Model, groups: tuple[ChannelGroup, ...], number: int, context: "Context"
    ) -> tuple[keras.Model, dict[str, Any]]:
        """Return the network after a round, and a record of it."""
        share = schedule.cubic(self.ratio, number, self.rounds, self.first_ratio)
        kept, events = self.choose(model, groups, share, context)
        pruned, changes = self._removed(model, kept, context)
        events += changes
        metrics = context.evaluate(pruned)
        state = context.fine_tune(
            pruned,
            self.training(context.keeps_zeros),
            metrics,
            first_epoch=(number - 1) * self.epochs,
            distillation=DistillationConfig(self.features),
        )
        record = {"round": number, "share": share, "pruned": asdict(metrics), "trained": asdict(state.best)}
        prefix = f"round {number}: " if self.rounds > 1 else ""
        events = [f"{prefix}{event}" for event in (*events, *state.events)]
        return pruned, record | {"history": list(state.history), "events": events}

    def _removed(self, model: keras.Model, kept: selection.Kept, context: "Context") -> tuple[keras.Model, list[str]]:
        """Return the network without the other channels, and what was corrected."""
        if self.refit and not context.keeps_zeros:
            refitted = refitting.remove_and_refit(model, kept, context.adapt)
            if refitted.adapted is not None:
                return refitted.model, [*refitted.adapted.events(), *refitted.events()]
            return refitted.model, [*refitted.events(), *statistics.re_estimate(refitted.model, model, context)]
        pruned = channels.remove(model, {name: each.tolist() for name, each in kept.items()})
        if not self.refit:
            return pruned, []
        reason = "not refitted, since weights that are zero have to stay zero"
        return pruned, [reason, *statistics.re_estimate(pruned, model, context)]

    def choose(
        self, model: keras.Model, groups: tuple[ChannelGroup, ...], share: float, context: "Context"
    ) -> tuple[selection.Kept, list[str]]:
        """Return the channels that remain after a round, by group, and notes for the report.

        Args:
            model: before the round.
            groups: before the first round.
            share: the share of the channels before the first round that are removed after this one.
            context: the context of the step.
        """
        sizes, pruned = {group.name: group.size for group in groups}, set[str]().union(*(g.producers for g in groups))
        now = [group for group in channels.find_groups(model) if group.producers[0] in pruned]
        left = tuple(group for group in now if group.name in sizes and group.fixed is None)
        if not left:  # of each group, the last channel remains
            return {}, []
        subject = Subject(model, left, context.seed, lambda measure: context.measure(model, measure))
        scores = IMPORTANCES[self.importance](subject)
        unscored = sum(group.size for group in now if group.name not in scores.values)
        kept = selection.SCOPES[self.scope](scores.values, sizes, share, unscored)
        tensors = channels.find_placements(model).tensors
        return selection.in_every_tensor(kept, scores.values, tensors), list(scores.events)


def _details(
    model: keras.Model, pruned: keras.Model, groups: tuple[ChannelGroup, ...], records: list[dict[str, Any]]
) -> dict[str, Any]:
    sizes = {group.producers: group.size for group in channels.find_groups(pruned)}
    counts = {
        # Without the channels that connect its layers, a group falls into several.
        group.name: [group.size, sum(size for names, size in sizes.items() if names[0] in group.producers)]
        for group in groups
    }
    before, after = (sum(each) for each in zip(*counts.values(), strict=True))
    return {
        "channels": [before, after],
        "removed": 1.0 - after / before,
        "parameters": [count_params(model), count_params(pruned)],
        "macs": [count_macs(model), count_macs(pruned)],
        "groups": counts,
        "rounds": records,
        "history": [row for record in records for row in record["history"]],
    }

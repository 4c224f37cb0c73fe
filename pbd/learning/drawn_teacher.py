"""A teacher that is an ensemble, of which one member is drawn for each training step."""

import functools
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from pbd.data.splitting import derived_seed
from pbd.errors import UsageError
from pbd.networks import graph, heads
from pbd.networks.keras_internals import call_inputs, producer


class DrawnTeacher(keras.layers.Layer):
    """The members of an ensemble, of which one, drawn with equal chances, computes in each step.

    A student may learn from the mean of several teachers (You et al. 2017, "Learning from multiple teacher networks",
    KDD), or in each step from one of them, which costs the pass of one (Blakeney, dissertation, Texas State University,
    chapter 5).

    The member depends on the seed, the epoch and the step alone: all workers draw the same one, and so does a training
    that is resumed or that repeats an epoch.

    Args:
        members: Each maps images, (batch, height, width, channels), to logits, (batch, classes).
        steps: Per epoch.
        seed: Of the data.
    """

    def __init__(self, members: Sequence[keras.Model], steps: int, seed: int) -> None:
        super().__init__(name="drawn_teacher", dtype="float32")
        self.members, self._seed = list(members), seed
        self._drawn = self.add_weight((steps,), "zeros", "int32", trainable=False, name="drawn")
        self._step = self.add_weight((), "zeros", "int32", trainable=False, name="step")
        self.built = True  # or Keras warns: its variables and its members exist

    def draw(self, epoch: int) -> None:
        """Draw the member of each step of an epoch of the data; the next call is the first step."""
        self._drawn.assign(drawn_members(len(self.members), self._drawn.shape[0], self._seed, epoch))
        self._step.assign(0)

    def call(self, images: Any, training: bool = False) -> Any:
        """Return the logits of the member of this step, (batch, classes) float32; each call is a step."""
        member = keras.ops.take(self._drawn, self._step)
        self._step.assign(self._step + 1)
        logits = keras.ops.switch(
            member, [functools.partial(network, training=False) for network in self.members], images
        )
        return keras.ops.cast(logits, "float32")


def drawn_members(count: int, steps: int, seed: int, epoch: int) -> np.ndarray:
    """Return the number of the member that is drawn for each step of an epoch, (steps,) int32 in [0, count)."""
    generator = np.random.default_rng([derived_seed(seed, "ensemble teacher"), epoch])
    return generator.integers(count, size=steps, dtype=np.int32)


def members(model: keras.Model) -> list[keras.Model]:
    """Return the members of an ensemble, flat; each outputs what the ensemble takes the mean of.

    Args:
        model: Flat and functional, such as the network that an `Ensemble` makes.

    Raises:
        UsageError: The network does not end with the mean of several outputs, which a softmax or sigmoid may follow.
    """
    operation, call_index = producer(heads.remove(model).outputs[0])
    if not isinstance(operation, keras.layers.Average):
        raise UsageError(
            "ensemble_teacher drawn needs an ensemble as the teacher. "
            f"Received: the network {model.name!r}. Put an Ensemble before the step, or give ensemble_teacher mean."
        )
    ends = call_inputs(operation, call_index)
    return [graph.flatten(keras.Model(model.inputs[0], end, name=f"member{n}")) for n, end in enumerate(ends, start=1)]

"""Multiply each input channel by a gate of value 1; compute the gradient of the loss with respect to the gates.

A gate of 0 removes its channel, so the derivative is the first-order estimate of what its removal changes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from pbd.collective import Collective, all_reduce_sums
from pbd.data import Dataset, WorkerShare
from pbd.learning import losses
from pbd.learning.data_parallel import GradientCollector
from pbd.learning.distillation import logits_model
from pbd.networks import compiled, graph
from pbd.networks.channels import find_groups, find_placements
from pbd.networks.keras_internals import walk
from pbd.system import devices, watchdog

IMAGES = 1024
"""Most training images whose loss is differentiated."""


class GatedNetwork(keras.Model):
    """A network in inference mode with a gate for each image and channel; its loss is the sum of the cross entropies.

    Args:
        network: flat, from images to logits; it gets frozen.
        names: the names of the groups whose channels have gates.
        images: the most in a batch.
    """

    def __init__(self, network: keras.Model, names: Sequence[str], images: int) -> None:
        super().__init__(name="gated_network", dtype="float32")
        network.trainable = False
        self.network = network
        sizes = {group.name: group.size for group in find_groups(network)}
        ends = np.cumsum([sizes[name] for name in names])
        self.parts = {name: slice(end - sizes[name], end) for name, end in zip(names, ends.tolist(), strict=True)}
        """By group, the columns of its gates."""
        self.gates = self.add_weight(shape=(images, int(ends[-1])), initializer="ones", name="gates")
        self._columns = self._columns_by_call()

    def _columns_by_call(self) -> Mapping[int, tuple[int, np.ndarray]]:
        """Return, by number of a call, the axis of the channels and the gate of each; the last one is always open."""
        columns: dict[int, tuple[int, np.ndarray]] = {}
        for each in find_placements(self.network).readers:
            if each.group in self.parts:
                default = np.full(each.width, self.gates.shape[1])
                _, of_call = columns.setdefault(each.call, (each.axis, default))
                of_call[each.positions] = self.parts[each.group].start + each.channels
        return columns

    def call(self, images: Any, training: bool = False) -> Any:
        ops, numbers = keras.ops, iter(range(10**9))
        count = ops.shape(images)[0]
        gates = ops.concatenate([self.gates[:count], ops.ones((count, 1))], axis=1)

        def call(operation: Any, *args: Any, **kwargs: Any) -> Any:
            number, kwargs = next(numbers), graph.in_mode(operation, False, kwargs)
            if number not in self._columns:
                return operation(*args, **kwargs)
            axis, columns = self._columns[number]
            shape = [1] * (len(args[0].shape) - 1)
            shape[axis - 1] = len(columns)
            factors = ops.reshape(ops.take(gates, columns, axis=1), (-1, *shape))
            return operation(args[0] * ops.cast(factors, args[0].dtype), *args[1:], **kwargs)

        return keras.tree.flatten(walk(self.network, images, call))[0]

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        return keras.ops.cast(keras.ops.shape(y_pred)[0], "float32") * losses.cross_entropy(y, y_pred, None)


def squared_derivatives(
    model: keras.Model,
    teacher: keras.Model,
    dataset: Dataset,
    collective: Collective,
    names: Sequence[str],
    images: int = IMAGES,
) -> dict[str, np.ndarray]:
    """Return, by group, the squared derivative of the cross entropy by each gate, mean over images, (channels,).

    Args:
        model: flat and functional; it stays as it is.
        teacher: where the images have no labels, its classes are the labels.
        dataset: the first training images count.
        collective: its members share the batches.
        names: the names of the groups.
        images: most that count.
    """
    first, _ = next(iter(dataset.batches("train", limit=dataset.batch_size)))
    gated = GatedNetwork(graph.flatten(logits_model(graph.flatten(model), first)), names, len(first))
    scores, collector = logits_model(teacher, first), GradientCollector()
    collector.build(gated.trainable_variables)
    gated.compile(collector, jit_compile=devices.compiles_with_xla())
    sums, count = np.zeros(gated.gates.shape[1]), 0
    part = dataset.shared(WorkerShare(collective.index, collective.size))
    for batch, labels in part.batches("train", limit=images):
        watchdog.touch()
        classes = labels if dataset.labelled else np.argmax(compiled.outputs(scores, batch), axis=-1)
        gated.train_on_batch(batch, classes)
        gradient = keras.ops.convert_to_numpy(collector.flat).reshape(gated.gates.shape)
        sums += np.square(gradient, dtype=np.float64).sum(axis=0)
        count += len(batch)
    sums, total = all_reduce_sums(collective, [sums, np.array(float(count))])
    return {name: sums[columns] / total for name, columns in gated.parts.items()}

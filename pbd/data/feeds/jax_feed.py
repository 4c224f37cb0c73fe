"""The feed of the JAX backend: batches on the device, made there if the images fit, else sent ahead of their use."""

import collections
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pbd.data.feeds.device_images import Batch, DeviceImages, compiled, on_device
from pbd.data.feeds.numpy_feed import NumpyFeed

if TYPE_CHECKING:
    from pbd.data.dataset import Dataset
    from pbd.data.splits import Split

SENT_AHEAD = 2
"""Batches in transfer to the device, or waiting there, while one is used."""


class JaxFeed:
    """Feeds batches as arrays on the device."""

    def training_batches(self, dataset: "Dataset", first_epoch: int, end_epoch: int) -> Iterable[tuple[Any, Any]]:
        split = on_device(dataset, dataset.train)
        if split is None:
            return _sent_ahead(NumpyFeed().training_batches(dataset, first_epoch, end_epoch))
        return _made_on_device(split, _steps(split, range(first_epoch, end_epoch)))

    def batches_in_order(self, dataset: "Dataset", split: "Split", limit: int | None) -> Iterable[tuple[Any, Any]]:
        images = on_device(dataset, split)
        if images is None:
            return _sent_ahead(NumpyFeed().batches_in_order(dataset, split, limit))
        return _made_on_device(images, images.inputs_in_order(limit))

    def damaged_files(self, paths: Sequence[str]) -> list[str]:
        return NumpyFeed().damaged_files(paths)


def _steps(split: DeviceImages, epochs: range) -> Iterator[Batch]:
    for epoch in epochs:
        inputs = split.training_inputs(epoch)
        for step in range(len(inputs["rows"])):
            yield {name: values[step] for name, values in inputs.items()}


def _made_on_device(split: DeviceImages, batches: Iterable[Batch]) -> Iterator[tuple[Any, Any]]:
    make = compiled(split.form)
    for inputs in batches:
        yield make(split.images, inputs), inputs["labels"]


def _sent_ahead(batches: Iterable[tuple[Any, Any]]) -> Iterator[tuple[Any, Any]]:
    """Yield the batches with their images on the device; transfers are asynchronous and begin ahead of their use."""
    import jax

    remaining = ((jax.device_put(images), labels) for images, labels in batches)
    waiting = collections.deque(itertools.islice(remaining, SENT_AHEAD))
    while waiting:
        yield waiting.popleft()
        waiting.extend(itertools.islice(remaining, 1))

"""A stand-in for tensorflow-datasets, which need not be installed."""

import types
from typing import Any

import numpy as np


def fake_tfds(
    sizes: dict[str, int], shape: tuple[int | None, ...] = (None, None, 3), **features: Any
) -> types.SimpleNamespace:
    """Return a stand-in for tensorflow_datasets with one set, whose images hold their number in every pixel.

    Its features are an image and those given by name; a class label by default.
    """
    import tensorflow as tf

    features = features or {"label": types.SimpleNamespace(num_classes=3)}
    features["image"] = types.SimpleNamespace(shape=shape)

    class Builder:
        info = types.SimpleNamespace(
            splits={name: types.SimpleNamespace(num_examples=size) for name, size in sizes.items()}, features=features
        )

        def download_and_prepare(self) -> None:
            pass

        def as_dataset(self, split: str, shuffle_files: bool, decoders: Any) -> Any:
            assert not shuffle_files
            assert set(decoders.wanted) <= set(features)
            assert set(decoders.decoders) == {"image"}
            numbers = []
            for term in split.split("+"):
                name, _, places = term.rstrip("]").partition("[")
                begin, _, end = places.partition(":")
                numbers += range(int(begin or 0), int(end or sizes[name]))
            encoded = [tf.io.encode_png(np.full((4, 5, shape[2]), number, np.uint8)).numpy() for number in numbers]
            elements = {"image": encoded, "label": np.array(numbers) % 3}
            return tf.data.Dataset.from_tensor_slices({name: elements[name] for name in decoders.wanted})

    def builder(name: str) -> Builder:
        if name != "imagenette/small":
            raise ValueError(f"Dataset {name} not found.\nAvailable: many")
        return Builder()

    def partial(wanted: dict[str, bool], decoders: dict[str, Any]) -> types.SimpleNamespace:
        return types.SimpleNamespace(wanted=wanted, decoders=decoders)

    decode = types.SimpleNamespace(SkipDecoding=object, PartialDecoding=partial)
    return types.SimpleNamespace(builder=builder, decode=decode)

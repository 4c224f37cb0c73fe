"""Networks of half precision: they are worked on in float32, and written in their own precision.

In float16, gradients of a mean squared error over a feature map are smaller than the smallest normal number (6e-5).
"""

import itertools
from collections.abc import Collection, Mapping

import keras

from pbd.networks import graph, heads
from pbd.networks.keras_internals import KERNELS, producer

_HALF = ("float16", "bfloat16")


def policies(model: keras.Model, named: keras.Model | None = None) -> dict[str, str]:
    """Return the dtype policies of the layers that compute in half precision, by layer.

    Args:
        model: flat and functional.
        named: the same network, whose layer names are returned; by default the model itself.
    """
    pairs = zip(model.layers, (named or model).layers, strict=True)
    return {
        other.name: layer.dtype_policy.name
        for layer, other in pairs
        if layer.compute_dtype in _HALF and not isinstance(layer, keras.layers.InputLayer)
    }


def mixed(model: keras.Model, precision: str, float32: Collection[str] = ()) -> keras.Model:
    """Return a copy of a flat model that computes in half precision with weights in float32.

    Args:
        model: flat and functional, in float32.
        precision: float16 or bfloat16; for float32, the model itself is returned.
        float32: names of layers that compute in float32.
    """
    if precision not in _HALF:
        return model
    layers = [layer for layer in model.layers if not isinstance(layer, keras.layers.InputLayer)]
    names = [layer.name for layer in layers if layer.name not in float32]
    return graph.with_policies(model, dict.fromkeys(names, f"mixed_{precision}"))


def mixed_classifier(model: keras.Model, precision: str) -> keras.Model:
    """Return a copy that computes in half precision, but prepares its images and computes its scores in float32.

    Args:
        model: flat and functional, in float32.
        precision: see `mixed`.
    """
    before_kernels = itertools.takewhile(lambda layer: not _has_kernel(layer), model.layers)
    ends = producer(model.outputs[0])[0], *heads.logits_layers(model)
    return mixed(model, precision, {layer.name for layer in (*before_kernels, *ends)})


def _has_kernel(layer: keras.Layer) -> bool:
    return any(getattr(layer, name, None) is not None for name in KERNELS)


def in_float32(model: keras.Model) -> keras.Model:
    """Return a copy of a flat model whose layers of half precision compute in float32; the model if it has none."""
    half = policies(model)
    return graph.with_policies(model, dict.fromkeys(half, "float32")) if half else model


def restored(
    student: keras.Model, half: Mapping[str, str], teacher_layers: Collection[str], replaced: Collection[str]
) -> keras.Model:
    """Return a student in the precision of its teacher.

    Args:
        student: flat; the layers of a block have names that begin with the name of the layer that it replaces.
        half: see `policies`, of the teacher.
        teacher_layers: the names of the teacher's layers.
        replaced: the layers of the teacher that a block replaces.
    """
    owners = {layer.name: _owner(layer.name, teacher_layers, replaced) for layer in student.layers}
    of_half = {name: half[owner] for name, owner in owners.items() if owner in half}
    return graph.with_policies(student, of_half) if of_half else student


def _owner(name: str, teacher_layers: Collection[str], replaced: Collection[str]) -> str:
    """Return the layer of the teacher to which a layer of a student belongs: itself, or the one that a block replaces.

    A layer that belongs to none, which no block design may build, is its own owner.
    """
    if name in teacher_layers:
        return name
    return max((layer for layer in replaced if name.startswith(layer)), key=len, default=name)

"""Networks of half precision: they are worked on in float32, and written in their own precision.

In float16, gradients of a mean squared error over a feature map are smaller than the smallest normal number (6e-5).
"""

from collections.abc import Mapping

import keras

from pbd.networks import graph

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


def in_float32(model: keras.Model) -> keras.Model:
    """Return a copy of a flat model whose layers of half precision compute in float32; the model if it has none."""
    half = policies(model)
    return graph.with_policies(model, dict.fromkeys(half, "float32")) if half else model


def restored(student: keras.Model, half: Mapping[str, str]) -> keras.Model:
    """Return a student in the precision of its teacher.

    Args:
        student: flat; the layers of a block have names that begin with the name of the layer that it replaces.
        half: see `policies`, of the teacher.
    """
    if not half:
        return student
    owners = {layer.name: _owner(layer.name, half) for layer in student.layers}
    return graph.with_policies(student, {name: half[owner] for name, owner in owners.items() if owner is not None})


def _owner(name: str, half: Mapping[str, str]) -> str | None:
    """Return the layer of the teacher to which a layer of a student belongs, if it is one of these."""
    return name if name in half else max((one for one in half if name.startswith(f"{one}_")), key=len, default=None)

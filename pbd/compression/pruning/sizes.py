"""Sparsity of a network, and the bytes that its weights take."""

import gzip
import io
from collections.abc import Iterable, Mapping
from typing import Any

import keras
import numpy as np

from pbd.compression.pruning.weights import Kernel


def sparsity(kernels: Iterable[Kernel]) -> dict[str, Any]:
    """Return the share of zeros of each kernel and of all, in plain JSON types."""
    values = {kernel.name: kernel.values for kernel in kernels}
    zeros, weights = (sum(map(count, values.values())) for count in (_zeros, np.size))
    by_kernel = {name: {"weights": each.size, "sparsity": _zeros(each) / each.size} for name, each in values.items()}
    return {"sparsity": zeros / weights, "zeros": zeros, "weights": weights, "kernels": by_kernel}


def bytes_of(model: keras.Model, kernels: Iterable[Kernel]) -> dict[str, int]:
    """Return the bytes of all weights in float32: dense, with sparse kernels, and compressed.

    Args:
        model: the network.
        kernels: the kernels of the network; each is stored as the compressed sparse rows of a matrix (inputs, outputs).
    """
    values = [keras.ops.convert_to_numpy(weight) for weight in model.weights]
    content = b"".join(np.ascontiguousarray(each).tobytes() for each in values)
    return {
        "dense": len(content),
        "sparse": len(sparse_file(model, kernels)),
        "gzip": len(gzip.compress(content, mtime=0)),
    }


def described(bytes_by_form: Mapping[str, int]) -> str:
    """Return the sizes that `bytes_of` returns in a line, with what zeros are worth to a runtime."""
    dense, sparse, compressed = (f"{bytes_by_form[form] / 1000:,.1f}" for form in ("dense", "sparse", "gzip"))
    return (
        f"the weights take {dense} kB dense, {sparse} kB with sparse kernels, {compressed} kB compressed with gzip; "
        "zeros alone make a dense runtime no faster"
    )


def sparse_file(model: keras.Model, kernels: Iterable[Kernel]) -> bytes:
    """Return an `.npz` file of all weights, in which kernels have the arrays that `scipy.sparse.save_npz` writes.

    Args:
        model: the network.
        kernels: the kernels to be stored as compressed sparse rows; other weights are stored as they are.
    """
    import scipy.sparse  # takes long to load

    sparse = {id(kernel.variable): kernel for kernel in kernels}
    arrays: dict[str, np.ndarray] = {}
    for number, weight in enumerate(model.weights):
        value = keras.ops.convert_to_numpy(weight)
        if id(weight) not in sparse:
            arrays[f"{number}"] = value
            continue
        rows = scipy.sparse.csr_array(value.reshape(-1, value.shape[-1]))
        parts = {"data": rows.data, "indices": rows.indices, "indptr": rows.indptr, "shape": np.array(value.shape)}
        arrays |= {f"{number}.{name}": part for name, part in parts.items()}
    stream = io.BytesIO()
    np.savez(stream, **arrays)  # type: ignore[arg-type]
    return stream.getvalue()


def _zeros(values: np.ndarray) -> int:
    return int(values.size - np.count_nonzero(values))

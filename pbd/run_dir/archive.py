"""Arrays and what is to be said of them as the content of one file, in which a changed byte is noticed."""

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

DIGEST_BYTES = 32


def pack(said: Mapping[str, Any], arrays: Sequence[np.ndarray]) -> bytes:
    """Serialise to memory: an `.npz` of the arrays and what JSON can say of them, and behind it a digest of the whole.

    Raises:
        TypeError: an array is not one of plain numbers.
    """
    arrays = [np.asarray(array) for array in arrays]
    for array in arrays:
        if array.dtype.kind not in "biufc":
            raise TypeError(f"weights must be arrays of plain numbers. Received: {array.dtype}.")
    words, stream = json.dumps(said, default=plain).encode(), io.BytesIO()
    named = {f"weight_{index}": array for index, array in enumerate(arrays)}
    np.savez(stream, meta=np.frombuffer(words, np.uint8), **named)
    content = stream.getvalue()
    return content + _digest(content)


def unpack(data: bytes) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Return what was said, and the arrays.

    Raises:
        ValueError: the content is damaged.
    """
    content = memoryview(data)[:-DIGEST_BYTES]
    if _digest(content) != data[-DIGEST_BYTES:]:
        raise ValueError("its content does not match its checksum")
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        arrays = [archive[f"weight_{index}"] for index in range(len(archive.files) - 1)]
        return json.loads(archive["meta"].tobytes()), arrays


def plain(value: Any) -> Any:
    """Turn what JSON does not know into what it does."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"cannot be written as JSON: {value!r}")


def _digest(content: bytes | memoryview) -> bytes:
    return hashlib.sha256(content).digest()

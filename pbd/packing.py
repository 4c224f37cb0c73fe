"""Arrays and what is to be said of them as the content of one file, in which a changed byte is noticed."""

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def pack(said: Mapping[str, Any], arrays: Sequence[np.ndarray]) -> bytes:
    """Serialise to memory: the arrays, what JSON can say of them, and a digest over both.

    Raises:
        TypeError: an array is not one of plain numbers.
    """
    arrays = [np.asarray(array) for array in arrays]
    for array in arrays:
        if array.dtype.kind not in "biufc":
            raise TypeError(f"weights must be arrays of plain numbers. Received: {array.dtype}.")
    words = json.dumps(said, default=plain).encode()
    stream = io.BytesIO()
    np.savez(
        stream,
        meta=np.frombuffer(words, np.uint8),
        sha256=np.frombuffer(_digest(words, arrays), np.uint8),
        **{f"weight_{index}": array for index, array in enumerate(arrays)},
    )
    return stream.getvalue()


def unpack(data: bytes) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Return what was said, and the arrays.

    Raises:
        Exception: the content is damaged; a flipped byte can raise nearly anything in zip, NumPy and JSON.
    """
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        words = archive["meta"].tobytes()
        arrays = [archive[f"weight_{index}"] for index in range(len(archive.files) - 2)]
        if _digest(words, arrays) != archive["sha256"].tobytes():
            raise ValueError("its content does not match its checksum")
    return json.loads(words), arrays


def plain(value: Any) -> Any:
    """Turn what JSON does not know into what it does."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"cannot be written as JSON: {value!r}")


def _digest(words: bytes, arrays: Sequence[np.ndarray]) -> bytes:
    digest = hashlib.sha256(words)
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.digest()

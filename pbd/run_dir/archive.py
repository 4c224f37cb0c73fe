"""Arrays and their description (JSON) as the content of one file, with a digest that reveals any changed byte."""

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

DIGEST_BYTES = 32


def pack(description: Mapping[str, Any], arrays: Sequence[np.ndarray]) -> bytes:
    """Serialise arrays and a description: an `.npz` file, followed by the SHA-256 digest of its bytes.

    Raises:
        TypeError: an array is not numeric.
    """
    members: dict[str, Any] = {"meta": np.frombuffer(json.dumps(description, default=plain).encode(), np.uint8)}
    for index, array in enumerate(map(np.asarray, arrays)):
        if array.dtype.kind not in "biufc":
            raise TypeError(f"weights must be arrays of plain numbers. Received: {array.dtype}.")
        members[f"weight_{index}"] = array
    stream = io.BytesIO()
    np.savez(stream, **members)
    content = stream.getvalue()
    return content + hashlib.sha256(content).digest()


def unpack(data: bytes) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Return the description and the arrays.

    Raises:
        ValueError: the content is damaged.
    """
    content = memoryview(data)[:-DIGEST_BYTES]
    if hashlib.sha256(content).digest() != data[-DIGEST_BYTES:]:
        raise ValueError("its content does not match its checksum")
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        arrays = [archive[f"weight_{index}"] for index in range(len(archive.files) - 1)]
        return json.loads(archive["meta"].tobytes()), arrays


def plain(value: Any) -> Any:
    """Convert NumPy values and paths to types that JSON has, for `json.dumps(default=plain)`."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"cannot be written as JSON: {value!r}")


def json_digest(content: Any) -> str:
    """Return the SHA-256 digest of an object's JSON form, which does not depend on the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=plain).encode()).hexdigest()


def sealed(content: Any) -> dict[str, Any]:
    """Return the JSON object that holds `content` and its digest."""
    return {"content": content, "sha256": json_digest(content)}


def unsealed(data: bytes) -> Any:
    """Return the content of the JSON of `sealed`.

    Raises:
        ValueError: it is damaged.
    """
    try:
        record = json.loads(data)
        content, digest = record["content"], record["sha256"]
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError("it has no content with a checksum") from error
    if digest != json_digest(content):
        raise ValueError("its content does not match its checksum")
    return content

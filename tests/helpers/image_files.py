"""Image files in folders with names that a careless reader would break."""

import struct
from pathlib import Path

import numpy as np

ODD_FOLDER = "daten – 数据 é"


def write_images(folder: Path, count: int = 10, size: tuple[int, int] = (9, 7), kind: str = "png") -> None:
    """Write images of one colour each, which depends on the number and on the name of the folder."""
    import tensorflow as tf

    folder.mkdir(parents=True, exist_ok=True)
    encode = {"png": tf.io.encode_png, "jpg": tf.io.encode_jpeg}[kind]
    for number in range(count):
        pixels = np.full((*size, 3), (number * 20, sum(folder.name.encode()) % 200, 7), np.uint8)
        (folder / f"bild {number:02}.{kind}").write_bytes(encode(pixels).numpy())


def write_bmp(path: Path, width: int = 4, height: int = 4) -> None:
    """Write a bitmap, which no function of TensorFlow encodes."""
    pixels = bytes(range(width * height * 3))
    header = struct.pack("<2sIHHI", b"BM", 54 + len(pixels), 0, 0, 54)
    path.write_bytes(
        header + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, len(pixels), 0, 0, 0, 0) + pixels
    )

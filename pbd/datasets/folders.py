"""Folders of images: one folder a class, under train/ and test/ or on their own."""

import os
from pathlib import Path

import numpy as np

from pbd.datasets.images import FileImages, decoded
from pbd.datasets.sources import Part, Parts
from pbd.errors import BadInputError, MissingInputError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif")
VALIDATION_NAMES = ("validation", "val", "valid")
MOST_CHECKED = 20_000
"""No more files than this are opened while loading; of a larger folder, a sample is."""
TAIL_BYTES = 4096


def load_folder(folder: Path) -> Parts:
    """Return the images of a folder; class numbers follow the sorted names of the class folders.

    `train/` may have `test/` and `validation/` (or `val/`) beside it; if it has only the latter, that is the
    test split, as is usual with ImageNet. Without `train/`, the folders in it are the classes.

    Raises:
        BadInputError: there are no images, a class is empty, the classes of two splits differ, or a file is
            no image.
        MissingInputError: a folder or file cannot be read.
    """
    train = folder / "train"
    if not train.is_dir():
        if (folder / "test").is_dir():
            raise BadInputError(f"a folder with test/ needs train/ beside it. Received: {str(folder)!r}.")
        return Parts(_read_part(folder, _class_names(folder)))
    validation = next((folder / name for name in VALIDATION_NAMES if (folder / name).is_dir()), None)
    test = folder / "test" if (folder / "test").is_dir() else None
    if test is None:
        validation, test = None, validation
    classes = _class_names(train)
    return Parts(
        _read_part(train, classes),
        _read_part(validation, classes) if validation else None,
        _read_part(test, classes) if test else None,
    )


def _class_names(folder: Path) -> list[str]:
    try:
        return sorted(e.name for e in os.scandir(folder) if e.is_dir() and not e.name.startswith("."))
    except PermissionError as error:
        raise MissingInputError(f"a dataset folder must be readable. Received: {str(folder)!r}.") from error


def _read_part(folder: Path, classes: list[str]) -> Part:
    """Return the images under `folder`, which must have exactly these classes."""
    found = _class_names(folder)
    if len(classes) < 2:
        raise BadInputError(
            f"a dataset folder needs two class folders or more. Received: {len(classes)} in {str(folder)!r}. "
            "Put the images of each class in a folder of its own."
        )
    if found != classes:
        odd = ", ".join(sorted(set(found) ^ set(classes))[:5])
        raise BadInputError(f"{str(folder)!r} must have the class folders of train/. Received: a difference in {odd}.")
    paths: list[str] = []
    labels: list[int] = []
    for number, name in enumerate(classes):
        files = _image_files(folder / name)
        if not files:
            raise BadInputError(
                f"a class folder must hold images ({', '.join(SUFFIXES)}). Received: none in {str(folder / name)!r}. "
                "Add images, or remove the folder."
            )
        paths += files
        labels += [number] * len(files)
    _check_files(paths)
    return Part(FileImages(paths), np.array(labels, np.int32))


def _image_files(folder: Path) -> list[str]:
    """Return the image files at any depth under a class folder, sorted; hidden ones are left out."""
    found: list[str] = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            os.path.join(parent, name) for name in files if name.lower().endswith(SUFFIXES) and not name.startswith(".")
        ]
    return sorted(found)


def _check_files(paths: list[str]) -> None:
    """Look at the first and last bytes of the files, and decode those that look odd.

    Raises:
        BadInputError: a file is no image, is cut short, or is of a kind that cannot be decoded.
        MissingInputError: a file cannot be read.
    """
    import tensorflow as tf

    for path in paths[:: -(-len(paths) // MOST_CHECKED)]:
        try:
            if _looks_whole(path):
                continue
            content = Path(path).read_bytes()
        except OSError as error:
            raise MissingInputError(f"an image file must be readable. Received: {path!r}.") from error
        try:
            with tf.device("CPU"):
                decoded(tf.constant(content), (1, 1, 3))
        except tf.errors.OpError as error:
            raise BadInputError(
                f"an image file must be a whole JPEG, PNG, BMP or GIF. Received: {path!r}, which cannot be decoded. "
                "Remove it, or save it again as PNG."
            ) from error


def _looks_whole(path: str) -> bool:
    """Return whether a file begins and ends as a JPEG, PNG or GIF does; a BMP never does: it has no end mark."""
    with open(path, "rb") as file:
        head = file.read(8)
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - TAIL_BYTES))
        tail = file.read()
    if head.startswith(b"\xff\xd8\xff"):
        return b"\xff\xd9" in tail
    if head == b"\x89PNG\r\n\x1a\n":
        return b"IEND" in tail
    return head[:6] in (b"GIF87a", b"GIF89a") and tail.endswith(b";")

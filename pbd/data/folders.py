"""Folders of images: a folder for each class, or images without classes, with or without train/ and test/ above."""

import os
from pathlib import Path

import numpy as np

from pbd.data import feeds
from pbd.data.arrays import RawSplit, RawSplits
from pbd.data.images import FileImages
from pbd.errors import BadInputError, MissingInputError
from pbd.system import watchdog

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif")
VALIDATION_NAMES = ("validation", "val", "valid")
MOST_CHECKED = 20_000
"""At most this many files of a split are checked while loading: of a larger split, evenly spaced ones."""
TAIL_BYTES = 4096
"""The last bytes of a file in which its end marker is searched: some programs append data after the marker."""


def load_folder(folder: Path, labels: bool = True) -> RawSplits:
    """Return the images of a folder; class numbers follow the sorted names of the class folders.

    Beside `train/` there may be `test/` and `validation/` (or `val/`, `valid/`). If there is only `validation/`, it is
    the test split, as is usual with ImageNet. Without `train/`, the folders are the classes. A split without class
    folders, with images directly in it, has no labels.

    Args:
        folder: the data set.
        labels: folders are classes; if False, all images, at any depth, are images without labels.

    Raises:
        BadInputError: there are no images, a class is empty, the classes of two splits differ, images and class folders
            lie side by side, or a file is no image.
        MissingInputError: a folder or file cannot be read.
    """
    train, validation, test = _split_folders(folder)
    classes = _common_classes([split for split in (train, validation, test) if split]) if labels else []
    return RawSplits(
        _read_split(train, classes),
        _read_split(validation, classes) if validation else None,
        _read_split(test, classes) if test else None,
    )


def _split_folders(folder: Path) -> tuple[Path, Path | None, Path | None]:
    """Return the folders of the training, validation and test images; `None` for splits that are missing."""
    train, test = folder / "train", folder / "test"
    validation = next((folder / name for name in VALIDATION_NAMES if (folder / name).is_dir()), None)
    if train.is_dir():
        return (train, validation, test) if test.is_dir() else (train, None, validation)
    if test.is_dir():
        raise BadInputError(f"a folder with test/ needs train/ beside it. Received: {str(folder)!r}.")
    return folder, None, None


def _common_classes(splits: list[Path]) -> list[str]:
    """Return the class folders, which are the same in all splits; none if the images lie directly in all splits."""
    classes = _class_names(splits[0], fewest=2)
    for split in splits[1:]:
        differences = sorted(set(_class_names(split)) ^ set(classes))
        if differences:
            raise BadInputError(
                f"{str(split)!r} must have the class folders of train/, or none where that has none. "
                f"Received: a difference in {', '.join(differences[:5])}. Make them alike, or give --no-labels."
            )
    return classes


def _class_names(folder: Path, fewest: int = 0) -> list[str]:
    """Return the class folders in a folder, sorted, at least `fewest`; none if images lie directly in the folder."""
    try:
        visible = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
    except PermissionError as error:
        raise MissingInputError(f"a dataset folder must be readable. Received: {str(folder)!r}.") from error
    names = sorted(entry.name for entry in visible if entry.is_dir())
    images = sorted(entry.name for entry in visible if entry.is_file() and _is_image(entry.name))
    if names and images:
        raise BadInputError(
            "a dataset folder has class folders, or images without labels directly in it, not both. "
            f"Received: folders such as {names[0]!r} and images such as {images[0]!r} in {str(folder)!r}. "
            "Move the images into class folders, or give --no-labels to use all images without labels."
        )
    if len(names) < fewest and not images:
        raise BadInputError(
            "a dataset folder needs two class folders or more, or images without labels directly in it. "
            f"Received: {len(names)} class folders and no images in {str(folder)!r}. Put the images of each class in "
            "a folder of its own, or give --no-labels."
        )
    return names


def _read_split(folder: Path, classes: list[str]) -> RawSplit:
    """Return the images in the class folders of a split; without classes, all images under it, without labels."""
    groups = [_image_files(group) for group in [folder / name for name in classes] or [folder]]
    paths = [path for group in groups for path in group]
    _check_files(paths)
    labels = np.repeat(np.arange(len(groups), dtype=np.int32), [len(group) for group in groups])
    return RawSplit(FileImages(paths), labels if classes else None)


def _image_files(folder: Path) -> list[str]:
    """Return the image files at any depth under a folder, sorted, without hidden files.

    Raises:
        BadInputError: there are none.
    """
    paths: list[str] = []
    visited: set[str] = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        watchdog.touch()
        # Links are followed, since class folders often are links; but no folder twice, since links may form a circle.
        target = os.path.realpath(parent)
        new = target not in visited
        visited.add(target)
        folders[:] = sorted(name for name in folders if new and not name.startswith("."))
        paths += [os.path.join(parent, name) for name in files if new and _is_image(name)]
    if not paths:
        raise BadInputError(
            f"a folder of images must hold some ({', '.join(SUFFIXES)}). Received: none in {str(folder)!r}. "
            "Add images, or remove the folder."
        )
    return sorted(paths, key=lambda path: path.split(os.sep))  # the order of class folders read one by one


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def _check_files(paths: list[str]) -> None:
    """Check the first and last bytes of the files, and decode the files whose bytes do not prove an image.

    Raises:
        BadInputError: a file is no image, is truncated, or has a format that cannot be decoded.
        MissingInputError: a file cannot be read.
    """
    for path in paths[:: -(-len(paths) // MOST_CHECKED)]:
        watchdog.touch()
        try:
            if _looks_whole(path):
                continue
            content = Path(path).read_bytes()
        except OSError as error:
            raise MissingInputError(f"an image file must be readable. Received: {path!r}.") from error
        if not feeds.current().can_decode(content):
            raise BadInputError(
                f"an image file must be a whole JPEG, PNG, BMP or GIF. Received: {path!r}, which cannot be decoded. "
                "Remove it, or save it again as PNG."
            )


def _looks_whole(path: str) -> bool:
    """Return whether a file begins and ends like a JPEG, PNG or GIF; False for a BMP, which has no end mark."""
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

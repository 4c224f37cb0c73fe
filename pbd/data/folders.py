"""Folders of images: one folder a class, or no classes at all, under train/ and test/ or on their own."""

import os
from pathlib import Path

import numpy as np

from pbd.data.feeds.tf_images import can_be_decoded
from pbd.data.images import FileImages
from pbd.data.sources import RawSplit, RawSplits
from pbd.errors import BadInputError, MissingInputError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif")
VALIDATION_NAMES = ("validation", "val", "valid")
MOST_CHECKED = 20_000
"""No more files than this are opened while loading; of a larger folder, a sample is."""
TAIL_BYTES = 4096


def load_folder(folder: Path, labels: bool = True) -> RawSplits:
    """Return the images of a folder; class numbers follow the sorted names of the class folders.

    `train/` may have `test/` and `validation/` (or `val/`) beside it; if it has only the latter, that is the
    test split, as is usual with ImageNet. Without `train/`, the folders in it are the classes. Images that lie
    directly where class folders would, and no class folders, are data without labels.

    Args:
        folder: where the images are.
        labels: take folders as classes; otherwise all images, at any depth, are images without labels.

    Raises:
        BadInputError: there are no images, a class is empty, the classes of two splits differ, images lie beside
            class folders, or a file is no image.
        MissingInputError: a folder or file cannot be read.
    """
    train, validation, test = _split_folders(folder)
    classes = _common_classes([part for part in (train, validation, test) if part]) if labels else []
    return RawSplits(
        _read_part(train, classes),
        _read_part(validation, classes) if validation else None,
        _read_part(test, classes) if test else None,
    )


def _split_folders(folder: Path) -> tuple[Path, Path | None, Path | None]:
    """Return the folders of the training, validation and test images; `None` where the split is left to us."""
    train, test = folder / "train", folder / "test"
    validation = next((folder / name for name in VALIDATION_NAMES if (folder / name).is_dir()), None)
    if train.is_dir():
        return (train, validation, test) if test.is_dir() else (train, None, validation)
    if test.is_dir():
        raise BadInputError(f"a folder with test/ needs train/ beside it. Received: {str(folder)!r}.")
    return folder, None, None


def _common_classes(parts: list[Path]) -> list[str]:
    """Return the class folders that all parts have alike; none where all have their images directly in them."""
    classes = _class_names(parts[0], fewest=2)
    for part in parts[1:]:
        odd = sorted(set(_class_names(part)) ^ set(classes))
        if odd:
            raise BadInputError(
                f"{str(part)!r} must have the class folders of train/, or none where that has none. "
                f"Received: a difference in {', '.join(odd[:5])}. Make them alike, or give --no-labels."
            )
    return classes


def _class_names(folder: Path, fewest: int = 0) -> list[str]:
    """Return the class folders in a folder, sorted, `fewest` of them or more; none where images are directly in it."""
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


def _read_part(folder: Path, classes: list[str]) -> RawSplit:
    """Return the images in the class folders of `folder`; without classes all that are under it, without labels."""
    groups = [_image_files(home) for home in [folder / name for name in classes] or [folder]]
    paths = [path for group in groups for path in group]
    _check_files(paths)
    labels = np.repeat(np.arange(len(groups), dtype=np.int32), [len(group) for group in groups])
    return RawSplit(FileImages(paths), labels if classes else None)


def _image_files(folder: Path) -> list[str]:
    """Return the image files at any depth under a folder, sorted; hidden ones are left out.

    Raises:
        BadInputError: there are none.
    """
    paths: list[str] = []
    seen: set[str] = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        # Links are followed, as class folders often are links; but none twice, as they may lead in a circle.
        place = os.path.realpath(parent)
        new = place not in seen
        seen.add(place)
        folders[:] = sorted(name for name in folders if new and not name.startswith("."))
        paths += [os.path.join(parent, name) for name in files if new and _is_image(name)]
    if not paths:
        raise BadInputError(
            f"a folder of images must hold some ({', '.join(SUFFIXES)}). Received: none in {str(folder)!r}. "
            "Add images, or remove the folder."
        )
    return sorted(paths, key=lambda path: path.split(os.sep))  # as class folder by class folder


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def _check_files(paths: list[str]) -> None:
    """Look at the first and last bytes of the files, and decode those that look odd.

    Raises:
        BadInputError: a file is no image, is cut short, or is of a kind that cannot be decoded.
        MissingInputError: a file cannot be read.
    """
    for path in paths[:: -(-len(paths) // MOST_CHECKED)]:
        try:
            if _looks_whole(path):
                continue
            content = Path(path).read_bytes()
        except OSError as error:
            raise MissingInputError(f"an image file must be readable. Received: {path!r}.") from error
        if not can_be_decoded(content):
            raise BadInputError(
                f"an image file must be a whole JPEG, PNG, BMP or GIF. Received: {path!r}, which cannot be decoded. "
                "Remove it, or save it again as PNG."
            )


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

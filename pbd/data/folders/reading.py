"""Folders of images: a folder for each class, or images without classes, with or without train/ and test/ above."""

import os
from pathlib import Path

import numpy as np

from pbd.data.arrays import RawSplit, RawSplits
from pbd.data.folders.layout import SUFFIXES, image_files, is_image, split_folders, subfolders, visible
from pbd.data.images import FileImages
from pbd.errors import BadInputError


def load_folder(folder: Path, labels: bool = True) -> RawSplits:
    """Return the images of a folder; class numbers follow the sorted names of the class folders.

    Beside `train/` there may be `test/` and `validation/`, in any usual spelling (see `split_names`). If there is only
    `validation/`, it is the test split, as is usual with ImageNet. Without any of them, the folders are the classes. A
    split without class folders, with images directly in it, has no labels.

    Args:
        folder: the data set.
        labels: folders are classes; if False, all images, at any depth, are images without labels.

    Raises:
        BadInputError: there are no images, a class is empty, the classes of two splits differ, images and class folders
            lie side by side, or the layout has two readings.
        MissingInputError: a folder cannot be read.
    """
    splits = split_folders(folder)
    classes = _common_classes(splits.present) if labels else []
    return RawSplits(
        _read_split(splits.train, classes),
        _read_split(splits.validation, classes) if splits.validation else None,
        _read_split(splits.test, classes) if splits.test else None,
    )


def _common_classes(splits: list[Path]) -> list[str]:
    """Return the class folders, which are the same in all splits; empty if the images lie directly in all splits."""
    classes = _class_names(splits[0], fewest=2)
    for split in splits[1:]:
        differences = sorted(set(_class_names(split)) ^ set(classes))
        if differences:
            raise BadInputError(
                f"{str(split)!r} must have the class folders of {splits[0].name!r}, or none where that has none. "
                f"Received: a difference in {', '.join(differences[:5])}. Make them alike, or give --no-labels."
            )
    return classes


def _class_names(folder: Path, fewest: int = 0) -> list[str]:
    """Return the class folders in a folder, sorted; empty if images lie directly in it.

    Raises:
        BadInputError: there are fewer than `fewest` and no images, or class folders as well as images.
    """
    names = subfolders(folder)
    images = [entry.name for entry in visible(folder) if entry.is_file() and is_image(entry.name)]
    if names and images:
        raise BadInputError(
            "a dataset folder has class folders, or images without labels directly in it, not both. "
            f"Received: folders such as {names[0]!r} and images such as {images[0]!r} in {str(folder)!r}. "
            "Move the images into class folders, or give --no-labels to use all images without labels."
        )
    if len(names) < fewest and not images:
        inner = f" give {str(folder / names[0])!r} if the classes are in it," if names else ""
        raise BadInputError(
            "a dataset folder needs two class folders or more, or images without labels directly in it. "
            f"Received: {len(names)} class folders and no images in {str(folder)!r}. Put the images of each class in "
            f"a folder of its own,{inner} or give --no-labels."
        )
    return names


def _read_split(folder: Path, classes: list[str]) -> RawSplit:
    """Return the images in the class folders of a split; without classes, all images under it, without labels."""
    unread: list[str] = []
    groups = [_image_files(group, unread) for group in [folder / name for name in classes] or [folder]]
    paths = [path for group in groups for path in group]
    labels = np.repeat(np.arange(len(groups), dtype=np.int32), [len(group) for group in groups])
    return RawSplit(FileImages(paths, unread=unread), labels if classes else None)


def _image_files(folder: Path, unread: list[str]) -> list[str]:
    """Return the image files at any depth under a folder, sorted, without hidden files.

    Args:
        folder: the folder of a class, or of a split without classes.
        unread: receives the image files in formats that are not read.

    Raises:
        BadInputError: there are none.
    """
    paths = list(image_files(folder, unread))
    if not paths:
        raise BadInputError(
            f"a folder of images must hold some ({', '.join(SUFFIXES)}). Received: none in {str(folder)!r}. "
            "Add images, or remove the folder."
        )
    return sorted(paths, key=lambda path: path.split(os.sep))  # the order of class folders read one by one

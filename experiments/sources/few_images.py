"""A part of a data set, for the quick tables: with all images of CIFAR-10, those of a ResNet20 take hours."""

from pathlib import Path

import numpy as np

from pbd.data.images import ArrayImages
from pbd.data.sources import load_npz

MOST = {"train": 2048, "val": 1000, "test": 2000}
"""Images of each split that are kept."""


def write(file: Path, folder: Path) -> Path:
    """Copy some images of each split of an .npz archive to a file of the same name in a folder, and return it.

    If there are no more, the archive itself is returned.

    Raises:
        BadInputError: it is damaged, or its arrays are not those of a data set.
    """
    raw = load_npz(file)
    splits = {"train": raw.train, "val": raw.validation, "test": raw.test}
    present = {name: split for name, split in splits.items() if split is not None}
    if all(len(split.images) <= MOST[name] for name, split in present.items()):
        return file
    arrays: dict[str, np.ndarray] = {}
    for name, split in present.items():
        rows = np.random.default_rng(0).permutation(len(split.images))[: MOST[name]]
        assert isinstance(split.images, ArrayImages), "an archive holds arrays"
        arrays[f"x_{name}"], labels = split.images.array[rows], split.labels
        if labels is not None:
            arrays[f"y_{name}"] = labels[rows]
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / file.name, **arrays)  # type: ignore[arg-type]  # a bug of NumPy's annotation
    return folder / file.name

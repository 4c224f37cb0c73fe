"""From a `DataConfig` to a `Dataset`: find the images, fit their shape to the teacher, split them."""

import dataclasses
from pathlib import Path

import numpy as np

from pbd.config import DataConfig
from pbd.data.dataset import Dataset, IndexedSplit, Split
from pbd.data.folders import load_folder
from pbd.data.preprocessing import check_preprocess
from pbd.data.shapes import FreeShape, fit_shape
from pbd.data.sources import KERAS_NAMES, RawSplit, RawSplits, load_digits, load_keras, load_npz
from pbd.data.splitting import NO_LABEL, TEST_FRACTION, TEST_SEED, stratified_split
from pbd.data.tfds_streams import TFDS_PREFIX, load_stream
from pbd.errors import BadInputError, MissingInputError, unknown_name

Splits = dict[str, Split]


def known_names() -> tuple[str, ...]:
    """Return the datasets that are known by name; paths and `tfds:NAME` come on top."""
    return ("digits", *KERAS_NAMES)


def absolute(name: str) -> str:
    """Return the dataset's name or, if it is a path, one that means the same in every working directory."""
    if name in known_names() or name.startswith(TFDS_PREFIX):
        return name
    return str(Path(name).expanduser().absolute())


def load(
    config: DataConfig,
    seed: int,
    image_shape: FreeShape | None = None,
    *,
    split_by_class: bool = True,
    raw: RawSplits | None = None,
) -> Dataset:
    """Load the dataset that `config` names, ready to be read in batches.

    Args:
        config: what to load, how to split, preprocess and augment it. A `preprocess` of `auto` counts as `none`.
            Without `labels`, those that the data has are dropped.
        seed: decides the validation split, the order of the batches and the augmentation.
        image_shape: the teacher's input shape, (height, width, channels), `None` where it is free; `None` in
            all where the data decides.
        raw: the images, if they are not what `config` names.
        split_by_class: keep the classes' proportions in every split; without it, the splits are those of the same
            images without labels.

    Raises:
        MissingInputError: the dataset does not exist, or cannot be downloaded.
        BadInputError: it was found, but its images or labels cannot be used, or do not fit the teacher.
        UsageError: the preprocessing is unknown.
        EnvironmentMismatchError: `tfds:NAME` without tensorflow-datasets.
    """
    preprocess = "none" if config.preprocess == "auto" else config.preprocess
    if config.dataset.startswith(TFDS_PREFIX):
        splits, num_classes, shape = load_stream(config, seed, image_shape)
        pixel_max: float | None = None
    else:
        parts = _fitted(raw or _find(config.dataset, config.labels), config, image_shape)
        splits, num_classes = _split(parts, config, seed, split_by_class), parts.num_classes
        shape, pixel_max = parts.train.images.read_shape, parts.train.images.pixel_max
    check_preprocess(preprocess, shape, pixel_max)
    if len(splits["train"]) < config.batch_size:
        raise BadInputError(
            f"there must be at least one batch of training images. Received: {len(splits['train'])} training images "
            f"and a batch size of {config.batch_size}. Give a smaller --batch-size, or more images."
        )
    return Dataset(
        name=config.dataset,
        train=splits["train"],
        validation=splits["validation"],
        test=splits["test"],
        num_classes=num_classes,
        image_shape=shape,
        batch_size=config.batch_size,
        augment=config.augment,
        preprocess=preprocess,
        seed=seed,
        labelled=num_classes is not None,
    )


def _find(name: str, labels: bool) -> RawSplits:
    """Return the images of a dataset given by name or path, as they are stored, with its labels if it has any."""
    if name == "digits":
        return load_digits(labels)
    if name in KERAS_NAMES:
        return load_keras(name, labels)
    path = Path(name).expanduser()
    if path.is_dir():
        return load_folder(path, labels)
    if path.suffix.lower() == ".npz" and path.exists():
        return load_npz(path, labels)
    if path.exists():
        raise BadInputError(f"a dataset file must be an .npz archive. Received: {name!r}. Save it with numpy.savez.")
    if path.suffix or len(path.parts) > 1:
        raise MissingInputError(f"a dataset path must exist. Received: {name!r}, which is not there. Check the path.")
    hint = "A path to an .npz file or a folder of images, or tfds:NAME, does too."
    raise MissingInputError(f"{unknown_name('dataset', name, known_names())} {hint}")


def _fitted(parts: RawSplits, config: DataConfig, teacher_shape: FreeShape | None) -> RawSplits:
    """Return `parts` with every image in one shape, the one the teacher takes."""

    def fit(part: RawSplit) -> RawSplit:
        images = part.images
        shape = fit_shape(images.stored_shape, teacher_shape, config.image_size, resizable=images.resizable)
        return dataclasses.replace(part, images=dataclasses.replace(images, image_shape=shape))

    validation = fit(parts.validation) if parts.validation else None
    test = fit(parts.test) if parts.test else None
    fitted = RawSplits(fit(parts.train), validation, test)
    shapes = {part.images.read_shape for part in (fitted.train, validation, test) if part}
    if len(shapes) > 1:
        raise BadInputError(
            "training, validation and test images must have one shape. "
            f"Received: {', '.join(map(str, sorted(shapes)))}. Give --image-size to resize them."
        )
    return fitted


def _split(parts: RawSplits, config: DataConfig, seed: int, by_class: bool) -> Splits:
    """Return three disjoint splits; what the data does not bring is taken from its training images."""
    train, labels = parts.train, parts.train.batch_labels
    classes = labels if by_class else np.full_like(labels, NO_LABEL)
    pool = None
    if parts.test is None:
        test_rows, pool = stratified_split(classes, TEST_FRACTION, TEST_SEED)
        test = IndexedSplit(train.images, test_rows, labels[test_rows])
    else:
        test = IndexedSplit.whole(parts.test.images, parts.test.batch_labels)
    validation_fraction = 0.0 if parts.validation else config.validation_fraction
    validation_rows, rows = stratified_split(classes, validation_fraction, seed, pool)
    if parts.validation:
        validation = IndexedSplit.whole(parts.validation.images, parts.validation.batch_labels)
    else:
        validation = IndexedSplit(train.images, validation_rows, labels[validation_rows])
    rows = rows[: config.train_limit]
    return {"train": IndexedSplit(train.images, rows, labels[rows]), "validation": validation, "test": test}

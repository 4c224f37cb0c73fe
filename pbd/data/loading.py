"""From a `DataConfig` to a `Dataset`: read the images, fit their shape to the teacher, split them."""

import dataclasses
from pathlib import Path

import numpy as np

from pbd.config import DataConfig
from pbd.data.arrays import RawSplit, RawSplits
from pbd.data.dataset import Dataset, IndexedSplit, Split
from pbd.data.folders import check_files, load_folder
from pbd.data.preprocessing import check_preprocess
from pbd.data.shapes import FreeShape, fit_shape
from pbd.data.sources import KERAS_NAMES, load_digits, load_keras, load_npz
from pbd.data.splitting import NO_LABEL, TEST_FRACTION, TEST_SEED, stratified_split
from pbd.data.tfds_streams import TFDS_PREFIX, load_stream
from pbd.errors import BadInputError, MissingInputError, unknown_name
from pbd.system.permissions import check_readable

Splits = dict[str, Split]


def known_names() -> tuple[str, ...]:
    """Return the data sets that have names; a path or `tfds:NAME` is possible too."""
    return ("digits", *KERAS_NAMES)


def absolute(name: str) -> str:
    """Return the name of the data set, a path as an absolute path."""
    if name in known_names() or name.startswith(TFDS_PREFIX):
        return name
    return str(Path(name).absolute())


def load(
    config: DataConfig,
    seed: int,
    image_shape: FreeShape | None = None,
    *,
    split_by_class: bool = True,
    raw: RawSplits | None = None,
    check: bool = True,
) -> Dataset:
    """Load the dataset that `config` names, ready to be read in batches.

    Args:
        config: the data set and how it is split, preprocessed and augmented. A `preprocess` of `auto` means `none`.
            Without `labels`, the labels of the data set are dropped.
        seed: of the order of the batches and the augmentation and, unless `config` has a `split_seed`, of the
            validation split.
        image_shape: the teacher's input shape, (height, width, channels), `None` for a free dimension; `None` as a
            whole if the teacher takes any shape.
        split_by_class: keep the proportions of the classes in every split; if False, the splits are those of the same
            images without labels.
        raw: the images, if they were given as arrays.
        check: decode the image files once; needless where another process of the run has done it.

    Raises:
        MissingInputError: the data set does not exist or cannot be downloaded.
        BadInputError: the images or labels break a rule, or do not fit the teacher.
        UsageError: the preprocessing is unknown.
        EnvironmentMismatchError: `tfds:NAME` without tensorflow-datasets.
    """
    preprocess = "none" if config.preprocess == "auto" else config.preprocess
    split_seed = config.seed_of_splits(seed)
    if config.dataset.startswith(TFDS_PREFIX):
        splits, num_classes, shape, split_off = load_stream(config, split_seed, image_shape)
        pixel_max = None
    else:
        raw = _fitted(raw or _read(config.dataset, config.labels), config, image_shape)
        if check:
            check_files(raw)
        splits, num_classes = _split(raw, config, split_seed, split_by_class), raw.num_classes
        split_off = tuple(name for name in ("validation", "test") if getattr(raw, name) is None)
        shape, pixel_max = raw.train.images.read_shape, raw.train.images.pixel_max
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
        split_off=split_off,
    )


def _read(name: str, labels: bool) -> RawSplits:
    """Return the stored images of a data set given by name or path, with its labels if there are any."""
    if name == "digits":
        return load_digits(labels)
    if name in KERAS_NAMES:
        return load_keras(name, labels)
    path = Path(name)
    check_readable("a dataset", path)
    if path.is_dir():
        return load_folder(path, labels)
    if path.suffix.lower() == ".npz" and path.exists():
        return load_npz(path, labels)
    if path.exists():
        raise BadInputError(f"a dataset file must be an .npz archive. Received: {name!r}. Save it with numpy.savez.")
    if path.suffix or len(path.parts) > 1:
        raise MissingInputError(f"a dataset path must exist. Received: {name!r}, which is not there. Check the path.")
    hint = "A path to an .npz file or a folder of images, or tfds:NAME, is possible too."
    raise MissingInputError(f"{unknown_name('dataset', name, known_names())} {hint}")


def _fitted(raw: RawSplits, config: DataConfig, teacher_shape: FreeShape | None) -> RawSplits:
    """Return the splits with one shape of all images, which the teacher takes."""

    def fit(split: RawSplit) -> RawSplit:
        images = split.images
        shape = fit_shape(images.stored_shape, teacher_shape, config.image_size, resizable=images.resizable)
        return dataclasses.replace(split, images=dataclasses.replace(images, image_shape=shape))

    validation = fit(raw.validation) if raw.validation else None
    test = fit(raw.test) if raw.test else None
    fitted = RawSplits(fit(raw.train), validation, test)
    shapes = {split.images.read_shape for split in (fitted.train, validation, test) if split}
    if len(shapes) > 1:
        raise BadInputError(
            "training, validation and test images must have one shape. "
            f"Received: {', '.join(map(str, sorted(shapes)))}. Give --image-size to resize them."
        )
    return fitted


def _split(raw: RawSplits, config: DataConfig, seed: int, by_class: bool) -> Splits:
    """Return three disjoint splits; missing splits are taken from the training images."""
    train, labels = raw.train, raw.train.batch_labels
    classes = labels if by_class else np.full_like(labels, NO_LABEL)
    pool = None
    if raw.test is None:
        test_rows, pool = stratified_split(classes, TEST_FRACTION, TEST_SEED)
        test = IndexedSplit(train.images, test_rows, labels[test_rows])
    else:
        test = IndexedSplit.whole(raw.test.images, raw.test.batch_labels)
    validation_fraction = 0.0 if raw.validation else config.validation_fraction
    validation_rows, rows = stratified_split(classes, validation_fraction, seed, pool)
    if raw.validation:
        validation = IndexedSplit.whole(raw.validation.images, raw.validation.batch_labels)
    else:
        validation = IndexedSplit(train.images, validation_rows, labels[validation_rows])
    rows = rows[: config.train_limit]
    return {"train": IndexedSplit(train.images, rows, labels[rows]), "validation": validation, "test": test}

"""From a `DataConfig` to a `Dataset`: read the images, fit their shape to the teacher, split them."""

import dataclasses
from pathlib import Path

import numpy as np

from pbd.config import DataConfig
from pbd.data.arrays import RawSplit, RawSplits
from pbd.data.dataset import Dataset
from pbd.data.folders import check_files, load_folder
from pbd.data.preprocessing import check_preprocess
from pbd.data.shapes import FreeShape, fit_shape
from pbd.data.sources import KERAS_NAMES, load_digits, load_keras, load_npz
from pbd.data.splits import IndexedSplit, Split
from pbd.data.splitting import NO_LABEL, TEST_FRACTION, TEST_SEED, stratified_order, stratified_split
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
        split_off = _split_off(raw, config)
        shape, pixel_max = raw.train.images.read_shape, raw.train.images.pixel_max
    check_preprocess(preprocess, shape, pixel_max)
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
    """Return three disjoint splits; missing splits are taken from others (see `DataConfig.validation_from`)."""
    train, labels = raw.train, raw.train.batch_labels
    classes = labels if by_class else np.full_like(labels, NO_LABEL)
    pool = None
    if raw.test is None:
        test_rows, pool = stratified_split(classes, TEST_FRACTION, TEST_SEED)
        test = IndexedSplit(train.images, test_rows, labels[test_rows])
    else:
        test = _in_random_order(raw.test, by_class)
    from_train = raw.validation is None and config.validation_from == "train"
    validation_rows, rows = stratified_split(classes, config.validation_fraction if from_train else 0.0, seed, pool)
    if raw.validation:
        validation = _in_random_order(raw.validation, by_class)
    elif from_train:
        validation = IndexedSplit(train.images, validation_rows, labels[validation_rows])
    else:
        validation, test = _halves(test, by_class)
    rows = rows[: config.train_limit]
    return {"train": IndexedSplit(train.images, rows, labels[rows]), "validation": validation, "test": test}


def _in_random_order(split: RawSplit, by_class: bool) -> IndexedSplit:
    """Return a split of the user's, whose order may be that of the classes, so that its first images are of all."""
    labels = split.batch_labels
    rows = stratified_order(labels if by_class else np.full_like(labels, NO_LABEL), TEST_SEED)
    return IndexedSplit(split.images, rows, labels[rows])


def _halves(test: IndexedSplit, by_class: bool) -> tuple[IndexedSplit, IndexedSplit]:
    """Return test images as a validation split and a test split, which are the same for every seed."""
    if len(test) < 2:
        raise BadInputError(
            f"there must be two test images, one for the validation split. Received: {len(test)} test images and "
            "validation_from test. Give --validation-from train, or more test images."
        )
    classes = test.labels if by_class else np.full_like(test.labels, NO_LABEL)
    first, second = stratified_split(classes, 0.5, TEST_SEED)
    return (
        IndexedSplit(test.images, test.rows[first], test.labels[first]),
        IndexedSplit(test.images, test.rows[second], test.labels[second]),
    )


def _split_off(raw: RawSplits, config: DataConfig) -> tuple[str, ...]:
    """Return which splits come out of the training images (see `Dataset.split_off`)."""
    from_train = raw.validation is None and (config.validation_from == "train" or raw.test is None)
    return (*(("validation",) if from_train else ()), *(("test",) if raw.test is None else ()))

"""`tfds:NAME`: data sets of tensorflow-datasets, read as streams."""

import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from pbd.config import DataConfig
from pbd.data.feeds.tf_images import stream_decoder
from pbd.data.shapes import FreeShape, Shape, fit_shape
from pbd.data.splits import Split, StreamSplit
from pbd.data.splitting import derived_seed
from pbd.errors import BadInputError, EnvironmentMismatchError, MissingInputError
from pbd.system import watchdog

TFDS_PREFIX = "tfds:"
Ranges = list[tuple[int, int]]


def load_stream(
    config: DataConfig, seed: int, teacher_shape: FreeShape | None
) -> tuple[dict[str, Split], int | None, Shape, tuple[str, ...]]:
    """Return the splits of a data set, its number of classes, the shape of its images, and which splits were split off.

    The number of classes is `None` if there is no feature "label" or the labels are not used. See `Dataset.split_off`.

    Splits of the data set are used as they are. If it has no test split, its validation split is the test split, as is
    usual with ImageNet. A missing validation split is a range of the training images that begins at a random position,
    or the first half of the test split: since data sets are stored shuffled, both are random, though not stratified.

    Raises:
        EnvironmentMismatchError: tensorflow-datasets is not installed, or Keras' backend is not TensorFlow.
        MissingInputError: the data set does not exist or cannot be downloaded.
        BadInputError: the data set has no images, its labels are no classes, or it lacks splits.
    """
    _check_backend()
    tfds = _tensorflow_datasets()
    builder = _builder(tfds, config.dataset.removeprefix(TFDS_PREFIX))
    num_classes, stored = _features(builder, config)
    teacher_channels = teacher_shape[2] if teacher_shape else None
    shape = fit_shape(
        (stored[0], stored[1], stored[2] if teacher_channels is None else None),
        teacher_shape,
        config.image_size,
        resizable=True,
    )

    features = {"image": True} if num_classes is None else {"image": True, "label": True}
    decoders = tfds.decode.PartialDecoding(features, decoders={"image": tfds.decode.SkipDecoding()})

    decode = stream_decoder(shape)

    def split(expression: str, size: int) -> StreamSplit:
        return StreamSplit(
            lambda: builder.as_dataset(split=expression, shuffle_files=False, decoders=decoders), size, decode
        )

    sizes = {name: int(info.num_examples) for name, info in builder.info.splits.items()}
    if num_classes is not None and sizes.get("test") and not _has_labels(split("test[:1]", 1)):
        del sizes["test"]
    plan = _plan(sizes, config, seed)
    split_off = tuple(role for role, (expression, _) in plan.items() if role != "train" and "train[" in expression)
    return {role: split(*part) for role, part in plan.items()}, num_classes, shape, split_off


def _check_backend() -> None:
    """Refuse other backends: the stored images are TensorFlow records, which TensorFlow alone reads."""
    import keras

    backend = keras.backend.backend()
    if backend != "tensorflow":
        raise EnvironmentMismatchError(
            f"tfds:NAME needs the TensorFlow backend. Received: {backend}. Set KERAS_BACKEND=tensorflow, or save the "
            "images in a folder or an .npz file."
        )


def _tensorflow_datasets() -> ModuleType:
    try:
        return importlib.import_module("tensorflow_datasets")
    except ImportError as error:
        raise EnvironmentMismatchError(
            "tfds:NAME needs tensorflow-datasets. Received: it is not installed. Install it: pip install "
            "tensorflow-datasets"
        ) from error


@watchdog.waiting()
def _builder(tfds: ModuleType, name: str) -> Any:
    """Return the builder of a data set, downloaded and ready to read."""
    try:
        builder = tfds.builder(name)
        builder.download_and_prepare()
    except Exception as error:
        reason = (" ".join(str(error).split()) or type(error).__name__)[:200].rstrip(".")
        raise MissingInputError(
            f"tfds:{name} must be a set of tensorflow-datasets, prepared or downloadable. Received: {reason}. "
            f"Check the name, or prepare it with: tfds build {name.partition(':')[0]}"
        ) from error
    return builder


def _features(builder: Any, config: DataConfig) -> tuple[int | None, FreeShape]:
    """Return the number of classes, `None` if labels are not used, and the shape of the stored images."""
    features = builder.info.features
    try:
        stored = tuple(features["image"].shape)
        num_classes = int(features["label"].num_classes) if config.labels and "label" in features else None
    except (KeyError, AttributeError, TypeError) as error:
        raise BadInputError(
            "a tfds set must have an image, and a label, if any, that is a class. "
            f"Received: {config.dataset!r}. Choose another one, or give --no-labels if only its labels do not fit."
        ) from error
    return num_classes, stored


def _has_labels(split: StreamSplit) -> bool:
    """Return whether the first image of a split has a label: the test split of imagenet2012 has -1 in its place."""
    return int(next(iter(split.stream().as_numpy_iterator()))["label"]) >= 0


def _plan(sizes: Mapping[str, int], config: DataConfig, seed: int) -> dict[str, tuple[str, int]]:
    """Return, for each split, its expression for tfds and its number of images.

    Args:
        sizes: the sizes of the splits that tfds has.
        config: how many images are held out, and of which split.
        seed: the seed that decides which of them are.
    """
    test = next((name for name in ("test", "validation") if sizes.get(name)), None)
    if test is None or not sizes.get("train"):
        raise BadInputError(
            "a tfds set must have a train split, and a test or validation split. "
            f"Received: {', '.join(sizes) or 'none'} in {config.dataset!r}. Choose another one."
        )
    total = sizes["train"]
    tested = (test, sizes[test])
    if test == "test" and sizes.get("validation"):
        train, validation = [(0, total)], ("validation", sizes["validation"])
    elif config.validation_from == "test":
        half = sizes[test] // 2
        train, validation, tested = [(0, total)], (f"{test}[:{half}]", half), (f"{test}[{half}:]", sizes[test] - half)
    else:
        held_out = max(1, round(config.validation_fraction * total))
        begin = derived_seed(seed, "split") % (total - held_out + 1)
        train = [(0, begin), (begin + held_out, total)]
        validation = (f"train[{begin}:{begin + held_out}]", held_out)
    train = _limited(train, total if config.train_limit is None else config.train_limit)
    expression = "+".join(f"train[{begin}:{end}]" for begin, end in train)
    return {
        "train": (expression, sum(end - begin for begin, end in train)),
        "validation": validation,
        "test": tested,
    }


def _limited(ranges: Ranges, limit: int) -> Ranges:
    """Return the first `limit` positions of these ranges, without empty ranges."""
    limited: Ranges = []
    for begin, end in ranges:
        end = min(end, begin + limit)
        if end > begin:
            limited.append((begin, end))
            limit -= end - begin
    return limited

"""The feed without TensorFlow: the same batches as the feed with it, and threads that end with their consumer."""

import io
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pbd.config import DataConfig
from pbd.data import Dataset, StreamSplit, WorkerShare, load
from pbd.data import images as stores
from pbd.data.arrays import RawSplit, RawSplits, array_split
from pbd.data.feeds.ahead import made_ahead
from pbd.data.feeds.numpy_feed import NumpyFeed
from pbd.data.images import FileImages
from pbd.errors import BadInputError, EnvironmentMismatchError, MissingInputError
from tests.helpers.cluster import PATIENCE_S

Batches = list[tuple[np.ndarray, np.ndarray]]
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (60, 14, 18, 3)).astype(np.uint8)
LABELS = np.arange(60) % 3
GRAY_LEVELS_OF_JPEG = 16
"""Decoders differ by this much at most; see `numpy_images`."""


def arrays(pixels: np.ndarray = PIXELS, **settings: Any) -> Dataset:
    settings = {"batch_size": 8, "augment": "flip_crop", **settings}
    raw = RawSplits(array_split("train", pixels, LABELS), test=array_split("test", pixels[:20], LABELS[:20]))
    return load(DataConfig(dataset="arrays", **settings), 5, raw=raw)


DATA: dict[str, Callable[[], Dataset]] = {
    "bytes": arrays,
    "floats": lambda: arrays(PIXELS.astype(np.float32) / 255),
    "unit": lambda: arrays(preprocess="unit", augment="flip"),
    "resized": lambda: arrays(image_size=11, augment="crop"),
    "no labels": lambda: arrays(labels=False, augment="none"),
    "digits": lambda: load(DataConfig(batch_size=48, train_limit=700), 11),
}


def training(feed: Any, dataset: Dataset) -> Batches:
    return [(np.asarray(x), np.asarray(y)) for x, y in feed.training_batches(dataset, 1, 3)]


def in_order(feed: Any, dataset: Dataset, limit: int | None = None) -> Batches:
    return [(np.asarray(x), np.asarray(y)) for x, y in feed.batches_in_order(dataset, dataset.test, limit)]


def assert_equal(batches: Batches, expected: Batches, tolerance: float = 0.0) -> None:
    assert len(batches) == len(expected)
    for (images, labels), (other_images, other_labels) in zip(batches, expected, strict=True):
        kind = np.int32 if labels.ndim == 1 else np.float32  # of mixed images
        assert (images.dtype, labels.dtype) == (other_images.dtype, other_labels.dtype) == (np.float32, kind)
        np.testing.assert_array_equal(labels, other_labels)
        np.testing.assert_allclose(images, other_images, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", DATA)
def test_batches_are_those_of_the_feed_with_tensorflow(name: str) -> None:
    from pbd.data.feeds.tf_data import TfDataFeed

    data = DATA[name]()
    for dataset in (data, data.shared(WorkerShare(1, 3)), data.shared(WorkerShare(0, 2), unit=4)):
        assert_equal(training(NumpyFeed(), dataset), training(TfDataFeed(), dataset))


def test_rotated_batches_are_those_of_the_feed_with_tensorflow_to_rounding() -> None:
    from pbd.data.feeds.tf_data import TfDataFeed

    data = arrays(augment="paper")
    assert_equal(training(NumpyFeed(), data), training(TfDataFeed(), data), tolerance=1e-3 * 255)


@pytest.mark.parametrize("name", ["vgg16", "resnet_v2", "mobilenet_v3", "densenet"])
def test_batches_are_preprocessed_as_by_tensorflow(name: str) -> None:
    from pbd.data.feeds.tf_data import TfDataFeed

    data = arrays(preprocess=name)
    assert_equal(training(NumpyFeed(), data), training(TfDataFeed(), data), tolerance=1e-4)


@pytest.mark.fast
@pytest.mark.parametrize("name", ["bytes", "floats", "unit", "no labels", "digits"])
def test_workers_read_shares_of_a_batch(name: str) -> None:
    data = DATA[name]()
    whole = training(NumpyFeed(), data)
    shares = [training(NumpyFeed(), data.shared(WorkerShare(index, 3))) for index in range(3)]
    joined = [tuple(map(np.concatenate, zip(*parts, strict=True))) for parts in zip(*shares, strict=True)]
    assert_equal(joined, whole)
    assert len(whole) == 2 * data.steps_per_epoch
    assert_equal([next(iter(NumpyFeed().training_batches(data, 2, 3)))], whole[data.steps_per_epoch :][:1])


@pytest.mark.fast
def test_a_stream_is_refused() -> None:
    split = StreamSplit(lambda: None, 8, lambda element: (element, 0))
    data = Dataset("stream", split, split, split, 2, (4, 4, 3), batch_size=4, augment="none", preprocess="none", seed=0)
    with pytest.raises(EnvironmentMismatchError, match="KERAS_BACKEND=tensorflow"):
        NumpyFeed().training_batches(data, 0, 1)


# Files


def encoded(pixels: np.ndarray, kind: str, mode: str | None = None, **settings: Any) -> bytes:
    image_module = pytest.importorskip("PIL.Image")
    image, buffer = image_module.fromarray(pixels), io.BytesIO()
    (image.convert(mode) if mode else image).save(buffer, kind, **settings)
    return buffer.getvalue()


def png_of_16_bits(channels: int) -> bytes:
    import tensorflow as tf

    return tf.io.encode_png(RNG.integers(0, 2**16, (14, 18, channels)).astype(np.uint16)).numpy()


def smooth() -> np.ndarray:
    y, x = np.mgrid[:40, :52]
    waves = [128 + 120 * np.sin(x / a + y / b) for a, b in ((5, 9), (11, 4), (7, 7))]
    return np.stack(waves, axis=-1).astype(np.uint8)


def with_alpha() -> np.ndarray:
    return np.concatenate([smooth(), RNG.integers(0, 256, (40, 52, 1)).astype(np.uint8)], axis=-1)


LOSSLESS: dict[str, Callable[[], bytes]] = {
    "png": lambda: encoded(smooth(), "PNG"),
    "png of grey": lambda: encoded(smooth(), "PNG", "L"),
    "png with palette": lambda: encoded(smooth(), "PNG", "P"),
    "png of 1 bit": lambda: encoded(smooth(), "PNG", "1"),
    "png with alpha": lambda: encoded(with_alpha(), "PNG"),
    "png of grey with alpha": lambda: encoded(with_alpha(), "PNG", "LA"),
    "png with palette and transparency": lambda: encoded(smooth(), "PNG", "P", transparency=b"\x00\x80\xff"),
    **{f"png of 16 bits, {channels}": lambda channels=channels: png_of_16_bits(channels) for channels in (1, 2, 3, 4)},
    "bmp": lambda: encoded(smooth(), "BMP"),
    "gif": lambda: encoded(smooth(), "GIF", "P"),
    "gif with transparency": lambda: encoded(smooth(), "GIF", "P", transparency=40),
}
LOSSY: dict[str, Callable[[], bytes]] = {
    **{f"jpg {quality}": lambda quality=quality: encoded(smooth(), "JPEG", quality=quality) for quality in (50, 95)},
    "progressive jpg": lambda: encoded(smooth(), "JPEG", progressive=True),
    "jpg of grey": lambda: encoded(smooth(), "JPEG", "L"),
    "jpg of four colours": lambda: encoded(smooth(), "JPEG", "CMYK"),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("shape", [(40, 52, 3), (9, 64, 3), (33, 17, 1)])
@pytest.mark.parametrize("name", [*LOSSLESS, *LOSSY])
def test_files_are_decoded_as_by_tensorflow(name: str, shape: tuple[int, int, int]) -> None:
    import tensorflow as tf

    from pbd.data.feeds import numpy_images, tf_images

    content = (LOSSLESS | LOSSY)[name]()
    expected = tf_images.decoded(tf.constant(content), shape).numpy()
    result = numpy_images.decoded(content, shape)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, rtol=0, atol=GRAY_LEVELS_OF_JPEG if name in LOSSY else 0)
    if name in LOSSY:
        assert np.abs(result - expected).mean() < 3.0


@pytest.mark.fast
def test_an_animation_is_its_first_frame() -> None:
    from pbd.data.feeds import numpy_images

    image_module = pytest.importorskip("PIL.Image")
    first, second = (image_module.fromarray(np.full((6, 5), value, np.uint8)) for value in (10, 200))
    buffer = io.BytesIO()
    first.save(buffer, "GIF", save_all=True, append_images=[second])
    assert np.unique(numpy_images.decoded(buffer.getvalue(), (6, 5, 3))).tolist() == [10]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for label in ("ant", "bee"):
        (tmp_path / label).mkdir()
        for number in range(10):
            (tmp_path / label / f"{number}.png").write_bytes(encoded(PIXELS[number], "PNG"))
    return tmp_path


def files(folder: Path) -> Dataset:
    """Return the images of a folder, without the check of `load`, whose feed is that of the backend."""
    paths = sorted(map(str, folder.rglob("*.png")))
    raw = RawSplits(RawSplit(FileImages(paths), None))
    return load(DataConfig(dataset="files", image_size=8, batch_size=4, augment="flip_crop"), 0, raw=raw, check=False)


def test_batches_of_files_are_those_of_the_feed_with_tensorflow(folder: Path) -> None:
    from pbd.data.feeds.tf_data import TfDataFeed

    data = files(folder)
    assert_equal(training(NumpyFeed(), data), training(TfDataFeed(), data))
    for dataset in (data, data.shared(WorkerShare(1, 3)), data.shared(WorkerShare(0, 2))):
        assert_equal(in_order(NumpyFeed(), dataset), in_order(TfDataFeed(), dataset))
    assert_equal(in_order(NumpyFeed(), data, limit=11), in_order(TfDataFeed(), data, limit=11))


@pytest.mark.fast
def test_damaged_files_are_named_and_unreadable_ones_refused(folder: Path) -> None:
    damaged = folder / "bee" / "3.png"
    damaged.write_bytes(damaged.read_bytes()[:-40])
    assert NumpyFeed().damaged_files(list(files(folder).train.images.paths)) == [str(damaged)]
    with pytest.raises(BadInputError, match=r"3\.png.*Save it again"):
        training(NumpyFeed(), files(folder))
    link = folder / "bee" / "44.png"
    link.symlink_to(folder / "absent.png")
    with pytest.raises(MissingInputError, match=r"44\.png.*Restore the file, or remove the link to it"):
        NumpyFeed().damaged_files([str(link)])


@pytest.mark.fast
def test_in_a_data_set_too_large_to_check_a_damaged_file_is_a_black_image(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(stores, "MOST_DECODED", 2)
    damaged = folder / "ant" / "7.png"
    damaged.write_bytes(b"404 not found")
    data, noted = files(folder), list[str]()
    data.observe_damaged_files(noted.append)
    for _ in range(2):
        splits = [NumpyFeed().batches_in_order(data, split, None) for split in (data.train, data.validation, data.test)]
        black = [image for split in splits for batch, _ in split for image in batch if not image.any()]
        assert len(black) == 1
    assert set(noted) == {str(damaged)}
    assert [record.getMessage().count("7.png cannot be decoded") for record in caplog.records] == [1]


# Threads


def feed_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("feed")]


@pytest.mark.fast
def test_results_come_in_order_and_a_bounded_number_ahead() -> None:
    begun = list[int]()

    def make(number: int) -> int:
        begun.append(number)
        time.sleep(0.01 * (number % 3))
        return number

    results = made_ahead(make, range(20), threads=3, ahead=4)
    assert not begun
    for number, result in enumerate(results):
        assert result == number
        assert len(begun) <= number + 5
    assert not feed_threads()


def endless() -> Iterator[int]:
    number = 0
    while True:
        yield (number := number + 1)


@pytest.mark.fast
def test_threads_end_when_the_consumer_stops_early() -> None:
    results = made_ahead(lambda number: number, endless(), threads=3, ahead=4)
    assert next(results) == 1
    assert feed_threads()
    results.close()
    assert not feed_threads()
    iterator = iter(NumpyFeed().training_batches(arrays(), 0, 100))
    next(iterator)
    del iterator
    assert not feed_threads()


@pytest.mark.fast
def test_an_error_reaches_the_consumer_where_its_result_would_be() -> None:
    results = made_ahead(lambda number: 6 // (3 - number), range(10), threads=2, ahead=5)
    assert [next(results) for _ in range(3)] == [2, 3, 6]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert not feed_threads()


@pytest.mark.fast
def test_an_unfinished_iteration_does_not_keep_the_process_alive() -> None:
    code = (
        "from pbd.config import DataConfig\n"
        "from pbd.data import load\n"
        "from pbd.data.feeds.numpy_feed import NumpyFeed\n"
        "batches = NumpyFeed().training_batches(load(DataConfig(), 0), 0, 1000)\n"
        "next(batches)\n"
        "import sys; print('tensorflow' in sys.modules, 'keras' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    assert done.stdout.split() == ["False", "False"], done.stderr

"""Compress random small networks of Keras' built-in layers: `python -m tests.helpers.network_fuzz FIRST_SEED COUNT`.

Each run must end with a student that a process without pbd loads and that computes the same there, or be refused in
one line. Prints a line for each network, and the number of networks with each outcome.
"""

import collections
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

import pbd
from tests.helpers import lean_keras

SIDE = 12
IMAGES = {"train": 64, "validation": 32, "test": 32}
OTHER_FUNCTIONS = ("deserialize", "get", "glu", "log_softmax", "serialize", "softmax", "threshold")
"""Of `keras.activations`; they need arguments, change the shape, or are no activation of a feature map."""
ACTIVATIONS = sorted(
    name for name in vars(keras.activations) if not name.startswith("_") and name not in OTHER_FUNCTIONS
)
POLICIES = ("float32",) * 6 + ("mixed_float16", "mixed_bfloat16", "float16", "bfloat16")
TOLERANCE = {"float32": 1e-3, "mixed_float16": 3e-2, "float16": 3e-2, "mixed_bfloat16": 0.2, "bfloat16": 0.2}
"""Largest difference between the outputs here and in another process, over the largest output."""
CHEAP = {"executor": "serial", "isolate": False, "costs": "macs", "epochs": 1, "fine_tune_epochs": 1}
CHEAP |= {"max_accuracy_drop": 1.0, "allow_weak_teacher": True, "target": "keras"}
READER = """
import keras, numpy as np
images = np.load(sys.argv[1])
outputs = [np.asarray(keras.models.load_model(path)(images, training=False), "float32") for path in sys.argv[3:]]
assert "pbd" not in sys.modules
np.savez(sys.argv[2], *outputs)
"""


@dataclass
class NetworkFuzzer:
    """Draws one network."""

    draws: random.Random

    def model(self) -> keras.Model:
        """Return a random classifier of images, with random weights."""
        keras.utils.set_random_seed(self.draws.randrange(2**31))
        policy = self.draws.choice(POLICIES)
        data_format = self.draws.choice(["channels_last"] * 9 + ["channels_first"])
        before = keras.config.dtype_policy(), keras.config.image_data_format()
        keras.config.set_dtype_policy(policy)
        keras.config.set_image_data_format(data_format)
        try:
            return self._model((SIDE, SIDE, 3) if data_format == "channels_last" else (3, SIDE, SIDE))
        finally:
            keras.config.set_dtype_policy(before[0])
            keras.config.set_image_data_format(before[1])

    def _model(self, shape: tuple[int, ...]) -> keras.Model:
        inputs = keras.Input(shape)
        x = self._on_pixels(inputs)
        for _ in range(2):
            x = self.draws.choice([self._stage, self._stage, self._residual, self._nested, self._shared])(x)
        return keras.Model(inputs, self._head(x))

    def _on_pixels(self, x: Any) -> Any:
        x = keras.layers.Rescaling(1 / 255)(x)
        layers = keras.layers
        first: list[Callable[[], keras.Layer] | None] = [None, None, None, lambda: layers.RandomFlip()]
        first += [lambda: layers.RandomTranslation(0.2, 0.2), lambda: layers.RandomRotation(0.1)]
        first += [lambda: layers.RandomZoom(0.2), lambda: layers.RandomContrast(0.2, value_range=(0, 1))]
        first += [lambda: layers.GaussianNoise(0.1), lambda: layers.Dropout(0.1)]
        chosen = self.draws.choice(first)
        return chosen()(x) if chosen else x

    def _convolution(self, x: Any, filters: int, strides: int = 1, padding: str = "same") -> Any:
        kind = self.draws.choice(["plain"] * 6 + ["dilated", "grouped", "asymmetric", "separable", "depthwise"])
        settings = {"padding": padding, "use_bias": self.draws.random() < 0.6}
        size = self.draws.choice([2, 3, 3, 3, 4, 5])
        if kind == "separable":
            return keras.layers.SeparableConv2D(filters, 3, strides=strides, **settings)(x)
        if kind == "depthwise":
            x = keras.layers.DepthwiseConv2D(3, strides=strides, **settings)(x)
            return keras.layers.Conv2D(filters, 1)(x)
        if kind == "dilated" and strides == 1:
            return keras.layers.Conv2D(filters, 3, dilation_rate=2, **settings)(x)
        if kind == "grouped":
            x = keras.layers.Conv2D(filters, 1)(x)
            return keras.layers.Conv2D(filters, size, strides=strides, groups=2, **settings)(x)
        kernel = self.draws.choice([(1, 3), (3, 1), (2, 3)]) if kind == "asymmetric" else (size, size)
        activation = self.draws.choice([None, None, *ACTIVATIONS])
        return keras.layers.Conv2D(filters, kernel, strides=strides, activation=activation, **settings)(x)

    def _normalised(self, x: Any) -> Any:
        layers, axis = keras.layers, self._axis()
        kinds: list[Callable[[], keras.Layer] | None] = [None, lambda: layers.LayerNormalization(axis=axis)]
        kinds += [lambda: layers.BatchNormalization(axis=axis, scale=self.draws.random() < 0.7)] * 4
        kinds += [lambda: layers.GroupNormalization(4, axis=axis), lambda: layers.UnitNormalization(axis=axis)]
        kinds += [lambda: layers.RMSNormalization(axis=axis)]
        chosen = self.draws.choice(kinds)
        return chosen()(x) if chosen else x

    def _activated(self, x: Any) -> Any:
        layers = keras.layers
        slope = self.draws.choice([0.01, 0.1, 0.2, 0.3])
        kinds: list[Callable[[], keras.Layer]] = [lambda: layers.ReLU(), lambda: layers.ReLU(max_value=6.0)]
        kinds += [lambda: layers.LeakyReLU(negative_slope=slope), lambda: layers.PReLU(shared_axes=[1, 2])]
        kinds += [lambda: layers.ELU(), lambda: layers.Activation(self.draws.choice(ACTIVATIONS))]
        return self.draws.choice(kinds)()(x)

    def _disturbed(self, x: Any) -> Any:
        layers = keras.layers
        kinds: list[Callable[[], keras.Layer] | None] = [None] * 5
        kinds += [lambda: layers.Dropout(0.2), lambda: layers.SpatialDropout2D(0.2), lambda: layers.GaussianNoise(0.1)]
        kinds += [lambda: layers.GaussianDropout(0.1), lambda: layers.AlphaDropout(0.1)]
        chosen = self.draws.choice(kinds)
        return chosen()(x) if chosen else x

    def _stage(self, x: Any) -> Any:
        filters, padding = self.draws.choice([8, 12, 16]), self.draws.choice(["same", "same", "same", "valid"])
        if padding == "valid":
            x = keras.layers.ZeroPadding2D(self.draws.choice([1, 2, ((1, 2), (2, 1))]))(x)
        x = self._convolution(x, filters, self.draws.choice([1, 1, 1, 2]), padding)
        x = self._disturbed(self._activated(self._normalised(x)))
        pooled = [None, None, keras.layers.MaxPooling2D, keras.layers.AveragePooling2D]
        pooling = self.draws.choice(pooled)
        return pooling(2, padding="same")(x) if pooling else x

    def _residual(self, x: Any) -> Any:
        filters = x.shape[self._axis()]
        if filters < 8:
            x = keras.layers.Conv2D(8, 1)(x)
            filters = 8
        y = self._activated(self._normalised(self._convolution(x, filters)))
        y = self._normalised(self._convolution(y, filters))
        joined = self.draws.choice([keras.layers.Add, keras.layers.Multiply, keras.layers.Average])()([x, y])
        return self._activated(joined)

    def _nested(self, x: Any) -> Any:
        inner = keras.Input(x.shape[1:])
        return keras.Model(inner, self._stage(inner))(x)

    def _shared(self, x: Any) -> Any:
        filters = x.shape[self._axis()]
        shared = keras.layers.Conv2D(filters, 3, padding="same")
        x = keras.layers.Concatenate(axis=self._axis())([self._activated(shared(x)), shared(x)])
        return self._stage(x)

    def _head(self, x: Any) -> Any:
        layers = keras.layers
        x = self.draws.choice([layers.GlobalAveragePooling2D, layers.GlobalMaxPooling2D, layers.Flatten])()(x)
        kind = self.draws.choice(["softmax", "softmax", "layer", "logits", "sigmoid"])
        if kind == "sigmoid":
            return layers.Dense(1, activation="sigmoid")(x)
        if kind == "layer":
            return layers.Softmax()(layers.Dense(4)(x))
        return layers.Dense(4, activation="softmax" if kind == "softmax" else None)(x)

    @staticmethod
    def _axis() -> int:
        return -1 if keras.config.image_data_format() == "channels_last" else 1


@dataclass(frozen=True)
class Outcome:
    """The end of one run."""

    seed: int
    policy: str
    refusal: str | None
    """The message, if the run was refused."""
    files: tuple[Path, ...] = ()
    """The student and its folded form."""
    outputs: np.ndarray | None = None
    """What the student computes here."""
    problems: tuple[str, ...] = ()


def images(count: int, seed: int) -> np.ndarray:
    """Return random images, (count, SIDE, SIDE, 3) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)


def attempt(seed: int, folder: Path) -> Outcome:
    """Compress the network of this seed, in this process.

    Args:
        seed: of the network.
        folder: for the run directory.
    """
    model = NetworkFuzzer(random.Random(seed)).model()
    classes = max(2, model.output.shape[-1])
    splits = {
        role: (images(count, number), np.arange(count) % classes) for number, (role, count) in enumerate(IMAGES.items())
    }
    policy = model.layers[-1].dtype_policy.name
    try:
        data = pbd.Data(**splits, batch_size=16)
        result = pbd.distill(model, data, **CHEAP, run_dir=str(folder / str(seed)))
    except pbd.PbdError as error:
        return Outcome(seed, policy, str(error), problems=("the refusal has several lines",) * ("\n" in str(error)))
    failed = [f"{row.layer} failed: {row.reason}" for row in result.report.blocks if row.status == "failed"]
    outputs = result.model.predict(images(8, 9), verbose=0).astype("float32")
    if not np.isfinite(outputs).all():
        failed.append("the student's outputs are not finite")
    written = tuple(folder / str(seed) / name for name in ("student.keras", "student_folded.keras"))
    return Outcome(seed, policy, None, tuple(filter(Path.exists, written)), outputs, tuple(failed))


def read_elsewhere(outcomes: Iterable[Outcome], folder: Path) -> list[str]:
    """Return where the written students compute something else in a process without pbd."""
    pixels = folder / "images.npy"
    np.save(pixels, images(8, 9))
    students = {str(path): outcome for outcome in outcomes for path in outcome.files}
    command = [
        sys.executable,
        "-c",
        lean_keras.HIDE_OPTIONAL + READER,
        str(pixels),
        str(folder / "outputs.npz"),
        *students,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return [done.stderr.strip().splitlines()[-1]]
    differences = []
    with np.load(folder / "outputs.npz") as there:
        for number, (path, outcome) in enumerate(students.items()):
            assert outcome.outputs is not None
            scale = max(1e-6, float(np.abs(outcome.outputs).max()))
            off = float(np.abs(there[f"arr_{number}"] - outcome.outputs).max()) / scale
            if not off <= TOLERANCE[outcome.policy]:
                differences.append(f"{path}: {off:.2g} off, {outcome.policy}")
    return differences


def main(first_seed: int, count: int) -> int:
    """Compress `count` networks, print the outcomes, and return 1 if there was a problem."""
    with tempfile.TemporaryDirectory() as name:
        folder, outcomes, crashes = Path(name), [], 0
        for seed in range(first_seed, first_seed + count):
            try:
                outcomes.append(attempt(seed, folder))
            except Exception as error:
                crashes += 1
                print(f"{seed}: {type(error).__name__}: {str(error)[:300]}", flush=True)
                continue
            print(
                f"{seed} {outcomes[-1].policy}: {outcomes[-1].refusal or outcomes[-1].problems or 'done'}", flush=True
            )
            keras.utils.clear_session()
        differences = read_elsewhere(outcomes, folder)
    print(*differences, sep="\n")
    kinds = collections.Counter("refused" if outcome.refusal else "done" for outcome in outcomes)
    problems = crashes + len(differences) + sum(bool(outcome.problems) for outcome in outcomes)
    print(json.dumps({**kinds, "crashes": crashes, "problems": problems}))
    return int(problems > 0)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))

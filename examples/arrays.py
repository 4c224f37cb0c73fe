"""Compress a model with arrays at hand, as in a notebook.

python examples/arrays.py runs/arrays
"""

import sys

import keras
import numpy as np
from sklearn.datasets import load_digits

import pbd


def trained_teacher(x: np.ndarray, y: np.ndarray) -> keras.Model:
    """Train a small classifier, in place of your own model."""
    inputs = keras.Input((8, 8, 1))
    features = keras.layers.Rescaling(1 / 16)(inputs)
    for name in ("conv1", "conv2", "conv3"):
        features = keras.layers.Conv2D(32, 3, padding="same", activation="relu", name=name)(features)
    outputs = keras.layers.Dense(10)(keras.layers.GlobalAveragePooling2D()(features))
    model = keras.Model(inputs, outputs, name="teacher")
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    model.fit(x, y, epochs=10, batch_size=64, verbose=0)
    return model


def main(run_dir: str) -> None:
    """Train a teacher, distill it, and use the student."""
    digits = load_digits()
    x, y = digits.images[..., np.newaxis].astype("float32"), digits.target
    teacher = trained_teacher(x[:1200], y[:1200])  # not on the images that validate and test the student

    data = pbd.Data(train=(x[:1200], y[:1200]), validation=(x[1200:1400], y[1200:1400]), test=(x[1400:], y[1400:]))
    result = pbd.distill(teacher, data, fine_tune_epochs=3, run_dir=run_dir)

    student = result.model  # a keras.Model
    print(f"{student.count_params():,} of {teacher.count_params():,} parameters")
    print(f"test accuracy {result.report.student.test_accuracy:.1%}, teacher {result.report.teacher.test_accuracy:.1%}")


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Keras itself: `.keras` files, run by Keras on its backend."""

import contextlib
from pathlib import Path
from typing import Any

import numpy as np

from pbd.deploy.runtimes import base
from pbd.system import initial_values


class Keras(base.Runtime):
    """Keras, on the CPU or on the GPU."""

    suffix = ".keras"
    extra = "cpu"
    packages = ("keras",)
    packages_to_run = packages
    takes_threads = False

    def __init__(self, device: str) -> None:
        self.name = "keras" if device == "cpu" else f"keras-{device}"
        self._device = device

    def export(self, network: Any, path: Path) -> None:
        network.save(path)

    def load(self, path: Path, threads: int) -> base.Runner:
        import keras

        with self._placed(), initial_values.on_host():
            model = keras.models.load_model(path, compile=False)

        def run(images: np.ndarray) -> np.ndarray:
            with self._placed():
                return np.asarray(model.predict_on_batch(images))

        return run

    def _placed(self) -> contextlib.AbstractContextManager[Any]:
        import keras

        return keras.device(f"{self._device}:0")

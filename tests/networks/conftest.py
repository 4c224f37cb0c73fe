"""What the tests of bad input share."""

from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model in both formats, and images for it."""
    import keras

    from tests.helpers.refused_runs import arrays, classifier

    folder = tmp_path_factory.mktemp("good")
    model = classifier(keras.layers.Conv2D(8, 3, name="second"))
    files = {"keras": folder / "model.keras", "h5": folder / "model.h5", "npz": folder / "data.npz"}
    model.save(files["keras"])
    model.save(files["h5"])
    np.savez(files["npz"], **arrays())
    return files

"""What the tests of bad input share."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import forked_checks


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


@pytest.fixture
def light_checks() -> Iterator[None]:
    """Check model files in forked processes instead of one fresh Python for each."""
    with forked_checks.forking():
        yield

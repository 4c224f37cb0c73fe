"""Losses between layers while a network is trained on the first one."""

import json
from pathlib import Path

import keras
import numpy as np
import pytest

from pbd.compression import catalogue
from pbd.compression.fine_tune import FineTune
from pbd.compression.prune_filters import PruneFilters
from pbd.compression.step import name_of, settings_of
from pbd.config import Feature
from pbd.errors import UsageError
from pbd.learning.losses.feature_maps import attention_transfer
from tests.compression.test_recipes import PIXELS, compress, teacher

pytestmark = pytest.mark.usefixtures("eager")


def attention_error(model: keras.Model) -> float:
    """Return the AT loss of the second layer, beside the teacher."""
    maps = [keras.Model(one.inputs, one.get_layer("second").output)(PIXELS) for one in (model, teacher())]
    return float(attention_transfer(*maps))


def test_a_pruned_network_learns_the_attention_of_the_first_one(tmp_path: Path) -> None:
    at = Feature("at", "second", "second", 1e5)
    prune = PruneFilters(ratio=0.5, refit=False)
    errors = []
    for name, features in (("with", [at]), ("without", [])):
        tune = FineTune(epochs=3, learning_rate=0.01, features=features)
        errors.append(attention_error(compress(tmp_path / name, prune, tune).model))
    assert errors[0] < 0.8 * errors[1]


def test_a_step_is_made_again_from_its_settings() -> None:
    step = FineTune(epochs=2, features={"loss": "fsp", "student": ("a", "b"), "teacher": ("a", "b"), "weight": 3})
    settings = json.loads(json.dumps(settings_of(step)))
    assert catalogue.made([{"use": name_of(step), **settings}]) == (step,)


def test_layers_that_are_missing_are_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="layer of the teacher"):
        compress(tmp_path, FineTune(features=[Feature("at", "second", "secnd")]))
    assert np.array_equal(FineTune().features, ())

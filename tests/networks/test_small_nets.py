"""The built-in students have the layers and the number of parameters of the study they are taken from."""

import json

import keras
import numpy as np
import pytest

from pbd.errors import UsageError
from pbd.networks import heads, small_nets
from tests.conftest import SHARED

PARAMETERS_K = {
    "conv4_dense2": (654, 4, 2),
    "conv4_dense1": (399, 4, 1),
    "conv4_dense2_1x1": (376, 4, 2),
    "conv6_dense1": (279, 6, 1),
    "conv4_dense1_narrow": (253, 4, 1),
    "conv5_dense1": (187, 5, 1),
    "conv6_dense1_1x1": (191, 6, 1),
    "resnet20": (270, 21, 1),
    "resnet18": (11170, 20, 1),
}
"""Thousands of parameters in the study (of ResNet20: 269,722 with shortcuts without weights), convolutions with those
of shortcuts, dense layers."""


@pytest.fixture(autouse=True)
def _eager(eager: None) -> None:
    """Trace nothing."""


def trainable(model: keras.Model) -> int:
    return sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)


@pytest.mark.parametrize("name", PARAMETERS_K)
def test_layers_and_parameters(name: str) -> None:
    model = small_nets.build(name, (32, 32, 3), 10)
    thousands, convolutions, dense = PARAMETERS_K[name]
    assert trainable(model) / 1000 == pytest.approx(thousands, rel=0.01)
    assert sum(isinstance(layer, keras.layers.Conv2D) for layer in model.layers) == convolutions
    assert sum(isinstance(layer, keras.layers.Dense) for layer in model.layers) == dense
    assert heads.ends_in_logits(model)
    assert (model.output_shape, model.name) == ((None, 10), name)


def test_the_figures_are_those_of_the_study() -> None:
    facts = SHARED / "facts" / "source_tables.json"
    if not facts.exists():
        pytest.skip("the tables of the study are not here")
    rows = json.loads(facts.read_text())["analysis"]["student_design"]["rows"]
    stacks = [thousands for name, (thousands, _, _) in PARAMETERS_K.items() if name.startswith("conv")]
    assert stacks == [row[3] for row in rows[1:8]]
    assert PARAMETERS_K["resnet18"][0] == rows[0][3]


@pytest.mark.parametrize("name", ["conv4_dense2", "conv6_dense1", "resnet20"])
@pytest.mark.parametrize("shape", [(8, 8, 1), (12, 20, 3)])
def test_other_images(name: str, shape: tuple[int, int, int]) -> None:
    model = small_nets.build(name, shape, 3, small_nets.Rescaled(2.0, 0.5))
    images = np.random.default_rng(0).uniform(0, 1, (2, *shape)).astype("float32")
    outputs = np.asarray(model(images, training=False))
    assert outputs.shape == (2, 3)
    assert np.isfinite(outputs).all()
    np.testing.assert_allclose(np.asarray(model.get_layer("rescaling")(images)), 2.0 * images + 0.5, rtol=1e-6)


def test_large_images_are_strided_at_once() -> None:
    assert small_nets.build("resnet18", (128, 128, 3), 5).get_layer("pool1").output.shape[1:3] == (32, 32)


def test_an_unknown_name() -> None:
    with pytest.raises(UsageError, match="Did you mean"):
        small_nets.build("conv4_dense", (32, 32, 3), 10)

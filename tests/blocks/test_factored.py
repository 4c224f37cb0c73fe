"""Spatial SVD and Tucker-2: exact at full rank, the cost that their names give, and better initial weights than SVD."""

import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from pbd import blocks
from pbd.blocks import factored, initialisation
from pbd.blocks.spatial_svd import SpatialSvd
from pbd.blocks.tucker import Tucker2
from pbd.blockwise.tasks import describe_layer
from pbd.errors import UsageError
from pbd.networks.cost import count_macs
from pbd.records import Layer
from tests.blocks.test_blocks import GEOMETRIES
from tests.blocks.test_initialisation import smooth_images
from tests.helpers import lean_keras
from tests.student import test_narrow_students

EXACT = [SpatialSvd(10_000), Tucker2(100)]
GROUPED: list[dict[str, Any]] = [
    {"padding": "same", "groups": 2},
    {"padding": "valid", "groups": 3, "strides": 2, "use_bias": False, "filters": 12},
    {"padding": "same", "groups": 6, "filters": 12, "kernel_size": (3, 5), "dilation_rate": 2},
]
FITTED = ["spatial_svd_r25", "spatial_svd_r50", "tucker2_r40", "tucker2_r60"]


def layer_of(side: int = 11, channels: int = 6, **settings: Any) -> tuple[keras.layers.Conv2D, Layer]:
    """Return a convolution with a bias that counts, and its record."""
    keras.utils.set_random_seed(2)
    inputs = keras.Input((side, side, channels))
    arguments = {"filters": 10, "kernel_size": 3, "name": "layer", "bias_initializer": "normal"} | settings
    layer = keras.layers.Conv2D(**arguments)
    model = keras.Model(inputs, layer(inputs))
    return layer, describe_layer(0, layer, model)


def initialised(
    design: blocks.BlockDesign, convolution: keras.layers.Conv2D, layer: Layer, images: np.ndarray | None
) -> keras.Model:
    """Return a block with the initial weights of the kernel, or with those fitted to images."""
    statistics = None
    if images is not None:
        statistics = initialisation.Statistics.empty(layer, seed=0)
        statistics.add_inputs(images)
    block = blocks.build_block(design, layer, seed=0)
    design.initialise(block, layer, initialisation.layer_kernel(convolution), statistics)
    return block


def test_names_give_any_percentage_and_each_design_has_one_name() -> None:
    assert blocks.get("spatial_svd_r40") == SpatialSvd(40)
    assert blocks.get("tucker2_r5") == Tucker2(5)
    assert blocks.get("tucker2_r95").name == "tucker2_r95"
    assert pickle.loads(pickle.dumps(blocks.get("tucker2_r41"))) == Tucker2(41)
    listed = {design.name for design in blocks.designs()}
    assert {"spatial_svd_r25", "spatial_svd_r33", "spatial_svd_r50", "tucker2_r50"} <= listed
    assert "spatial_svd_r40" not in listed


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("spatial_svd_r96", "spatial_svd_r95"),
        ("tucker2_r4", "tucker2_r5"),
        ("tucker2_r9999", "tucker2_r95"),
        ("spatial_svd_r05", "spatial_svd_r"),
        ("spatial_svd_r", "spatial_svd_r"),
        ("spatial_svd_r33.0", "spatial_svd_r33"),
        ("spatial_svd_r-33", "spatial_svd_r33"),
        ("tucker2_r" + "9" * 5000, None),
        ("tucker_r50", "tucker2_r50"),
        ("tucker2_r٥٠", "tucker2_r"),
    ],
)
def test_unknown_names_are_refused_in_one_line(name: str, nearest: str | None) -> None:
    with pytest.raises(UsageError, match=r"^unknown block\. Received: ") as refused:
        blocks.get(name)
    assert "\n" not in str(refused.value)
    assert nearest is None or f"Did you mean '{nearest}" in str(refused.value)


def test_a_registered_design_hides_the_one_of_its_family() -> None:
    from pbd.blocks import registry

    class Other(blocks.BlockDesign):
        name = "tucker2_r47"

    other = blocks.register(Other())
    try:
        assert blocks.get("tucker2_r47") is other
    finally:
        del registry._DESIGNS["tucker2_r47"]


@pytest.mark.parametrize("settings", [*GEOMETRIES, *GROUPED], ids=str)
def test_groups_are_those_of_the_layer(settings: dict[str, Any]) -> None:
    assert factored.groups(layer_of(**settings)[1]) == settings.get("groups", 1)


@pytest.fixture(
    scope="module",
    params=[
        *GEOMETRIES,
        *GROUPED,
        {"padding": "same", "strides": (2, 1)},
        {"padding": "valid", "strides": (1, 3), "kernel_size": (2, 5)},
        {"padding": "same", "dilation_rate": (1, 3)},
        {"padding": "same", "strides": 3, "kernel_size": (5, 4)},
        {"padding": "valid", "use_bias": False, "activation": "relu"},
        {"padding": "same", "filters": 2},
    ],
    ids=str,
)
def replaceable(request: pytest.FixtureRequest) -> tuple[keras.layers.Conv2D, Layer, np.ndarray, np.ndarray]:
    """A convolution, its record, images, and what the convolution makes of them."""
    images = smooth_images(20, 11, 6, seed=1)
    convolution, layer = layer_of(**request.param)
    return convolution, layer, images, keras.ops.convert_to_numpy(convolution(images))


@pytest.mark.parametrize("design", EXACT, ids=lambda design: type(design).__name__)
def test_a_block_of_full_rank_computes_what_the_layer_does(
    design: blocks.BlockDesign, replaceable: tuple[keras.layers.Conv2D, Layer, np.ndarray, np.ndarray]
) -> None:
    """`same` padding, strides and dilation split into rows and columns, and pointwise convolutions have none."""
    convolution, layer, images, expected = replaceable
    for seen in (None, images):
        block = initialised(design, convolution, layer, seen)
        np.testing.assert_allclose(keras.ops.convert_to_numpy(block(images)), expected, atol=1e-5)


@pytest.mark.parametrize("percent", [5, 25, 33, 50, 70, 95])
@pytest.mark.parametrize(
    "settings",
    [
        {"padding": "same"},
        {"padding": "same", "strides": 2, "filters": 64},
        {"padding": "valid", "kernel_size": (3, 5)},
        {"padding": "same", "kernel_size": (1, 7)},
        {"padding": "same", "groups": 2, "dilation_rate": 2},
    ],
    ids=str,
)
def test_spatial_svd_costs_its_percentage_of_the_layer(settings: dict[str, Any], percent: int) -> None:
    """But for the rounding of the rank: at most half a rank of each group."""
    layer = layer_of(channels=32, **{"filters": 32} | settings)[1]
    design = SpatialSvd(percent)
    macs = count_macs(blocks.build_block(design, layer, seed=0))
    assert abs(macs - percent / 100 * layer.macs) <= 0.5 * macs / design.rank(layer) + 1


def test_the_rank_of_equal_cost_is_as_documented() -> None:
    layer = layer_of(channels=32, filters=32, padding="same")[1]
    assert SpatialSvd(50).rank(layer) == 24  # w h C N / (h C + w N) = 9 x 32 x 32 / (96 + 96) = 48
    assert count_macs(blocks.build_block(SpatialSvd(50), layer, seed=0)) == layer.macs / 2


@pytest.mark.parametrize(("percent", "share"), [(25, 0.1181), (50, 0.3611), (75, 0.7292)])
def test_tucker_2_keeps_its_percentage_of_both_channel_counts(percent: int, share: float) -> None:
    layer = layer_of(channels=32, filters=32, padding="same")[1]
    design = Tucker2(percent)
    assert design.ranks(layer) == (32 * percent // 100, 32 * percent // 100)
    macs = count_macs(blocks.build_block(design, layer, seed=0))
    assert macs == pytest.approx(share * layer.macs, rel=1e-3)
    wide = layer_of(channels=32, filters=64, padding="same", groups=4)[1]
    assert design.ranks(wide) == (8 * percent // 100, 16 * percent // 100)


@pytest.mark.parametrize(
    "settings",
    [{"padding": "same"}, {"padding": "valid", "strides": 2, "use_bias": False}, {"padding": "same", "groups": 2}],
    ids=str,
)
@pytest.mark.parametrize("name", FITTED)
def test_fitted_weights_are_better_than_those_of_the_kernel_on_unseen_images(name: str, settings: dict) -> None:
    convolution, layer = layer_of(channels=16, **{"filters": 16} | settings)
    images = smooth_images(200, 11, 16, seed=1)
    errors = []
    for seen in (None, images[:150]):
        block = initialised(blocks.get(name), convolution, layer, seen)
        output, target = (keras.ops.convert_to_numpy(each(images[150:])) for each in (block, convolution))
        errors.append(np.mean((output - target) ** 2) / np.var(target))
    assert errors[1] < 0.8 * errors[0]


@pytest.mark.parametrize("name", FITTED)
def test_the_bias_cancels_the_mean_error(name: str) -> None:
    convolution, layer = layer_of(side=4, channels=16, padding="same")
    images = smooth_images(100, 4, 16, seed=1)
    block = initialised(blocks.get(name), convolution, layer, images)
    output, target = (keras.ops.convert_to_numpy(each(images)).mean(axis=(0, 1, 2)) for each in (block, convolution))
    np.testing.assert_allclose(output, target, atol=1e-4)


LOAD_WITHOUT_PBD = """
import keras, numpy
for name in ("blocks", "student"):
    model = keras.models.load_model(f"{name}.keras", compile=False)
    numpy.save(f"{name}_outputs.npy", model.predict_on_batch(numpy.load(f"{name}_images.npy")))
assert "pbd" not in sys.modules
"""


def test_files_with_blocks_are_loaded_without_pbd(tmp_path: Path) -> None:
    """Also that of a student whose block reads some channels, and whose other channels are gone."""
    layer = layer_of(channels=16, activation="relu")[1]
    images = smooth_images(2, 11, 16, seed=1)
    inputs = keras.Input(layer.input_shape)
    outputs = [blocks.get(name).build(inputs, replace(layer, name=name), seed=0) for name in FITTED]
    narrow = test_narrow_students.teacher()
    student = test_narrow_students.assembled(narrow, *test_narrow_students.fitted(narrow))
    saved = {
        "blocks": (keras.Model(inputs, keras.layers.Add()(outputs)), images),
        "student": (student, test_narrow_students.IMAGES),
    }
    for name, (model, images) in saved.items():
        model.save(tmp_path / f"{name}.keras")
        np.save(tmp_path / f"{name}_images.npy", images)
    script = lean_keras.HIDE_OPTIONAL + LOAD_WITHOUT_PBD
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, capture_output=True)
    for name, (model, images) in saved.items():
        computed = np.load(tmp_path / f"{name}_outputs.npy")
        np.testing.assert_allclose(computed, model.predict_on_batch(images), atol=1e-5)


@pytest.mark.parametrize("name", ["spatial_svd_r33", "tucker2_r50"])
def test_layers_that_do_not_suit_are_left_out_with_the_reason(name: str) -> None:
    design, layer = blocks.get(name), layer_of(channels=64, filters=64)[1]
    assert design.applies_to(layer) is None
    assert design.unprofitable(layer) is None
    assert "channels_first" in str(design.applies_to(replace(layer, data_format="channels_first")))
    stem = layer_of(channels=3, filters=16)[1]
    assert design.applies_to(stem) is None
    assert "input channels: 3" in str(design.unprofitable(stem))

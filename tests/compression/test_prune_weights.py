"""Weights are set to zero by their size, in rounds, and stay zero; controls have as many zeros and other weights."""

import gzip
import io
import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import scipy.sparse

from pbd.compression.prune_weights import PruneWeights
from pbd.compression.pruning import sizes
from pbd.compression.pruning import weights as pruning
from pbd.data import Dataset
from pbd.errors import BadInputError, PbdError, UsageError
from pbd.networks import graph
from tests.helpers.palette import SHAPE, make_dataset, trained_teacher
from tests.helpers.step_context import Interruption, StepContext

pytestmark = pytest.mark.usefixtures("eager_module")

layers = keras.layers
KERNELS = ("stem", "a", "b", "point")


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return make_dataset()


@pytest.fixture(scope="module")
def teacher(dataset: Dataset) -> keras.Model:
    return trained_teacher(dataset)


@pytest.fixture
def context(teacher: keras.Model, dataset: Dataset, tmp_path: Path) -> StepContext:
    return StepContext(teacher, dataset, tmp_path)


def kernels_of(model: keras.Model) -> dict[str, np.ndarray]:
    return {name: model.get_layer(name).get_weights()[0] for name in KERNELS}


def all_weights(model: keras.Model) -> np.ndarray:
    return np.concatenate([weight.ravel() for weight in model.get_weights()])


def zeros_of(model: keras.Model) -> np.ndarray:
    return np.concatenate([(kernel == 0).ravel() for kernel in kernels_of(model).values()])


@pytest.mark.jax
def test_the_smallest_weights_of_each_kernel_become_zero(teacher: keras.Model, context: StepContext) -> None:
    before = all_weights(teacher)
    result = PruneWeights(ratio=0.5).apply(teacher, context)
    for name, kernel in kernels_of(result.model).items():
        original = kernels_of(teacher)[name]
        removed = kernel == 0
        assert removed.sum() == round(0.5 * kernel.size)
        assert np.abs(original[removed]).max() <= np.abs(original[~removed]).min()
        assert np.array_equal(kernel[~removed], original[~removed])
    assert result.events[0].startswith("batch statistics estimated again")
    changed = ("kernel", "moving_mean", "moving_variance")
    for layer in (layer for layer in teacher.layers if layer.weights):
        for old, new in zip(layer.weights, result.model.get_layer(layer.name).weights, strict=True):
            assert old.name in changed or np.array_equal(old.numpy(), new.numpy()), old.path
    assert result.keeps_zeros
    assert np.array_equal(all_weights(teacher), before)
    assert json.loads(json.dumps(result.details)) == result.details
    assert set(result.details["kernels"]) == set(KERNELS)
    assert result.details["sparsity"] == pytest.approx(0.5, abs=1e-3)


def test_the_smallest_weights_of_the_network_become_zero(teacher: keras.Model, context: StepContext) -> None:
    result = PruneWeights(ratio=0.7, scope="global", prune_classifier=True).apply(teacher, context)
    names = (*KERNELS, "logits")
    before, after = (
        [model.get_layer(name).get_weights()[0].ravel() for name in names] for model in (teacher, result.model)
    )
    original, pruned = np.concatenate(before), np.concatenate(after)
    assert (pruned == 0).sum() == round(0.7 * pruned.size)
    assert np.abs(original[pruned == 0]).max() <= np.abs(original[pruned != 0]).min()
    assert len({values["sparsity"] for values in result.details["kernels"].values()}) > 1


def test_no_kernel_loses_all_its_weights() -> None:
    scores = {"small": np.full((10, 20), 0.1), "large": np.ones((10, 20))}
    masks = pruning.over_all_kernels(scores, 0.5)
    assert {name: int(mask.sum()) for name, mask in masks.items()} == {"small": 2, "large": 198}
    masks = pruning.over_all_kernels(scores, 0.999)
    assert {name: int(mask.sum()) for name, mask in masks.items()} == {"small": 2, "large": 2}
    assert pruning.in_each_kernel({"tiny": np.arange(3.0)}, 0.85)["tiny"].tolist() == [False, False, True]


def test_kernels_of_every_kind_are_found() -> None:
    inputs = keras.Input(SHAPE)
    x = layers.DepthwiseConv2D(3, name="depthwise")(layers.SeparableConv2D(4, 3, name="separable")(inputs))
    x = layers.Dense(5, name="dense")(layers.Flatten()(layers.BatchNormalization(name="norm")(x)))
    model = keras.Model(inputs, layers.Softmax()(layers.Dense(3, name="classes")(x)))
    found_names = [kernel.name for kernel in pruning.find_kernels(model)]
    assert found_names == ["separable/depthwise_kernel", "separable/pointwise_kernel", "depthwise", "dense"]
    assert [kernel.name for kernel in pruning.find_kernels(model, ("de*",))] == ["depthwise", "dense"]
    assert [kernel.name for kernel in pruning.find_kernels(model, ("cl*",), True)] == ["classes"]
    with pytest.raises(UsageError, match="Did you mean 'dense'"):
        pruning.find_kernels(model, ("dens",))
    with pytest.raises(BadInputError, match="prune_classifier"):
        pruning.find_kernels(model, ("classes",))


@pytest.mark.parametrize(
    ("settings", "shares"),
    [
        ({"ratio": 0.5}, [0.5]),
        ({"ratio": 0.75, "rounds": 2}, [0.5, 0.75]),
        ({"ratio": 0.4, "per_round": 0.15}, [0.15, 0.2775, 0.385875, 0.4]),
        ({"ratio": 0.75, "per_round": 0.5}, [0.5, 0.75]),
        ({"ratio": 0.3, "per_round": 0.9}, [0.3]),
    ],
)
def test_each_round_prunes_a_share_of_what_is_left(settings: dict[str, Any], shares: list[float]) -> None:
    assert PruneWeights(**settings).shares == pytest.approx(tuple(shares))


def test_controls_have_as_many_zeros_and_train_random_weights(
    teacher: keras.Model, dataset: Dataset, tmp_path: Path
) -> None:
    contexts = {
        control: StepContext(teacher, dataset, tmp_path / control) for control in ("magnitude", "redraw", "random")
    }
    start = {}

    def network(control: str, epochs: int) -> keras.Model:
        step = PruneWeights(ratio=0.5, scope="global", epochs=epochs, control=control)
        return step.apply(teacher, contexts[control]).model

    zeros = {"magnitude": zeros_of(network("magnitude", 0))}
    for control in ("redraw", "random"):
        start[control] = network(control, 1)
        last = contexts[control].distillations[-1]
        assert last is not None
        assert last.from_random_weights, "accuracies from random weights fluctuate"
        zeros[control] = zeros_of(start[control])
    assert np.array_equal(zeros["redraw"], zeros["magnitude"])
    assert zeros["random"].sum() == zeros["magnitude"].sum()
    assert np.mean(zeros["random"] == zeros["magnitude"]) < 0.7
    ((last, _),) = [contexts["redraw"].trainings[-1]]
    assert (last.fine_tune_epochs, last.keep_zeros) == (1, True)
    assert contexts["redraw"].trainings[0][0].fine_tune_epochs == 0, "the mask is that before the last training"
    for model in start.values():
        assert np.abs(np.corrcoef(kernels_of(model)["a"].ravel(), kernels_of(teacher)["a"].ravel())[0, 1]) < 0.3


def test_weights_that_are_drawn_anew_depend_on_the_seed(teacher: keras.Model) -> None:
    models = [graph.flatten(teacher) for _ in range(3)]
    for model, seed in zip(models, (0, 0, 1), strict=True):
        pruning.draw_anew(model, seed)
    assert np.array_equal(all_weights(models[0]), all_weights(models[1]))
    assert not np.array_equal(kernels_of(models[0])["a"], kernels_of(models[2])["a"])
    assert kernels_of(models[0])["a"].std() == pytest.approx((2 / 72) ** 0.5, rel=0.1)
    scale, shift, mean, variance = models[0].get_layer("norm").get_weights()
    assert set(scale) == set(variance) == {1.0}
    assert set(shift) == set(mean) == {0.0}


def test_rounds_train_what_remains_and_an_interrupted_step_goes_on_after_its_last_round(
    teacher: keras.Model, dataset: Dataset, tmp_path: Path
) -> None:
    step = PruneWeights(ratio=0.75, rounds=2, epochs=1, learning_rate=0.01)
    context = StepContext(teacher, dataset, tmp_path / "whole")
    whole = step.apply(teacher, context)
    settings = [(config.fine_tune_epochs, config.keep_zeros, epoch) for config, epoch in context.trainings]
    assert settings == [(1, True, 0), (1, True, 1)]
    assert np.mean(zeros_of(whole.model)) == pytest.approx(0.75, abs=1e-3), "zeros stay"
    assert [row["epoch"] for row in whole.details["history"]] == [1, 2]
    assert whole.details["rounds"][1]["trained"]["kl"] < whole.details["rounds"][1]["pruned"]["kl"]

    first = StepContext(teacher, dataset, tmp_path / "parts")
    first.stop_at = 1
    with pytest.raises(Interruption):
        step.apply(teacher, first)
    second = StepContext(teacher, dataset, tmp_path / "parts")
    resumed = step.apply(teacher, second)
    assert second.phases == ["pruning weights, round 2 of 2"]
    assert np.array_equal(all_weights(resumed.model), all_weights(whole.model))
    assert resumed.details == whole.details


def test_the_sparse_file_has_all_weights(teacher: keras.Model, context: StepContext) -> None:
    result = PruneWeights(ratio=0.9).apply(teacher, context)
    kernels = pruning.find_kernels(result.model)
    content = sizes.sparse_file(result.model, kernels)
    with np.load(io.BytesIO(content)) as arrays:
        for number, weight in enumerate(result.model.weights):
            value = keras.ops.convert_to_numpy(weight)
            if f"{number}" in arrays:
                assert np.array_equal(arrays[f"{number}"], value)
                continue
            parts = [arrays[f"{number}.{name}"] for name in ("data", "indices", "indptr")]
            matrix = scipy.sparse.csr_array(tuple(parts), shape=(value.size // value.shape[-1], value.shape[-1]))
            assert np.array_equal(matrix.toarray().reshape(arrays[f"{number}.shape"]), value)
            assert len(parts[0]) == np.count_nonzero(value)
    size, size_before = result.details["bytes"], result.details["bytes_before"]
    assert size["sparse"] == len(content)
    assert size["dense"] == size_before["dense"] == 4 * all_weights(teacher).size
    assert size["gzip"] == len(gzip.compress(b"".join(w.tobytes() for w in result.model.get_weights()), mtime=0))
    assert size["gzip"] < 0.6 * size_before["gzip"]
    shown = [f"{size[form] / 1000:.1f} kB" for form in ("dense", "sparse", "gzip")]
    assert all(each in result.events[-1] for each in shown)
    assert "zeros alone make a dense runtime no faster" in result.events[-1]


@pytest.mark.parametrize(
    ("settings", "words", "followed"),
    [
        ({"ratio": 1.0}, "ratio must lie strictly between 0 and 1", {"ratio": 0.5}),
        ({"per_round": 0.0}, "per_round must lie strictly between 0 and 1", {"per_round": 0.15}),
        ({"scope": "network"}, "Choose from: global, layer", {"scope": "global"}),
        ({"control": "redrawn"}, "Did you mean 'redraw'?", {"control": "redraw", "epochs": 1}),
        ({"control": "random"}, "Give 1 or more epochs", {"control": "random", "epochs": 1}),
        ({"rounds": 2, "per_round": 0.1}, "Give one of them", {"per_round": 0.1}),
        ({"rounds": 0}, "Give 1 or more.", {"rounds": 1}),
        ({"epochs": -1}, "Give 0 or more.", {"epochs": 0}),
        ({"learning_rate": -1.0}, "Give a number above 0.", {"learning_rate": 0.1}),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], words: str, followed: dict[str, Any]) -> None:
    with pytest.raises(PbdError) as refusal:
        PruneWeights(**settings)
    assert words in str(refusal.value)
    PruneWeights(**followed)


def test_the_classifier_of_every_member_of_an_ensemble_is_left_alone() -> None:
    inputs = keras.Input((6,))
    hidden = [layers.Dense(5, name=f"hidden{n}")(inputs) for n in range(2)]
    members = [layers.Softmax()(layers.Dense(3, name=f"classes{n}")(x)) for n, x in enumerate(hidden)]
    model = keras.Model(inputs, layers.Average()(members))
    assert {kernel.name for kernel in pruning.find_kernels(model)} == {"hidden0", "hidden1"}
    assert len(pruning.find_kernels(model, (), prune_classifier=True)) == 4

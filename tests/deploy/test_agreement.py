"""Agreement: what differs, and what is computed differently for single images, is noticed."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pbd.deploy import agreement
from pbd.networks import graph
from tests.deploy.small_networks import classifier, images


class Played:
    """A target whose files compute what a function of the logits says."""

    int8 = False

    def __init__(self, network: Any, in_batches: Any, alone: Any) -> None:
        self._network, self._functions = network, {True: alone, False: in_batches}

    def load(self, path: Path, threads: int) -> Any:
        del path
        return lambda pixels: self._functions[len(pixels) == 1](np.asarray(self._network(pixels)))


def same(logits: np.ndarray) -> np.ndarray:
    return logits


@pytest.mark.parametrize("head", ["logits", "softmax"])
def test_the_largest_difference_is_found(head: str) -> None:
    network, pixels = graph.flatten(classifier(head)), images(6).astype("float32")
    exact = agreement.compare(Played(network, same, same), Path(), network, pixels)  # type: ignore[arg-type]
    assert exact.difference < 1e-5
    assert exact.same_class == 1.0

    def wrong(outputs: np.ndarray) -> np.ndarray:
        return np.roll(outputs, 1, axis=-1)

    rolled = agreement.compare(Played(network, wrong, wrong), Path(), network, pixels)  # type: ignore[arg-type]
    assert rolled.difference > 0.01
    assert rolled.same_class == 0.0


@pytest.mark.parametrize("alone", [lambda logits: 60_000 - logits, lambda logits: logits * np.nan])
def test_a_file_that_computes_something_else_for_single_images_does_not_agree(alone: Any) -> None:
    """OpenVINO 2026.4 did, on one thread, compiled for one image."""
    network, pixels = graph.flatten(classifier()), images(6).astype("float32")
    agreed = agreement.compare(Played(network, same, alone), Path(), network, pixels)  # type: ignore[arg-type]
    assert agreed.difference == float("inf")


class Rounded(Played):
    """A target of 8-bit integers, whose files round probabilities."""

    int8 = True
    quantizer = SimpleNamespace(rounds_outputs=True)


def test_probabilities_that_are_rounded_to_8_bits_are_compared_themselves() -> None:
    """The logit of one that is rounded to 0 says nothing."""
    network, pixels = graph.flatten(classifier("softmax")), images(6).astype("float32")
    layer = network.get_layer("classes")
    layer.set_weights([100 * weights for weights in layer.get_weights()])

    def rounded(outputs: np.ndarray) -> np.ndarray:
        return np.round(255 * outputs) / 255

    assert (rounded(np.asarray(network(pixels))) == 0).any()
    agreed = agreement.compare(Rounded(network, rounded, rounded), Path(), network, pixels)  # type: ignore[arg-type]
    assert agreed.difference < 1 / 255

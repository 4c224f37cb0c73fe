"""Latency of many networks side by side, as trials with their spread."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import keras
    import numpy as np

ROUNDS = 25
"""Latency trials of each network."""


@dataclass(frozen=True)
class Trials:
    """Milliseconds of a pass of one image over the trials."""

    median_ms: float
    q1_ms: float
    q3_ms: float
    low_ms: float
    high_ms: float
    times_as_fast: float
    """As the first network: the median over the trials of the quotient."""
    size_bytes: int
    """Of the file."""


def measure(models: "Mapping[str, keras.Model]", target: str, rounds: int = ROUNDS) -> dict[str, Trials]:
    """Measure networks in a target, in turn, with one thread.

    Args:
        models: by name, for images of the same shape.
        target: name of a target.
        rounds: trials of each network.
    """
    import numpy as np

    from pbd.deploy import exporting, latency, targets
    from pbd.networks import graph, precision

    chosen = targets.get_timed(target)
    networks = {name: precision.in_float32(graph.flatten(model)) for name, model in models.items()}
    with tempfile.TemporaryDirectory() as folder:
        files = [
            latency.deployed_file(name, network, chosen, Path(folder) / str(number))
            for number, (name, network) in enumerate(networks.items())
        ]
        runners = [chosen.load(file.path, 1) for file in files]
        shape = next(iter(networks.values())).inputs[0].shape[1:]
        pixels = np.random.default_rng(0).uniform(0, 255, (1, *shape)).astype(np.float32)
        times_s = latency.alternate(runners, pixels, rounds)
        return {
            file.model: _trials(each, times_s[0], exporting.size_of(file.path))
            for file, each in zip(files, times_s, strict=True)
        }


def _trials(times_s: "np.ndarray", reference_s: "np.ndarray", size_bytes: int) -> Trials:
    import numpy as np

    low, q1, median, q3, high = (1000 * np.quantile(times_s, (0.0, 0.25, 0.5, 0.75, 1.0))).tolist()
    return Trials(median, q1, q3, low, high, float(np.median(reference_s / times_s)), size_bytes)

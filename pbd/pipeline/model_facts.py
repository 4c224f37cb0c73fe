"""Size, cost and quality of a network for the report of a run."""

from pathlib import Path

import keras

from pbd.learning.metrics import Metrics
from pbd.networks import cost
from pbd.records import ModelFacts


def of(model: keras.Model, val: Metrics, test: Metrics | None = None, path: Path | None = None) -> ModelFacts:
    """Return the record of a network.

    Args:
        model: the network.
        val: its metrics on the validation split.
        test: the metrics on the test split, if it was read.
        path: its file, if it was written.
    """
    return ModelFacts(
        params=cost.count_params(model),
        macs=cost.count_macs(model),
        val_accuracy=val.accuracy,
        test_accuracy=test.accuracy if test else None,
        path=str(path) if path else None,
        size_bytes=path.stat().st_size if path else None,
        val_agreement=val.agreement,
        test_agreement=test.agreement if test else None,
        val_kl=val.kl,
        test_kl=test.kl if test else None,
    )

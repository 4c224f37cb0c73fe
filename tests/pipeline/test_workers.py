"""A worker pool returns all weights of a network and leaves no file behind."""

import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from pbd.blockwise.context import TrainingContext
from pbd.config import RunConfig
from pbd.executors.base import CheckpointToken, no_checkpoint
from pbd.learning.metrics import Metrics
from pbd.pipeline.workers import WorkerPool
from pbd.run_dir.journal import Journal
from pbd.student.adaptation import Adapted
from pbd.student.checkpoints import FineTuneState

METRICS = Metrics(0.5, 0.6, 0.7)
ADAPTED = Adapted(METRICS, None)


class Gate(keras.layers.Layer):
    """Two layers within one, whose variables share their names."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.squeeze, self.excite = keras.layers.Dense(2), keras.layers.Dense(3)

    def build(self, shape: tuple[int | None, ...]) -> None:
        self.squeeze.build(shape)
        self.excite.build((*shape[:-1], 2))

    def call(self, x: Any) -> Any:
        return x * self.excite(self.squeeze(x))


def network() -> keras.Model:
    inputs = keras.Input((4, 4, 3))
    x = keras.layers.BatchNormalization()(Gate(name="gate")(inputs))
    return keras.Model(inputs, keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(x)))


@dataclass
class Workers:
    """An executor whose workers add one to all weights of the network of a task, or fail."""

    fail: bool = False
    tokens: list[object] = field(default_factory=list)

    def run_collective(
        self, work: Any, emit: Callable[[Any], None], max_workers: int, checkpoint: CheckpointToken = no_checkpoint
    ) -> Any:
        self.tokens.append(pickle.loads(pickle.dumps(checkpoint))())  # it goes to every worker
        if self.fail:
            raise RuntimeError("injected")
        weights = [
            value + 1 for value in keras.models.load_model(work.student, custom_objects={"Gate": Gate}).get_weights()
        ]
        if type(work).__name__ == "AdaptTask":
            return weights, ADAPTED
        return FineTuneState(METRICS, 0.1, best_weights=weights)


def worker_pool(workers: Workers, folder: Path) -> WorkerPool:
    config = RunConfig()
    journal = Journal.create(folder / "run", {})
    context = TrainingContext("t", config.data, (4, 4, 3), config.training, {}, "fitted", 0, journal)
    return WorkerPool(workers, context, lambda event: None)


@pytest.mark.parametrize("what", ["adapt", "fine-tune"])
def test_all_weights_come_back(what: str, tmp_path: Path) -> None:
    workers, model = Workers(), network()
    before = model.get_weights()
    pool = worker_pool(workers, tmp_path)
    if what == "adapt":
        assert pool.adapt(model, {}) == ADAPTED
    else:
        assert pool.fine_tune(model, RunConfig().student, METRICS, 0) == FineTuneState(METRICS, 0.1)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_allclose(new, old + 1)
    assert not (tmp_path / "run" / "assembled.keras").exists()


def test_the_checkpoint_token_names_the_checkpoints(tmp_path: Path) -> None:
    workers = Workers()
    pool = worker_pool(workers, tmp_path)
    (tmp_path / "run" / "fine_tuning").mkdir()
    (tmp_path / "run" / "fine_tuning" / "one.npz").write_bytes(b"")
    pool.fine_tune(network(), RunConfig().student, METRICS, 0)
    assert list(workers.tokens[-1]) == ["one.npz"]


def test_an_error_leaves_no_network_behind(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="injected"):
        worker_pool(Workers(fail=True), tmp_path).adapt(network(), {})
    assert not (tmp_path / "run" / "assembled.keras").exists()

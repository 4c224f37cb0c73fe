"""Random small networks of Keras' built-in layers, through the whole pipeline."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import keras
import pytest

from pbd.deploy import deployment, parity
from tests.helpers import network_fuzz
from tests.helpers.network_fuzz import Outcome

COUNT = 5
"""`python -m tests.helpers.network_fuzz FIRST_SEED COUNT` makes more, and each costs seconds of CPU time."""

COMPILED = 2
"""The first networks are trained in compiled steps; the others are not, since a few steps take less than tracing."""

CLEARED_AFTER = 4
"""Networks after which Keras' state is cleared, which looks for garbage for a third of a second."""


@contextlib.contextmanager
def tracing_files_only() -> Iterator[None]:
    """Compile only the comparison of files with the networks in memory; run everything else eagerly."""
    import tensorflow as tf

    mismatch = parity.mismatch

    def traced(*arguments: object) -> str | None:
        tf.config.run_functions_eagerly(False)
        try:
            return mismatch(*arguments)  # type: ignore[arg-type]
        finally:
            tf.config.run_functions_eagerly(True)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parity, "mismatch", traced)
        tf.config.run_functions_eagerly(True)
        try:
            yield
        finally:
            tf.config.run_functions_eagerly(False)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[Outcome]:
    folder, results = tmp_path_factory.mktemp("networks"), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deployment, "measure", lambda *_: deployment.Deployed((), ()))  # what is written is read below
        for seed in range(COUNT):
            with contextlib.nullcontext() if seed < COMPILED else tracing_files_only():
                results.append(network_fuzz.attempt(seed, folder))
            if seed % CLEARED_AFTER == CLEARED_AFTER - 1:
                keras.utils.clear_session()
    return results


def test_each_network_is_compressed_or_refused_in_one_line(outcomes: list[Outcome]) -> None:
    assert [outcome for outcome in outcomes if outcome.problems] == []
    assert sum(outcome.refusal is None for outcome in outcomes) >= COUNT // 2
    assert any(outcome.refusal is None for outcome in outcomes[:COMPILED]), "a training was traced"


def test_students_compute_the_same_in_a_process_without_pbd(outcomes: list[Outcome], tmp_path: Path) -> None:
    assert network_fuzz.read_elsewhere(outcomes, tmp_path) == []

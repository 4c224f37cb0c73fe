"""How long a forward pass takes: models are measured in turn, on this device, with the threads of this process."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from pbd.deploy import inference_form
from pbd.errors import BadInputError, UsageError
from pbd.records import Latency
from pbd.system import random_state

WARM_UP = 3
BURST = 10
ROUNDS = 15
MIN_ROUNDS = 3
LIMIT_S = 2.0
"""About how long each model is measured with each batch size; a few passes of a slow model may take longer."""

Runner = Callable[[np.ndarray], Any]
"""Runs one forward pass of a model on a batch of images."""


@dataclass(frozen=True)
class ModelLatency:
    """Seconds of a forward pass of one model: the median and the quartiles over the rounds."""

    model: str
    batch: int
    """Images in a pass."""
    seconds: float
    q1_s: float
    q3_s: float
    times_as_fast: float
    """The median over the rounds of the first model's time over this model's."""
    rounds: int
    passes: int
    """Counted passes in a round; their median is the figure of the round."""


@random_state.preserved()
def measure_latency(
    models: Mapping[str, keras.Model], batch_sizes: Sequence[int] = (1, 32), fold: bool = True
) -> tuple[ModelLatency, ...]:
    """Measure how long forward passes of Keras models take on this device, with the threads of this process.

    The models take turns, so that a change of the machine's speed meets all of them; passes before the counted ones
    warm up each turn. They are called through `predict_on_batch`, whose own cost is part of the figures. Measuring
    takes about two seconds for each model and batch size, longer if a pass takes more than half a second.

    Args:
        models: by name, with one input of the same fixed shape; `times_as_fast` compares with the first model.
        batch_sizes: numbers of images in a pass.
        fold: measure copies that are rewritten for inference (batch normalisation becomes part of convolutions), as
            pbd writes students. The outputs are the same. If false, the models are measured as they are.

    Returns:
        One record for each batch size and model, in this order; times in seconds.

    Raises:
        UsageError: there is no model, or a batch size is below 1.
        BadInputError: the models have other inputs, or one cannot be folded.

    Example:
        >>> pbd.measure_latency({"teacher": teacher, "student": student}, batch_sizes=[1])[1].times_as_fast
        2.31
    """
    if not models or not batch_sizes or min(batch_sizes) < 1:
        raise UsageError(
            "latency needs a model, and batch sizes of at least 1. "
            f"Received: models {list(models)}, batch sizes {list(batch_sizes)}. Give both."
        )
    shape, dtype = _common_input(models)
    prepared = {name: _folded(name, model) if fold else model for name, model in models.items()}
    runners: dict[str, Runner] = {name: model.predict_on_batch for name, model in prepared.items()}
    pixels = np.random.default_rng(0)
    return tuple(
        row for batch in batch_sizes for row in _measure(runners, pixels.uniform(0, 255, (batch, *shape)).astype(dtype))
    )


def _common_input(models: Mapping[str, keras.Model]) -> tuple[tuple[int, ...], str]:
    """Return the shape of one image and its data type, which all models must share."""
    inputs = {
        name: tuple((tuple(tensor.shape[1:]), str(tensor.dtype)) for tensor in model.inputs or ())
        for name, model in models.items()
    }
    first = next(iter(inputs.values()))
    if len(first) != 1 or None in first[0][0] or any(other != first for other in inputs.values()):
        raise BadInputError(
            "models must have one input each, of the same fixed shape and data type. "
            f"Received: {'; '.join(f'{name} {list(shapes)}' for name, shapes in inputs.items())}. "
            "Build each of them with one keras.Input of the same shape."
        )
    return first[0]


def _folded(name: str, model: keras.Model) -> keras.Model:
    try:
        return inference_form.fold(model)
    except BadInputError as error:
        raise BadInputError(
            f"cannot rewrite {name!r} for inference: {error} Or measure it as it is: --no-fold, or fold=False."
        ) from error


def _measure(runners: Mapping[str, Runner], images: np.ndarray) -> list[ModelLatency]:
    """Return the latency of each model with one batch of images."""
    first = alternate(runners, images, rounds=1, warm_up=1, burst=1)  # the uncounted pass compiles
    rounds, warm_up, burst = plan(max(float(times[0]) for times in first.values()))
    times_s = alternate(runners, images, rounds, warm_up, burst)
    reference_s = next(iter(times_s.values()))
    rows = []
    for name, model_s in times_s.items():
        q1_s, median_s, q3_s = (float(value) for value in np.quantile(model_s, (0.25, 0.5, 0.75)))
        times_as_fast = float(np.median(reference_s / model_s))
        rows.append(ModelLatency(name, len(images), median_s, q1_s, q3_s, times_as_fast, rounds, burst))
    return rows


def compare(
    teacher: keras.Model, student: keras.Model, training_batch: int, fold_student: bool = True
) -> tuple[Latency, ...]:
    """Return how fast a student is beside its teacher, with single images and with the training batch.

    Args:
        teacher: functional or sequential, one input; so is the student. It is rewritten for inference.
        student: the network made from it.
        training_batch: images in a step of training.
        fold_student: rewrite the student for inference; if false, it is measured as it is.
    """
    folded = _folded("student", student) if fold_student else student
    networks = {"teacher": _folded("teacher", teacher), "student": folded}
    rows = measure_latency(networks, sorted({1, training_batch}), fold=False)
    return tuple(
        Latency(
            batch=ours.batch,
            teacher_s=theirs.seconds,
            teacher_q1_s=theirs.q1_s,
            teacher_q3_s=theirs.q3_s,
            student_s=ours.seconds,
            student_q1_s=ours.q1_s,
            student_q3_s=ours.q3_s,
            times_as_fast=ours.times_as_fast,
            rounds=ours.rounds,
            passes=ours.passes,
            student_folded=fold_student,
        )
        for theirs, ours in zip(rows[::2], rows[1::2], strict=True)
    )


def plan(pass_s: float) -> tuple[int, int, int]:
    """Return how many rounds fit into `LIMIT_S`, and how many uncounted and counted passes each has.

    A long pass fills the caches by itself, so it needs less warm-up.

    Args:
        pass_s: seconds of one pass of the slowest model.
    """
    passes = int(LIMIT_S / pass_s)
    in_a_round = passes // ROUNDS
    if in_a_round >= WARM_UP + BURST:
        return ROUNDS, WARM_UP, BURST
    if in_a_round >= 2:
        return ROUNDS, 1, in_a_round - 1
    return max(MIN_ROUNDS, min(ROUNDS, passes)), 0, 1


def alternate(
    runners: Mapping[str, Runner],
    images: np.ndarray,
    rounds: int,
    warm_up: int = WARM_UP,
    burst: int = BURST,
) -> dict[str, np.ndarray]:
    """Run models in turn; return for each the median seconds of a pass in each round, shape `(rounds,)`.

    A turn is a burst of passes of one model, of which the first ones are not counted: they find the caches full of
    another model's weights, which does not happen where one model serves.

    Args:
        runners: the forward pass of each model, by name.
        images: shape `(batch, height, width, channels)`.
        rounds: turns of each model.
        warm_up: uncounted passes at the beginning of a turn.
        burst: counted passes.
    """
    times_s: dict[str, list[float]] = {name: [] for name in runners}
    for number in range(rounds):
        for name in list(runners)[:: 1 if number % 2 else -1]:  # reversed every round: no model always follows another
            passes_s = []
            for _ in range(warm_up + burst):
                start_s = time.perf_counter()
                runners[name](images)
                passes_s.append(time.perf_counter() - start_s)
            times_s[name].append(float(np.median(passes_s[warm_up:])))
    return {name: np.array(rounds_s) for name, rounds_s in times_s.items()}

"""How long a forward pass takes: networks in turn, on this device, with the threads that this process has."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from pbd.deploy import inference_form
from pbd.records import Latency

WARM_UP = 3
BURST = 10
ROUNDS = 15
FEWEST_ROUNDS = 3
LIMIT_S = 2.0
"""About how long each network is measured with each batch size; a few passes of a slow one may take longer."""


def compare(teacher: keras.Model, student: keras.Model, training_batch: int) -> tuple[Latency, ...]:
    """Return how fast a student is beside its teacher, with single images and with the training batch.

    Both are folded first, as they would be to serve, and called through Keras' `predict_on_batch`: what a call costs
    beside the network's own work is in the figures.

    Args:
        teacher: flat and functional, as is the student.
        student: what it became.
        training_batch: images in a step of training.
    """
    networks = {"teacher": inference_form.fold(teacher), "student": inference_form.fold(student)}
    runners = {name: model.predict_on_batch for name, model in networks.items()}
    inputs = teacher.inputs[0]
    return tuple(_compare(runners, inputs.shape[1:], inputs.dtype, batch) for batch in sorted({1, training_batch}))


def _compare(runners: Mapping[str, Callable[[Any], Any]], image_shape: Any, dtype: str, batch: int) -> Latency:
    images = np.random.default_rng(0).uniform(0, 255, (batch, *image_shape)).astype(dtype)
    first = alternate(runners, images, rounds=1, warm_up=1, burst=1)
    rounds, warm_up, burst = plan(max(float(taken[0]) for taken in first.values()))
    times = alternate(runners, images, rounds, warm_up, burst)
    quartiles = {
        f"{name}{ending}": float(np.quantile(taken, share))
        for name, taken in times.items()
        for ending, share in (("_q1_s", 0.25), ("_s", 0.5), ("_q3_s", 0.75))
    }
    return Latency(
        batch=batch,
        **quartiles,
        times_as_fast=float(np.median(times["teacher"] / times["student"])),
        rounds=rounds,
        passes=burst,
    )


def plan(pass_s: float) -> tuple[int, int, int]:
    """Return how many rounds fit into `LIMIT_S`, and the uncounted and the counted passes of each.

    The longer a pass, the sooner it has filled the caches by itself: it can do with less warm-up.

    Args:
        pass_s: the seconds that a pass of the slowest network takes.
    """
    passes = int(LIMIT_S / pass_s)
    in_a_round = passes // ROUNDS
    if in_a_round >= WARM_UP + BURST:
        return ROUNDS, WARM_UP, BURST
    if in_a_round >= 2:
        return ROUNDS, 1, in_a_round - 1
    return max(FEWEST_ROUNDS, min(ROUNDS, passes)), 0, 1


def alternate(
    runners: Mapping[str, Callable[[np.ndarray], Any]],
    images: np.ndarray,
    rounds: int,
    warm_up: int = WARM_UP,
    burst: int = BURST,
) -> dict[str, np.ndarray]:
    """Run the networks in turn and return each one's median seconds of each round.

    A turn is a burst of passes, the first few uncounted: after a single pass of another network, the caches would hold
    that one's weights, as they never do where one network serves.

    Args:
        runners: what runs each network, by name.
        images: `(batch, height, width, channels)`.
        rounds: turns of each network.
        warm_up: uncounted passes at the beginning of a turn.
        burst: counted passes.
    """
    times: dict[str, list[float]] = {name: [] for name in runners}
    for at in range(rounds):
        for name in list(runners)[:: 1 if at % 2 else -1]:  # so that none always runs behind the same other one
            taken = []
            for _ in range(warm_up + burst):
                started = time.perf_counter()
                runners[name](images)
                taken.append(time.perf_counter() - started)
            times[name].append(float(np.median(taken[warm_up:])))
    return {name: np.array(taken) for name, taken in times.items()}

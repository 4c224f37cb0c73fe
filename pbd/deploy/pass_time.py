"""Time of forward passes on a machine that other processes use too."""

import time
from collections.abc import Callable, Sequence

import numpy as np

from pbd.deploy.runtimes.base import Runner
from pbd.system import processor

LIMIT_S = 0.3
"""About how long the passes of each network take in all; with slow passes more, for `MIN_ROUNDS`."""
MIN_ROUNDS, MAX_ROUNDS = 7, 60
BURST = 5
"""Counted passes of a turn; one pass before them is not counted."""
SLOW_S = 0.01
"""Passes from this length on have `SLOW_BURST` counted passes in a turn."""
SLOW_BURST = 2

COLD_PASSES = 4

Clock = Callable[[], float]


def clock_for(threads: int | None) -> Clock:
    """Return the clock for passes on this many threads: the CPU time of the process for one thread, else the time.

    On one thread, CPU time is the time on a machine without other work, to 3% or so: it does not count what other
    processes take. On several threads it is a sum over threads, which says nothing about latency.

    Args:
        threads: None if they are not known, or if passes wait for another device.
    """
    return time.process_time if threads == 1 else time.perf_counter


def least_seconds(runners: Sequence[Runner], images: Sequence[np.ndarray], threads: int | None) -> tuple[float, ...]:
    """Return how long a pass of each network takes if nothing disturbs it.

    The networks take turns of several passes. A turn counts as the median of its passes, a network as its shortest
    turn: disturbances only lengthen passes.

    Args:
        runners: forward passes of the networks.
        images: for each network, (batch, height, width, channels) float32.
        threads: CPU threads that the passes use; see `clock_for`.
    """
    clock = clock_for(threads)
    for run, pixels in zip(runners, images, strict=True):
        run(pixels)  # compiles, allocates
    first_s = [_turn(run, pixels, 1, clock) for run, pixels in zip(runners, images, strict=True)]
    burst = BURST if max(first_s) < SLOW_S else SLOW_BURST
    rounds = int(np.clip(LIMIT_S * len(runners) / (sum(first_s) * (burst + 1) + 1e-9), MIN_ROUNDS, MAX_ROUNDS))
    turns_s = np.empty((rounds, len(runners)))
    numbers = list(range(len(runners)))
    for round_ in range(rounds):
        for number in numbers[:: 1 if round_ % 2 else -1]:  # reversed every round: no network always follows another
            turns_s[round_, number] = _turn(runners[number], images[number], burst, clock)
    return tuple(float(least) for least in turns_s.min(axis=0))


def cold_seconds(runners: Sequence[Runner], images: Sequence[np.ndarray], threads: int | None) -> tuple[float, ...]:
    """Return how long a pass of each network takes if its weights have to be read from memory.

    Between passes so much is read that the caches of the CPU hold nothing of the network.

    Args:
        runners: forward passes of the networks, which have run once.
        images: for each network, (batch, height, width, channels) float32.
        threads: CPU threads that the passes use; see `clock_for`.
    """
    clock = clock_for(threads)
    other_data = np.ones(2 * processor.cache_bytes() // 8)
    passes_s = np.empty((COLD_PASSES, len(runners)))
    for round_ in range(COLD_PASSES):
        for number, (run, pixels) in enumerate(zip(runners, images, strict=True)):
            other_data.sum()
            start_s = clock()
            run(pixels)
            passes_s[round_, number] = clock() - start_s
    return tuple(float(least) for least in passes_s.min(axis=0))


def _turn(run: Runner, pixels: np.ndarray, burst: int, clock: Clock) -> float:
    """Return the median seconds of `burst` passes, after one that is not counted."""
    passes_s = []
    for _ in range(burst + 1):
        start_s = clock()
        run(pixels)
        passes_s.append(clock() - start_s)
    return float(np.median(passes_s[1:]))

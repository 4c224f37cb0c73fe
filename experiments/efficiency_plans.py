"""The trainings of the efficiency study: of the teachers, and of a student by each method."""

from dataclasses import dataclass

import numpy as np

LABELS = 0
"""In a schedule, a step without a teacher; the teachers are numbered from 1."""
BASELINE = "labels alone"
DRAWN, MEAN, MATRYOSHKA = "teacher drawn per step", "mean of the teachers", "Matryoshka"
HALF = ", half"
SHARES = (0.25, 0.5, 1.0)
"""Of the steps, from the first on, that have a teacher."""


@dataclass(frozen=True)
class Plan:
    """One training: how long, and what the network learns from."""

    name: str
    """Of its files."""
    seed: int
    """Of the initial weights, the order and the augmentation of the images, and the teachers of the steps."""
    epochs: int
    teachers: tuple[str, ...] = ()
    """Names of trainings whose networks are the teachers."""
    loss: str = "kl"
    """Distillation loss: kl or mse."""
    share: float = 1.0
    """Share of the steps, from the first on, that have a teacher."""
    mean: bool = False
    """Every step has all teachers, and their mean logits; if not, one teacher is drawn per step."""

    def schedule(self, steps: int) -> np.ndarray:
        """Return the teacher of each step, (steps,) int32: its number, or `LABELS`."""
        count = 1 if self.mean else len(self.teachers)
        if count == 0:
            return np.full(steps, LABELS, np.int32)
        teachers = np.random.default_rng(self.seed).integers(1, count + 1, steps, np.int32)
        teachers[round(self.share * steps) :] = LABELS
        return teachers


@dataclass(frozen=True)
class Spent:
    """What a number of epochs took."""

    epochs: int
    seconds: float
    cpu_seconds: float
    """Processor time of all threads: on a shared machine, it changes less than the time of the clock."""


@dataclass(frozen=True)
class Training:
    """A complete training; all lists have an entry per epoch."""

    seconds: list[float]
    cpu_seconds: list[float]
    val_accuracies: list[float]
    test_accuracy: float
    """After the last epoch."""

    def spent(self, epochs: int | None = None) -> Spent:
        """Return what the first epochs took; by default, all."""
        seconds, cpu_seconds = self.seconds[:epochs], self.cpu_seconds[:epochs]
        return Spent(len(seconds), sum(seconds), sum(cpu_seconds))

    def spent_until(self, accuracy: float) -> Spent | None:
        """Return what it took until the validation accuracy first reached a target; None if it never did."""
        epochs = (number for number, each in enumerate(self.val_accuracies, start=1) if each >= accuracy)
        reached = next(epochs, None)
        return None if reached is None else self.spent(reached)


def student_plans(seed: int, epochs: int, teachers: int) -> dict[str, Plan]:
    """Return the training of each method, by the method's name, in the order of the table.

    Args:
        seed: of all students, which have the same initial weights and batches.
        epochs: of all but those of half the epochs.
        teachers: how many there are.
    """
    pool = tuple(f"teacher-{number}" for number in range(1, teachers + 1))
    generations = (*pool[:1], *(f"generation-{number}" for number in range(2, teachers + 1)))
    half = max(1, epochs // 2)
    return {
        BASELINE: Plan("labels", seed, epochs),
        **{method: Plan(f"kl-{100 * share:.0f}", seed, epochs, pool[:1], share=share) for method, share in _shares()},
        "MSE": Plan("mse", seed, epochs, pool[:1], loss="mse"),
        DRAWN: Plan("drawn", seed, epochs, pool),
        MEAN: Plan("mean", seed, epochs, pool, mean=True),
        MATRYOSHKA: Plan("matryoshka", seed, epochs, generations),
        BASELINE + HALF: Plan("labels-half", seed, half),
        **{
            method + HALF: Plan(f"kl-{100 * share:.0f}-half", seed, half, pool[:1], share=share)
            for method, share in _shares()
        },
    }


def _shares() -> list[tuple[str, float]]:
    """Return the share of the steps that have a teacher with the name of the method."""
    return [("KL" if share == 1.0 else f"KL, first {share:.0%}", share) for share in SHARES]


def teacher_plans(seed: int, epochs: int, teachers: int) -> dict[str, Plan]:
    """Return the trainings of the teachers by name, and those of the generations of Matryoshka.

    The first teacher is the first generation. Each later one learns from a teacher drawn per step from all before it.

    Args:
        seed: of the students; teachers have the next ones.
        epochs: of each.
        teachers: how many there are, and how many generations.
    """
    plans = {f"teacher-{n}": Plan(f"teacher-{n}", seed + n, epochs) for n in range(1, teachers + 1)}
    before: tuple[str, ...] = ("teacher-1",)
    for number in range(2, teachers + 1):
        name = f"generation-{number}"
        plans[name] = Plan(name, seed + number, epochs, before)
        before = (*before, name)
    return plans

"""The losses of fine-tuning equal their definitions."""

import numpy as np
import pytest
from scipy import special

from pbd.config import StudentConfig
from pbd.data.mixing import mixed_labels
from pbd.learning import losses

pytestmark = pytest.mark.usefixtures("eager")
LOSSES = ("kd_mse", "kd_kl", "cross_entropy", "mixed")


def by_hand(config: StudentConfig, labels: np.ndarray, student: np.ndarray, teacher: np.ndarray) -> float:
    """Return the loss as the papers write it, in double precision."""
    student, teacher = student.astype("float64"), teacher.astype("float64")
    softened = [special.softmax(logits / config.temperature, axis=-1) for logits in (teacher, student)]
    divergence = config.temperature**2 * special.rel_entr(*softened).sum(axis=-1).mean()
    surprise = -np.log(special.softmax(student, axis=-1)[np.arange(len(labels)), labels]).mean()
    weight = config.distillation_weight
    return {
        "kd_mse": np.mean((student - teacher) ** 2),
        "kd_kl": divergence,
        "cross_entropy": surprise,
        "mixed": weight * divergence + (1 - weight) * surprise,
    }[config.fine_tune_loss]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("temperature", "weight"), [(1.0, 0.9), (4.0, 0.25)])
def test_losses_equal_their_definitions(loss: str, temperature: float, weight: float) -> None:
    generator = np.random.default_rng(1)
    labels = generator.integers(5, size=7).astype("int32")
    student, teacher = generator.normal(0.0, 3.0, (2, 7, 5)).astype("float32")
    config = StudentConfig(fine_tune_loss=loss, temperature=temperature, distillation_weight=weight)
    found = float(losses.make_loss(config)(labels, student, teacher))
    assert found == pytest.approx(by_hand(config, labels, student, teacher), rel=1e-5)


def test_the_loss_on_labels_of_mixed_images_is_that_on_their_distribution() -> None:
    generator = np.random.default_rng(1)
    labels, partners = generator.integers(5, size=(2, 7)).astype("int32")
    student, share = generator.normal(0.0, 3.0, (7, 5)).astype("float32"), generator.random(7).astype("float32")
    distribution = share[:, None] * np.eye(5)[labels] + (1 - share[:, None]) * np.eye(5)[partners]
    found = float(losses.cross_entropy(mixed_labels(labels, partners, share), student, None))
    assert found == pytest.approx(-(distribution * special.log_softmax(student, axis=-1)).sum(axis=-1).mean(), rel=1e-5)


@pytest.mark.parametrize("loss", ["kd_mse", "kd_kl"])
def test_the_loss_is_zero_if_the_student_equals_the_teacher(loss: str) -> None:
    logits = np.random.default_rng(1).normal(0.0, 3.0, (7, 5)).astype("float32")
    measured = losses.make_loss(StudentConfig(fine_tune_loss=loss))
    assert float(measured(np.full(7, -1), logits, logits)) == pytest.approx(0.0, abs=1e-6)
    assert float(measured(np.full(7, -1), logits + np.eye(7, 5, dtype="float32"), logits)) > 0.01


def test_kd_kl_ignores_a_constant_and_kd_mse_does_not() -> None:
    logits = np.random.default_rng(1).normal(size=(7, 5)).astype("float32")
    kl, mse = (losses.make_loss(StudentConfig(fine_tune_loss=loss)) for loss in ("kd_kl", "kd_mse"))
    assert float(kl(None, logits + 3.0, logits)) == pytest.approx(0.0, abs=1e-5)
    assert float(mse(None, logits + 3.0, logits)) == pytest.approx(9.0, rel=1e-5)

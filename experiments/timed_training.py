"""Training of networks on labels and on teachers of the same architecture, with the time of every epoch.

The loss is `weight * distillation loss + cross entropy` while a step has a teacher, then cross entropy alone. The clock
runs during the training steps only: not while the first one is compiled, and not during validation.
"""

import dataclasses
import itertools
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np

from experiments.efficiency_plans import LABELS, Plan, Training
from pbd.compression import ensemble
from pbd.compression.distill_into import rescaled
from pbd.config import TeacherConfig
from pbd.data import Dataset
from pbd.learning import losses, metrics
from pbd.learning.loop import adam
from pbd.networks import small_nets
from pbd.pipeline import built_in
from pbd.run_dir.journal import Journal
from pbd.system import devices, random_state

WARMUP = 0.05
"""Share of the steps in which the learning rate rises from 0, as in DistillInto."""


class TaughtModel(keras.Model):
    """A network that learns from labels and, in some steps, from a frozen teacher of the same classes.

    Args:
        student: Maps images to logits.
        teachers: The same; one of them, or none, computes in a step.
        loss: Distillation loss of (labels, student logits, teacher logits).
        weight: Of the distillation loss; cross entropy has weight 1.
    """

    def __init__(self, student: keras.Model, teachers: list[keras.Model], loss: losses.Loss, weight: float) -> None:
        super().__init__(name="taught_model")
        self.student, self.teachers = student, teachers
        for teacher in teachers:
            teacher.trainable = False
        self._loss, self._weight = loss, weight

    def call(self, inputs: Any, training: bool = False) -> list[Any]:
        """Return the student's logits and those of the step's teacher.

        Args:
            inputs: images, and for each image the number of the step's teacher, (batch,) int32.
            training: whether the student is trained.
        """
        images, numbers = inputs
        logits = self.student(images, training=training)
        if not self.teachers:
            return [logits]
        branches = [lambda _: keras.ops.zeros_like(logits)]
        branches += [lambda x, teacher=teacher: teacher(x, training=False) for teacher in self.teachers]
        return [logits, keras.ops.switch(numbers[0], branches, images)]

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        logits, *of_teacher = y_pred
        loss = losses.cross_entropy(y, logits, None)
        for target in of_teacher:
            distilled = self._loss(y, logits, keras.ops.stop_gradient(target))
            loss = loss + self._weight * keras.ops.where(x[1][0] == LABELS, 0.0, distilled)
        return loss


@dataclass(frozen=True)
class TrainingFolder:
    """Trains what is not complete in a run directory: `NAME.json` and `NAME.keras` of each training."""

    journal: Journal
    dataset: Dataset
    network: str
    """Of all trainings: the name of a small network, or of one that pbd can build."""
    learning_rate: float
    """Of Adam, from which it decays to zero along a cosine."""
    temperature: float
    weight: float
    """Of the distillation loss."""
    validation_images: int | None
    """Most images to validate on after each epoch."""

    def train(self, plan: Plan) -> Training:
        """Train a network as planned, or read the training if it is complete.

        Args:
            plan: whose teachers are complete.
        """
        file = self.journal.file(f"{plan.name}.json")
        if file.is_file():
            content = json.loads(file.read_bytes())
            return Training(**content["training"])
        student = build(self.network, self.dataset, plan.seed)
        training = self._train(plan, student, self._teachers(plan))
        student.save(self.journal.file(f"{plan.name}.keras"))
        self.journal.write_json(file.name, {"plan": dataclasses.asdict(plan), "training": dataclasses.asdict(training)})
        return training

    def _train(self, plan: Plan, student: keras.Model, teachers: list[keras.Model]) -> Training:
        dataset = replace(self.dataset, seed=plan.seed)
        steps = plan.epochs * dataset.steps_per_epoch
        optimizer = adam(self.learning_rate, steps, student.trainable_variables, warmup=round(WARMUP * steps))
        model = TaughtModel(student, teachers, self._loss(plan.loss), self.weight)
        model.compile(optimizer, jit_compile=devices.compiles_with_xla())
        batches = _steps(dataset, plan)
        first = next(batches)
        compile_step(model, *first)
        batches = itertools.chain([first], batches)
        seconds, cpu_seconds, accuracies = [], [], []
        for _ in range(plan.epochs):
            started, cpu_started = time.perf_counter(), time.process_time()
            for inputs, labels in itertools.islice(batches, dataset.steps_per_epoch):
                model.train_on_batch(inputs, labels)
            seconds.append(time.perf_counter() - started)
            cpu_seconds.append(time.process_time() - cpu_started)
            validation = dataset.batches("validation", self.validation_images)
            accuracies.append(metrics.accuracy(student, validation))
        return Training(seconds, cpu_seconds, accuracies, metrics.accuracy(student, dataset.batches("test")))

    def _teachers(self, plan: Plan) -> list[keras.Model]:
        """Return the networks among which the steps of a plan choose."""
        files = [self.journal.file(f"{name}.keras") for name in plan.teachers]
        teachers = [keras.models.load_model(file, compile=False) for file in files]
        if not plan.mean:
            return teachers
        images, _ = next(iter(self.dataset.batches("validation", self.dataset.batch_size)))
        return [ensemble.joined(teachers, ensemble.LOGITS, images)]

    def _loss(self, name: str) -> losses.Loss:
        if name == "mse":
            return losses.kd_mse
        return lambda labels, student, teacher: losses.kd_kl(labels, student, teacher, self.temperature)


def build(name: str, dataset: Dataset, seed: int) -> keras.Model:
    """Return a network with random weights that maps the images of the data to logits.

    Args:
        name: one of `small_nets.SMALL_NETS`, `digits_cnn`, or a network of keras.applications.
        dataset: with labels.
        seed: of the weights.

    Raises:
        BadInputError: the network does not take these images.
    """
    assert dataset.num_classes is not None, "the data have labels"
    if name not in small_nets.SMALL_NETS:
        return built_in.build(TeacherConfig(teacher=name), dataset.image_shape, dataset.num_classes, seed)
    random_state.seed(seed)
    return small_nets.build(name, dataset.image_shape, dataset.num_classes, rescaled(dataset))


def compile_step(model: TaughtModel, inputs: list[Any], labels: Any) -> None:
    """Compile the training step of a model by one step, after which its variables are as before.

    Args:
        model: Compiled in the sense of Keras.
        inputs: Images and numbers of teachers of a batch.
        labels: Of the batch.
    """
    variables = [*model.student.variables, *model.optimizer.variables]
    values = [keras.ops.convert_to_numpy(variable) for variable in variables]
    model.train_on_batch(inputs, labels)
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def _steps(dataset: Dataset, plan: Plan) -> Iterator[tuple[list[Any], Any]]:
    """Yield the inputs of the model and the labels for all steps of a training."""
    batches = dataset.training_batches(0, plan.epochs)
    schedule = plan.schedule(plan.epochs * dataset.steps_per_epoch)
    for (images, labels), teacher in zip(batches, schedule, strict=True):
        yield [images, np.full(dataset.batch_size, teacher, np.int32)], labels

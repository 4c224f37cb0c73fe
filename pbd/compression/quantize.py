"""The step that puts the network into 8-bit integers, after training or with training for them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import keras

from pbd.compression import quantization
from pbd.compression.settings import METHODS, Training, check_method
from pbd.compression.step import StepResult
from pbd.config.values import Section, one_of
from pbd.deploy import targets
from pbd.deploy.int8 import quantizing
from pbd.errors import UsageError

if TYPE_CHECKING:
    from pbd.compression.context import Context
    from pbd.deploy.targets import Target


@dataclass(frozen=True)
class Quantize(Section):
    """Writes the network in 8-bit integers; see `pbd.quantize`.

    With method `ptq` the next step gets the network as it was. With `qat` it gets the network with the rounded kernels
    that were trained.

    Example:
        >>> Quantize(method="qat", target="onnx-int8")
    """

    method: str = METHODS[0]
    """ptq (after training), or qat (trained for 8-bit integers on the logits of the network)."""
    target: str | None = None
    """Such as onnx-int8; by default the target of the recipe."""
    max_drop: float = quantizing.MAX_DROP
    """For ptq: the validation accuracy that may be lost before layers stay in float32."""
    calibration_images: int = quantizing.CALIBRATION_IMAGES
    """Training images from which the ranges of the activations are taken."""
    epochs: int = Training.epochs
    """For qat: passes over the training images."""
    learning_rate: float = Training.learning_rate
    """For qat: the learning rate of Adam, which rises first and decays to zero along a cosine."""

    uses_target: ClassVar[bool] = True

    def check(self) -> None:
        one_of("method", self.method, METHODS)
        quantizing.check_settings(self.max_drop, self.calibration_images)
        if self.target is not None:
            quantizing.check_int8(self.target)
            if self.method == "qat":
                quantizing.check_trained(self.target)
        check_method(self.method, self.training)

    def check_target(self, target: "Target") -> None:
        _ = self._target(target)

    @property
    def training(self) -> Training:
        """The settings of quantisation-aware training."""
        return Training(self.epochs, self.learning_rate)

    def apply(self, model: keras.Model, context: "Context") -> StepResult:
        target = self._target(context.target)
        path = context.journal.file(f"network_int8{target.runtime.suffix}")
        written = quantization.written(
            model,
            context.dataset,
            path,
            target,
            self.method,
            self.max_drop,
            self.calibration_images,
            self.training,
            context.fine_tune,
            context.keeps_zeros,
        )
        file = written.file
        details = {
            "target": target.name,
            "method": file.method,
            "validation_accuracy": file.val_accuracy,
            "float32_validation_accuracy": file.float_val_accuracy,
            "kept_float": list(file.kept_float),
        }
        return StepResult(written.network, details, self._events(file.method), quantized={target.name: path})

    def _events(self, method: str) -> tuple[str, ...]:
        """Return an event if the file that was kept is that of another method."""
        if method == self.method:
            return ()
        return (
            f"training for 8-bit integers lost validation accuracy: the file and the network are those of {method}",
        )

    def _target(self, of_recipe: "Target") -> "Target":
        """Return the target.

        Raises:
            UsageError: it is unknown, or it or the target of the recipe has no 8-bit integers.
            EnvironmentMismatchError: it is not installed.
        """
        if self.target is not None:
            return quantizing.get_target(self.target)
        name = f"{of_recipe.name}-int8"
        if name not in targets.TARGETS:
            usable = targets.usable_int8()
            install = "Install one: pip install 'pbd[openvino]', and set the target of the step to openvino-int8."
            remedy = install if usable is None else f"Set the target of the step to {usable.name}."
            raise UsageError(f"a target must have 8-bit integers. Received: {of_recipe.name}. {remedy}")
        return quantizing.get_target(name)

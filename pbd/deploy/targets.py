"""Targets: a runtime and a precision, by name, such as `onnx-int8`."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pbd.deploy.runtimes import base
from pbd.deploy.runtimes.keras import Keras
from pbd.deploy.runtimes.litert import LiteRt
from pbd.deploy.runtimes.onnx import Onnx
from pbd.deploy.runtimes.openvino import OpenVino
from pbd.deploy.runtimes.saved_model import SavedModel
from pbd.deploy.runtimes.tensorrt import TensorRt
from pbd.errors import BadInputError, EnvironmentMismatchError, PbdError, UsageError, one_line, unknown_name
from pbd.system import backend, devices, silence

_INT8 = "-int8"
_PREFERRED = ("openvino", "onnx", "litert", "keras-gpu", "keras")


@dataclass(frozen=True)
class Target:
    """A runtime and a precision."""

    runtime: base.Runtime
    int8: bool = False

    @property
    def name(self) -> str:
        return self.runtime.name + _INT8 * self.int8

    @property
    def quantizer(self) -> base.QuantizingRuntime:
        """The runtime of a target with 8-bit integers."""
        assert isinstance(self.runtime, base.QuantizingRuntime)
        return self.runtime

    def load(self, path: Path, threads: int) -> base.Runner:
        """Return the forward pass of a file (see `base.Runtime.load`); what the library prints is discarded.

        Raises:
            BadInputError: the runtime does not take the file: exporters write operations that it does not have.
        """
        try:
            with silence.silenced():
                return self.runtime.load(path, threads)
        except PbdError:
            raise
        except Exception as error:
            raise BadInputError(
                f"the {self.name} file cannot be run here: {one_line(error)}. Export to another target."
            ) from error

    def obstacle(self) -> str | None:
        """Return why networks cannot be run here, with the remedy; `None` if they can."""
        if self.runtime.name.endswith("-gpu") and not devices.has_accelerator():
            return f"{self.name} needs a GPU"
        packages = self.runtime.packages
        if self.int8:
            packages += self.quantizer.quantizing_packages
        missing = base.missing(packages)
        if missing:
            extras = ["cpu"] if "tensorflow" in missing else []
            if self.runtime.extra not in extras:
                extras.append(self.runtime.extra)
            return f"{self.name} needs {', '.join(missing)}: pip install 'pbd[{','.join(extras)}]'"
        if "tensorflow" in packages and backend.name() != "tensorflow":
            return f"{self.name} needs Keras on TensorFlow, not on {backend.name()}: set {backend.VARIABLE}=tensorflow"
        return None


def _targets() -> Iterable[Target]:
    for runtime in (OpenVino(), Onnx(), LiteRt(), TensorRt()):
        yield Target(runtime)
        yield Target(runtime, int8=True)
    for other in (Keras("cpu"), Keras("gpu"), SavedModel()):
        yield Target(other)


TARGETS = {target.name: target for target in _targets()}


def get(name: str) -> Target:
    """Return the target of this name.

    Raises:
        UsageError: there is none.
        EnvironmentMismatchError: something that it needs is not installed.
    """
    if name not in TARGETS:
        raise UsageError(unknown_name("target", name, TARGETS))
    target = TARGETS[name]
    obstacle = target.obstacle()
    if obstacle is not None:
        raise EnvironmentMismatchError(f"a target must be installed. Received: {name!r}. {obstacle}.")
    return target


def get_timed(name: str) -> Target:
    """Return the target of this name, in which latency can be measured.

    Raises:
        UsageError: there is none, or it is only written here.
        EnvironmentMismatchError: something that it needs is not installed.
    """
    target = get(name)
    if not target.runtime.is_timed:
        raise UsageError(
            f"latency is measured on this machine. Received: {name!r}, which is only written here. Export to it, and "
            "run the script beside the file on the device."
        )
    return target


def default() -> Target:
    """Return the first target of openvino, onnx, litert, keras-gpu and keras that can be used here."""
    return next(TARGETS[name] for name in _PREFERRED if TARGETS[name].obstacle() is None)


def of_budget(name: str) -> Target:
    """Return the target whose latency and file sizes blocks are chosen by; "auto" is the default.

    Raises:
        UsageError: there is none of this name.
        EnvironmentMismatchError: something that it needs is not installed.
    """
    return default() if name == "auto" else get_timed(name)


def for_run(name: str) -> Target:
    """Return the target of a run, in float32; see `of_budget`."""
    return TARGETS[of_budget(name).runtime.name]


def usable_int8() -> Target | None:
    """Return the first target of 8-bit integers that can be used here, in the order of `default`."""
    preferred = (TARGETS.get(name + _INT8) for name in _PREFERRED)
    return next((target for target in preferred if target is not None and target.obstacle() is None), None)


def default_pair() -> list[Target]:
    """Return the default target in float32 and, if they can be used, in 8-bit integers."""
    target = default()
    int8 = TARGETS.get(target.name + _INT8)
    return [target] if int8 is None or int8.obstacle() else [target, int8]


def of_file(path: str) -> str:
    """Return the float32 target that writes files of this suffix.

    Raises:
        UsageError: none does.
    """
    for target in TARGETS.values():
        if target.runtime.suffix and path.endswith(target.runtime.suffix):
            return target.name
    suffixes = ", ".join(sorted({target.runtime.suffix for target in TARGETS.values()} - {""}))
    raise UsageError(f"the suffix of the file must be one of {suffixes}. Received: {path!r}. Give a --target.")

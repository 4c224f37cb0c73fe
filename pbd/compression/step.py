"""A step of a recipe: it takes a network and returns another one."""

import dataclasses
import functools
import hashlib
import re
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from pbd.errors import BadInputError, UsageError

if TYPE_CHECKING:
    import keras

    from pbd.compression.context import Context
    from pbd.config import RunConfig
    from pbd.data import Dataset
    from pbd.deploy.targets import Target

_ADDRESS = re.compile(r"<[^<>]* at 0x[0-9a-f]+>")
"""In the text of an object: it differs from process to process."""
_FUNCTIONS = (
    type,
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
    types.MethodWrapperType,
    functools.partial,
)


@dataclass(frozen=True, eq=False)
class StepResult:
    """What a step made of a network."""

    model: "keras.Model"
    """Flat and functional, in float32; not compiled."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """What there is to know about the step, in plain JSON types."""
    events: tuple[str, ...] = ()
    """Notes for the report, one line each."""
    keeps_zeros: bool | None = None
    """Whether later training has to leave weights that are zero at zero; `None`: as before the step."""
    quantized: Mapping[str, Path] = field(default_factory=dict)
    """Files in 8-bit integers that the step wrote, by target: `max_drop` of the recipe judges them, not `model`."""


@runtime_checkable
class Step(Protocol):
    """A step: a frozen dataclass of its settings, which checks them when it is made.

    The name of its class in lower case with underscores is its name in recipe files and reports. It may have four more
    attributes: methods `check_config(config)`, `check_data(dataset)` and `check_target(target)`, which raise a PbdError
    before the first step of a recipe if the step cannot be applied with these settings of the recipe, to these images
    or for this target, and `uses_target`, which is true if its network or its files depend on the target of the recipe.
    """

    def apply(self, model: "keras.Model", context: "Context") -> StepResult:
        """Return the network that the step makes of `model`, which stays as it is.

        Args:
            model: flat and functional, in float32.
            context: the images, the workers, and the step's folder.

        Raises:
            PbdError: the step cannot be applied to this network or these images.
        """
        ...


def name_of(step: Step) -> str:
    """Return the name of a step: `prune_filters` for `PruneFilters`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(step).__name__).lower()


def check_config(steps: Iterable[Step], config: "RunConfig") -> None:
    """Check that steps can be applied with these settings of the recipe.

    Raises:
        PbdError: one cannot.
    """
    _check_each(steps, "check_config", config)


def check_data(steps: Iterable[Step], dataset: "Dataset") -> None:
    """Check that steps can be applied to these images, as far as they can tell before they are, and their settings.

    Raises:
        PbdError: one cannot.
    """
    for step in steps:
        _check_each([step], "check_data", dataset)
        check_settings(step)  # networks among them have passed the check of the step


def check_target(steps: Iterable[Step], target: "Target") -> None:
    """Check that steps can be applied for this target, the first one of the recipe in float32.

    Raises:
        PbdError: one cannot.
    """
    _check_each(steps, "check_target", target)


def _check_each(steps: Iterable[Step], method: str, argument: Any) -> None:
    for step in steps:
        check = getattr(step, method, None)
        if check is not None:
            check(argument)


def uses_target(step: Step) -> bool:
    """Return whether the network or the files of a step depend on the target of the recipe."""
    return bool(getattr(step, "uses_target", False))


def check(step: Any) -> None:
    """Check that an object is a step.

    Raises:
        UsageError: it is something else.
    """
    if isinstance(step, type) or not isinstance(step, Step) or not dataclasses.is_dataclass(step):
        raise UsageError(
            "a step is an object of a dataclass with a method apply. "
            f"Received: {step!r}. Give one of pbd, such as FineTune()."
        )


def check_settings(step: Step) -> None:
    """Check that a resumed recipe can tell whether the settings of a step are those of before.

    Raises:
        UsageError: it cannot.
    """
    for name, value in settings_of(step).items():
        address = _ADDRESS.search(repr(value))
        if address is not None:
            raise UsageError(
                f"settings of a step must be the same in every process. Received: {address.group()} in {name} of "
                f"{name_of(step)}. Give a dataclass, or a function of a module."
            )


def settings_of(step: Step) -> dict[str, Any]:
    """Return the settings of a step in plain JSON types; networks and arrays are represented by their digests."""
    assert dataclasses.is_dataclass(step), "see check"
    return {field.name: _plain(getattr(step, field.name)) for field in dataclasses.fields(step)}


def _plain(value: Any) -> Any:
    if isinstance(value, _FUNCTIONS):
        return _plain_function(value)
    if hasattr(value, "get_weights"):
        return _network_digest(value)
    if isinstance(value, np.ndarray):
        data = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
        return {"dtype": str(value.dtype), "shape": list(value.shape), "sha256": data}
    if isinstance(value, set | frozenset):
        return sorted(map(_plain, value), key=repr)
    if isinstance(value, Step) and dataclasses.is_dataclass(value):
        return {"use": name_of(value), **settings_of(value)}
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if hasattr(value, "get_config"):
        return {"class": type(value).__name__, **_plain(value.get_config())}
    return value if isinstance(value, bool | int | float | str | None) else repr(value)


def _plain_function(function: Any) -> Any:
    """Return the module and the name of a function or class; of one within a function, a digest of its code as well."""
    if isinstance(function, functools.partial):
        return {"partial": [_plain(function.func), _plain(function.args), _plain(function.keywords)]}
    name = f"{getattr(function, '__module__', None) or 'builtins'}:{function.__qualname__}"
    if isinstance(function, types.MethodType):
        return {"method": name, "of": _plain(function.__self__)}
    if "<" not in name or not isinstance(function, types.FunctionType):
        return name
    content = hashlib.sha256(repr(_plain_code(function.__code__)).encode()).hexdigest()
    return {"function": name, "sha256": content, "defaults": _plain(function.__defaults__)}


def _plain_code(code: types.CodeType) -> list[Any]:
    constants = [
        _plain_code(constant) if isinstance(constant, types.CodeType) else repr(constant) for constant in code.co_consts
    ]
    return [code.co_code.hex(), code.co_names, constants]


def _network_digest(network: Any) -> str:
    """Return a digest of a network or layer; for a classifier, automatic layer names (`conv2d_1`) are ignored."""
    from pbd.networks import digest, graph  # Keras is loaded

    try:
        return digest.model_digest(graph.flatten(network))
    except BadInputError:
        content = hashlib.sha256(repr(_plain(network.get_config())).encode())
        for weight in network.get_weights():
            content.update(np.ascontiguousarray(weight).tobytes())
        return content.hexdigest()

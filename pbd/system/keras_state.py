"""Keras' global state: read and set in this process, and sent (custom objects, settings) to another process.

Keras keeps it in thread-local attributes behind a private module, which no other module of pbd imports.
"""

import contextlib
import logging
import pickle
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pbd.system import backend

SETTINGS = ("floatx", "image_data_format", "epsilon", "dtype_policy")
"""Names in `keras.config`. All are sent: the defaults of another host may differ."""
_SCOPES = "custom_objects_scope_dict"  # Keras' attribute with the objects of the thread's custom_object_scope
_DEFERRED = "uninitialized_variables"  # Keras' list of variables that a stateless scope did not create
_SKIPPED = "saving_attr_skiplist_"  # Keras' attributes with the names of attributes that hold no state, by kind
_SAVEABLE = ("Operation", "Layer", "Functional", "Sequential")
_log = logging.getLogger(__name__)


def get_attribute(name: str, default: Any = None) -> Any:
    """Return an attribute of Keras' global state in this thread, or the default if it is not set or is `None`."""
    from keras.src.backend.common import global_state

    return global_state.get_global_attribute(name, default)


def set_attribute(name: str, value: Any) -> None:
    """Set an attribute of Keras' global state in this thread; Keras takes `None` for not set."""
    from keras.src.backend.common import global_state

    global_state.set_global_attribute(name, value)


@contextlib.contextmanager
def without_values() -> Iterator[None]:
    """Let the weights of layers that are built in the block have shapes, but never values."""
    import keras

    before = list(get_attribute(_DEFERRED, []))  # a copy: Keras appends to the list
    try:
        with keras.StatelessScope(initialize_variables=False):
            yield
    finally:
        set_attribute(_DEFERRED, before)  # else Keras computes the values in the next scope


def random_functions() -> Any:
    """Return the module with the backend's random functions, which initialisers call."""
    from keras.src.backend import random

    return random


def remember_skipped_attributes() -> None:
    """Let Keras look up which attributes it skips when it saves or loads a model, in this thread.

    Keras 3.15 stores these sets under another name than that under which it looks for them, and therefore makes a layer
    for each layer that it saves or loads: a fifth of the time.
    """
    from keras.src.saving import saving_lib

    compute = vars(saving_lib).get("get_attr_skipset")
    for kind in _SAVEABLE if compute else ():
        if get_attribute(_SKIPPED + kind) is None:
            set_attribute(_SKIPPED + kind, compute(kind))


@dataclass(frozen=True)
class KerasSetup:
    """The global state of Keras in one process."""

    objects: dict[str, bytes] = field(default_factory=dict)
    """Registered layers and functions by name, pickled; those defined in the main script by value."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Values of `SETTINGS`; a dtype policy by its name."""
    backend: str = field(default_factory=backend.name)
    """The backend, with which all workers compute."""

    @classmethod
    def here(cls) -> "KerasSetup":
        """Return the state of this process, with the objects of this thread's `custom_object_scope`."""
        if "keras" not in sys.modules:
            return cls()
        import keras

        objects = keras.saving.get_custom_objects() | get_attribute(_SCOPES, {})
        settings = {name: getattr(keras.config, name)() for name in SETTINGS}
        return cls(_pickled(objects), settings | {"dtype_policy": settings["dtype_policy"].name})

    def apply(self) -> None:
        """Set objects and settings in the current process; Keras is loaded only if there are any."""
        if not (self.objects or self.settings):
            return
        import keras

        for name, value in self.settings.items():
            getattr(keras.config, f"set_{name}")(value)
        for name, pickled in self.objects.items():
            try:
                _register(name, pickle.loads(pickled))
            except Exception as error:  # the teacher may not use it; if it does, Keras reports it by name
                _log.warning("%s cannot be loaded in the training process (%s: %s).", name, type(error).__name__, error)


def _pickled(objects: dict[str, Any]) -> dict[str, bytes]:
    import cloudpickle

    pickled = {}
    for name, value in objects.items():
        try:
            pickled[name] = cloudpickle.dumps(value)
        except Exception as error:  # the teacher may not use it
            _log.warning(
                "%s cannot be sent to the training process (%s): use --no-isolate to train in this process.",
                name,
                error,
            )
    return pickled


def _register(name: str, value: Any) -> None:
    import keras

    package, separator, class_name = name.rpartition(">")
    if separator:
        keras.saving.register_keras_serializable(package, class_name)(value)  # also stores the name for the object
    else:
        keras.saving.get_custom_objects()[name] = value

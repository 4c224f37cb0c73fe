"""What a process has told Keras, in a form that it can be told to another process: custom objects, global settings."""

import logging
import pickle
import sys
from dataclasses import dataclass, field
from typing import Any

SETTINGS = ("floatx", "image_data_format", "epsilon", "dtype_policy")
"""By their names in `keras.config`. All are told, whatever they are: other hosts may have others to begin with."""
_SCOPES = "custom_objects_scope_dict"  # where Keras keeps the objects of custom_object_scope, for each thread
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class KerasSetup:
    """What Keras was told in one process and has to know in another."""

    objects: dict[str, bytes] = field(default_factory=dict)
    """Layers and functions by name, pickled: by value where they were made in the main script."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Values of `SETTINGS`; a dtype policy by its name."""

    @classmethod
    def here(cls) -> "KerasSetup":
        """Return what this process has registered and set up, and what this thread has in a `custom_object_scope`."""
        if "keras" not in sys.modules:
            return cls()
        import keras
        from keras.src.backend.common import global_state

        known = keras.saving.get_custom_objects() | global_state.get_global_attribute(_SCOPES, {})
        settings = {name: getattr(keras.config, name)() for name in SETTINGS}
        return cls(_pickled(known), settings | {"dtype_policy": settings["dtype_policy"].name})

    def apply(self) -> None:
        """Tell the Keras of this process; it is only loaded if there is something to tell."""
        if not (self.objects or self.settings):
            return
        import keras

        for name, value in self.settings.items():
            getattr(keras.config, f"set_{name}")(value)
        for name, pickled in self.objects.items():
            try:
                _register(name, pickle.loads(pickled))
            except (
                Exception
            ) as error:  # it may have nothing to do with the teacher; if it has, Keras will miss it by name
                _log.warning(
                    "%s cannot be made in the process that trains (%s: %s).", name, type(error).__name__, error
                )


def _pickled(objects: dict[str, Any]) -> dict[str, bytes]:
    import cloudpickle

    found = {}
    for name, thing in objects.items():
        try:
            found[name] = cloudpickle.dumps(thing)
        except Exception as error:  # it may have nothing to do with the teacher
            _log.warning("%s cannot be sent to the process that trains (%s): --no-isolate trains here.", name, error)
    return found


def _register(name: str, thing: Any) -> None:
    import keras

    package, sign, own = name.rpartition(">")
    if sign:
        keras.saving.register_keras_serializable(package, own)(thing)  # which tells its name from the thing, too
    else:
        keras.saving.get_custom_objects()[name] = thing

"""SavedModel folders, run by TensorFlow."""

from pathlib import Path
from typing import Any

import numpy as np

from pbd.deploy.runtimes import base


class SavedModel(base.Runtime):
    """TensorFlow on SavedModel folders, as TensorFlow Serving runs them."""

    name = "saved_model"
    suffix = ""
    extra = "cpu"
    packages = ("tensorflow",)
    packages_to_run = packages
    takes_threads = False

    def export(self, network: Any, path: Path) -> None:
        import tensorflow as tf

        from pbd.deploy import portable  # loads Keras

        module = tf.Module()
        module.serve = portable.as_function(network)
        # Gradients of activations such as silu are functions of their own, which other readers do not know.
        options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
        tf.saved_model.save(module, path, signatures=module.serve.get_concrete_function(), options=options)

    def load(self, path: Path, threads: int) -> base.Runner:
        import tensorflow as tf

        loaded = tf.saved_model.load(path)  # must outlive its signature
        serve = loaded.signatures["serving_default"]

        def run(images: np.ndarray) -> np.ndarray:
            (outputs,) = serve(image=tf.constant(images)).values()
            return outputs.numpy()

        run.model = loaded  # type: ignore[attr-defined]
        return run

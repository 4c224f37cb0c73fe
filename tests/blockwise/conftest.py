"""What the tests of the training of groups share."""

from typing import TYPE_CHECKING, Any

import pytest

from pbd.config import RunConfig
from pbd.run_dir.journal import Journal

if TYPE_CHECKING:
    from tests.helpers.group_training import Tasks


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> "tuple[Any, Tasks]":
    """A context for training on 64 digits; the teacher's graph holds operations with Keras' own names."""
    import keras

    from pbd import blocks, data
    from pbd.blockwise.context import TrainingContext, load_teacher
    from pbd.blockwise.tasks import enumerate_tasks

    keras.utils.set_random_seed(2)
    inputs = keras.Input((32, 32, 1))
    x = keras.ops.square(inputs / 127.5 - 1.0)
    for name in ("first", "second"):
        x = keras.layers.Conv2D(24, 3, strides=2, padding="same", activation="relu", name=name)(x)
    x = keras.layers.Conv2D(24, 3, padding="same", name="third")(x)
    outputs = keras.layers.Dense(10)(keras.layers.GlobalAveragePooling2D()(x))
    folder = tmp_path_factory.mktemp("context")
    journal = Journal.create(folder / "run", {})
    keras.Model(inputs, outputs).save(folder / "run" / "teacher.keras")
    keras.utils.clear_session(free_memory=False)
    config = RunConfig.of(train_limit=64, validation_fraction=0.034, batch_size=32, epochs=6, patience=0)
    dataset = data.load(config.data, 0)
    base = TrainingContext(
        teacher_path=str(folder / "run" / "teacher.keras"),
        data=config.data,
        image_shape=dataset.image_shape,
        training=config.training,
        designs={"two_layer": blocks.get("two_layer")},
        block_init="noise",
        seed=0,
        journal=journal,
    )
    tasks = enumerate_tasks(load_teacher(base.teacher_path), blocks.get("two_layer"))
    return base, [task for task in tasks if not task.skip_reason]

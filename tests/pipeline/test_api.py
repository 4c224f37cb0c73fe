"""`pbd.distill` from Python: its signature, its result, and what it leaves behind in the caller's process."""

import dataclasses
import inspect
import json
import os
import random
import subprocess
import sys
import typing
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pbd
from pbd.config import RunConfig
from pbd.errors import UsageError
from pbd.pipeline import api, distill, session
from tests.helpers import short_latencies
from tests.helpers.cluster import PATIENCE_S


def settings_by_name() -> dict[str, Any]:
    """Return the type of every setting, by its name."""
    types: dict[str, Any] = {"seed": int}
    for section in dataclasses.fields(RunConfig):
        if section.name != "seed":
            types |= typing.get_type_hints(typing.get_type_hints(RunConfig)[section.name])
    return types


def test_the_signature_has_every_setting_with_its_type() -> None:
    parameters = inspect.signature(pbd.distill).parameters
    objects = {"model", "data", "config", "recipe"}
    types = settings_by_name()
    assert set(parameters) - objects == set(types)
    for name, kind in types.items():
        annotation = parameters[name].annotation
        expected = typing.Sequence[str] if typing.get_origin(kind) is tuple else kind
        assert typing.get_args(annotation)[-1] is type(None), name
        assert str(expected).removeprefix("<class '").split("'")[0].split(" ")[0].split(".")[-1] in str(annotation), (
            name
        )
        assert parameters[name].default is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": object(), "teacher": "a.keras"}, "teacher contradicts model"),
        ({"data": object(), "batch_size": 8}, "batch_size contradicts data"),
        ({"epochs": -1}, "epochs must be at least 0"),
        ({"model": "teacher.keras"}, "a network must be a keras.Model. Received: str. Give keras.models.load_model"),
        ({"data": (np.zeros(2), np.zeros(2))}, "data must be a pbd.Data. Received: tuple. Give pbd.Data.train="),
        ({"data": "digits"}, "data must be a pbd.Data. Received: str"),
    ],
)
def test_contradictions_and_arguments_of_other_types_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        pbd.distill(**arguments)


WITHOUT_A_CHILD = """
import logging, os, random, sys, threadpoolctl
import numpy as np
from pbd.config import ExecutionConfig
from pbd.executors import open_executor

def state():
    return (
        dict(os.environ), [(lib["filepath"], lib["num_threads"]) for lib in threadpoolctl.threadpool_info()],
        random.getstate(), np.random.get_state()[1].tolist(), logging.getLogger("tensorflow").level,
    )

def work():
    import keras
    random.random(), np.random.rand()
    assert os.environ["TF_NUM_INTRAOP_THREADS"] == "1"
    return keras.layers.Dense(2)(np.ones((1, 3))).shape

before = state()
executor = open_executor(ExecutionConfig(executor="serial", isolate=False, threads_per_worker=1))
assert executor.call(work) == (1, 2)
executor.finish(None)
after = state()
added = {name: value for name, value in after[0].items() if before[0].get(name) != value}
assert not any(name.startswith(("PBD", "OMP", "TF_NUM", "TF_CPP", "TF_FORCE", "XLA", "CUDA")) for name in added), added
assert all(after[0].get(name) == value for name, value in before[0].items())
assert dict(after[1]).items() >= dict(before[1]).items(), (before[1], after[1])
assert after[2:] == before[2:]
assert "tensorflow" in sys.modules
"""
"""The beginning of a script: work in its process, where nothing has loaded TensorFlow before."""
ARRAYS = """
import json
import keras, pbd
draws = np.random.default_rng(0)
x, y = draws.integers(0, 256, (96, 8, 8, 8), dtype=np.uint8), np.arange(96) % 3
inputs = keras.Input((8, 8, 8))
features = keras.layers.Conv2D(16, 3, activation="relu", name="conv")(inputs)
model = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(features)), name="tiny")
keras.utils.set_random_seed(7)
before, registered = state(), set(keras.saving.get_custom_objects())
data = pbd.Data(train=(x, y), batch_size=32)
result = pbd.distill(
    model, data, epochs=1, fine_tune_epochs=1, max_accuracy_drop=1.0, costs="macs", target="keras", run_dir=sys.argv[1],
    allow_weak_teacher=True,
)
assert state() == before, (before, state())
assert keras.src.utils.rng_utils.get_random_seed() == 7
assert set(keras.saving.get_custom_objects()) == registered
scores = result.model.predict_on_batch(x[:4].astype("float32"))
print(json.dumps([list(scores.shape), result.report.student.params, result.table().count("conv"), str(result.run_dir)]))
"""


def test_arrays_from_python_and_the_process_is_left_as_it_was(tmp_path: Path) -> None:
    """TensorFlow itself sets variables when it is imported for the first time: only those may be new."""
    run_dir = tmp_path / "run"
    command = [sys.executable, "-c", WITHOUT_A_CHILD + ARRAYS, str(run_dir)]
    lean = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join([short_latencies.PATHS, *sys.path])}
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, env=lean)
    assert done.returncode == 0, done.stderr
    shape, params, rows, directory = json.loads(done.stdout.splitlines()[-1])
    assert shape == [4, 3]
    assert params < 16 * 8 * 9
    assert rows >= 1
    assert directory == str(run_dir)


@pytest.mark.parametrize(("started_by", "watched"), [("script", False), ("mpirun", True), ("pbd-run", True)])
def test_a_script_or_notebook_is_not_ended_if_it_is_idle(
    started_by: str, watched: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its user may have stopped it in a debugger; a process of a job would let others wait."""
    limits: list[float] = []
    monkeypatch.setattr(session.watchdog, "watching", lambda limit, _: limits.append(limit) or nullcontext())
    monkeypatch.setattr(distill, "run_on", lambda *_: None)
    monkeypatch.setattr(session.launcher, "rank", lambda: 0 if started_by == "mpirun" else None)
    settings = RunConfig.of(executor="serial", isolate=False, stall_limit=7.0)
    distill.run(settings, dedicated_process=True) if started_by == "pbd-run" else pbd.distill(config=settings)
    assert limits == [7.0] * watched


def test_a_recipe_changes_settings_at_their_defaults_those_of_data_too(monkeypatch: pytest.MonkeyPatch) -> None:
    configs: list[RunConfig] = []
    monkeypatch.setattr(api, "run", lambda config, model, data: configs.append(config))
    images = np.zeros((20, 8, 8, 3), np.uint8)
    pbd.distill(data=pbd.Data(train=images), recipe="patient", fine_tune_epochs=5)
    pbd.distill(data=pbd.Data(train=images, augment="crop"), recipe="patient", mixup=0.0)
    pbd.distill(config=RunConfig.of(temperature=3.0, recipe="patient"), recipe="quick")
    settings = [(config.data.augment, config.student.fine_tune_epochs, config.student.mixup) for config in configs]
    assert settings == [("flip_crop", 5, 1.0), ("crop", 80, 0.0), ("flip_crop", 80, 1.0)]
    assert [config.student.temperature for config in configs] == [2.0, 2.0, 3.0]


def test_random_state_is_restored_also_after_an_error(tmp_path: Path) -> None:
    random.seed(3)
    np.random.seed(3)
    before = random.getstate(), np.random.get_state()[1].tolist()
    with pytest.raises(pbd.PbdError):
        pbd.distill(teacher=str(tmp_path / "absent.keras"), isolate=False)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before

"""Recipes under `mpirun`: members of an ensemble side by side, and a rank that fails in a step."""

import subprocess
import sys
from pathlib import Path

import pytest

from pbd.run_dir.steps import STEPS, is_complete, read_record
from tests.helpers.cluster import environment

pytestmark = pytest.mark.system
LIMIT_S = 120.0
SCRIPT = """
import dataclasses, sys
import keras
import numpy as np
import pbd
from pbd.collective import all_reduce_sums
from pbd.compression.step import StepResult
from pbd.system import launcher

def fails_on_rank_0(model, teacher, dataset, collective):
    if collective.index == 0:
        raise ValueError("injected")
    return all_reduce_sums(collective, [np.ones(1)])

@dataclasses.dataclass(frozen=True)
class NotesRank:
    def apply(self, model, context):
        return StepResult(model, {"rank": launcher.rank()})

@dataclasses.dataclass(frozen=True)
class Fails:
    def apply(self, model, context):
        context.measure(model, fails_on_rank_0)

images, labels = np.random.default_rng(0).uniform(0, 1, (32, 4, 4, 1)).astype("float32"), np.arange(32) % 2
layers = [keras.Input((4, 4, 1)), keras.layers.Conv2D(2, 3), keras.layers.Flatten(), keras.layers.Dense(2)]
data = pbd.Data(train=(images, labels), validation=(images, labels), test=(images, labels), batch_size=16)
ensemble = pbd.Ensemble([[pbd.FineTune(epochs=1, loss="cross_entropy"), NotesRank()]], copies=2)
config = pbd.RunConfig.of(allow_weak_teacher=True, target="keras", isolate=False)
pbd.compress(keras.Sequential(layers), data, [ensemble, Fails()], config=config, run_dir=sys.argv[1])
"""


def test_each_rank_makes_a_member_of_an_ensemble_and_one_that_fails_in_a_later_step_ends_the_job(
    tmp_path: Path,
) -> None:
    """Its energy is not read: the other ranks are in the middle of a task, and would not answer."""
    script = tmp_path / "recipe.py"
    script.write_text(SCRIPT)
    command = ["mpirun", "-n", "2", sys.executable, str(script), str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, env=environment())
    assert done.returncode == 70, done.stderr
    assert "injected" in done.stderr
    folder = tmp_path / "run" / STEPS / "01-ensemble"
    assert is_complete(read_record(folder))
    members = [read_record(folder / f"member-0{number}" / STEPS / "02-notes_rank") for number in (1, 2)]
    assert {member["details"]["rank"] for member in members} == {0, 1}
    assert "member 2 of 2, step 1 fine_tune: fine-tuning" in done.stdout

"""Ensembles: one network that answers with the mean of several, which differ and share their images."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import scipy.special

import pbd
from pbd.compression import compress_command, ensemble
from pbd.compression.context import Context
from pbd.compression.step import StepResult, name_of
from pbd.config import DistillationConfig
from pbd.data import load
from pbd.networks import files, graph, heads
from pbd.pipeline import input_checks
from pbd.run_dir.steps import read_record
from tests.compression.test_recipes import LABELS, PIXELS, Scaled, compress, scaled, teacher

layers = keras.layers
pytestmark = pytest.mark.usefixtures("eager")


@pytest.mark.parametrize("ending", ["softmax", None])
@pytest.mark.parametrize("mean", ["probabilities", "logits"])
def test_an_ensemble_answers_with_the_mean(ending: str | None, mean: str) -> None:
    flat, pixels = graph.flatten(teacher()), PIXELS[:8].astype(np.float32)
    model = keras.Model(flat.inputs, layers.Activation(ending)(flat.outputs[0])) if ending else flat
    model = ensemble.joined([scaled(model, 2.0), scaled(model, -3.0)], mean, pixels)
    logits = heads.remove(flat).predict_on_batch(pixels)
    several = np.stack([2.0 * logits, -3.0 * logits])
    softmax = scipy.special.softmax
    expected = softmax(several, axis=-1).mean(axis=0) if mean == "probabilities" else several.mean(axis=0)
    if ending and mean == "logits":
        expected = softmax(expected, axis=-1)
    assert np.allclose(model.predict_on_batch(pixels), expected, atol=1e-4)


@pytest.mark.parametrize("mean", ["probabilities", "logits"])
def test_an_ensemble_of_sigmoids_keeps_its_head(mean: str) -> None:
    flat, pixels = graph.flatten(teacher()), PIXELS[:8].astype(np.float32)
    model = graph.flatten(keras.Model(flat.inputs, layers.Activation("sigmoid")(flat.outputs[0])))
    same = ensemble.joined([model, model], mean, pixels)
    assert np.allclose(same.predict_on_batch(pixels), model.predict_on_batch(pixels), atol=1e-5)
    assert heads.head_of(same) is heads.Head.SIGMOID


@pytest.mark.parametrize("ending", ["sigmoid", None])
def test_an_ensemble_with_one_output_is_a_teacher(ending: str | None) -> None:
    inputs = keras.Input((6, 6, 3))
    outputs = layers.Dense(1, activation=ending)(layers.GlobalAveragePooling2D()(inputs))
    model, pixels = graph.flatten(keras.Model(inputs, outputs)), PIXELS[:8].astype(np.float32)
    input_checks.check_single_output(ensemble.joined([model, model], "logits", pixels), 2)


@pytest.mark.parametrize("mean", ["probabilities", "logits"])
@pytest.mark.parametrize("first", ["one", "two"])
def test_answers_on_two_classes_have_one_output_or_two(mean: str, first: str, tmp_path: Path) -> None:
    inputs, pixels = keras.Input((6, 6, 3)), PIXELS[:8].astype(np.float32)
    features = layers.GlobalAveragePooling2D()(layers.Rescaling(1 / 128, -1.0)(inputs))
    outputs = {"one": layers.Dense(1, activation="sigmoid")(features), "two": layers.Dense(2)(features)}
    of = {name: graph.flatten(keras.Model(inputs, output)) for name, output in outputs.items()}
    other = "two" if first == "one" else "one"
    joined = ensemble.joined([of[first], of[other]], mean, pixels)
    joined.save(tmp_path / "joined.keras")
    answers = files.load_own(tmp_path / "joined.keras").predict_on_batch(pixels)
    single, double = (heads.remove(of[name]).predict_on_batch(pixels) for name in ("one", "two"))
    several = np.stack([single * [[-0.5, 0.5]], double])
    softmax = scipy.special.softmax
    expected = softmax(several, axis=-1).mean(axis=0) if mean == "probabilities" else several.mean(axis=0)
    assert np.allclose(answers, expected, atol=1e-5)


def test_an_ensemble_is_made_of_the_last_networks_of_its_members_and_reports_those_that_are_the_same(
    tmp_path: Path,
) -> None:
    members = [[Scaled(2.0)], [Scaled(-1.0), Scaled(3.0)]]
    result = compress(tmp_path, pbd.Ensemble(members, copies=2, mean="logits"))
    pixels = PIXELS[:8].astype(np.float32)
    expected = -0.5 * graph.flatten(teacher()).predict_on_batch(pixels)
    assert np.allclose(result.model.predict_on_batch(pixels), expected, atol=1e-4)
    (step,) = result.report.steps[1:]
    assert len(step.details["members"]) == 4
    assert [event.partition(":")[0] for event in step.events] == [
        "members 1 and 3 are the same network",
        "members 2 and 4 are the same network",
    ]


UNSPLIT = pbd.Data(train=(PIXELS, LABELS), test=(PIXELS[16:32], LABELS[16:32]), batch_size=16)
"""The validation images are a part of the training images, by the seed."""


@dataclass(frozen=True)
class Noted:
    """Notes which images the members of an ensemble validate on."""

    rows: list[list[int]]

    def apply(self, model: keras.Model, context: Context) -> StepResult:
        data = context.config.data
        self.rows.extend(
            [load(data, context.config.seed).validation.rows.tolist(), context.dataset.validation.rows.tolist()]
        )
        return StepResult(graph.flatten(model))


@pytest.mark.parametrize(
    "step",
    [
        pbd.FineTune(epochs=2, learning_rate=0.03, loss="cross_entropy"),
        pbd.ReplaceBlocks(block=("decoupled_r1",), epochs=1, accuracy_threshold=0.0, fine_tune_epochs=0),
    ],
    ids=lambda step: name_of(step),
)
def test_copies_in_an_ensemble_differ_and_share_the_validation_images(step: Any, tmp_path: Path) -> None:
    rows: list[list[int]] = []
    copies = pbd.Ensemble([[step, Noted(rows)]], copies=2, mean="logits")
    report = compress(tmp_path, copies, data=UNSPLIT).report
    assert rows[0]
    assert all(each == rows[0] for each in rows)
    folders = sorted((tmp_path / "run").glob("steps/01-ensemble/member-*"))
    first, second = (files.load_own(next(each.glob("steps/01-*/model.keras"))) for each in folders)
    pairs = list(zip(first.get_weights(), second.get_weights(), strict=True))
    assert max(np.abs(one - two).max() for one, two in pairs) > 1e-3
    assert report.steps[1].events == ()


def test_a_student_learns_from_a_drawn_member_as_the_file_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher().save(tmp_path / "student.keras")
    file = tmp_path / "recipe.toml"
    file.write_text(
        '[[step]]\nuse = "distill_into"\nensemble_teacher = "drawn"\nepochs = 1\n'
        f'student = "{(tmp_path / "student.keras").as_posix()}"\n'
    )
    used, fine_tune = list[DistillationConfig](), Context.fine_tune

    def noted(self: Context, *of: Any, distillation: DistillationConfig, **others: Any) -> Any:
        used.append(distillation)
        return fine_tune(self, *of, distillation=distillation, **others)

    monkeypatch.setattr(Context, "fine_tune", noted)
    steps = compress_command.parse([str(file)], "pbd compress").recipe().steps
    members = pbd.Ensemble([[Scaled(2.0)], [Scaled(-1.0)]])
    result = compress(tmp_path, members, *steps)
    assert [each.ensemble_teacher for each in used] == ["drawn"]
    assert len(result.report.steps[2].details["history"]) == 1
    record = read_record(tmp_path / "run" / "steps" / "02-distill_into")
    assert record["settings"]["ensemble_teacher"] == "drawn"

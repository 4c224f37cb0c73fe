"""Compression steps in a row: `pbd.compress`."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import pbd
from pbd import cli
from pbd.compression.context import Context
from pbd.compression.step import StepResult
from pbd.config import StudentConfig
from pbd.deploy import exporting, targets
from pbd.errors import CorruptStateError, PbdError, UsageError
from pbd.learning.metrics import Metrics
from pbd.networks import graph
from pbd.pipeline.workers import WorkerPool
from pbd.report import recipe_files, recipes
from pbd.run_dir.journal import Journal
from pbd.run_dir.steps import read_record, write_record
from pbd.status import DAMAGED
from pbd.status import read as read_status
from pbd.student.checkpoints import FineTuneState

layers = keras.layers
pytestmark = pytest.mark.usefixtures("eager")
PIXELS = np.random.default_rng(0).integers(0, 256, (48, 6, 6, 3)).astype(np.uint8)
LABELS = np.arange(48) % 4
DATA = pbd.Data(
    train=(PIXELS, LABELS),
    validation=(PIXELS[:16], LABELS[:16]),
    test=(PIXELS[16:32], LABELS[16:32]),
    batch_size=16,
)


def teacher() -> keras.Model:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="first")(layers.Rescaling(1 / 128, -1.0)(inputs))
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="second")(x)
    return keras.Model(inputs, layers.Dense(4, name="head")(layers.GlobalAveragePooling2D()(x)))


def head_of_teacher() -> np.ndarray:
    return teacher().get_layer("head").get_weights()[0]


def scaled(model: keras.Model, factor: float) -> keras.Model:
    """Return a copy of a network with other weights of its head."""
    copy = graph.flatten(model)
    head = copy.get_layer("head")
    head.set_weights([factor * weight for weight in head.get_weights()])
    return copy


@dataclass(frozen=True)
class Scaled:
    """Multiplies the weights of the head; it counts how often it is applied."""

    factor: float = 2.0
    applied: Callable[[], object] = lambda: None
    fails: bool = False

    def apply(self, model: keras.Model, context: Context) -> StepResult:
        self.applied()
        if self.fails:
            raise PbdError("stopped")
        return StepResult(scaled(model, self.factor), {"factor": self.factor}, ("scaled",))


@dataclass(frozen=True)
class Written:
    """Leaves the network as it is, and writes a file of it with a negative head, as one in 8-bit integers."""

    def apply(self, model: keras.Model, context: Context) -> StepResult:
        path = context.journal.file("network_int8.onnx")
        exporting.write(scaled(model, -1.0), path, targets.TARGETS["onnx"])
        return StepResult(graph.flatten(model), quantized={"onnx-int8": path})


@dataclass(frozen=True)
class TrainsTwice:
    """Trains the network, multiplies the weights of its head by ten, and trains it again; it notes both heads."""

    heads: list[np.ndarray]

    def apply(self, model: keras.Model, context: Context) -> StepResult:
        trained = graph.flatten(model)
        head = trained.get_layer("head")
        for _ in range(2):
            context.fine_tune(trained, StudentConfig(fine_tune_epochs=1, fine_tune_learning_rate=1e-4))
            self.heads.append(head.get_weights()[0])
            head.set_weights([10 * weight for weight in head.get_weights()])
        return StepResult(trained)


def compress(tmp_path: Path, *steps: Any, data: pbd.Data = DATA, **settings: Any) -> Any:
    settings = {"executor": "serial", "isolate": False, "run_dir": str(tmp_path / "run"), **settings}
    return pbd.compress(teacher(), data, steps, **settings)


def test_each_step_gets_the_network_of_the_one_before(tmp_path: Path) -> None:
    result = compress(tmp_path, Scaled(2.0), Scaled(3.0))
    assert np.allclose(result.network("1 scaled").get_layer("head").get_weights()[0], 2.0 * head_of_teacher())
    assert np.allclose(result.model.get_layer("head").get_weights()[0], 6.0 * head_of_teacher())
    assert [step.name for step in result.report.steps] == ["teacher", "1 scaled", "2 scaled"]
    assert result.report.steps[2].details == {"factor": 3.0}
    assert "2 scaled" in result.table()
    assert recipe_files.read(Journal(result.run_dir)) == result.report


def test_steps_fine_tune_to_the_epoch_that_suits_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, splits, evaluate = [], list[str](), Context.evaluate

    def evaluated(self: Context, model: keras.Model, split: str = "validation", **others: Any) -> Metrics:
        splits.append(split)
        return evaluate(self, model, split, **others)

    def fine_tune(
        self: WorkerPool, model: keras.Model, settings: StudentConfig, initial: Any, *_: Any
    ) -> FineTuneState:
        kept.append(settings.fine_tune_keep)
        return FineTuneState(initial, settings.fine_tune_learning_rate, best_weights=model.get_weights())

    monkeypatch.setattr(Context, "evaluate", evaluated)
    monkeypatch.setattr(WorkerPool, "fine_tune", fine_tune)
    steps = (pbd.FineTune(epochs=1), pbd.FineTune(epochs=1, keep="best"))
    compress(tmp_path / "unseen", *steps)
    assert splits.count("validation") == 5, "of the teacher, and before and after each step, on all workers"
    compress(tmp_path / "seen", *steps, data=replace(DATA, validation=None))
    assert kept == ["best", "best", "last", "best"]


def test_a_resumed_recipe_does_what_is_missing_and_what_depends_on_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[str] = []
    first, second = (Scaled(factor, lambda name=name: calls.append(name)) for factor, name in ((2.0, "a"), (3.0, "b")))
    with pytest.raises(PbdError, match="stopped"):
        compress(tmp_path, first, replace(second, fails=True))
    before_s = read_record(tmp_path / "run/steps/02-scaled")["seconds"]
    checkpoints = tmp_path / "run/steps/01-scaled/fine_tuning"
    checkpoints.mkdir()  # as of a process that was killed before it deleted them
    whole = compress(tmp_path, first, second, resume=True)
    assert not checkpoints.exists()
    assert calls == ["a", "b", "b"]
    assert whole.report.steps[2].seconds > before_s > 0, "of both sessions"
    assert np.allclose(whole.model.get_layer("head").get_weights()[0], 6.0 * head_of_teacher())
    again = compress(tmp_path, first, second, resume=True)
    assert calls == ["a", "b", "b"]
    caplog.clear()
    assert again.report == whole.report  # with the times of then
    changed = compress(tmp_path, replace(first, factor=4.0), second, resume=True)
    assert calls == ["a", "b", "b", "a", "b"]
    assert caplog.text.count("have changed: the step is done again") == 2
    assert np.allclose(changed.model.get_layer("head").get_weights()[0], 12.0 * head_of_teacher())
    with pytest.raises(PbdError, match="stopped"):
        compress(tmp_path, replace(first, factor=5.0, fails=True), second, resume=True)
    status = read_status(tmp_path / "run")
    assert (status.done, status.left) == ((), ("1 scaled", "2 scaled")), "the second one is that of another network"


def test_a_complete_recipe_that_is_resumed_with_another_choice_is_measured_again(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    nowhere = compress(tmp_path, Scaled(2.0), targets=()).report
    page = (tmp_path / "run" / "recipe.html").read_text()
    both = compress(tmp_path, Scaled(2.0), targets=("keras", "onnx"), resume=True).report
    strict = compress(tmp_path, Scaled(2.0), targets=("keras", "onnx"), max_drop=0.0, resume=True).report
    assert len({nowhere.seconds, both.seconds, strict.seconds}) == 3
    assert [report.targets for report in (nowhere, both, strict)] == [(), ("keras", "onnx"), ("keras", "onnx")]
    assert [report.max_drop for report in (nowhere, both, strict)] == [None, None, 0.0]
    assert "In the target" not in page


def test_steps_depend_on_the_epoch_that_trainings_end_with(tmp_path: Path) -> None:
    calls: list[int] = []
    step = Scaled(2.0, lambda: calls.append(1))
    for keep in ("best", "auto", "last"):  # auto: best, because the teacher has not seen the images
        resume = (tmp_path / "run" / "run.json").exists()
        result = compress(tmp_path, step, config=pbd.RunConfig.of(fine_tune_keep=keep), resume=resume)
        assert result.report.config["fine_tune_keep"] == {"auto": "best"}.get(keep, keep)
    assert len(calls) == 2


def test_a_damaged_step_is_done_again(tmp_path: Path) -> None:
    calls: list[int] = []
    step = Scaled(2.0, lambda: calls.append(1))
    compress(tmp_path, step)
    (tmp_path / "run/steps/01-scaled/model.keras").write_bytes(b"damaged")
    compress(tmp_path, step, resume=True)
    assert len(calls) == 2
    folder = tmp_path / "run/steps/01-scaled"
    write_record(folder, {name: value for name, value in read_record(folder).items() if name != "metrics"})
    compress(tmp_path, step, resume=True)
    assert len(calls) == 3


def test_settings_of_a_step_are_not_those_of_a_recipe(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"max_drop is a setting of a step. Received: 0.0 in config"):
        compress(tmp_path, Scaled(), config=pbd.RunConfig.of(max_drop=0.0))


def test_a_recipe_is_resumed_in_another_precision(tmp_path: Path) -> None:
    calls: list[int] = []
    step = Scaled(2.0, lambda: calls.append(1))
    compress(tmp_path, step)
    result = compress(tmp_path, step, config=pbd.RunConfig.of(precision="bfloat16"), resume=True)
    assert result.report.config["precision"] == "bfloat16"
    assert len(calls) == 2


DAMAGES: list[Callable[[Path], object]] = [
    lambda path: path.write_text('["q scaled"]'),
    lambda path: path.write_bytes(b"["),
    Path.unlink,
]


def test_damaged_records_of_the_steps_are_reported_and_repaired(tmp_path: Path) -> None:
    compress(tmp_path, Scaled(2.0))
    run_dir, names = tmp_path / "run", ("steps.json", "steps/01-scaled/step.json")
    for name in names:
        content = (run_dir / name).read_bytes()
        for damage in DAMAGES:
            damage(run_dir / name)
            status = read_status(run_dir)
            assert (status.state, status.damaged) == (DAMAGED, (name,))
            (run_dir / name).write_bytes(content)
    for damaged, damage in zip((names[:1], names[1:], names), DAMAGES, strict=True):
        for name in damaged:
            damage(run_dir / name)
        compress(tmp_path, Scaled(2.0), resume=True)
        status = read_status(run_dir)
        assert (status.done, status.damaged) == (("1 scaled",), ())


def test_the_result_is_the_last_network_that_loses_little(tmp_path: Path) -> None:
    unlabelled = replace(DATA, labels=False)
    steps = Scaled(2.0), Scaled(-1.0)  # the second turns every answer around
    result = compress(tmp_path, *steps, data=unlabelled, max_drop=0.0)
    assert result.report.result == "1 scaled"
    assert "2 scaled" in recipes.headline(result.report)
    assert np.array_equal(result.model.get_weights()[-1], result.network("1 scaled").get_weights()[-1])


@pytest.mark.parametrize("labelled", [True, False])
def test_a_step_that_writes_8_bit_integers_is_measured_by_its_file(labelled: bool, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    predicted = teacher().predict_on_batch(PIXELS.astype(np.float32)).argmax(axis=-1)
    splits = {"train": slice(None), "validation": slice(16), "test": slice(16, 32)}
    arrays: dict[str, Any] = {split: (PIXELS[rows], predicted[rows]) for split, rows in splits.items()}
    data = pbd.Data(**arrays, batch_size=7, labels=labelled)
    scale = Scaled(2.0)
    result = compress(tmp_path, scale, Written(), data=data, max_drop=0.0, targets=())
    assert result.report.result == "1 scaled"
    (file,) = result.report.steps[2].quantized
    assert (file.target, file.path) == ("onnx-int8", "steps/02-written/network_int8.onnx")
    assert file.val_score < 1.0
    judged = "accuracy" if labelled else "agreement"
    lost = f"Step 2 written loses {1 - file.val_score:.2%} of validation {judged} in 8-bit integers; 0.00% may be lost"
    assert lost in recipes.headline(result.report)
    event = f"8-bit integers: {file.path}, validation {judged} {file.val_score:.2%}"
    assert event in result.report.steps[2].events
    assert recipe_files.read(Journal(result.run_dir)) == result.report
    allowed = compress(tmp_path, scale, Written(), data=data, max_drop=1.0, targets=(), resume=True)
    assert allowed.report.result == "2 written"
    assert f"Its file in 8-bit integers, {file.path}, has {file.test_score:.2%}" in recipes.headline(allowed.report)
    behind = compress(tmp_path, scale, Written(), Scaled(1.0), data=data, max_drop=0.0, targets=(), resume=True)
    assert behind.report.result == "3 scaled", "the file is that of the step before"


def test_each_training_of_a_step_begins_with_the_weights_that_it_is_given(tmp_path: Path) -> None:
    """Two trainings with the same settings, the second one of other weights."""
    compress(tmp_path, trains_twice := TrainsTwice([]))
    once, twice = trains_twice.heads
    assert np.abs(twice - 10 * once).max() < np.abs(twice - once).max()


def test_status_and_report_know_a_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(PbdError, match="stopped"):
        compress(tmp_path, Scaled(), Scaled(3.0, fails=True))
    run_dir = str(tmp_path / "run")
    assert cli.command(["status", run_dir]) == 75
    assert "1 of 2 steps complete\nleft: 2 scaled" in capsys.readouterr().out
    compress(tmp_path, Scaled(), Scaled(3.0), resume=True)
    assert cli.command(["status", run_dir]) == 0
    page = tmp_path / "run/recipe.html"
    before = page.read_bytes()
    page.unlink()
    assert cli.command(["report", run_dir]) == 0
    assert page.read_bytes() == before
    assert b"2 scaled" in before


def test_a_recipe_is_no_run_and_a_run_no_recipe(tmp_path: Path) -> None:
    compress(tmp_path, Scaled())
    with pytest.raises(CorruptStateError, match="kind was 'recipe'"):
        pbd.distill(teacher(), DATA, executor="serial", run_dir=str(tmp_path / "run"), resume=True)

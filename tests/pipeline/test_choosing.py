"""Blocks are chosen under a budget: end to end, within the limits, and refused if that is impossible."""

import json
import shutil
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import pbd
from pbd import report as reports
from pbd.deploy import targets
from pbd.deploy.latency import file_size
from pbd.errors import InfeasibleBudgetError, UsageError
from pbd.networks import cost
from pbd.pipeline import choosing
from pbd.run_dir import deployed_files, manifest
from pbd.run_dir.journal import Journal
from pbd.student import latency_costs
from pbd.student.builder import StudentBuilder

pytestmark = [pytest.mark.unit, pytest.mark.usefixtures("eager_module")]
BLOCKS = ("narrow_r50", "spatial_svd_r50", "merge", "drop")


@pytest.fixture(scope="module")
def teacher() -> keras.Model:
    """Return a small residual network with random weights that predicts each class about as often."""
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(16, 3, padding="same", activation="relu", name="stem")(x)
    for name in ("a", "b"):
        y = keras.layers.Conv2D(16, 3, padding="same", name=f"{name}1")(x)
        y = keras.layers.ReLU()(keras.layers.BatchNormalization(momentum=0.0)(y))
        y = keras.layers.Conv2D(16, 3, padding="same", name=f"{name}2")(y)
        x = keras.layers.ReLU()(keras.layers.Add(name=f"{name}_add")([x, y]))
    x = keras.layers.Dense(4, name="logits")(keras.layers.GlobalAveragePooling2D()(x))
    network = keras.Model(inputs, x)
    network(random_images(), training=True)  # the statistics of these images
    network.get_layer("logits").kernel.assign(100 * network.get_layer("logits").kernel)
    network.get_layer("logits").bias.assign(-network.predict(random_images(), verbose=0).mean(axis=0))
    return network


def random_images() -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 1, (96, 8, 8, 3)).astype(np.float32)


def distill(teacher: keras.Model, run_dir: Path, images: np.ndarray | None = None, **settings: Any) -> pbd.Result:
    images = random_images() if images is None else images
    data = pbd.Data(train=images, validation=images[:32], test=images[:32], batch_size=32, labels=False)
    fixed = {"epochs": 0, "fine_tune_epochs": 0, "isolate": False, "executor": "serial", "target": "keras"}
    return pbd.distill(teacher, data, run_dir=str(run_dir), **{**fixed, **settings})


@pytest.fixture(scope="module")
def fitted(teacher: keras.Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a run with all blocks of `BLOCKS`."""
    run_dir = tmp_path_factory.mktemp("fitted") / "run"
    distill(teacher, run_dir, block=BLOCKS, budget="macs:0.99")
    shutil.rmtree(run_dir / "choices")
    return run_dir


@pytest.fixture
def run_dir(fitted: Path, tmp_path: Path) -> Path:
    """Return a copy of the directory, in which another budget can be kept without fitting the blocks again."""
    return Path(shutil.copytree(fitted, tmp_path / "run"))


@pytest.fixture(autouse=True)
def _one_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Assemble one network for each limit; `test_the_student_keeps_within_the_budget` compares two."""
    monkeypatch.setattr(choosing, "ASSEMBLED", 1)


def test_the_student_keeps_within_the_budget(
    teacher: keras.Model, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choosing, "ASSEMBLED", 2)
    result = distill(teacher, run_dir, block=BLOCKS, budget="macs:0.6", resume=True)
    share = cost.count_macs(result.model) / cost.count_macs(teacher)
    assert 0.3 < share <= 0.6
    assert any(f"{100 * share:.1f}% of the multiply-accumulates" in event for event in result.report.events)
    rows = {row.layer: row for row in result.report.blocks}
    assert set(rows) == {"stem", "a1", "a2", "a_add", "b1", "b2", "b_add"}
    accepted = {row.layer: row.block for row in rows.values() if row.status == "accepted"}
    (kept,) = (run_dir / "choices").iterdir()
    assert accepted == json.loads(kept.read_text())["content"]["designs"]
    assert accepted
    for block in "ab":
        assert f"{block}_add" not in accepted or not accepted.keys() & {f"{block}1", f"{block}2"}


EXPORTED = "student.onnx"


def keep_exported_file(run_dir: Path) -> None:
    """Keep a file for another runtime in the run directory, as that of the student before."""
    path = run_dir.parent / EXPORTED
    path.write_bytes(b"of the student before")
    deployed_files.keep(Journal(run_dir), path)
    assert (run_dir / EXPORTED).exists()


def test_a_complete_run_is_resumed_with_another_budget_without_training(
    teacher: keras.Model, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = reports.read(Journal(run_dir))
    keep_exported_file(run_dir)

    def no_training(*_: Any) -> None:
        raise AssertionError("no block may be trained again")

    monkeypatch.setattr("pbd.pipeline.plan.make_plan", no_training)
    settings: dict[str, Any] = {"block": BLOCKS, "budget": "params:0.65", "resume": True}
    resumed = distill(teacher, run_dir, **settings)
    assert not (run_dir / EXPORTED).exists(), "another student is written"
    assert resumed.report.student.params <= 0.65 * cost.count_params(teacher) < first.student.params
    again = distill(teacher, run_dir, **settings)
    assert again.report.timing == resumed.report.timing, "the report is that of the complete run"
    tuned = distill(teacher, run_dir, **settings, fine_tune_epochs=1)
    assert [row["epoch"] for row in tuned.report.fine_tune_history] == [1], "fine-tuned, with the same blocks"


@pytest.mark.parametrize("budgets", [{"budget": "macs:0.0001"}, {"sweep": "macs:0.9,0.0001"}], ids=str)
def test_an_impossible_budget_is_refused_before_anything_is_written(
    teacher: keras.Model, run_dir: Path, tmp_path: Path, budgets: dict[str, str]
) -> None:
    with pytest.raises(InfeasibleBudgetError, match="the least possible"):
        distill(teacher, tmp_path / "new", block=BLOCKS, **budgets)
    assert not (tmp_path / "new").exists()
    keep_exported_file(run_dir)
    with pytest.raises(InfeasibleBudgetError, match="the least possible"):
        distill(teacher, run_dir, block=BLOCKS, resume=True, **budgets)
    assert manifest.is_intact(Journal(run_dir)), "the run is complete as before"
    assert (run_dir / EXPORTED).exists()


def test_costs_of_another_run_are_refused_before_anything_is_written(
    teacher: keras.Model, run_dir: Path, tmp_path: Path
) -> None:
    costs = json.loads((run_dir / "costs.json").read_text())
    costs["batch_size"] += 1
    (tmp_path / "costs.json").write_text(json.dumps(costs))
    with pytest.raises(UsageError, match="--costs must be a table made with the run's batch_size"):
        distill(teacher, tmp_path / "new", block=BLOCKS, costs=str(tmp_path / "costs.json"))
    assert not (tmp_path / "new").exists()


@pytest.fixture(scope="module")
def bottlenecks() -> keras.Model:
    """Return a network of two residual blocks with 1x1 convolutions around one of 3x3; the first has a shortcut."""
    x = inputs = keras.Input((8, 8, 16))
    for name, shortcut in (("a", True), ("b", False)):
        y = keras.layers.Conv2D(8, 1, activation="relu", name=f"{name}1")(x)
        y = keras.layers.Conv2D(8, 3, padding="same", activation="relu", name=f"{name}2")(y)
        y = keras.layers.Conv2D(32, 1, name=f"{name}3")(y)
        x = keras.layers.Conv2D(32, 1, name=f"{name}0")(x) if shortcut else x
        x = keras.layers.ReLU()(keras.layers.Add(name=f"{name}_add")([x, y]))
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(4, name="logits")(x))


@pytest.mark.parametrize("designs", [("drop",), ("drop", "spatial_svd_r50")])
def test_what_has_no_block_itself_is_saved_with_the_residual_block_around_it(
    bottlenecks: keras.Model, tmp_path: Path, designs: tuple[str, ...]
) -> None:
    images = np.random.default_rng(0).uniform(0, 1, (32, 8, 8, 16)).astype(np.float32)
    result = distill(bottlenecks, tmp_path / "run", images, block=designs, budget="macs:0.7")
    assert {row.layer for row in result.report.blocks if row.status == "accepted"} == {"b_add"}
    share = cost.count_macs(result.model) / cost.count_macs(bottlenecks)
    assert share < 0.7
    assert any(f"{100 * share:.1f}% of the multiply-accumulates" in event for event in result.report.events)


def test_an_impossible_budget_is_refused_with_the_nearest_one(teacher: keras.Model, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"Received: macs:0.01; the least possible: macs:0\.\d+") as refused:
        distill(teacher, tmp_path / "run", block="spatial_svd_r50", budget="macs:0.01")
    assert not list((tmp_path / "run" / "blocks").glob("*.npz")), "before any block is fitted"
    nearest = str(refused.value).split("the least possible: ")[1].split(". ")[0]
    result = distill(teacher, tmp_path / "other", block="spatial_svd_r50", budget=nearest)
    assert sum(row.status == "accepted" for row in result.report.blocks) == 4


class Stopwatch:
    """Multiply-accumulates stand in for seconds, of whole networks and of pieces."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds_of_student: float = 1.0) -> None:
        self.seconds_of_student = seconds_of_student
        self.networks, self.pieces = list[dict[str, float]](), list[Any]()
        monkeypatch.setattr(latency_costs, "seconds_of", self.seconds_of)
        monkeypatch.setattr(latency_costs.piece_times, "measure", self.measure)

    def seconds_of(self, networks: dict[str, keras.Model], *_: Any) -> dict[str, float]:
        seconds = {name: cost.count_macs(network) / 1e9 for name, network in networks.items()}
        self.networks.append(
            {name: (self.seconds_of_student if name == "student" else 1.0) * each for name, each in seconds.items()}
        )
        return self.networks[-1]

    def measure(
        self, pieces: dict[Any, keras.Model], _: Any, batch_sizes: tuple[int, ...]
    ) -> dict[int, dict[Any, latency_costs.PieceTime]]:
        self.pieces += pieces
        times = {key: sum(map(cost.count_macs, (piece, *nested(piece)))) / 1e9 for key, piece in pieces.items()}
        return {batch_sizes[0]: {key: latency_costs.PieceTime(each, each, 0) for key, each in times.items()}}


def nested(model: keras.Model) -> list[keras.Model]:
    return [layer for layer in model.layers if isinstance(layer, keras.Model)]


def test_a_choice_that_is_measured_to_be_too_slow_is_corrected(
    teacher: keras.Model, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopwatch = Stopwatch(monkeypatch, seconds_of_student=1.2)
    result = distill(teacher, run_dir, block=BLOCKS, budget="latency:0.8", target_batch=4, resume=True)
    tried = [seconds["student"] for seconds in stopwatch.networks if "student" in seconds]
    limit = choosing.TOLERANCE["latency"] * 0.8 * stopwatch.networks[0]["teacher"]
    assert len(tried) > 1
    assert tried[0] > limit
    assert tried[-1] <= 1.01 * limit
    assert sum("of the teacher's latency predicted" in event for event in result.report.events) == len(tried)


def test_a_run_that_is_killed_in_fine_tuning_goes_on_with_the_same_blocks_whatever_is_measured_then(
    teacher: keras.Model, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"block": BLOCKS, "budget": "latency:0.8", "target_batch": 4, "resume": True}
    stopwatch = Stopwatch(monkeypatch)
    with monkeypatch.context() as interrupted:
        interrupted.setattr(StudentBuilder, "fine_tune", killed)
        with pytest.raises(KeyboardInterrupt):
            distill(teacher, run_dir, **settings, fine_tune_epochs=1)
    assert len(stopwatch.pieces) == len(set(stopwatch.pieces)), "none is measured twice"
    candidates = 2 * 6 + 2 * 2  # of convolutions and of residual blocks, without the widths of their outputs
    assert 5 < len(stopwatch.pieces) < candidates, "only pieces of networks that could be chosen are measured"
    (chosen,) = (run_dir / "choices").iterdir()
    busy = Stopwatch(monkeypatch, seconds_of_student=1.5)
    resumed = distill(teacher, run_dir, **settings, fine_tune_epochs=1)
    accepted = {row.layer: row.block for row in resumed.report.blocks if row.status == "accepted"}
    assert accepted == json.loads(chosen.read_text())["content"]["designs"]
    assert not busy.networks
    assert not busy.pieces
    choice = resumed.report.choice
    assert choice is not None
    assert choice.measured["latency"] <= 0.8 * choosing.TOLERANCE["latency"]
    assert choice.predicted["latency"] == pytest.approx(choice.measured["latency"], abs=1e-3)


def killed(*_: Any) -> None:
    raise KeyboardInterrupt


def test_the_file_of_the_student_keeps_within_its_bytes(teacher: keras.Model, run_dir: Path) -> None:
    whole = file_size(teacher, targets.get("keras"))
    limit = int(0.75 * whole)
    result = distill(teacher, run_dir, block=BLOCKS, budget=f"bytes:{limit}", resume=True)
    assert result.report.choice is not None
    assert 0.8 * limit < file_size(result.model, targets.get("keras")) <= limit
    assert result.report.choice.measured["bytes"] * whole <= limit


def test_a_choice_is_not_kept_for_another_precision(
    teacher: keras.Model, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(StudentBuilder, "fine_tune", killed)
    for target in ("onnx", "onnx-int8"):
        with pytest.raises(KeyboardInterrupt):
            distill(teacher, run_dir, block=BLOCKS, budget="macs:0.8", target=target, resume=True)
    assert len(list((run_dir / "choices").iterdir())) == 2


def test_the_fastest_student_that_keeps_the_accuracy_is_chosen(
    teacher: keras.Model, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Stopwatch(monkeypatch)
    monkeypatch.setattr(choosing, "BISECTIONS", 2)
    settings: dict[str, Any] = {"block": BLOCKS, "resume": True}
    careful, bold = (distill(teacher, run_dir, **settings, max_drop=max_drop).report for max_drop in (0.35, 0.9))
    for report, max_drop in ((careful, 0.35), (bold, 0.9)):
        assert report.student.val_agreement is not None
        assert report.student.val_agreement >= 1 - max_drop
    assert bold.student.macs < careful.student.macs < careful.teacher.macs
    again = distill(teacher, run_dir, **settings, max_drop=0.35).report
    assert again.student.macs == careful.student.macs, "a complete run is resumed with another limit"


def test_a_sweep_gives_a_student_for_each_budget_from_one_set_of_blocks(
    teacher: keras.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = distill(teacher, tmp_path / "run", block=("narrow_r50", "merge"), sweep="macs:0.9,0.6")
    assert list(result.front) == ["macs:0.9", "macs:0.6"]
    macs = [report.student.macs / report.teacher.macs for report in result.front.values()]
    assert 0.6 < macs[0] <= 0.9
    assert macs[1] <= 0.6
    for report in result.front.values():
        assert report.choice is not None
        assert report.choice.predicted["macs"] == pytest.approx(report.student.macs / report.teacher.macs, abs=1e-3)
        student = keras.models.load_model(report.student.path)
        assert cost.count_macs(student) == report.student.macs
        assert report.blocks[0].seconds is None or "macs:0.9" in report.config["budget"], "blocks are fitted once"
    assert '"macs:0.6"' in (tmp_path / "run" / "front" / "budgets.json").read_text()
    assert "macs:0.9" in (tmp_path / "run" / "front.txt").read_text()
    assert "macs:0.9" in (tmp_path / "run" / "front.html").read_text()
    assert result.report.choice == result.front["macs:0.6"].choice, "the run directory holds the last one"

    (tmp_path / "run" / "front" / "macs_0.6" / "report.json").unlink()
    runs: list[tuple[str, ...]] = []
    monkeypatch.setattr("pbd.pipeline.distill.run_on", lambda _, __, config, **___: runs.append(config.student.budget))
    with pytest.raises(AttributeError):  # the replacement returns no report
        distill(teacher, tmp_path / "run", block=("narrow_r50", "merge"), sweep="macs:0.9,0.6", resume=True)
    assert runs == [("macs:0.6",)], "the student that is there is not built again"


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"sweep": "macs:0.5,0.5"}, "must differ"),
        ({"sweep": "macs:0.5", "budget": "macs:0.5"}, "exclude one another"),
        ({"sweep": "time:0.5"}, "time"),
        ({"sweep": "macs:0.5", "max_accuracy_drop": 0.1}, "not both"),
    ],
)
def test_a_sweep_that_makes_no_sense_is_refused(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        pbd.RunConfig.of(**settings)

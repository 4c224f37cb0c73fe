"""The tables of the other sources: the recipes behind them, their figures beside ours, and the command line."""

import csv
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import pbd
from experiments.sources import (
    __main__ as everything,
)
from experiments.sources import (
    chains,
    common,
    ensemble_table,
    few_images,
    iterative_pruning,
    layer_macs,
    pruning_sweep,
    quantization_table,
    student_designs,
    temperature,
    trials,
)
from experiments.sources.trials import Trials
from pbd.compression.step import Step, name_of, settings_of
from pbd.errors import MissingInputError, UsageError
from pbd.records import Deployment, Latency, ModelFacts
from pbd.records.recipe_report import RecipeReport, StepReport

SOURCES = {
    "analysis": {
        "quantisation": {
            "columns": ["model", "top1", "size_mb", "latency_ms"],
            "rows": [["ResNet18", 86.02, 84.6, 18.07], ["static int8", 78.8, 24.3, 12.09], ["QAT", 84.4, 24.13, 10.96]],
        },
        "student_design": {
            "columns": ["student", "top1", "size_mb", "params_k", "latency_ms"],
            "rows": [["ResNet18 (teacher)", 90.3, 44.7, 11170, 0.856], ["2: 1x1 filters", 80.9, 3.8, 376, 0.161]],
        },
        "iterative_magnitude_pruning": {
            "columns": ["pruned_percent", "top1", "params_m", "size_mb"],
            "rows": [[0, 90.3, 11.17, 44.7], [15, 91.66, 9.52, 38.1], [77, 92.2, 2.7, 10.92], [98, 68.44, 0.4, 1.63]],
        },
        "ensemble": {
            "columns": ["model", "top1", "size_mb", "params_k"],
            "rows": [["4 conv + 2 dense", 85.495, 7.5, 654], ["mean of students 4, 5, 6", 88.02, 7.2, 631]],
        },
        "combinations": {
            "columns": ["chain", "top1", "size_mb", "params_k"],
            "rows": [["QAT", 84.4, 24.13, 11170], ["KD > prune 77% > QAT", 82.9, 0.38, 83.8]],
        },
    },
    "dissertation": {
        "table2_1_single_pass_pruning_cifar10": {
            "columns": ["network", "method", "0", "30", "45", "60", "75", "90"],
            "rows": [["VGG-16", "reinit", 88.7, 87.3, 86.9, 10.0, 10.0, 10.0]],
        },
        "table2_3_iterative_pruning": {
            "columns": ["data", "network", "0", "60", "70", "80", "90"],
            "rows": [["CIFAR-100", "VGG-16", 56.7, 63.0, 63.4, 63.7, 63.4]],
        },
    },
    "compile_report": {
        "columns": ["network", "framework_ms", "compiled_and_tuned_ms", "size_mb"],
        "rows": [["ResNet-101", 12.97, 8.9, 170], ["ResNet-18 distilled", 5.35, 2.64, 41]],
    },
}
CHAINS = {"QAT", "KD", "prune 77%", "KD > prune 77%", "KD > QAT", "prune 77% > QAT", "KD > prune 77% > QAT"}


@dataclasses.dataclass(frozen=True)
class Done:
    """What the stand-in for `pbd.compress` returns."""

    report: RecipeReport
    model: None = None

    def network(self, name: str) -> None:
        assert name in [step.name for step in self.report.steps]


def deployment(name: str, target: str, seconds: float) -> Deployment:
    latency = Latency(1, seconds, seconds, seconds, 0.002 / seconds, None, 25, 10)
    return Deployment(name, target, 50_000, 0.75, 0.8, 100, (latency,))


def step_report(name: str, accuracy: float, targets: Sequence[str], step: Step | None = None) -> StepReport:
    timed = [(form, seconds) for target in targets for form, seconds in ((target, 0.002), (f"{target}-int8", 0.001))]
    rows = tuple(deployment(name, form, seconds) for form, seconds in timed)
    facts = ModelFacts(1000, 5000, val_accuracy=accuracy, test_accuracy=accuracy, test_agreement=accuracy)
    details = {"bytes": {"sparse": 12_000}} if step and name_of(step) == "prune_weights" else {}
    return StepReport(name, facts, 400, settings_of(step) if step else {}, details=details, deployments=rows)


class Compress:
    """In place of `pbd.compress`: notes what it is given, and returns a report at once."""

    def __init__(self) -> None:
        self.steps: dict[str, Sequence[Step]] = {}
        self.resumed: dict[str, bool] = {}
        self.configs: list[Any] = []

    def __call__(
        self, *, steps: Sequence[Step], targets: Sequence[str], config: Any, run_dir: str, resume: bool
    ) -> Done:
        folder = Path(run_dir)
        self.steps[folder.name], self.resumed[folder.name] = steps, resume
        self.configs.append(config)
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("run.json", "recipe.json"):
            (folder / name).write_text("{}")
        rows = [
            step_report(f"{n} {name_of(step)}", 0.9 - n / 100, targets, step) for n, step in enumerate(steps, start=1)
        ]
        networks = (step_report("teacher", 0.9, targets), *rows)
        result = rows[-1].name
        return Done(RecipeReport({}, {}, "cpu", networks, result, None, "labels", tuple(targets), (), 1.0, ""))


@pytest.fixture
def recipes(monkeypatch: pytest.MonkeyPatch) -> Compress:
    fake = Compress()
    monkeypatch.setattr(pbd, "compress", fake, raising=False)
    times = Trials(2.0, 1.9, 2.1, 1.8, 2.5, 1.5, 100_000)
    monkeypatch.setattr(trials, "measure", lambda models, target, rounds=25: dict.fromkeys(models, times))
    return fake


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    tables = tmp_path / "source_tables.json"
    tables.write_text(json.dumps(SOURCES))
    return [f"--run-dir={tmp_path / 'run'}", f"--source-tables={tables}", "--target=onnx"]


def read(tmp_path: Path, name: str) -> list[dict[str, str]]:
    with (tmp_path / "run" / "tables" / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_all_tables_are_printed_beside_the_sources_and_written(
    recipes: Compress, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert everything.main(["--quick", *arguments]) == 0
    said = capsys.readouterr().out
    assert said.count("Theirs") >= 8
    assert "only ours" not in said
    assert "take the place of TVM" in " ".join(said.split())
    for theirs in ("80.90", "92.20", "88.02", "82.90", "78.80", "ResNet-101", "63.70"):
        assert theirs in said, theirs
    names = {path.stem for path in (tmp_path / "run" / "tables").iterdir()}
    assert {"pruning_sweep", "pruning_methods", "student_designs", "quantization", "ensemble", "chains"} <= names
    assert {"pruning_sweep_accuracy", "pruning_sweep_latency_ms", "compiled_inference", "temperature"} <= names
    assert "<svg" in (tmp_path / "run" / "tables" / "pruning_sweep_accuracy.svg").read_text()


@pytest.mark.parametrize(("flags", "counts"), [([], (30, 10, 20)), (["--full"], (40, 10, 30))])
def test_the_quick_tables_use_few_images_of_a_large_archive(
    flags: list[str],
    counts: tuple[int, int, int],
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(few_images, "MOST", {"train": 30, "val": 10, "test": 20})
    file, pixels = tmp_path / "large.npz", np.arange(80, dtype=np.uint8).reshape(80, 1, 1, 1) * np.ones((1, 4, 4, 1))
    images, labels = pixels.astype(np.uint8), np.arange(80) % 3
    parts = {"train": slice(0, 40), "val": slice(40, 50), "test": slice(50, 80)}
    arrays = {f"x_{name}": images[rows] for name, rows in parts.items()}
    arrays |= {f"y_{name}": labels[rows] for name, rows in parts.items()}
    np.savez(file, **arrays)
    settings = common.parse("sources", "", [*flags, *arguments, f"--dataset={file}"])
    with np.load(settings.dataset) as kept:
        for name, count in zip(parts, counts, strict=True):
            assert len(kept[f"x_{name}"]) == len(set(kept[f"x_{name}"][:, 0, 0, 0])) == count
            assert np.array_equal(kept[f"x_{name}"][:, 0, 0, 0] % 3, kept[f"y_{name}"]), "each keeps its label"
    assert Path(settings.dataset).name == "large.npz"


@pytest.mark.parametrize(("flags", "count"), [([], 36), (["--train-limit=20"], 20)])
def test_a_table_says_how_many_images_were_trained_on(
    flags: list[str], count: int, arguments: list[str], tmp_path: Path
) -> None:
    """Of 40 images, 4 are the validation split."""
    file, labels = tmp_path / "images.npz", np.arange(40) % 2
    images = np.zeros((40, 4, 4, 1), np.uint8)
    np.savez(file, x_train=images, y_train=labels, x_test=images[:4], y_test=labels[:4])
    settings = common.parse("sources", "", [*arguments, *flags, f"--dataset={file}"])
    assert settings.ours("1 epoch") == f"Ours: digits_cnn, {count} training images of images; 1 epoch."


def test_without_the_file_of_the_sources_only_ours_are_printed(
    recipes: Compress, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [f"--run-dir={tmp_path / 'run'}", f"--source-tables={tmp_path / 'absent.json'}", "--target=onnx"]
    assert everything.main(flags) == 0
    assert capsys.readouterr().out.count("only ours") == 10
    assert all(row["their_accuracy"] == "" for row in read(tmp_path, "chains"))


def test_the_full_sweep_prunes_10_to_90_percent_and_retrains_20_epochs(
    recipes: Compress, arguments: list[str], tmp_path: Path
) -> None:
    assert pruning_sweep.main(["--full", *arguments]) == 0
    sweep = {name: steps for name, steps in recipes.steps.items() if name.startswith("sweep")}
    assert len(sweep) == 27
    prune, tune = sweep["sweep-L2-40"]
    assert (prune, tune) == (
        pbd.PruneFilters(ratio=0.4, importance="l2", refit=False),
        pbd.FineTune(epochs=20, loss="cross_entropy"),
    )
    assert sweep["sweep-level-90"][0] == pbd.PruneWeights(ratio=0.9)
    assert {row["method"] for row in read(tmp_path, "pruning_sweep")} == {"teacher", "L1", "L2", "level"}


def test_every_round_of_iterative_pruning_is_a_step(recipes: Compress, arguments: list[str], tmp_path: Path) -> None:
    assert iterative_pruning.main(["--full", *arguments]) == 0
    steps = recipes.steps["iterative-15-percent"]
    assert [round(step.ratio, 4) for step in steps[:2]] == [0.15, 0.2775]
    rows = {row["pruned_percent"]: row for row in read(tmp_path, "iterative_magnitude_pruning")}
    assert float(rows["98"]["their_accuracy"]) == 68.44
    assert float(rows["15"]["kilobytes"]) == 12
    methods = read(tmp_path, "pruning_methods")
    assert [row["method"] for row in methods] == ["mag", "reinit", "rand", "iterative", "reinit", "iterative"]
    assert recipes.steps["single-redraw-75"][0].control == "redraw"


def test_all_chains_come_from_four_recipes(recipes: Compress, arguments: list[str], tmp_path: Path) -> None:
    assert chains.main(arguments) == 0
    rows = {row["chain"]: row for row in read(tmp_path, "chains")}
    assert rows.keys() == CHAINS | {"teacher"}
    assert float(rows["KD > prune 77%"]["kilobytes"]) == 12, "the weights with sparse kernels"
    assert float(rows["KD > QAT"]["latency_ms"]) == 1, "in 8-bit integers"
    assert [name_of(step) for step in recipes.steps["chain-kd-prune-qat"]] == [
        "distill_into",
        "prune_weights",
        "quantize",
    ]


def test_quantisation_compares_files_side_by_side(recipes: Compress, arguments: list[str], tmp_path: Path) -> None:
    assert quantization_table.main([*arguments, "--epochs=2"]) == 0
    static, trained = recipes.steps["quantization"]
    assert (static.method, trained.method, trained.epochs) == ("ptq", "qat", 2)
    times = [float(row["times_as_fast"]) for row in read(tmp_path, "quantization")]
    assert times == [1, 2, 2]
    assert float(read(tmp_path, "quantization")[1]["their_change"]) == pytest.approx(-7.22)


def test_the_tables_of_students_share_recipes(recipes: Compress, arguments: list[str], tmp_path: Path) -> None:
    assert student_designs.main(arguments) == 0
    assert ensemble_table.main(arguments) == 0
    assert recipes.resumed["kd-conv4_dense2"], "the ensemble's table finds the student of the other table"
    assert not recipes.resumed["ensemble"]
    assert [step.student for (step,) in recipes.steps["ensemble"][0].members] == list(ensemble_table.SMALL)
    assert len(read(tmp_path, "student_designs")) == 8


def test_a_temperature_is_a_recipe(recipes: Compress, arguments: list[str], tmp_path: Path) -> None:
    assert temperature.main(arguments) == 0
    found = [steps[0].temperature for name, steps in recipes.steps.items() if name.startswith("kd-")]
    assert found == [1, 5, 10, 15, 20]
    assert [row["their_network"] for row in read(tmp_path, "compiled_inference")] == [
        "ResNet-101",
        "ResNet-18 distilled",
    ]


def test_a_built_in_teacher_is_trained_once(recipes: Compress, arguments: list[str]) -> None:
    assert student_designs.main(arguments) == 0
    teachers = [config.teacher.teacher for config in recipes.configs]
    assert teachers[0] == "digits_cnn"
    assert {Path(name).name for name in teachers[1:]} == {"teacher.keras"}


def test_wrong_arguments_are_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="epoch"):
        common.parse("sources", None, ["--epochs", "0"])
    with pytest.raises(MissingInputError, match="--teacher must be a file that exists"):
        common.parse("sources", None, ["--teacher", str(tmp_path / "absent.keras")])
    assert everything.main(["--quick", "--full"]) == UsageError.exit_code


def test_trials_measure_networks_in_turn() -> None:
    inputs = keras.Input((4, 4, 1))
    model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Flatten()(inputs)))
    times = trials.measure({"one": model, "two": model}, "keras", rounds=3)
    assert times["one"].times_as_fast == 1
    assert times["two"].low_ms <= times["two"].q1_ms <= times["two"].median_ms <= times["two"].q3_ms
    assert times["two"].size_bytes > 0


def test_the_multiply_accumulates_that_layers_lose_are_those_of_the_dissertation() -> None:
    """Table 4.4, all percentages as printed."""
    craft = [0, 74.7, 64.3, 76.2, 65.5, 77.0, 77.0, 66.1, 77.4, 77.4, 77.4, 77.4, 77.4]
    l1_pruning = [50, 50, 0, 0, 0, 0, 0, 50, 75, 75, 75, 75, 75]
    *lines, whole = layer_macs.rows([{"craft": c, "l1_pruning": p} for c, p in zip(craft, l1_pruning, strict=True)])
    for name, theirs in {"two_layer": craft, "l1_pruning": l1_pruning}.items():
        assert [round(line[name], 1) for line in lines] == theirs
    assert [(line["their_craft"], line["their_l1_pruning"]) for line in lines] == [*zip(craft, l1_pruning, strict=True)]
    assert whole["macs"] == pytest.approx(313.2, abs=0.05)

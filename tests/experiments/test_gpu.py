"""`experiments.gpu`: a step written by hand computes pbd's losses; tables and logs are read as they are written."""

import csv
import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from rich.console import Console
from rich.table import Table

if keras.backend.backend() != "jax":
    pytest.skip("these experiments measure the JAX backend", allow_module_level=True)

from experiments import gpu, gpu_groups, gpu_phases, gpu_steps, hand_written_steps, step_floors
from experiments.compilations import Recorder
from experiments.gpu_steps import Row, Timing
from experiments.step_floors import Rates
from pbd import blocks
from pbd.blockwise.tasks import enumerate_tasks
from pbd.errors import PbdError
from pbd.learning import scanned_steps

TIMING = Timing(batch_size=4, steps=3, epochs=1, images=8)


@pytest.fixture
def teacher() -> keras.Model:
    """A small network with everything that the hand-written step knows."""
    keras.utils.set_random_seed(3)
    layers = keras.layers
    inputs = x = keras.Input((8, 8, 3))
    x = layers.Rescaling(1 / 127.5, offset=-1.0)(x)
    x = shortcut = layers.Conv2D(8, 3, padding="same", activation="relu", name="stem")(x)
    x = layers.BatchNormalization(name="norm")(layers.Conv2D(8, 3, padding="same", use_bias=False, name="first")(x))
    x = layers.Activation("relu")(layers.Add()([x, shortcut]))
    x = layers.ZeroPadding2D(((1, 1), (1, 1)))(layers.MaxPooling2D(2)(x))
    x = layers.Conv2D(12, 3, strides=2, activation="relu", name="second")(x)
    outputs = layers.Dense(3)(layers.GlobalAveragePooling2D()(layers.Conv2D(8, 3, padding="same", name="third")(x)))
    model = keras.Model(inputs, outputs)
    draws = np.random.default_rng(0)
    model.get_layer("norm").set_weights([draws.uniform(0.5, 1.5, 8).astype(np.float32) for _ in range(4)])
    return model


@pytest.mark.parametrize(("block", "accelerator"), [("decoupled_r1", False), ("decoupled_r2", True)])
def test_both_steps_compute_the_same_losses(
    teacher: keras.Model, block: str, accelerator: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scanned_steps.devices, "has_accelerator", lambda: accelerator)
    tasks = gpu_steps.trained_tasks(teacher, block)
    assert [task.layer.name for task in tasks] == ["first", "second", "third"]
    timing = dataclasses.replace(TIMING, augment="flip_crop" if accelerator else "none")
    built, data = gpu_steps.build(tasks), gpu_steps.random_data(timing, (8, 8, 3))
    by_hand = gpu_steps.by_hand_epochs(teacher, built, data, timing.all_steps)
    ours = gpu_steps.pbd_epochs(teacher, built, data, timing.all_steps)
    for epoch in range(2):
        losses, history = by_hand(epoch), ours(epoch)
        assert losses.shape == (3, 3)
        assert hand_written_steps.compare_losses(list(built), history, losses) < 1e-4


def test_other_losses_are_refused() -> None:
    losses = np.array([[1.0, 3.0], [1.0, 5.0]])
    assert hand_written_steps.compare_losses(["a", "b"], {"a": [1.0], "b": [4.0005]}, losses) < 1e-3
    for other in (4.1, float("nan")):
        with pytest.raises(PbdError, match=r"by pbd, 4 by hand, for 'b'"):
            hand_written_steps.compare_losses(["a", "b"], {"a": [1.0], "b": [other]}, losses)


def test_layers_without_a_hand_written_function_are_refused(teacher: keras.Model) -> None:
    built = gpu_steps.build(gpu_steps.trained_tasks(teacher, "two_layer"))
    data = gpu_steps.random_data(TIMING, (8, 8, 3))
    with pytest.raises(PbdError, match="has no SeparableConv2D"):
        gpu_steps.by_hand_epochs(teacher, built, data, TIMING.all_steps)


def test_a_row_has_all_figures(teacher: keras.Model) -> None:
    row = gpu_steps.measure("tiny", teacher, "decoupled_r1", TIMING, most_layers=2, rates=Rates(1e9, 1e9))
    assert (row.network, row.image_size, row.batch_size, row.blocks, row.layers_measured) == ("tiny", 8, 4, 3, 2)
    assert row.difference is not None
    assert row.difference < 1e-3
    assert row.refused == ""
    assert all(value > 0 for value in row.figures().values() if isinstance(value, float))
    refused = gpu_steps.measure("tiny", teacher, "two_layer", TIMING, most_layers=0, rates=Rates(1e9, 1e9))
    assert (refused.by_hand_ms, refused.over_by_hand, refused.one_by_one_ms) == (None, None, None)
    assert "SeparableConv2D" in refused.refused


def test_ratios_and_the_table() -> None:
    row = Row("net", 32, 256, 54, 5.0, 4.0, 1e-5, 50.0, 5, 1.0, 2.5, 30.0, 20.0)
    assert (row.over_by_hand, row.one_by_one_over_grouped, row.over_floor) == (1.25, 10.0, 2.0)
    printed = as_text(gpu_steps.as_table([row], Rates(4e14, 4e12), "none"))
    for words in (" 1.25 ", " 5/54 ", "400.00 Tflop/s", "4000 GB/s"):
        assert words in printed


def test_layers_are_sampled_and_interpolated() -> None:
    assert gpu_steps.sampled(18, 5) == [0, 4, 8, 13, 17]
    assert gpu_steps.sampled(3, 5) == gpu_steps.sampled(3, None) == [0, 1, 2]
    assert (gpu_steps.sampled(3, 1), gpu_steps.sampled(3, 0)) == ([1], [])
    assert gpu_steps.interpolated_sum({0: 1.0, 4: 5.0}, 5) == 15.0
    assert gpu_steps.parse_network("ResNet50@224") == ("ResNet50", 224)
    assert gpu_steps.parse_network("a@b/net.keras") == ("a@b/net.keras", 32)


def test_work_is_counted() -> None:
    inputs = keras.Input((4, 4, 8))
    outputs = keras.layers.Conv2D(16, 3, padding="same", use_bias=False, name="only")(inputs)
    network = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(outputs)))
    (task,) = enumerate_tasks(network, blocks.get("decoupled_r1"))
    block = gpu_steps.build([task])
    work = step_floors.of_step(network, block, batch_size=2)
    teacher, depthwise, pointwise = 16 * 9 * 8 * 16, 16 * 9 * 8, 16 * 8 * 16
    assert work.operations == 2 * 2 * (teacher + 2 * depthwise + 3 * pointwise)
    x, y = 4 * 16 * 8, 4 * 16 * 16
    per_image = 16 * 8 + (x + y) + y + 2 * (x + x) + 3 * (x + y)
    assert work.bytes == 2 * per_image + 4 * (9 * 8 * 16 + 7 * (9 * 8 + 8 * 16))
    rates = step_floors.measure_rates(16, repeats=1)
    assert rates.operations_per_s > 0
    assert rates.bytes_per_s > 0


LOG = """a notice
[  4.0 s] teacher r.keras, dataset d.npz; run directory runs/a
[  5.0 s] 27 layers, 36 blocks to train, 0 already trained
[  6.0 s] predicting the training time of each layer
[  7.5 s] training 18 blocks on 1 workers (contiguous)
[ 20.0 s] worker 0: first … last (18), epoch 1, step 175/525 (33%), loss 4.6
[ 21.0 s] worker 0: first … last (18), epoch 2, step 350/525 (66%), loss 4.4
[ 22.0 s] worker 0: scoring first … last (18), step 0/819 (0%)
[ 24.0 s] worker 0: scoring first … last (18), step 819/819 (100%)
[ 25.0 s] measuring 8 residual blocks, the convolutions behind each refitted
[ 25.5 s] worker 0: drop in place of add, step 0/8 (0%)
[ 28.0 s] assembling 18 blocks, refitting convolutions in order
[ 28.5 s] worker 0: refitting first, step 0/18 (0%)
[ 30.0 s] assembled 18 accepted blocks: validation accuracy 0.8000
[ 31.0 s] something else
[ 45.0 s] worker 0: fine-tuning, epoch 1, step 175/525 (33%), loss 8.6
[ 48.0 s] fine-tuned for 3 epochs: validation accuracy 0.8590
[ 50.0 s] measuring teacher and student in keras
[ 55.0 s] evaluating teacher and student on the test split
"""


def test_phases_are_read_from_the_log() -> None:
    phases = gpu_phases.phases(LOG, total_s=60.0)
    assert list(phases.values()) == [4.0, 1.0, 1.0, 1.5, 12.5, 2.0, 3.0, 3.0, 2.0, 15.0, 3.0, 2.0, 5.0, 5.0]
    assert sum(phases.values()) == 60.0
    assert phases["until the first progress of fine-tuning"] == 15.0
    assert gpu_phases.phases("", 2.0) == {"loading teacher and data": 2.0}


def test_the_table_of_phases_lists_what_compiled_longest() -> None:
    def measured(compile_s: float, callers: dict[str, list[float]]) -> dict[str, Any]:
        jax = {"compilations": 3, "compile_s": compile_s, "cache_hits": 0, "callers": callers}
        shared = {"energy": {"total_j": None}, "teacher_test_accuracy": 0.88, "student_test_accuracy": 0.5}
        timing = {"total_s": 9.0, "predicted_from": "costs"}
        return shared | {"timing": timing, "jax": jax, "phases": {"preparing": 1.0}, "blocks": 2, "process_s": 9.5}

    both = {
        "cold": measured(5.0, {"a": [1, 2.0], "b": [2, 3.0], "c": [1, 0.1]}),
        "warm": measured(0.1, {"a": [1, 0.1]}),
    }
    lines = gpu_phases.rows(both, most_callers=2)
    by_name = {(line["section"], line["name"]): (line["cold"], line["warm"]) for line in lines}
    assert by_name["report, s", "total_s"] == (9.0, 9.0)
    assert by_name["compile_s", "b"] == (3.0, None)
    assert by_name["compilations", "a"] == (1, 1)
    assert ("compile_s", "c") not in by_name
    printed = as_text(gpu_phases.as_table(lines, list(both), "a GPU"))
    for words in ("preparing (s)", " 2, 3.0 ", " 1, 0.1 ", "0.88", " - "):
        assert words in printed


def test_a_run_is_a_process_whose_figures_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = "json.dump({'run_s': 3.0}, open(sys.argv[3], 'w'))"
    program = f"import json, sys; print('[  1.0 s] teacher x'); {figures}"
    job = gpu_phases.Job("t", "d", 4, "none", {})
    monkeypatch.setattr(gpu_phases, "PROGRAM", ("-c", program))
    measured = gpu_phases.run(job, "cold", tmp_path, timeout_s=60)
    assert measured["phases"] == {"loading teacher and data": 1.0, "preparing": 2.0}
    assert json.loads((tmp_path / "cold.json").read_text()) == measured
    monkeypatch.setattr(gpu_phases, "PROGRAM", ("-c", "import sys; sys.exit('no memory')"))
    with pytest.raises(PbdError, match="the warm run failed with exit code 1: no memory"):
        gpu_phases.run(job, "warm", tmp_path, timeout_s=60)


def test_compilations_are_attributed_to_functions_of_pbd() -> None:
    import jax
    import jax.numpy as jnp

    recorder = Recorder()
    jax.jit(lambda x: x * 3.25 + 1.125)(jnp.ones(7)).block_until_ready()
    step_floors.measure_rates(17, repeats=1)
    found = recorder.as_json()
    assert found["compilations"] >= 3
    assert found["compile_s"] > 0
    assert found["callers"]["outside of pbd"][0] == found["compilations"]
    scanned_steps.devices.names()
    assert Recorder().as_json()["compilations"] == 0


def test_groups_are_split_and_compared() -> None:
    assert gpu_groups.split(18, 4) == [(0, 4), (4, 9), (9, 14), (14, 18)]
    one = gpu_groups.summarise("net", TIMING, [(18, 0.0, 3.0)])
    two = gpu_groups.summarise("net", TIMING, [(9, 0.0, 1.0), (9, 0.5, 2.0)])
    assert (one.block_steps_per_s, two.block_steps_per_s, two.own_block_steps_per_s) == (18.0, 27.0, 45.0)
    rows = gpu_groups.with_ratios([one, two])
    assert [row.times_one_group for row in rows] == [1.0, 1.5]
    assert gpu_groups.with_ratios([two])[0].times_one_group is None
    assert "Multi-Process Service" in as_text(gpu_groups.as_table(rows, "a GPU"))


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["slopes"], 2, "invalid choice: 'slopes'"),
        (["steps", "--steps", "0"], 2, "must be a whole number above 0"),
        (["steps", "--one-by-one", "few"], 2, "must be a whole number, or all"),
        (["steps", "--networks", "resnet65"], 2, "Did you mean"),
        (["phases", "--augment", "warp"], 2, "invalid choice: 'warp'"),
        (["phases", "--runs", "nowhere/runs"], 66, "nowhere"),
        (["groups", "--csv", "nowhere/groups.csv"], 66, "nowhere"),
    ],
)
def test_wrong_arguments_are_said_in_one_line(
    arguments: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu.main(arguments) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_other_backends_are_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(gpu.backend, "name", lambda: "torch")
    assert gpu.main(["steps"]) == 78
    assert "Set KERAS_BACKEND=jax" in capsys.readouterr().err


def test_a_network_that_fails_does_not_end_the_command(
    teacher: keras.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher.save(tmp_path / "tiny.keras")
    monkeypatch.setattr(gpu.devices.Share, "claim", lambda _: 1)
    networks = ["--networks", "no_such_network", str(tmp_path / "tiny.keras")]
    few = ["--batch-size", "4", "--steps", "2", "--epochs", "1", "--images", "8", "--matrix-size", "16"]
    assert gpu.main(["steps", *networks, *few, "--one-by-one", "0", "--csv", str(tmp_path / "steps.csv")]) == 0
    with (tmp_path / "steps.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert row["network"] == str(tmp_path / "tiny.keras")
    assert float(row["difference"]) < 1e-3
    assert "no_such_network: unknown teacher" in capsys.readouterr().out


def as_text(table: Table) -> str:
    console = Console(width=220, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()

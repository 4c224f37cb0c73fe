"""report.json keeps its contract, and the summary is readable and survives what runs really produce."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pbd.records import BlockKey, CandidateReport, ModelFacts, RunReport, WorkerReport
from pbd.report import json_safe, located, read, render, to_json, write
from pbd.report.files import from_json
from pbd.report.words import count, ratio
from pbd.run_dir.journal import Journal
from tests.helpers.report_factory import four_rows, full_report, make_report, make_row, several_designs, unlabelled

pytestmark = pytest.mark.fast

MARKS = {f"{split}_{mark}" for split in ("val", "test") for mark in ("accuracy", "agreement", "kl")}
KEYS = {
    "teacher": {"params", "macs", "size_bytes", "path"} | MARKS,
    "student": {"params", "macs", "size_bytes", "path"} | MARKS,
    "assembled": {"val_accuracy", "val_agreement", "val_kl"},
    "timing": {"calibrate_s", "distill_s", "predicted_makespan_s", "fine_tune_s", "total_s"},
    "energy": {"source", "total_j"},
}
TOP = {"version", "config", "versions", "device", "blocks", "workers", "executor", "scheduler", "groups"} | KEYS.keys()
TOP |= {"reference", "events", "fine_tune_history", "kept_epoch", "run_dir", "deployments"}
TRAINED = {"block", "worker", "started_s", "seconds", "nmse", "val_accuracy", "val_agreement", "val_kl"}
TRAINED |= {"loss_history", "nmse_history"}
BLOCK = {"layer", "status", "reason", "params_before", "params_after", "macs_before", "macs_after"} | TRAINED

DEPLOYMENT = {"model", "target", "size_bytes", "test_accuracy", "test_agreement", "test_images", "latency", "files"}
DEPLOYMENT |= {"kept_float", "memory_bytes"}
LATENCY = {"batch", "seconds", "q1_s", "q3_s", "times_as_fast", "times_as_fast_as_int8", "rounds", "passes"}


def test_json_has_the_keys_of_the_contract() -> None:
    content = to_json(make_report(energy={}))
    assert content.keys() >= TOP
    for part, keys in KEYS.items():
        assert content[part].keys() >= keys, part
    assert len(content["blocks"]) == 4
    assert all(row.keys() >= BLOCK for row in content["blocks"])
    assert all(row.keys() >= {"worker", "busy_s", "idle_s"} for row in content["workers"])
    assert content["version"] == 3
    assert [row.keys() for row in content["deployments"]] == [DEPLOYMENT] * 2
    assert [row.keys() for row in content["deployments"][0]["latency"]] == [LATENCY] * 2
    assert content["energy"] == {"source": "none", "total_j": None}
    assert content["groups"] == [["conv4_block1_2_conv", "block2_conv1"], ["block3_conv1"]]


def unlabelled_report() -> RunReport:
    """Return the report of a run without labels, in which one layer was restored."""
    tuned = ModelFacts(140_000, 5_100_000, val_agreement=0.915, test_agreement=0.901, val_kl=0.25, test_kl=0.26)
    return make_report(
        reference="teacher",
        teacher=ModelFacts(1_180_000, 40_600_000, val_agreement=1.0, test_agreement=1.0, val_kl=0.0, test_kl=0.0),
        assembled=ModelFacts(140_000, 5_100_000, val_agreement=0.6125, val_kl=1.5),
        student=tuned,
        blocks=(
            make_row("good", "accepted", "agreement 0.9300 >= 0.8000", val_accuracy=None, val_agreement=0.876),
            make_row("bad", "restored", "hurt most [of all]", val_accuracy=None, params_after=590_080),
        ),
        fine_tune_history=({"epoch": 1, "loss": 0.5, "val_agreement": 0.9, "val_kl": 0.3, "learning_rate": 0.001},),
        events=("epoch 1 diverged at learning rate 0.1 (the loss is not a finite number): undone", "restored bad"),
        deployments=unlabelled(four_rows()),
    )


@pytest.mark.parametrize("made", [make_report, full_report, unlabelled_report, several_designs])
def test_a_report_is_read_back_as_it_was_written(made: Callable[[], RunReport], tmp_path: Path) -> None:
    journal = Journal.create(tmp_path / "run", {})
    config = {"teacher": "VGG16", "layers": ["conv*"], "labels": False}
    report = dataclasses.replace(made(), config=config)
    write(report, journal)
    assert read(journal) == report
    assert journal.file("summary.txt").read_text() == render(report)


def test_a_report_of_version_1_is_read_without_its_latency(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path / "run", {})
    content = to_json(make_report()) | {"version": 1, "latency": [{"batch": 1, "teacher_s": 0.003}]}
    del content["deployments"]
    journal.write_json("report.json", content)
    report = read(journal)
    assert (report.version, report.deployments) == (3, ())
    assert "speed in a target: not measured" in " ".join(render(report).split())


def test_a_report_of_version_2_is_read_with_the_names_of_now(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path / "run", {})
    written = full_report()
    content = to_json(written) | {"version": 2, "judged_by": written.reference, "story": ["an event"]}
    del content["reference"], content["events"]
    restored = [row for row in content["blocks"] if row["status"] == "restored"]
    for row in restored:
        row["status"] = "given_back"
    journal.write_json("report.json", content)
    report = read(journal)
    assert (report.reference, report.events) == (written.reference, ("an event",))
    assert restored, "else nothing is tested"
    assert [row.status for row in report.blocks] == [row.status for row in written.blocks]


def test_the_report_of_a_run_directory_that_was_moved_names_its_present_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    moved = located(make_report(), Journal(Path("moved")))
    paths = [moved.run_dir, moved.teacher.path, moved.student.path]
    assert paths == [str(tmp_path / "moved" / name) for name in ("", "teacher.keras", "student.keras")]


@pytest.mark.parametrize("width", [80, 120])
def test_the_summary_without_labels_speaks_of_agreement_alone(width: int) -> None:
    text = render(unlabelled_report(), width)
    assert max(map(len, text.splitlines())) <= width
    words = " ".join(text.split())
    assert "validation agreement 100.00% 91.50% -8.50 points" in words
    assert "test agreement 100.00% 90.10% -9.90 points" in words
    assert "before fine-tuning 61.25% validation agreement" in words
    assert "reference agreement with the teacher" in words
    assert "87.6%" in next(line for line in text.splitlines() if line.startswith("good"))
    assert "accuracy" not in words


@pytest.mark.parametrize("width", [80, 120])
def test_the_summary_tells_what_happened(width: int) -> None:
    lines = render(unlabelled_report(), width).splitlines()
    words = " ".join(" ".join(lines).split())
    assert "1 of 2 layers replaced, 1 restored" in words
    assert "restored" in next(line for line in lines if line.startswith("bad"))
    assert "hurt most [of all]" in words
    assert "events epoch 1 diverged at learning rate 0.1 (the loss is not a finite number)" in words
    assert any(line.split() == ["restored", "bad"] for line in lines), "a line of its own"


def test_the_summary_of_a_quiet_run_with_labels_has_no_events() -> None:
    text = render(make_report())
    assert "events " not in text
    assert "reference " not in text
    assert "agreement" not in text
    assert "kept in float32" not in text


def test_summary_says_how_far_a_prediction_was_off() -> None:
    rows = [make_row(name, "accepted", "good", seconds=s, predicted_s=p) for name, s, p in (("a", 10, 9), ("b", 4, 5))]
    words = " ".join(render(make_report(blocks=tuple(rows))).split())
    assert "largest error of a group: 25%" in words
    rows = [make_row("a", "accepted", "from a run before", seconds=10, predicted_s=None)]
    assert "off by" not in render(make_report(blocks=tuple(rows)))


def test_json_holds_only_what_json_can_say() -> None:
    row = make_row("a", "rejected", "diverged", nmse=math.nan, loss_history=(math.inf, 1.0), seconds=np.float32(2))
    content = to_json(make_report(blocks=(row,), config={"rate": np.float64("nan"), "n": np.int64(3)}))
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert content["blocks"][0]["nmse"] is None
    assert content["blocks"][0]["loss_history"] == [None, 1.0]
    assert content["blocks"][0]["seconds"] == 2.0
    assert content["config"] == {"rate": None, "n": 3}


@pytest.mark.parametrize(("setting", "kept"), [("last", "last"), ("auto", ""), (None, "")])
def test_reports_that_do_not_say_which_epoch_was_kept(setting: str | None, kept: str) -> None:
    config = {} if setting is None else {"fine_tune_keep": setting}
    content = {name: value for name, value in to_json(make_report(config=config)).items() if name != "kept_epoch"}
    assert from_json(content).kept_epoch == kept


def test_json_safe_keeps_truth_values_and_nothing_else_unknown() -> None:
    assert json_safe({1: (True, np.bool_(False), None)}) == {"1": [True, False, None]}
    assert json_safe(np.array([1.0, np.nan])) == [1.0, None]


@pytest.mark.parametrize("width", [80, 120])
def test_summary_fits_and_says_everything(width: int) -> None:
    text = render(make_report(), width)
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    words = " ".join(text.split())
    for expected in ("1.2 M", "40.6 M MAC", "1.4 MB", "8.4x smaller", "-1.00 points", "61.25%", "run/student.keras"):
        assert expected in words
    assert "590.1k->70.3k" in words
    assert "0.1270" in words
    assert "1 of 4 layers replaced, 1 rejected, 1 failed, 1 skipped" in words
    row = next(line for line in lines if line.startswith("conv4_block1_2_conv"))
    assert all(part in row for part in ("accepted", "91.0%", "63", "1234.5"))


def test_narrow_summary_gives_equal_reasons_once() -> None:
    rows = tuple(make_row(name, "skipped", "no gain") for name in ("a", "b"))
    assert "skipped a, b: no gain" in render(make_report(blocks=rows), 80)


def test_the_summary_says_by_what_joules_were_measured_and_what_they_lack() -> None:
    spent = {"source": "nvml+rapl", "total_j": 1234.5, "partial": True, "notes": ["gpu-0 (nvml): lost [after] 3 s"]}
    workers = (WorkerReport(0, 9.0, 1.0, None, 800.0, 200.0), WorkerReport(1, 10.0, 0.0))
    text = " ".join(render(make_report(energy=spent, workers=workers)).split())
    lacking = "energy 1.2 kJ (nvml+rapl), partial: some energy was not measured gpu-0 (nvml): lost [after] 3 s"
    assert lacking in text
    assert "; 800 J busy, 200 J waiting (1 of them measured)" in text
    whole = " ".join(render(make_report(energy=spent | {"partial": False, "notes": ["a line"]})).split())
    assert "energy 1.2 kJ (nvml+rapl) a line" in whole


def test_the_summary_leaves_the_reasons_for_no_meter_to_the_page() -> None:
    none = {"source": "none", "total_j": None, "notes": ["Processors are measured through RAPL. Do this and that."]}
    text = render(make_report(energy=none))
    assert "energy               not measured; report.html gives the reason" in text
    assert "Do this" not in text
    assert "busy, " not in text


def test_summary_survives_what_is_absent_and_what_looks_like_markup() -> None:
    nothing = ModelFacts(0, 0)
    report = make_report(teacher=nothing, student=nothing, assembled=nothing, workers=(), run_dir="")
    report = dataclasses.replace(report, blocks=(make_row("[red]x/ü", "failed", "[/oops] " * 40),))
    for width in (80, 120):
        text = render(report, width)
        assert "[red]x/ü" in text
        assert "[/oops]" in text
        assert "not measured" in text
    assert "0 of 0 layers replaced" in render(make_report(blocks=()))


def test_summary_is_plain_text_whatever_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b" not in render(make_report())


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (0, "", "0"),
        (999, "", "999"),
        (24.4417, "J", "24.44 J"),
        (999_960, "", "1.0 M"),
        (1_400_000, "B", "1.4 MB"),
        (12, "B", "12 B"),
    ],
)
def test_counts_read_well(value: int, unit: str, expected: str) -> None:
    assert count(value, unit) == expected


def test_ratio_names_its_direction() -> None:
    assert ratio(100, 50) == "2.0x smaller"
    assert ratio(50, 100) == "2.0x larger"
    assert ratio(0, 5) == "-"


def test_candidates_survive_the_file_and_reports_without_them_are_read() -> None:
    failed = CandidateReport("two_layer", "failed", "out of memory", 400, 200)
    trained = CandidateReport("decoupled_r1", "accepted", "0.9 >= 0.8", 300, 100, nmse=0.1, val_accuracy=0.9)
    row = make_row("conv", "accepted", "0.9 >= 0.8", candidates=(trained, failed))
    report = make_report(blocks=(row,))
    content = json.loads(json.dumps(to_json(report)))
    assert from_json(content).blocks == report.blocks
    assert report.failed_blocks == (BlockKey("conv", "two_layer"),)
    old = make_report()
    content = json.loads(json.dumps(to_json(old)))
    for each in content["blocks"]:
        del each["candidates"]
    assert from_json(content).blocks == tuple(dataclasses.replace(row, candidates=()) for row in old.blocks)
    assert [key.layer for key in from_json(content).failed_blocks] == ["block3_conv1"]


def test_of_several_candidates_each_failed_one_is_named_and_the_summary_names_the_chosen_ones() -> None:
    report = several_designs()
    assert report.failed_blocks == (BlockKey("b2", "tucker2_r50"),)
    lines = render(report, 120).splitlines()
    for layer, block in (("b1", "spatial_svd_r50"), ("b2", "decoupled_r1")):
        assert block in next(line for line in lines if line.startswith(layer))
    assert "two_layer" not in render(full_report(), 120), "one design for all layers is not repeated in each row"

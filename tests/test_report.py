"""report.json keeps its contract, and the summary is readable and survives what runs really produce."""

import dataclasses
import json
import math

import numpy as np
import pytest

from pbd.records import ModelFacts
from pbd.report import _count, _ratio, json_safe, render, to_json
from tests.report_factory import make_report, make_row

pytestmark = pytest.mark.fast

KEYS = {
    "teacher": {"test_accuracy", "val_accuracy", "params", "macs", "size_bytes", "path"},
    "student": {"test_accuracy", "val_accuracy", "params", "macs", "size_bytes", "path"},
    "assembled": {"val_accuracy"},
    "timing": {"calibrate_s", "distill_s", "predicted_makespan_s", "fine_tune_s", "total_s"},
    "energy": {"source", "total_j"},
}
TOP = {"version", "config", "versions", "device", "blocks", "workers", "executor", "scheduler", "groups"} | KEYS.keys()
TRAINED = {"block", "worker", "started_s", "seconds", "nmse", "val_accuracy", "loss_history"}
BLOCK = {"layer", "status", "reason", "params_before", "params_after", "macs_before", "macs_after"} | TRAINED


def test_json_has_the_keys_of_the_contract() -> None:
    content = to_json(make_report(energy={}))
    assert content.keys() >= TOP
    for part, keys in KEYS.items():
        assert content[part].keys() >= keys, part
    assert len(content["blocks"]) == 4
    assert all(row.keys() >= BLOCK for row in content["blocks"])
    assert all(row.keys() >= {"worker", "busy_s", "idle_s"} for row in content["workers"])
    assert content["version"] == 1
    assert content["energy"] == {"source": "none", "total_j": None}
    assert content["groups"] == [["conv4_block1_2_conv", "block2_conv1"], ["block3_conv1"]]


def test_json_holds_only_what_json_can_say() -> None:
    row = make_row("a", "rejected", "diverged", nmse=math.nan, loss_history=(math.inf, 1.0), seconds=np.float32(2))
    content = to_json(make_report(blocks=(row,), config={"rate": np.float64("nan"), "n": np.int64(3)}))
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert content["blocks"][0]["nmse"] is None
    assert content["blocks"][0]["loss_history"] == [None, 1.0]
    assert content["blocks"][0]["seconds"] == 2.0
    assert content["config"] == {"rate": None, "n": 3}


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
    [(0, "", "0"), (999, "", "999"), (999_960, "", "1.0 M"), (1_400_000, "B", "1.4 MB"), (12, "B", "12 B")],
)
def test_counts_read_well(value: int, unit: str, expected: str) -> None:
    assert _count(value, unit) == expected


def test_ratio_names_its_direction() -> None:
    assert _ratio(100, 50) == "2.0x smaller"
    assert _ratio(50, 100) == "2.0x larger"
    assert _ratio(0, 5) == "-"

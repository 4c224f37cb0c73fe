"""The table and the picture of a sweep: students of several budgets beside the teacher."""

from dataclasses import replace
from xml.etree import ElementTree

import pytest

from pbd.records import ChoiceReport, RunReport
from pbd.report import front, page
from tests.helpers.report_factory import four_rows, full_report

pytestmark = pytest.mark.fast
SVG = "{http://www.w3.org/2000/svg}"


def report(budget: str, ms: tuple[float, float], accuracy: float) -> RunReport:
    rows = four_rows(student={"ms": ms, "accuracy": accuracy})
    choice = ChoiceReport(0.02, 0.03, {"latency": 0.61, "macs": 0.5}, measured={"latency": 0.63})
    config = {"teacher": "t.keras", "dataset": "d.npz", "budget": [budget], "target_batch": 32}
    return full_report(deployments=rows, choice=choice, config=config)


@pytest.fixture
def reports() -> dict[str, RunReport]:
    return {
        "latency:0.6": report("latency:0.6", (0.5, 10.0), 0.85),
        "latency:0.3": report("latency:0.3", (0.4, 5.0), 0.82),
    }


def test_points_are_teacher_and_students_at_the_batch_of_the_budget(reports: dict[str, RunReport]) -> None:
    points = [
        (point.series, point.budget, round(point.times_as_fast, 2), point.quality) for point in front.points(reports)
    ]
    assert points[:2] == [("teacher, float32", "", 1.0, 86.0), ("teacher, int8", "", round(20 / 9, 2), 85.9)]
    assert ("student, float32", "latency:0.6", 2.0, 85.0) in points
    assert ("student, float32", "latency:0.3", 4.0, 82.0) in points
    assert len(points) == 6


def test_the_table_has_predicted_and_measured_cost_and_each_precision(reports: dict[str, RunReport]) -> None:
    header, *_, first, second = front.render(reports).splitlines()
    assert "float32" in header
    assert first.split()[:3] == ["latency:0.6", "61.0%", "63.0%"]
    assert second.split()[5:8] == ["82.00%", "4.00x", "1.80x"]


def test_the_picture_stands_alone_and_has_a_dot_for_every_point(reports: dict[str, RunReport]) -> None:
    picture = ElementTree.fromstring(page.front_picture(reports))
    lines = picture.findall(f"{SVG}polyline")
    assert sorted(len((line.get("points") or "").split()) for line in lines) == [1, 1, 2, 2]
    texts = " ".join(text.text or "" for text in picture.iter(f"{SVG}text"))
    assert "32 images" in texts
    assert "student, int8" in texts
    assert page.of_runs(reports).count("<polyline") >= 4


def test_the_legend_of_many_lines_stays_above_the_axis() -> None:
    lines = {f"{name}, target {number}": [(1.0 + number, 90.0)] for name in ("teacher", "steps") for number in range(6)}
    picture = ElementTree.fromstring(page.picture(lines, ("times as fast", "accuracy, %")))
    texts = {text.text: float(text.get("y") or 0) for text in picture.iter(f"{SVG}text")}
    heights = [texts[name] for name in lines]
    assert heights == sorted(heights)
    assert max(heights) < texts["times as fast"] - 40


def test_without_measurements_there_is_no_picture() -> None:
    bare = {"macs:0.5": full_report(deployments=())}
    assert front.points(bare) == []
    assert "<polyline" not in page.of_runs(bare)


def test_runs_with_and_without_labels_are_compared_by_agreement(reports: dict[str, RunReport]) -> None:
    labelled, other = reports.values()
    unlabelled = replace(
        other,
        reference="teacher",
        deployments=tuple(replace(row, test_accuracy=None) for row in other.deployments),
    )
    agreement = 100 * next(row.test_agreement for row in labelled.deployments if row.model == "student")
    mixed = {"labelled": labelled, "unlabelled": unlabelled}
    assert "test agreement" in page.front_picture(mixed)
    (point,) = (each for each in front.points(mixed) if (each.series, each.budget) == ("student, float32", "labelled"))
    assert point.quality == pytest.approx(agreement)
    assert point.quality != pytest.approx(85.0), "its accuracy"

"""An analysis as text and as a page: it says everything, what is absent too, and names are text, not markup."""

import io
import json

import pytest
from rich.console import Console

from pbd.records.analysis_report import AnalysisReport, ExemplarImage, PopulationAnalysis
from pbd.report import analysis, analysis_page, heat_map, page
from pbd.report.files import from_json, to_json
from tests.helpers.analysis_factory import make_analysis, make_changes, make_student
from tests.helpers.report_factory import NASTY, full_report

pytestmark = pytest.mark.fast


def text(report: AnalysisReport) -> str:
    console = Console(file=io.StringIO(), width=120, color_system=None)
    with console.capture() as capture:
        console.print(analysis.summary(report))
    return capture.get()


def test_the_text_says_everything() -> None:
    shown = text(make_analysis())
    for part in (
        "resnet20.keras on 8 test images of cifar.npz; activations averaged over their positions, on 6 images.",
        "conv1_pbd_row",
        "0.8765    0.1235  0.9512    16->14",
        "No counterpart: conv2.",
        "11250.0",
        "-50.0%",
        "+100.0%",
        "CEV and SDE leave out classes with a rate of 0 in the teacher, or without images: 2.",
        "Over 2 students, 1 of 8 images get another most frequent class than over the teacher",
        "No similarity, since",
    ):
        assert part in shown


def test_without_labels_the_text_and_the_page_name_what_is_absent() -> None:
    report = make_analysis(make_student(changes=None), absent=("CEV and more: no labels",), population=None)
    assert "Not computed: CEV and more: no labels." in text(report)
    drawn = analysis_page.render(report)
    assert "Not computed: CEV and more: no labels." in drawn
    assert "12.50%" in drawn
    assert "Accuracy per class" not in drawn


def test_the_page_draws_the_map_the_points_and_the_bars() -> None:
    drawn = analysis_page.render(make_analysis())
    assert drawn.count('class="cell"') == 6
    assert "<title>conv2, conv1: 0.500</title>" in drawn
    assert "<title>logits, logits: -</title>" in drawn
    assert drawn.count("<circle") == 2  # the class without deltas has no point
    assert "class 0, teacher" in drawn
    assert "models/resnet20.keras on 8 test images" in drawn
    assert "report.json" not in drawn


def test_names_are_text() -> None:
    drawn = analysis_page.render(make_analysis(make_student(NASTY, NASTY), teacher=NASTY))
    assert "<script>alert" not in drawn
    assert "49" not in drawn.partition("<h2")[0].rpartition("</style>")[2]  # {{ 7*7 }} is not computed


def test_exemplars_of_image_files_are_shown_by_their_file() -> None:
    population = PopulationAnalysis(1, 2, (ExemplarImage(3, None, 0, 1, "cats/7.png"),))
    for show in (text, analysis_page.render):
        assert "cats/7.png" not in show(make_analysis())
        assert "cats/7.png" in show(make_analysis(population=population))


def test_a_network_without_a_class_that_has_both_deltas() -> None:
    classes = make_changes().classes[2:]
    changes = make_changes(classes=classes, cev=None, sde=None, confusions=())
    assert "<circle" not in analysis_page.render(make_analysis(make_student(changes=changes)))


def test_only_the_classes_that_lose_most_are_shown_in_a_terminal() -> None:
    row = make_changes().classes[0]
    shown = text(make_analysis(make_student(changes=make_changes(classes=(row,) * 25))))
    assert "The 20 of 25 classes that lose most accuracy." in shown


def test_long_labels_of_a_heat_map_are_cut() -> None:
    drawn = heat_map.of(["x" * 100], ["y"], [[0.5]])
    assert len(drawn.rows[0].text) == 32
    assert drawn.width < 300
    assert drawn.cells[0].title.startswith("x" * 100)


def test_the_page_of_a_run_shows_its_classes_and_report_json_keeps_them() -> None:
    report = full_report(classes=make_changes())
    assert from_json(json.loads(json.dumps(to_json(report)))).classes == report.classes
    shown = page.of_run(report)
    assert '<section id="classes"' in shown
    assert '<a href="#classes">' in shown
    assert "6.25% are negative flips" in " ".join(shown.split())
    assert 'id="classes"' not in page.of_run(full_report())
    earlier = {name: value for name, value in to_json(full_report()).items() if name != "classes"}
    assert from_json(earlier).classes is None

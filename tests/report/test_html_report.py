"""report.html says everything, as text and not as markup, and fetches nothing."""

import dataclasses
import math
import re
from pathlib import Path

import pytest

from pbd.records import ModelFacts, WorkerReport
from pbd.report import page, write
from pbd.run_dir.journal import Journal
from tests.helpers.html_document import Document
from tests.helpers.report_factory import (
    NASTY,
    SECTIONS,
    four_rows,
    full_report,
    make_report,
    make_row,
    several_designs,
)

pytestmark = pytest.mark.fast


def test_every_section_is_there_with_its_heading() -> None:
    document = Document(page.of_run(full_report()))
    ids = document.values("id")
    assert [name for name in ids if name in SECTIONS] == list(SECTIONS)
    assert {f"{name}-title" for name in SECTIONS} <= set(ids)
    assert {link for link in document.values("href") if link != "data:,"} == {f"#{name}" for name in SECTIONS}
    tags = [tag for tag, _ in document.tags]
    assert tags.count("h1") == 1
    assert tags.count("table") == tags.count("caption")
    said = document.words
    for expected in (
        "3 of 6 layers replaced, 1 restored, 1 failed, 1 skipped",
        "In openvino with one image at a time: the student in 8-bit integers is 2.00 times as fast as the teacher",
        "openvino-int8, one image 0.350 ms teacher 0.700 ms 2.00x as fast",
        "student openvino-int8 student_int8.xml, student_int8.bin 85.20% 130 2 0.350 ms 0.315 ms to 0.385 ms 2.00x",
        "Kept in float32 (student, openvino-int8): stem, b3.",
        "15 rounds with one image, 15 rounds with 32 images",
        "8.4x smaller",
        "epoch 2 diverged: undone",
        "the loss is not finite",
        "busy 12.2 s",
        "2 layers: b1, b2",
        "not in the timeline: b5",
        "-18%",
        "2.0 GB",
        "keras",
        "Not measured: this run read no energy meter",
    ):
        assert expected in said, expected


def test_a_name_is_text_wherever_it_stands() -> None:
    rows = (make_row(NASTY, "accepted", NASTY), make_row("other", "failed", NASTY))
    report = full_report(
        blocks=rows,
        groups=((NASTY,),),
        events=(NASTY,),
        run_dir=NASTY,
        device=NASTY,
        config={"teacher": NASTY, "dataset": NASTY, NASTY: NASTY},
        versions={NASTY: NASTY},
        energy={"source": NASTY, "total_j": 5.0, NASTY: NASTY},
        deployments=four_rows(NASTY, student_int8={"kept_float": (NASTY,), "files": (NASTY,)}),
    )
    for text in (page.of_run(report), page.of_runs({NASTY: report, "b": full_report()})):
        document = Document(text)
        assert [tag for tag, _ in document.tags].count("script") == 1
        assert not any(name.startswith("on") for _, attributes in document.tags for name in attributes)
        assert NASTY in document.texts
        assert "49" not in re.sub("[0-9]{3,}", "", " ".join(text for text in document.texts if "層" in text))
    assert NASTY in Document(page.of_run(report)).values("title")


def test_nothing_is_fetched() -> None:
    for text in (page.of_run(full_report()), page.of_runs({"a": full_report(), "b": full_report()})):
        assert "://" not in text
        document = Document(text)
        assert not document.values("src")
        assert all(link == "data:," or link.startswith("#") for link in document.values("href"))
        policy = next(attributes["content"] for _, attributes in document.tags if "http-equiv" in attributes)
        assert "default-src 'none'" in policy


def test_energy_is_said_by_source() -> None:
    energy = {
        "source": "nvml+rapl",
        "total_j": 1234.5,
        "by_kind_j": {"gpu": 1000.0, "package": None},
        "mean_w": 31.4,
        "seconds": 39.3,
        "hosts": 2,
        "partial": True,
        "notes": ["only 1 of 2 hosts are measured"],
    }
    said = Document(page.of_run(full_report(energy=energy))).words
    for expected in (
        "Source: nvml+rapl",
        "total 1.2 kJ",
        "by kind: gpu 1.0 kJ",
        "by kind: package not measured",
        "mean 31.4 W",
        "seconds 39.3 s",
        "hosts 2",
        "Some energy was not measured. only 1 of 2 hosts are measured",
    ):
        assert expected in said, expected
    assert "no energy meter" not in said
    assert "energy, busy" not in said, "no worker was measured"
    workers = (WorkerReport(0, 12.25, 0.0, None, 800.0, 200.0), WorkerReport(1, 10.0, 2.25))
    rows = tuple(dataclasses.replace(row, energy_j=321.5) for row in full_report().blocks[:2])
    said = Document(page.of_run(full_report(energy=energy, workers=workers, blocks=rows))).words
    assert "energy, busy energy, waiting 0 12.2 s 0.0 s not measured 800 J 200 J" in said
    assert "321.5 J" in said
    assert "nvml+rapl, partial" in Document(page.of_runs({"a": full_report(energy=energy)})).words
    none = {"source": "none", "total_j": None, "notes": ["no counter may be read. Ask for it."]}
    said = Document(page.of_run(full_report(energy=none))).words
    assert "this run read no energy meter. Source: none. no counter may be read. Ask for it." in said


def test_a_teacher_that_is_the_better_choice_comes_first() -> None:
    report = full_report(deployments=four_rows(teacher_int8={"ms": (0.3, 9.0)}))
    text = page.of_run(report)
    lead = next(attributes for tag, attributes in Document(text).tags if tag == "p" and "lead" in str(attributes))
    assert lead["class"] == "lead warn"
    said = Document(text).words
    first, second = "The teacher in 8-bit integers is the better choice", "In openvino with one image at a time"
    assert said.index(first) < said.index(second) < said.index("layers replaced")
    said = Document(page.of_runs({"lost": report, "won": full_report()})).words
    assert f"lost: {first} in openvino" in said
    assert f"won: {first}" not in said


def test_a_target_without_8_bit_integers_has_a_gap() -> None:
    said = Document(page.of_run(make_report())).words
    assert "keras, one image 3.30 ms teacher 3.00 ms 0.91x as fast: slower" in said
    assert "student keras 91.00% 1400 all 3.30 ms 2.97 ms to 3.63 ms 0.91x - 25.0 ms 22.5 ms to 27.5 ms 1.60x -" in said


def test_speeds_of_several_runs_stand_beside_each_other() -> None:
    made = page.of_runs({"a": full_report(), "b": make_report(), "c": make_report(deployments=())})
    said = Document(made).words
    assert "float32, one image float32, 32 images int8, one image int8, 32 images" in said
    assert "1.40x openvino: 0.500 ms 1.67x openvino: 12.0 ms 2.00x openvino-int8: 0.350 ms" in said
    assert "0.91x keras: 3.30 ms 1.60x keras: 25.0 ms not measured not measured" in said
    assert "not measured not measured not measured not measured" in said
    assert "int8, one image" not in Document(page.of_runs({"b": make_report(), "c": make_report()})).words


@pytest.mark.parametrize("reference", ["labels", "teacher"])
def test_what_is_absent_is_said_to_be_so(reference: str) -> None:
    nothing = ModelFacts(0, 0)
    report = make_report(
        blocks=(), groups=(), workers=(), fine_tune_history=(), reference=reference, run_dir="", config={}, versions={},
        teacher=nothing, assembled=nothing, student=nothing, deployments=(),
    )  # fmt: skip
    said = Document(page.of_run(report)).words
    assert "0 of 0 layers replaced" in said
    assert "speed in a target: not measured" in said
    assert "The student was not fine-tuned." in said
    assert "No block was trained" in said
    assert ("no labels" in said) == (reference == "teacher")
    assert "2 runs" in Document(page.of_runs({"a": report, "b": report})).words


@pytest.mark.parametrize("kept", ["best", "last"])
def test_the_page_says_which_epoch_the_student_is_of(kept: str) -> None:
    assert f"the weights of the {kept} epoch are kept" in Document(page.of_run(make_report(kept_epoch=kept))).words


def test_figures_that_are_no_numbers_leave_gaps(tmp_path: Path) -> None:
    rows = (make_row("a", "rejected", "diverged", nmse=math.nan, nmse_history=(0.5, math.nan, math.inf), seconds=0.0),)
    journal = Journal.create(tmp_path / "run", {})
    write(make_report(blocks=rows, fine_tune_history=({"loss": math.nan, "val_accuracy": 0.5},)), journal)
    text = journal.file("report.html").read_text()
    assert "nan" not in Document(text).words.lower()
    assert all("nan" not in points for points in Document(text).values("points"))


def test_the_page_names_the_chosen_design_of_each_layer_and_lists_all_candidates() -> None:
    text = page.of_run(several_designs())
    assert text.count("<small>spatial_svd_r50</small>") == text.count("<small>decoupled_r1</small>") == 1
    table = text[text.index("<h3>Candidates</h3>") :].split("</table>")[0]
    designs = [row.split("</td>")[0] for row in table.split('<td class="text" data-value="')[1::2]]
    assert [design.split('">')[1] for design in designs] == [
        "decoupled_r1",
        *("decoupled_r1", "spatial_svd_r50", "tucker2_r50"),
        *("decoupled_r1", "spatial_svd_r50", "tucker2_r50"),
    ]
    assert "no memory" in table, "the reason of a candidate that does not stand for its layer"


def test_the_page_lists_no_candidates_if_each_layer_has_one() -> None:
    assert "Candidates" not in page.of_run(full_report())
    assert "<small>two_layer</small>" not in page.of_run(full_report())

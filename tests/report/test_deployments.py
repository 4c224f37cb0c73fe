"""The summary begins with what to know before deploying the student, and first with a teacher that is better."""

import dataclasses
from typing import Any

import pytest

from pbd.records import Deployment, ModelFacts
from pbd.report import render
from pbd.report.deployments import better_teacher, fastest_student, sentences, verdict
from pbd.report.words import names
from tests.helpers.report_factory import four_rows, full_report, make_report, two_rows, unlabelled

pytestmark = pytest.mark.fast

LOST: dict[str, dict[str, Any]] = {"teacher_int8": {"ms": (0.3, 9.0)}}
"""Changes of `four_rows` with which the teacher in 8-bit integers is faster than both forms of the student."""


def lines_of(text: str) -> str:
    return " ".join(text.split())


def test_the_summary_begins_with_speed_and_accuracy_of_the_faster_form() -> None:
    assert lines_of(render(full_report())).startswith(
        "In openvino with one image at a time: the student in 8-bit integers is 2.00 times as fast as the teacher "
        "and 1.14 times as fast as the teacher in 8-bit integers; test accuracy 85.2% (teacher 86.0%, in 8-bit "
        "integers 85.9%). With 32 images at a time it is 2.00 times as fast as the teacher and 0.90 times as fast as "
        "the teacher in 8-bit integers (slower). "
    )


def test_the_form_in_float32_is_named_if_it_is_the_faster_one() -> None:
    rows = four_rows(student={"ms": (0.2, 30.0)})
    assert fastest_student(rows) == rows[1], "one image decides"
    assert "the student in float32 is 3.50 times as fast as the teacher" in sentences(make_report(deployments=rows))[0]
    without_int8 = (rows[0], rows[1], rows[2])
    (first, _) = sentences(make_report(deployments=without_int8))
    assert "the student is 3.50 times" in first, "there is no other form"


def test_a_target_without_8_bit_integers_is_said_to_have_none() -> None:
    assert sentences(make_report()) == (
        "In keras with one image at a time: the student is 0.91 times as fast as the teacher (slower); test accuracy "
        "91.0% (teacher 92.0%, in 8-bit integers not measured).",
        "With 32 images at a time it is 1.60 times as fast as the teacher.",
    )


def test_without_labels_agreement_takes_the_place_of_accuracy() -> None:
    (first, _) = sentences(make_report(deployments=unlabelled(four_rows())))
    assert first.endswith("; agreement with the teacher on the test images 85.2% (teacher in 8-bit integers 85.9%).")
    (first, *_) = sentences(make_report(deployments=unlabelled(four_rows(**LOST))))
    assert "and more often in agreement with the teacher (85.9 against 85.2%)" in first
    (first, *_) = sentences(make_report(deployments=unlabelled(two_rows((3.3, 41.0)))))
    assert "41.0 ms with 32 images), and the student agrees with it on 91.0% of the test images" in first


def test_a_run_without_deployments_has_a_sentence() -> None:
    assert sentences(make_report(deployments=())) == (
        "Test accuracy 91.0% (teacher 92.0%); speed in a target: not measured.",
    )
    student = ModelFacts(1, 1, test_agreement=0.9)
    assert sentences(make_report(deployments=(), student=student)) == (
        "Agreement with the teacher on the test images 90.0%; speed in a target: not measured.",
    )
    text = render(make_report(deployments=(), student=ModelFacts(1, 1)))
    assert text.startswith(
        "Agreement with the teacher on the test images not measured; speed in a target: not measured."
    )


@pytest.mark.parametrize("width", [80, 120])
def test_a_teacher_that_is_the_better_choice_comes_first(width: int) -> None:
    text = render(full_report(deployments=four_rows(**LOST)), width)
    assert max(map(len, text.splitlines())) <= width
    assert lines_of(text).startswith(
        "The teacher in 8-bit integers is the better choice in openvino unless size decides: faster than the student "
        "in 8-bit integers (0.300 ms against 0.350 ms with one image, 9.00 ms against 10.0 ms with 32 images), and "
        "more accurate (85.9 against 85.2%); the student is smaller (130.0 kB against 290.0 kB). In openvino "
    )


EQUAL = {"accuracy": 0.859}


@pytest.mark.parametrize(
    ("changes", "better"),
    [
        ({}, None),
        (LOST, "openvino-int8"),
        (LOST | {"student_int8": {"ms": (0.35, 8.9)}}, None),  # faster with 32 images
        (LOST | {"student": {"accuracy": 0.861}}, None),  # more accurate than both forms of the teacher
        (LOST | {"student": {"accuracy": 0.8594}}, "openvino-int8"),  # rounded, as accurate
        (LOST | {"student": {"accuracy": 0.8596}}, None),  # more accurate, and faster than the teacher in float32
        (LOST | {"student": {"accuracy": 0.8596, "ms": (0.8, 21.0)}}, "openvino-int8"),
        ({"student_int8": {"ms": (0.4, 9.01)} | EQUAL}, None),  # as fast, as accurate, smaller
        ({"student_int8": {"ms": (0.4, 9.01), "size_bytes": 290_000} | EQUAL}, "openvino-int8"),  # all the same
        ({"student_int8": {"ms": (0.4, 9.01)}}, "openvino-int8"),  # as fast, less accurate
        ({"student_int8": {"ms": (0.41, 9.01)} | EQUAL}, "openvino-int8"),  # slower, as accurate, smaller
        (
            {"student": {"ms": (0.8, 21.0)}, "student_int8": {"ms": (0.9, 22.0)}, "teacher_int8": {"ms": (1.0, 30.0)}},
            "openvino",  # 8-bit integers are slow here
        ),
    ],
)
def test_which_teacher_is_better(changes: dict[str, dict[str, Any]], better: str | None) -> None:
    rows = four_rows(**changes)
    teacher = better_teacher(rows)
    assert (teacher.target if teacher else None) == better
    assert bool(verdict(rows)) == (better is not None)


def test_every_reason_is_named_as_it_is() -> None:
    same = four_rows(student_int8={"ms": (0.4, 9.0), "size_bytes": 290_000} | EQUAL)
    text = verdict(same)
    assert "is as good as the student in openvino: as fast as the student in 8-bit integers (" in text
    assert text.endswith("as accurate (85.9 against 85.9%), and as small (290.0 kB against 290.0 kB).")
    mixed = verdict(four_rows(student_int8={"ms": (0.4, 10.0), "size_bytes": 300_000}))
    assert "never slower than the student in 8-bit integers" in mixed
    assert mixed.endswith("and smaller (290.0 kB against 300.0 kB).")
    other = verdict(four_rows(**LOST, student={"accuracy": 0.8596, "ms": (0.8, 21.0)}))
    assert other.endswith("; the student in float32 is neither faster nor more accurate than the teacher.")


def test_without_8_bit_integers_the_teacher_in_float32_may_be_better() -> None:
    assert verdict(two_rows()) == "", "faster with 32 images"
    assert verdict(two_rows((3.3, 41.0))).startswith(
        "The teacher is the better choice in keras unless size decides: faster than the student (3.00 ms "
    )


def test_nothing_deployed_has_no_better_choice() -> None:
    rows = four_rows()
    unmeasured = tuple(dataclasses.replace(row, latency=()) for row in rows)
    for some in ((), rows[:1], rows[1:2], unmeasured):
        assert better_teacher(some) is None
        assert verdict(some) == ""
        assert "not measured" in sentences(make_report(deployments=some))[0]


def table(rows: tuple[Deployment, ...], width: int) -> list[str]:
    """Return the lines of the table of deployments in the summary."""
    lines = render(full_report(deployments=rows), width).splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("model"))
    return [lines_of(line) for line in lines[start + 1 : start + 1 + len(rows)]]


def test_the_table_has_a_line_for_each_form() -> None:
    rows = full_report().deployments
    *_, last = table(rows, 120)
    assert last == "student openvino-int8 85.20% 130 2 0.350 ms 2.00x 1.14x 10.0 ms 2.00x 0.90x"
    *_, last = table(rows, 80)
    assert last == "student openvino-int8 85.2% 130 0.350 ms 2.00x 1.14x 10.0 ms 2.00x 0.90x"
    *_, last = table(two_rows(), 120)
    assert last == "student keras 91.00% 1400 all 3.30 ms 0.91x - 25.0 ms 1.60x -"
    assert table((dataclasses.replace(rows[0], latency=()), *rows[1:]), 120)[0].endswith("1094 all - - - - - -")


def test_the_facts_name_layers_in_float32_and_files() -> None:
    text = lines_of(render(full_report()))
    assert "kept in float32 student in openvino-int8: stem, b3 events" in text
    assert "in openvino-int8 student_int8.xml, student_int8.bin report" in text
    many = tuple(f"conv{number}" for number in range(9))
    assert names(many[:8]) == ", ".join(many[:8])
    assert names(many).endswith("conv7 … (9 layers)")

"""report.html in headless Chromium: nothing is fetched, nothing complains, it fits, it is readable, it sorts."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from pbd.report import analysis_page, page
from tests.helpers import browser
from tests.helpers.analysis_factory import make_analysis, make_changes, make_student
from tests.helpers.report_factory import NASTY, SECTIONS, four_rows, full_report, make_row

pytestmark = pytest.mark.system
READ = ("body", ".note", "a", "td", "th button", ".decision.accepted", ".decision.restored", "td.warn", "p.warn")
"""What must stand out from what is behind it, where it is there."""
LAYERS = "document.querySelector('#layers table')"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Browser]:
    program = browser.find()
    if program is None:
        pytest.skip("chromium is not installed (Debian: apt-get install chromium)")
    with browser.started(program, tmp_path_factory.mktemp("profile")) as running:
        yield running


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pages of one run, of two, of an analysis and of a run with classes; the names would break a careless one."""
    folder = tmp_path_factory.mktemp("pages")
    long_name = "block4_" + "conv" * 30
    rows = (*full_report().blocks, make_row(NASTY, "rejected", NASTY, nmse=0.05), make_row(long_name, "accepted", "ok"))
    kept = {"kept_float": (NASTY, long_name), "files": ("student_int8.xml", "student_int8.bin")}
    deployments = four_rows(teacher_int8={"ms": (0.3, 9.0)}, student_int8=kept)  # the teacher is the better choice
    report = full_report(blocks=rows, groups=(*full_report().groups, (NASTY, long_name)), deployments=deployments)
    made = {"run": page.of_run(report), "runs": page.of_runs({"runs/first": report, "runs/" + "x" * 80: full_report()})}
    student = make_student(NASTY, long_name)
    made["analysis"] = analysis_page.render(make_analysis(student, make_student("runs/" + "x" * 80), teacher=NASTY))
    made["classes"] = page.of_run(full_report(classes=make_changes()))
    for name, text in made.items():
        (folder / f"{name}.html").write_text(text)
    return {name: folder / f"{name}.html" for name in made}


@pytest.mark.parametrize("name", ["run", "runs", "analysis", "classes"])
@pytest.mark.parametrize(("width", "scheme"), [(380, "light"), (1280, "dark")])
def test_a_browser_shows_it_without_complaint(
    chromium: browser.Browser, pages: dict[str, Path], name: str, scheme: str, width: int
) -> None:
    shown = browser.Page(chromium, pages[name], width, scheme)
    assert shown.evaluate("[...document.querySelectorAll('section')].every(each => each.offsetHeight > 0)")
    assert shown.evaluate("document.documentElement.scrollWidth") <= width
    assert shown.requests == [pages[name].as_uri()]
    assert shown.notes == []
    for selector in READ:
        if shown.evaluate(f"document.querySelector('{selector}') !== null"):
            assert contrast(shown, selector) >= 4.5, selector
    if name == "run":
        ids = shown.evaluate("[...document.querySelectorAll('section')].map(each => each.id)")
        assert ids == list(SECTIONS)
        assert contrast(shown, "svg .tick", "fill") >= 4.5


def test_a_careless_page_would_be_noticed(chromium: browser.Browser, tmp_path: Path) -> None:
    path = tmp_path / "careless.html"
    path.write_text("<link rel=stylesheet href=theirs.css><script>console.error('mine'); undefinedName();</script>")
    shown = browser.Page(chromium, path)
    assert shown.requests == [path.as_uri(), (tmp_path / "theirs.css").as_uri()]
    assert len(shown.notes) >= 2


def contrast(shown: browser.Page, selector: str, painted_with: str = "color") -> float:
    """Return the contrast of an element with what is behind it, as WCAG 2 defines it."""
    front, behind = shown.evaluate(f"""(() => {{
        const element = document.querySelector('{selector}');
        const painted = (each) => !getComputedStyle(each).backgroundColor.startsWith('rgba(0, 0, 0, 0');
        let ground = element;
        while (!painted(ground)) ground = ground.parentElement;
        return [getComputedStyle(element).{painted_with}, getComputedStyle(ground).backgroundColor];
    }})()""")
    low, high = sorted(
        luminance([int(part) for part in re.findall("[0-9]+", colour)[:3]]) for colour in (front, behind)
    )
    return (high + 0.05) / (low + 0.05)


def luminance(colour: list[int]) -> float:
    linear = [
        share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in (c / 255 for c in colour)
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def column(shown: browser.Page, label: str) -> list[str]:
    """Return the values of a column of the table of layers, from above."""
    return shown.evaluate(f"""(() => {{
        const at = [...{LAYERS}.tHead.rows[0].cells].findIndex(each => each.textContent.trim() === '{label}');
        return [...{LAYERS}.tBodies[0].rows].map(row => row.cells[at].dataset.value ?? row.cells[at].textContent);
    }})()""")


def focus(shown: browser.Page, label: str) -> None:
    """Give the focus to a column's heading."""
    buttons = f"[...{LAYERS}.querySelectorAll('th button')]"
    shown.evaluate(f"{buttons}.find(each => each.textContent.trim() === '{label}').focus()")


def test_columns_are_sorted_by_keyboard_and_click(chromium: browser.Browser, pages: dict[str, Path]) -> None:
    shown = browser.Page(chromium, pages["run"])
    assert column(shown, "#") == [str(number) for number in range(1, 9)]
    focus(shown, "error")
    shown.press_enter()
    upwards = column(shown, "error")
    assert upwards == ["0.03", "0.05", "0.1", "0.127", "0.2", "0.3", "", ""]
    assert column(shown, "layer")[0] == "b1", "whole rows move"
    shown.evaluate("document.activeElement.click()")
    assert column(shown, "error") == [*upwards[5::-1], "", ""]
    assert (
        shown.evaluate(f"[...{LAYERS}.querySelectorAll('[aria-sort]')].map(each => each.ariaSort)").count("none") == 10
    )
    assert shown.evaluate("document.activeElement.closest('th').ariaSort") == "descending"
    focus(shown, "layer")
    shown.press_enter()
    assert column(shown, "layer")[-1] == "stem"
    assert shown.notes == []

"""`report.html`: one self-contained page for a run, or one that compares several runs; it loads nothing else."""

import base64
import functools
import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import PurePath
from typing import Any

import jinja2
from markupsafe import Markup

from pbd.records import CandidateReport, RunReport
from pbd.records.recipe_report import RecipeReport
from pbd.report import classes, deployments, front, plots, recipes, settings, timeline, words

UNITS = ("j", "w", "s")
ENERGY_TEXT_FIELDS = ("source", "partial", "notes")
"""Fields of the energy record that hold no quantity; the page shows them as text."""
SMALL = (168.0, 104.0)
"""Width and height of the canvas of a plot for one layer."""


def of_run(report: RunReport) -> str:
    """Return the page of one run; it depends on the report only."""
    return render(
        "run.html.j2",
        report=report,
        name=title(report),
        candidates=candidates(report),
        timeline=timeline.of(report),
        phases=timeline.phases(report),
        errors=layer_plots(report, "nmse_history", first=0),
        losses=layer_plots(report, "loss_history", first=1),
        tuning=tuning_plots(report),
        energy=list(energy_rows(report.energy)),
        command=settings.command(report),
        settings=settings.of(report),
    )


def of_runs(reports: Mapping[str, RunReport]) -> str:
    """Return the page that compares runs, given by name."""
    by_name = [{row.layer: row for row in report.blocks} for report in reports.values()]
    judged, has_picture = front.judged(reports), front.is_common(reports) and bool(front.points(reports))
    return render(
        "runs.html.j2",
        reports=reports,
        judged=judged,
        title=title,
        charts=bar_charts(reports, judged),
        picture=Markup(front_picture(reports, is_file=False)) if has_picture else "",
        layers={name: [rows.get(name) for rows in by_name] for run in by_name for name in run},
        differences=settings.differences(list(reports.values())),
    )


def front_picture(reports: Mapping[str, RunReport], is_file: bool = True) -> str:
    """Return quality against speed of the students and the teacher in SVG, for a file or a page; see `front`."""
    batch, target = front.batch_of(reports), next(iter(reports.values())).deployments[0].target
    quality = f"test {front.judged(reports)}, percent"
    axes = f"times as fast as the teacher in float32 ({target}, {words.images(batch or 1)})", quality
    return render("front.svg.j2", plot=front.plot(reports), axes=axes, is_file=is_file)


def of_recipe(report: RecipeReport) -> str:
    """Return the page of a recipe; it depends on the report only."""
    return render(
        "recipe.html.j2",
        report=report,
        name=title(report),
        recipes=recipes,
        source=recipes.REPORT,
        picture=Markup(recipe_picture(report, is_file=False)) if report.deployments else "",
    )


def recipe_picture(report: RecipeReport, is_file: bool = True) -> str:
    """Return quality against speed of the networks of a recipe in SVG, for a file or a page."""
    batch = max(deployments.batches(report.deployments))
    axes = f"times as fast as the teacher in float32 ({words.images(batch)})", f"test {recipes.judged(report)}, percent"
    return picture(recipes.series(report, batch), axes, is_file)


def picture(series: Mapping[str, Sequence[tuple[float, float]]], axes: tuple[str, str], is_file: bool = True) -> str:
    """Return points (x, y), those of each series joined by a line, in SVG, for a file or a page.

    Args:
        series: the points, by name.
        axes: what x and y are.
        is_file: whether it is a file of its own.
    """
    return render("front.svg.j2", plot=plots.of_points(series), axes=axes, is_file=is_file)


def render(template: str, **content: Any) -> str:
    """Return a page: a template with its content, with the shared layout."""
    script = resources.files("pbd.report").joinpath("templates/sort.js").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    named = {"source": "report.json", **content}
    return _environment().get_template(template).render(named, script=Markup(script), script_digest=digest)


@functools.cache
def _environment() -> jinja2.Environment:
    """Return the Jinja environment, cached because compiling templates is slower than rendering."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pbd.report"),
        autoescape=True,  # names of layers, paths and settings come from the user
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= dict(inspect.getmembers(words, inspect.isfunction))
    environment.tests |= {"slower": words.is_slower, "in_int8": deployments.is_int8}
    environment.globals |= {"deployments": deployments, "classes": classes}
    return environment


def title(report: RunReport | RecipeReport) -> str:
    """Return the names of the teacher and the data set."""
    teacher, dataset = (str(report.config.get(name, "")) for name in ("teacher", "dataset"))
    return f"{PurePath(teacher).stem or 'teacher'} on {PurePath(dataset).stem or 'data'}"


def candidates(report: RunReport) -> list[tuple[str, CandidateReport]]:
    """Return each candidate with its layer; empty if no layer has several."""
    if all(len(row.candidates) < 2 for row in report.blocks):
        return []
    return [(row.layer, candidate) for row in report.blocks for candidate in row.candidates]


def layer_plots(report: RunReport, history: str, first: int) -> list[tuple[str, float | None, plots.Plot]]:
    """Return name, last value and plot of each layer with a history, all on one logarithmic scale.

    Args:
        report: the report of the run.
        history: `loss_history` or `nmse_history`.
        first: the epoch of the history's first value.
    """
    rows = {row.layer: getattr(row, history) for row in report.blocks if getattr(row, history)}
    scale = plots.Scale.around([value for values in rows.values() for value in values], log=True)
    return [(layer, row[-1], plots.over_epochs({"": row}, first, scale, SMALL)) for layer, row in rows.items()]


def tuning_plots(report: RunReport) -> list[tuple[str, plots.Plot]]:
    """Return headings and plots of fine-tuning: validation accuracy (epoch 0: as assembled) and training loss."""
    history = report.fine_tune_history
    if not history:
        return []
    judged = "accuracy" if report.student.val_accuracy is not None else "agreement"
    student = [getattr(report.assembled, f"val_{judged}"), *(row.get(f"val_{judged}") for row in history)]
    teacher = getattr(report.teacher, f"val_{judged}")
    lines = {"student": student, "teacher": [teacher] * len(student)}
    percents = {name: [None if value is None else 100 * value for value in line] for name, line in lines.items()}
    losses = {"loss": [row.get("loss") for row in history]}
    positive = all(value is not None and value > 0 for value in losses["loss"])
    return [
        (f"Validation {judged}, percent", plots.over_epochs(percents, first=0)),
        ("Training loss", plots.over_epochs(losses, first=1, log=positive)),
    ]


def bar_charts(reports: Mapping[str, RunReport], judged: str) -> list[tuple[str, list[tuple[str, float, str]]]]:
    """Return captions and bars (name, length, text) that compare runs; a chart without any value is left out."""
    charts: list[tuple[str, Callable[[RunReport], float | None], Callable[[Any], str]]] = [
        (f"test {judged}", lambda run: getattr(run.student, f"test_{judged}"), words.percent),
        ("multiply-accumulates per image", lambda run: run.student.macs, words.count),
        ("total wall time", lambda run: run.timing.total_s, words.duration),
        ("energy", lambda run: run.energy.get("total_j"), lambda value: words.count(value, "J")),
    ]
    filled = [
        (caption, {name: value_of(run) for name, run in reports.items()}, text) for caption, value_of, text in charts
    ]
    return [
        (caption, [(name, value or 0.0, text(value)) for name, value in values.items()])
        for caption, values, text in filled
        if any(values.values())
    ]


def energy_rows(energy: Mapping[str, Any], prefix: str = "", unit: str = "") -> Iterator[tuple[str, str]]:
    """Yield the label and the text of each measured quantity, nested ones with the labels above them.

    The unit is the last part of a field's name (`total_j`); without one, it is the unit of the field above.
    """
    for name, value in energy.items():
        stem, _, ending = str(name).rpartition("_")
        its_unit = ending if stem and ending in UNITS else "s" if name == "seconds" else unit
        label = prefix + (stem if stem and ending in UNITS else str(name)).replace("_", " ")
        if isinstance(value, Mapping):
            yield from energy_rows(value, f"{label}: ", its_unit)
        elif prefix or name not in ENERGY_TEXT_FIELDS:
            yield label, _with_unit(value, its_unit)


def _with_unit(value: Any, unit: str) -> str:
    if value is None:
        return words.ABSENT
    if unit and isinstance(value, int | float):
        return words.duration(value) if unit == "s" else words.count(value, unit.upper())
    return str(value)

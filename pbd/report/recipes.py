"""The text of a recipe: a headline, and a table with a row for each network."""

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pbd.records.recipe_report import QuantizedReport, RecipeReport, StepReport
from pbd.report import deployments
from pbd.report.deployment_table import DeploymentTable
from pbd.report.plain_text import plain_text
from pbd.report.words import count, duration, percent, points

REPORT = "recipe.json"
_TEACHER = "teacher"


def render(report: RecipeReport, width: int = 120) -> str:
    """Return the summary as plain text, for `summary.txt`."""
    return plain_text(summary(report), width)


def summary(report: RecipeReport) -> Group:
    """Return the summary for a terminal: the result, a row for each network, and the networks in their targets."""
    deployed: list[RenderableType] = [Text(""), DeploymentTable(report.deployments)] if report.deployments else []
    events = [Text(event) for event in report.events]
    events += [Text(f"{step.name}: {event}") for step in report.steps for event in step.events]
    return Group(Text(headline(report), style="bold"), Text(""), _table(report), *deployed, *events)


def judged(report: RecipeReport) -> str:
    """Return what networks are compared by: `accuracy`, or without labels `agreement` with the first network."""
    return "accuracy" if report.reference == "labels" else "agreement"


def quality(report: RecipeReport, step: StepReport, split: str) -> float:
    """Return the accuracy or agreement of a network on `val` or `test` images, in [0, 1]."""
    return getattr(step.network, f"{split}_{judged(report)}")


def judged_file(step: StepReport) -> QuantizedReport | None:
    """Return the file in 8-bit integers by which a step is judged, its worst one; `None` if it wrote none."""
    return min(step.quantized, key=lambda file: file.val_score, default=None)


def headline(report: RecipeReport) -> str:
    """Return which network is the result, and why it is not the last one if it is not."""
    *_, last = report.steps
    (result,) = (step for step in report.steps if step.name == report.result)
    first = report.steps[0]
    kept = f"{percent(quality(report, result, 'test'))} test {judged(report)}"
    change = points(quality(report, first, "test"), quality(report, result, "test"))
    text = f"The result is the network of step {result.name}: {kept} ({change})."
    if result.name == _TEACHER:
        text = "No step keeps within max_drop: the result is the first network."
    for file in result.quantized:
        change = points(quality(report, first, "test"), file.test_score)
        text += f" Its file in 8-bit integers, {file.path}, has {percent(file.test_score)} ({change})."
    if last is not result and report.max_drop is not None:
        worst, allowed = judged_file(last), percent(report.max_drop)
        lost = quality(report, first, "val") - (quality(report, last, "val") if worst is None else worst.val_score)
        where = "" if worst is None else " in 8-bit integers"
        text += f" Step {last.name} loses {percent(lost)} of validation {judged(report)}{where}; {allowed} may be lost."
    return text


def _table(report: RecipeReport) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("network", no_wrap=True)
    for name in headings(report):
        table.add_column(name.replace(" ", "\n"), justify="right", no_wrap=True)
    for step in report.steps:
        mark = " *" if step.name == report.result else ""
        table.add_row(f"{step.name}{mark}", *(text for _, text in cells(report, step)))
    return table


def headings(report: RecipeReport) -> list[str]:
    """Return the headings of the columns behind the name of a network."""
    in_int8 = [f"8-bit {judged(report)}"] if _has_files(report) else []
    zeros = ["not zero"] if _has_zeros(report) else []
    energy = ["energy"] if any(step.energy_j is not None for step in report.steps) else []
    qualities = [f"test {judged(report)}", "change, points", *in_int8, "agreement"]
    return [*qualities, "parameters", *zeros, "MACs", "time", *energy]


def cells(report: RecipeReport, step: StepReport) -> Iterator[tuple[float | None, str]]:
    """Yield the value and the text of each of these columns."""
    first, network = report.steps[0], step.network
    tested, before = quality(report, step, "test"), quality(report, first, "test")
    yield tested, percent(tested)
    yield tested - before, "-" if step is first else points(before, tested).removesuffix(" points")
    if _has_files(report):
        file = judged_file(step)
        yield (None, "-") if file is None else (file.test_score, percent(file.test_score))
    yield network.test_agreement, percent(network.test_agreement)
    yield network.params, count(network.params)
    if _has_zeros(report):
        yield step.nonzero_params, count(step.nonzero_params)
    yield network.macs, count(network.macs)
    yield step.seconds, "-" if step is first else duration(step.seconds)
    if any(each.energy_j is not None for each in report.steps):
        yield step.energy_j, "-" if step.energy_j is None else count(step.energy_j, "J")


def _has_files(report: RecipeReport) -> bool:
    """Return whether a step wrote 8-bit integers: their accuracy differs from that of its network, and is a column."""
    return any(step.quantized for step in report.steps)


def _has_zeros(report: RecipeReport) -> bool:
    """Return whether a step has set weights to zero: the numbers of weights that are not zero are worth a column."""
    return any(step.nonzero_params < 0.99 * step.network.params for step in report.steps)


def series(report: RecipeReport, batch: int) -> dict[str, list[tuple[float, float]]]:
    """Return (times as fast as the teacher, quality in percent) of the networks in each target, in order of the steps.

    Args:
        report: the report of the recipe.
        batch: images in a pass.
    """
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in report.deployments:
        latency = deployments.at_batch(row, batch)
        if latency is not None:
            reached = row.test_agreement if row.test_accuracy is None else row.test_accuracy
            name = f"{'teacher' if row.model == _TEACHER else 'steps'}, {row.target}"
            lines.setdefault(name, []).append((latency.times_as_fast, 100 * reached))
    return lines

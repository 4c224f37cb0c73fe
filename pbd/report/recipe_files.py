"""The files of a recipe: `recipe.json`, and `summary.txt`, `recipe.html` and `recipe.svg` made from it."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from pbd.errors import CorruptStateError, MissingInputError
from pbd.records import ModelFacts
from pbd.records.recipe_report import QuantizedReport, RecipeReport, StepReport
from pbd.report import files, recipes
from pbd.report.files import deployment, json_safe
from pbd.report.recipes import REPORT
from pbd.run_dir.journal import Journal

PAGE = "recipe.html"
PICTURE = "recipe.svg"


def write(report: RecipeReport, journal: Journal) -> list[str]:
    """Write the files of the report into the run directory; return the names of all files of the result."""
    from pbd.report import page  # imports the template engine

    journal.write_bytes("summary.txt", recipes.render(report).encode())
    journal.write_json(REPORT, json_safe(asdict(report)))
    journal.write_bytes(PAGE, page.of_recipe(report).encode())
    if report.deployments:
        journal.write_bytes(PICTURE, page.recipe_picture(report).encode())
    networks = [str(step.network.path) for step in report.steps]
    return ["student.keras", "summary.txt", REPORT, PAGE, *[PICTURE] * bool(report.deployments), *networks]


def read(journal: Journal) -> RecipeReport:
    """Return the report of a complete recipe, as it was written.

    Raises:
        MissingInputError: the directory has no such report.
        CorruptStateError: it is damaged.
    """
    try:
        return from_json(json.loads(journal.file(REPORT).read_bytes()))
    except PermissionError as error:
        raise files.unreadable(journal.file(REPORT), error) from error
    except OSError as error:
        raise MissingInputError(f"there is no complete recipe in {journal.path}. Give its command again.") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise damaged(journal) from error


def damaged(journal: Journal) -> CorruptStateError:
    """Return the error for a recipe whose `recipe.json` is damaged."""
    return CorruptStateError(
        f"{journal.file(REPORT)} is damaged. Give the command of the recipe again, with --resume --run-dir "
        f"{shlex.quote(str(journal.path))}."
    )


def from_json(content: Mapping[str, Any]) -> RecipeReport:
    """Return the report with this content."""
    steps = tuple(_step(row) for row in content["steps"])
    return RecipeReport(**{**content, "steps": steps} | {name: tuple(content[name]) for name in ("targets", "events")})


def _step(row: Mapping[str, Any]) -> StepReport:
    changes = {
        "network": ModelFacts(**row["network"]),
        "events": tuple(row["events"]),
        "deployments": tuple(deployment(each) for each in row["deployments"]),
        "quantized": tuple(QuantizedReport(**each) for each in row.get("quantized", ())),
    }
    return StepReport(**{**row, **changes})

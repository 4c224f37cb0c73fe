"""The house keeps its shape: imports run downward only, and heavy libraries stay where they belong."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import PATIENCE_S

pytestmark = pytest.mark.fast

PACKAGE = Path(__file__).resolve().parents[1] / "pbd"
FLOORS = (
    {"errors", "records", "teamwork", "packing", "launcher"},
    {"config", "watchdog"},
    {"scheduling", "journal", "energy", "progress", "decisions", "decoupling", "stopping", "run_lock"},
    {"completion", "joules"},
    {"report"},
    {"backend", "devices", "model_checks"},
    {"datasets"},
    {"evaluation", "blocks", "losses", "flat_adam"},
    {"data_parallel", "model_files", "bookmarks"},
    {"graph", "fitting"},
    {"initialisation", "ghost_batches", "folding", "variants"},
    {"scoring", "fine_tuning", "latency"},
    {"distilling", "student", "teachers"},
    {"training"},
    {"layer_timing", "memory"},
    {"calibration"},
    {"executors", "preparation", "shared_work"},
    {"planning", "crew"},
    {"pipeline"},
    {"run", "status"},
)
"""From the ground up; a module may import from the floors below it, and from its own package."""
FLOOR_OF = {name: number for number, floor in enumerate(FLOORS) for name in floor}
KNOWS_MPI = {"executors/mpi.py", "executors/mpi_team.py", "executors/mpi_world.py"}
KNOWS_DASK = {f"executors/dask_{part}.py" for part in ("cluster", "connection", "team", "worker")}
MAY_IMPORT_TENSORFLOW = {"datasets", "devices"}


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def home(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(tree: ast.AST, top_level_only: bool = False) -> Iterator[str]:
    """Yield the dotted names that a module imports, those under TYPE_CHECKING aside."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif not (top_level_only and isinstance(node, ast.FunctionDef)):
            yield from imported(node, top_level_only)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_downward(path: Path) -> None:
    here = home(path)
    assert here in FLOOR_OF, f"{here} has no floor: give it one in FLOORS"
    for name in imported(ast.parse(path.read_text())):
        parts = name.split(".")
        if parts[0] != "pbd" or len(parts) < 2 or parts[1] in (here, "__version__"):
            continue
        assert FLOOR_OF[parts[1]] < FLOOR_OF[here], f"{here} must not import {name}"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_engines_stay_in_their_rooms(path: Path) -> None:
    tree = ast.parse(path.read_text())
    tops = {name.split(".")[0] for name in imported(tree)}
    where = str(path.relative_to(PACKAGE))
    assert "mpi4py" not in tops or where in KNOWS_MPI
    assert not tops & {"dask", "distributed"} or where in KNOWS_DASK
    assert "tensorflow" not in tops or home(path) in MAY_IMPORT_TENSORFLOW
    at_import = {name.split(".")[0] for name in imported(tree, top_level_only=True)}
    assert not at_import & {"tensorflow", "mpi4py"}, "heavy libraries are imported inside functions"


@pytest.mark.parametrize(
    "statement",
    [
        "import pbd; pbd.RunConfig; pbd.RunReport; pbd.distill",
        "import pbd.scheduling.schedulers, pbd.scheduling.simulate, pbd.report, pbd.journal, pbd.decisions",
        "import pbd.run; pbd.run.parse(['--epochs', '3'])",
    ],
)
def test_nothing_heavy_before_it_is_needed(statement: str) -> None:
    heavy = {"tensorflow", "keras", "mpi4py", "dask", "sklearn", "jinja2", "matplotlib"}
    check = f"import sys; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", f"{statement}; {check}"], check=True, timeout=PATIENCE_S)

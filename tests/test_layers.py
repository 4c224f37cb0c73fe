"""The house keeps its shape: imports run downward only, and heavy libraries stay where they belong."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.cluster import PATIENCE_S

pytestmark = pytest.mark.fast

PACKAGE = Path(__file__).resolve().parents[1] / "pbd"
LINES = (
    {"errors", "records", "collective"},
    {"config", "command_line", "progress", "system", "run_dir", "scheduling", "energy"},
    {"data", "networks", "blocks", "executors", "report"},
    {"learning", "deploy"},
    {"blockwise", "student", "analysis"},
    {"costs"},
    {"pipeline", "status"},
    {"compress"},
    {"run", "cli"},
)
"""The import order of DESIGN.md: a folder may import folders on earlier lines, and itself."""
LINE_OF = {name: number for number, line in enumerate(LINES) for name in line}
KNOWS_MPI, KNOWS_DASK = "executors/mpi/", "executors/dask/"
MAY_IMPORT_TENSORFLOW = ("data/", "deploy/", "system/memory.py")


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
    assert here in LINE_OF, f"{here} is on no line: add it to LINES"
    for name in imported(ast.parse(path.read_text())):
        parts = name.split(".")
        if parts[0] != "pbd" or len(parts) < 2 or parts[1] in (here, "__version__"):
            continue
        assert LINE_OF[parts[1]] < LINE_OF[here], f"{here} must not import {name}"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_engines_stay_in_their_rooms(path: Path) -> None:
    tree = ast.parse(path.read_text())
    tops = {name.split(".")[0] for name in imported(tree)}
    where = str(path.relative_to(PACKAGE))
    assert "mpi4py" not in tops or where.startswith(KNOWS_MPI)
    assert not tops & {"dask", "distributed"} or where.startswith(KNOWS_DASK)
    assert "tensorflow" not in tops or where.startswith(MAY_IMPORT_TENSORFLOW)
    at_import = {name.split(".")[0] for name in imported(tree, top_level_only=True)}
    assert not at_import & {"tensorflow", "mpi4py"}, "heavy libraries are imported inside functions"


@pytest.mark.parametrize(
    "statement",
    [
        "import pbd; pbd.RunConfig; pbd.RunReport; pbd.distill",
        "import pbd.scheduling.schedulers, pbd.scheduling.simulate, pbd.report, pbd.run_dir.journal, pbd.report.rows",
        "import pbd.run; pbd.run.parse(['--epochs', '3'])",
    ],
)
def test_nothing_heavy_before_it_is_needed(statement: str) -> None:
    heavy = {"tensorflow", "keras", "mpi4py", "dask", "sklearn", "jinja2", "matplotlib"}
    check = f"import sys; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", f"{statement}; {check}"], check=True, timeout=PATIENCE_S)
